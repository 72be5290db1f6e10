"""Recovery: training a pruned checkpoint by distillation from the dense model, or with LoRA adapters."""

__all__ = ["adapters", "losses", "run"]
