"""y = W x̂ for one token, by Triton: of W only the columns are read whose input survives.

A linear layer at batch 1 costs what reading its weight costs. W is stored so that a column, all that one input
channel multiplies, is contiguous; the selection is made in the same kernel, by every program for the channels that it
adds up. Two kernels: partial sums over shares of the channels, then their sum in a fixed order, so that the same input
gives the same bits. (The idea of a thresholding matrix-vector product is TEAL's, https://arxiv.org/abs/2408.14690.)
"""

import triton
import triton.language as tl

# which inputs survive: those that are not 0, those above a threshold, n of every m
ALL, THRESHOLD, N_OF_M = 0, 1, 2


@triton.jit
def partial_sums(
    x, shift, level, column_norm, threshold, order, weight, sums, inputs, outputs, share,
    SELECT: tl.constexpr, N: tl.constexpr, M: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
):  # fmt: skip
    """Store sums[s, i] = Σ_j W_ij z_j over the `share` channels j of part s, z_j = x_j − level · shift_j where kept."""
    column = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    part = tl.program_id(1)
    total = tl.zeros([INPUTS, OUTPUTS], tl.float32)
    for start in range(part * share, tl.minimum((part + 1) * share, inputs), INPUTS):
        row = start + tl.arange(0, INPUTS)
        inside = row < inputs
        if SELECT == 2 and order is not None:
            row = tl.load(order + row, mask=inside, other=0)
        z = tl.load(x + row, mask=inside, other=0.0).to(tl.float32)
        if shift is not None:
            centre = tl.load(shift + row, mask=inside, other=0.0)
            if level is not None:
                centre = centre * tl.load(level).to(tl.float32)
            z = z - centre
        scores = tl.abs(z)
        if column_norm is not None:
            scores = scores * tl.load(column_norm + row, mask=inside, other=0.0)
        if SELECT == 1:
            # so that NaN shows
            kept = inside & ~(scores <= tl.load(threshold))
        elif SELECT == 2:
            groups = tl.reshape(scores, [INPUTS // M, M])
            place = tl.arange(0, M)
            one, other = groups[:, :, None], groups[:, None, :]
            ahead = (other > one) | ((other == one) & (place[None, None, :] < place[None, :, None]))
            kept = inside & tl.reshape(tl.sum(ahead.to(tl.int32), 2) < N, [INPUTS])
        else:
            kept = inside & (z != 0)
        z = tl.where(kept, z, 0.0)
        read = kept[:, None] & (column < outputs)[None, :]
        tile = tl.load(weight + row[:, None] * outputs + column[None, :], mask=read, other=0.0).to(tl.float32)
        total += tile * z[:, None]
    tl.store(sums + part * outputs + column, tl.sum(total, 0), mask=column < outputs)


@triton.jit
def added_up(sums, offset, level, gain, bias, y, parts, outputs, OUTPUTS: tl.constexpr):
    """Store y = gain · (Σ_s sums[s] + level · offset) + bias of one program's outputs; None does not count."""
    column = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    inside = column < outputs
    total = tl.zeros([OUTPUTS], tl.float32)
    for part in range(parts):
        total += tl.load(sums + part * outputs + column, mask=inside, other=0.0)
    if offset is not None:
        moved = tl.load(offset + column, mask=inside, other=0.0)
        if level is not None:
            moved = moved * tl.load(level).to(tl.float32)
        total += moved
    if gain is not None:
        total = total * tl.load(gain).to(tl.float32)
    if bias is not None:
        total += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + column, total.to(y.dtype.element_ty), mask=inside)
