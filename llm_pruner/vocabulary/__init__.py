"""The vocabulary: which tokens stay, the tokenizer rewritten for them, and their rows of the embeddings and lm_head."""
