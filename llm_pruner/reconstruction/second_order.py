"""Which heads and neurons can go when what is left is fitted again: optimal brain surgeon on a projection's inputs.

With W A = B the normal equations (least_squares.py), leaving out the columns P raises the least squares error by
tr(W_P (A⁻¹_PP)⁻¹ W_Pᵀ), and what is left is fitted by W −= W_P (A⁻¹_PP)⁻¹ A⁻¹_P,: with A⁻¹ downdated alike.
Units go in rounds, because a unit that compensates for another one cannot do so when both are gone. (Hassibi and Stork
1993; for structures, ZipLM, Kurtic et al. 2023, https://arxiv.org/abs/2302.04089, and OSSCAR,
https://arxiv.org/abs/2403.12983.)
"""

import copy
import math

import torch

# of the regression that units are chosen in
RIDGE = 1e-2
ROUNDS = 8
# of the mean diagonal, where the matrix is not positive definite
SHIFTS = (1e-8, 1e-6, 1e-4, 1e-2)
LEAST = 1e-20


class Surgeon:
    """Removes units of neighbouring columns from the regression W A = B.

    A column beyond the units' goes never: it is the intercept's. `alive` are the units that are left, ascending, and
    `error` is the cost of all removals so far.

    Args:
        normal: A [n, n].
        right: B [out, n].
        width: Columns of a unit.
        units: How many units there are.
    """

    def __init__(self, normal: torch.Tensor, right: torch.Tensor, width: int, units: int) -> None:
        self.inverse = torch.cholesky_inverse(cholesky(normal))
        self.weight = right @ self.inverse
        self.width, self.alive = width, list(range(units))
        # what the removals have cost so far
        self.error = 0.0

    def costs(self) -> torch.Tensor:
        """Return what the removal of each unit that is alive would cost, on its own.

        Returns:
            [alive], in the dtype of the regression.
        """
        width, count = self.width, len(self.alive)
        columns = count * width
        blocks = self.inverse[:columns, :columns].view(count, width, count, width)
        # [count, width, width]
        own = blocks[torch.arange(count), :, torch.arange(count)]
        # [count, width, out]
        weight = self.weight[:, :columns].view(-1, count, width).permute(1, 2, 0)
        if width == 1:
            return weight[:, 0].square().sum(1) / _positive(own[:, 0, 0])
        # by Cholesky: LU of several blocks at once breaks where MKL's threads were set by torch.set_num_threads
        return torch.linalg.solve_triangular(cholesky(own), weight, upper=False).square().sum((1, 2))

    def remove(self, places: list[int]) -> None:
        """Remove units, and fit the others again.

        Args:
            places: Their places in `alive`.
        """
        gone = torch.zeros(self.inverse.shape[0], dtype=torch.bool)
        for place in places:
            gone[place * self.width : (place + 1) * self.width] = True
        gone = gone.to(self.inverse.device)
        block = self.inverse[gone][:, gone]
        taken = self.weight[:, gone]
        factor = cholesky(block)
        through = torch.cholesky_solve(self.inverse[gone][:, ~gone], factor)
        self.error += torch.linalg.solve_triangular(factor, taken.T, upper=False).square().sum().item()
        self.weight = self.weight[:, ~gone] - taken @ through
        rows = self.inverse[~gone]
        left, self.inverse = rows[:, gone], rows[:, ~gone]
        # a large model's are gigabytes
        del rows
        self.inverse -= left @ through
        removed = set(places)
        self.alive = [unit for place, unit in enumerate(self.alive) if place not in removed]

    def keep(self, count: int, rounds: int = ROUNDS) -> list[int]:
        """Remove the cheapest units until `count` are left, and return those.

        Args:
            count: How many stay.
            rounds: In how many rounds the others go.
        """
        total = len(self.alive) - count
        for turn in range(rounds):
            number = total * (turn + 1) // rounds - total * turn // rounds
            if number:
                self.remove(self._cheapest(number))
        return self.alive

    def _cheapest(self, number: int) -> list[int]:
        """Return the places of `number` units that go together.

        Of single columns each is the cheapest when those before it are gone, of twice as many as are the cheapest on
        their own. Of wider units they are the cheapest on their own.
        """
        places = self.costs().argsort(stable=True)
        if self.width > 1 or number == 1:
            return places[:number].tolist()
        pool = places[: 2 * number]
        inverse, weight = self.inverse[pool][:, pool], self.weight[:, pool]
        products, gone = weight.T @ weight, torch.zeros(len(pool), dtype=torch.bool, device=pool.device)
        for _ in range(number):
            one = (products.diagonal() / _positive(inverse.diagonal())).masked_fill(gone, math.inf).argmin()
            gone[one] = True
            through, product = inverse[one] / _positive(inverse[one, one]), products[one].clone()
            products.addr_(product, through, alpha=-1)
            products.addr_(through, product - product[one] * through, alpha=-1)
            inverse.addr_(inverse[one].clone(), through, alpha=-1)
        return pool[gone].tolist()

    def split(self, parts: int) -> None:
        """Make each unit several equal ones from here on.

        Args:
            parts: How many.
        """
        self.alive = [unit * parts + part for unit in self.alive for part in range(parts)]
        self.width //= parts

    def remove_one_of_each(self, groups: int) -> None:
        """Remove the cheapest unit of each of `groups` equal runs of `alive`."""
        size, costs = len(self.alive) // groups, self.costs()
        self.remove([start + int(costs[start : start + size].argmin()) for start in range(0, len(costs), size)])

    def copy(self) -> "Surgeon":
        """Return a copy that removes units on its own."""
        other = copy.copy(self)
        other.alive = list(self.alive)
        return other


