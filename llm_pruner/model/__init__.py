"""What a model of transformers is: families, axes, configuration, loading, groups, surgery, per-layer classes."""
