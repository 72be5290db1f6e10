"""What is made sparse and how: plain data, in the options, in a checkpoint's configuration and in a report."""

from dataclasses import asdict, dataclass, fields
from typing import Any

ACTIVATIONS, WEIGHTS = "activations", "weights"
TOKEN, THRESHOLD = "token", "threshold"
MAGNITUDE, WANDA, L_CRITERION = "magnitude", "wanda", "l"
NONE, VARIANCE, SHIFT, LEARNABLE = "none", "variance", "shift", "learnable"
SPARSE, SELECTIONS, CRITERIA, TRANSFORMS = (
    (ACTIVATIONS, WEIGHTS), (TOKEN, THRESHOLD), (MAGNITUDE, WANDA, L_CRITERION), (NONE, VARIANCE, SHIFT, LEARNABLE),
)  # fmt: skip
TARGETS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True)
class Recipe:
    """sparse: what loses entries, the inputs of linear layers as they run, or their weights, once.
    n, m: n of every m neighbours along the input dimension stay; or ratio: this share goes, by `select` of every token
    or below a threshold calibrated for each linear layer (of weights: of every matrix, by `wanda` of every row).
    criterion: magnitude, |x|; wanda, |x_j|·‖W_:j‖₂ (of weights |W_ij|·‖x_j‖₂); l, |x_tj|·‖x_:j‖/‖x_t:‖.
    spread: the neighbours of n:m are not those of the weight, but so chosen for each linear layer that every m have
    strong and weak channels, see calibration.py. transform, scaling: see activations.py. causal: no token's result
    depends on others that it is computed with. targets: projections or regular expressions, see
    targets.py.
    """

    sparse: str = ACTIVATIONS
    n: int | None = None
    m: int | None = None
    ratio: float | None = None
    select: str = TOKEN
    criterion: str = MAGNITUDE
    transform: str = NONE
    scaling: bool = False
    spread: bool = False
    causal: bool = False
    targets: tuple[str, ...] = TARGETS

    def asdict(self) -> dict[str, Any]:
        return asdict(self) | {"targets": list(self.targets)}

    @classmethod
    def of(cls, options: Any) -> "Recipe":
        """From an object or a mapping that has its fields, and perhaps others."""
        given = options if isinstance(options, dict) else vars(options)
        values = {f.name: given[f.name] for f in fields(cls) if f.name in given}
        return cls(**{**values, "targets": tuple(values.get("targets", TARGETS))})

    @property
    def n_of_m(self) -> tuple[int, int] | None:
        """(n, m), of a recipe that says so many of so many."""
        return None if self.n is None or self.m is None else (self.n, self.m)

    @property
    def share(self) -> float:
        """The share that goes, of a recipe that says a ratio."""
        assert self.ratio is not None, "validate_recipe asks for n and m, or for ratio"
        return self.ratio

    @property
    def pattern(self) -> str:
        """Such as `8:16` or `0.5`."""
        return f"{self.n}:{self.m}" if self.m else f"{self.ratio:g}"

    @property
    def label(self) -> str:
        """A few words for tables."""
        own = self.transform != NONE
        words = ["act" if self.sparse == ACTIVATIONS else "weight", self.pattern]
        words += [self.select] * (self.select == THRESHOLD) + [self.criterion] * (self.criterion != MAGNITUDE)
        words += [self.transform] * own + ["scaling"] * self.scaling + ["spread"] * self.spread
        words += ["causal"] * (self.causal and (self.transform == VARIANCE or self.criterion == L_CRITERION))
        return " ".join(words) + (f" ({','.join(self.targets)})" if self.targets != TARGETS else "")

    @property
    def calibrated_l(self) -> bool:
        """Whether the channels' norms of the L criterion are the calibration text's."""
        return self.criterion == L_CRITERION and self.causal

    @property
    def needs_sample(self) -> bool:
        """Whether some of the tokens that a layer reads are needed, not only sums over them."""
        return self.calibrated_l or self.spread or self.select == THRESHOLD

    @property
    def needs_text(self) -> bool:
        """Whether calibration text is needed."""
        if self.sparse == WEIGHTS:
            return self.criterion == WANDA
        return self.needs_sample or self.scaling or self.transform == LEARNABLE