def cholesky(normal: torch.Tensor) -> torch.Tensor:
    """Return the Cholesky factors of matrices, with as little added to their diagonals as it takes.

    Args:
        normal: [..., n, n], symmetric and but for rounding positive definite.

    Raises:
        LinAlgError: They hold NaN or Inf.
    """
    factor, failed = torch.linalg.cholesky_ex(normal)
    for shift in SHIFTS if failed.any() else ():
        added = (shift * normal.diagonal(dim1=-2, dim2=-1).mean(-1)).clamp_min(LEAST)[..., None, None]
        shifted = normal + added * torch.eye(normal.shape[-1], dtype=normal.dtype, device=normal.device)
        factor, failed = torch.linalg.cholesky_ex(shifted)
        if not failed.any():
            break
    if failed.any():
        raise torch.linalg.LinAlgError("the normal equations are not positive definite")
    return factor


def _positive(diagonal: torch.Tensor) -> torch.Tensor:
    """Of an inverse, which is positive but for rounding."""
    return diagonal.clamp_min(torch.finfo(diagonal.dtype).tiny)


def keep_neurons(normal: torch.Tensor, right: torch.Tensor, units: int, count: int) -> list[int]:
    """Choose the neurons that stay.

    Args:
        normal: A [n, n] of the output projection's regression.
        right: B [out, n].
        units: How many neurons there are.
        count: How many stay.

    Returns:
        Their indices, ascending.
    """
    return Surgeon(normal, right, 1, units).keep(count)


def keep_heads(
    normal: torch.Tensor, right: torch.Tensor, head_dim: int, kv_heads: int, per_group: int, count: int, each: int
) -> tuple[list[int], list[int]]:
    """Choose the heads that stay.

    Whole groups go first, one at a time, then one head at a time of every group that is left.

    Args:
        normal: A [n, n] of the output projection's regression.
        right: B [out, n].
        head_dim: Columns of a head.
        kv_heads: How many kv heads there are.
        per_group: How many query heads each of them serves.
        count: How many kv heads stay.
        each: How many query heads each of these serves then.

    Returns:
        Indices of the kv heads and of the query heads, ascending.
    """
    surgeon = Surgeon(normal, right, head_dim * per_group, kv_heads)
    groups = list(surgeon.keep(count, rounds=max(1, kv_heads - count)))
    surgeon.split(per_group)
    for _ in range(per_group - each):
        surgeon.remove_one_of_each(len(groups))
    return groups, surgeon.alive
