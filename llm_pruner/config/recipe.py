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
    """What is made sparse, and how.

    Attributes:
        sparse: What loses entries: `activations`, the inputs of linear layers as they run, or `weights`, their
            matrices, once.
        n: How many of every m neighbours along the input dimension stay.
        m: See n.
        ratio: Instead of n and m, the share that goes: of every token's channels or, by `select`, below a threshold; of
            weights, of every matrix and, by `wanda`, of every row.
        select: `token`, or `threshold` for one that is calibrated for each linear layer.
        criterion: What ranks: `magnitude`, |x|; `wanda`, |x_j|·‖W_:j‖₂ (of weights |W_ij|·‖x_j‖₂); `l`,
            |x_tj|·‖x_:j‖/‖x_t:‖.
        transform: `none`, `variance`, `shift` or `learnable`; see sparsity/activations.py.
        scaling: Whether channels are scaled first; see sparsity/activations.py.
        permutation: Whether channels are permuted so that every m neighbours have strong and weak ones; see
            sparsity/calibration.py.
        causal: Whether the result of a token depends on no other token that it is computed with.
        targets: Which linear layers: projections or regular expressions; see sparsity/targets.py.
    """

    sparse: str = ACTIVATIONS
    n: int | None = None
    m: int | None = None
    ratio: float | None = None
    select: str = TOKEN
    criterion: str = MAGNITUDE
    transform: str = NONE
    scaling: bool = False
    permutation: bool = False
    causal: bool = False
    targets: tuple[str, ...] = TARGETS

    def asdict(self) -> dict[str, Any]:
        """Return the recipe as plain data."""
        return asdict(self) | {"targets": list(self.targets)}

    @classmethod
    def of(cls, options: Any) -> "Recipe":
        """Return the recipe that is in an object or a mapping, which may have other fields too."""
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
        words += [self.transform] * own + ["scaling"] * self.scaling + ["permutation"] * self.permutation
        words += ["causal"] * (self.causal and (self.transform == VARIANCE or self.criterion == L_CRITERION))
        return " ".join(words) + (f" ({','.join(self.targets)})" if self.targets != TARGETS else "")

    @property
    def calibrated_l(self) -> bool:
        """Whether the channels' norms of the L criterion are the calibration text's."""
        return self.criterion == L_CRITERION and self.causal

    @property
    def needs_sample(self) -> bool:
        """Whether some of the tokens that a layer reads are needed, not only sums over them."""
        return self.calibrated_l or self.permutation or self.select == THRESHOLD

    @property
    def needs_text(self) -> bool:
        """Whether calibration text is needed."""
        if self.sparse == WEIGHTS:
            return self.criterion == WANDA
        return self.needs_sample or self.scaling or self.transform == LEARNABLE
