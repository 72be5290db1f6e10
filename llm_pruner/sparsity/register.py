"""Registration of checkpoints with sparse activations with transformers. Imports nothing heavy.

Their configuration is the `quantization_config` of config.json, by which transformers replaces a model's linear layers
while it loads.
"""

from llm_pruner.model.after_import import after_import
from llm_pruner.model.families import SPARSE_ACTIVATIONS


def register() -> None:
    """Make `from_pretrained` load them as what they are. Without this it warns and loads the dense model."""
    after_import("transformers.quantizers.auto", _register)


def _register(auto) -> None:
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING.setdefault(SPARSE_ACTIVATIONS, _Deferred)
    auto.AUTO_QUANTIZER_MAPPING.setdefault(SPARSE_ACTIVATIONS, _quantizer)


class _Deferred:
    """Stands in for the configuration's class, which cannot be imported in the middle of transformers' own imports."""

    @staticmethod
    def from_dict(values, **kwargs):
        from llm_pruner.sparsity.saved import SparseActivationsConfig

        return SparseActivationsConfig.from_dict(values, **kwargs)


def _quantizer(*args, **kwargs):
    from llm_pruner.sparsity.saved import SparseActivations

    return SparseActivations(*args, **kwargs)
