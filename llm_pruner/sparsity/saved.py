"""Models with sparse activations as checkpoints.

The recipe is in config.json, the tensors of its sparse inputs beside the weights, and these are as they were.
transformers without this package warns and loads the dense model.
"""

from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from llm_pruner.config.recipe import Recipe
from llm_pruner.model.families import SPARSE_ACTIVATIONS
from llm_pruner.sparsity.decode import speed_up
from llm_pruner.sparsity.linear import make_sparse
from llm_pruner.sparsity.targets import targeted


class SparseActivationsConfig(QuantizationConfigMixin):
    """A recipe as transformers keeps it in config.json."""

    def __init__(self, quant_method: str = SPARSE_ACTIVATIONS, **recipe) -> None:
        self.quant_method = SPARSE_ACTIVATIONS
        self.recipe = Recipe.of(recipe)

    def to_dict(self) -> dict:
        return {"quant_method": SPARSE_ACTIVATIONS, **self.recipe.asdict()}


class SparseActivations(HfQuantizer):
    """Has `from_pretrained` build the linear layers that the recipe targets with sparse inputs."""

    requires_calibration = True

    def _process_model_before_weight_loading(self, model, **kwargs):
        recipe = self.quantization_config.recipe
        make_sparse(model, targeted(model, recipe.targets), recipe)
        strict = getattr(model, "_keep_in_fp32_modules_strict", None) or ()
        # whatever dtype the weights are loaded in
        model._keep_in_fp32_modules_strict = {*strict, "sparsity"}
        return model

    def _process_model_after_weight_loading(self, model, **kwargs):
        speed_up(model)
        return model

    def is_serializable(self, *args, **kwargs) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


def mark(model, recipe: Recipe) -> None:
    """Make `model.save_pretrained` write the recipe of a model that was made sparse in memory."""
    model.config.quantization_config = SparseActivationsConfig(**recipe.asdict())
    model.hf_quantizer = SparseActivations(model.config.quantization_config)
    model.is_quantized, model.quantization_method = True, SPARSE_ACTIVATIONS
