"""How good and how fast a model is: perplexity, zero-shot tasks, tokens per second."""

__all__ = ["perplexity", "run", "scores", "speed", "tasks", "zero_shot"]
