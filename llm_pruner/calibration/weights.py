"""What scores need of the weights: read once, in float32, in pieces that never double the memory."""

from collections.abc import Mapping

import torch

from llm_pruner.errors import RunError

# elements converted to float32 at a time: 16 MiB
CHUNK = 4_194_304


class Weights:
    """Sums over the parameters of a model, kept so that the groups that share a parameter read it once.

    Args:
        parameters: {name: tensor} on any device, in any floating dtype; nothing is changed.
    """

    def __init__(self, parameters: Mapping[str, torch.Tensor]) -> None:
        self.parameters = parameters
        self._sums: dict[str, tuple[torch.Tensor, ...]] = {}
        self._absolute: dict[str, torch.Tensor] = {}
        self._buffers: dict[torch.device, torch.Tensor] = {}

    @torch.no_grad()
    def squared_sums(self, name: str) -> tuple[torch.Tensor, ...]:
        """Return, for each axis of a parameter, Σ w² over the other axes.

        Args:
            name: The parameter.

        Returns:
            float32 [length of the axis], on the parameter's device, for each axis.

        Raises:
            RunError: The parameter holds NaN or Inf.
        """
        if name not in self._sums:
            self._sums[name] = self._square(name)
        return self._sums[name]

    @torch.no_grad()
    def absolute_means(self, name: str, axis: int) -> torch.Tensor:
        """Return the mean |w| over the other axis of a matrix.

        Args:
            name: The parameter.
            axis: 0 or 1.

        Returns:
            float32 [length of the axis], on the parameter's device.

        Raises:
            RunError: The parameter holds NaN or Inf.
        """
        if name not in self._absolute:
            weight = self.parameters[name].detach()
            weight = weight.T if axis == 0 else weight
            total = torch.zeros(weight.shape[1], dtype=torch.float32, device=weight.device)
            for piece in weight.split(max(1, CHUNK // weight.shape[1])):
                total += piece.float().abs().sum(0)
            if not torch.isfinite(total.sum()):
                self.check_finite(name)
            self._absolute[name] = total / weight.shape[0]
        return self._absolute[name]

    def _square(self, name: str) -> tuple[torch.Tensor, ...]:
        weight = self.parameters[name].detach()
        if weight.dim() == 1:
            sums: tuple[torch.Tensor, ...] = (weight.float().square(),)
        elif weight.dim() == 2:
            rows = torch.empty(weight.shape[0], dtype=torch.float32, device=weight.device)
            columns = torch.zeros(weight.shape[1], dtype=torch.float32, device=weight.device)
            step = max(1, CHUNK // weight.shape[1])
            for start in range(0, weight.shape[0], step):
                squares = self._float(weight[start : start + step]).square_()
                torch.sum(squares, 1, out=rows[start : start + step])
                columns += squares.sum(0)
            sums = (rows, columns)
        else:
            raise RunError(f"{name} has {weight.dim()} axes; only vectors and matrices are pruned")
        if not torch.isfinite(sums[0].sum()):
            self.check_finite(name)
        return sums

    def _float(self, piece: torch.Tensor) -> torch.Tensor:
        """A float32 copy in a buffer that is used again: fresh ones of this size fragment the C heap by gigabytes."""
        if piece.numel() > CHUNK:
            return piece.float()
        if piece.device not in self._buffers:
            self._buffers[piece.device] = torch.empty(CHUNK, dtype=torch.float32, device=piece.device)
        return self._buffers[piece.device][: piece.numel()].view(piece.shape).copy_(piece)

    @torch.no_grad()
    def check_finite(self, name: str) -> None:
        """Raise a RunError when the parameter holds NaN or Inf."""
        weight = self.parameters[name].detach()
        # one pass, no copy; overflow is looked at again
        if torch.isfinite(weight.sum(dtype=torch.float32)):
            return
        bad = int(sum((~torch.isfinite(piece)).sum() for piece in weight.flatten().split(CHUNK)))
        if bad:
            raise RunError(f"{name} holds {bad} values that are NaN or Inf; the checkpoint is broken")

    def check_all_finite(self) -> None:
        """Raise a RunError, naming the tensor, when any parameter that was not summed holds NaN or Inf."""
        for name in self.parameters:
            if name not in self._sums:
                self.check_finite(name)
