"""The discrete Fourier transform of small square maps and kernels, as matrix products.

For 32 -> 64 channels of 5x5 kernels on 14x14 maps a convolution in the frequency domain needs a seventh of
the multiplications of the direct sum (Mathieu, Henaff, LeCun, "Fast training of convolutional networks
through FFTs", ICLR 2014). The maps are so small that the transform is best done as two products with constant
matrices, which run at the full speed of the processor. "Same" padding only needs a period of
size + kernel_size // 2: what wraps around falls on the padding. Errors are float32 rounding, like those of
the direct sum in another order.

All maps are (height, width, channel, batch): every product then has contiguous rows, and nothing is ever
transposed.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch


class Transforms(NamedTuple):
    """Constant matrices of a real 2-D DFT of period P, h = P / 2, on n x n maps, and of k x k kernels.

    The spectrum of a real map is given by the F = (h - 1) P + 2 (h + 1) frequencies (k1, k2) with k1 in
    1..h-1 and any k2, then k1 in {0, h} with k2 in 0..h; each is a pair (real, imaginary).

    Attributes:
        rows: (P, n), over the first axis: pairs for k1 = 1..h-1, then k1 = 0 and k1 = h, which are real.
        complex_columns: (2P, 2n), over the second axis of pairs.
        real_columns: (2(h+1), n), over the second axis of real rows.
        rows_back, complex_columns_back, real_columns_back: the inverses, cropped to the map.
        kernel: (2F, k*k), kernel to spectrum; kernel_back: (k*k, 2F), spectrum to kernel.
        num_frequencies: F.
    """

    rows: torch.Tensor
    complex_columns: torch.Tensor
    real_columns: torch.Tensor
    rows_back: torch.Tensor
    complex_columns_back: torch.Tensor
    real_columns_back: torch.Tensor
    kernel: torch.Tensor
    kernel_back: torch.Tensor
    num_frequencies: int


@lru_cache(maxsize=16)
def transforms(size: int, kernel_size: int, dtype: torch.dtype = torch.float32) -> Transforms:
    """Return the matrices for `size` x `size` maps and "same" convolutions of odd `kernel_size`.

    Those of the maps are of type `dtype`, those of the kernels float32.
    """
    period = size + kernel_size // 2
    period += period % 2
    half = period // 2

    def angle(frequency: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        # Reduced before the division, in whole numbers: exact however large the product.
        return (frequency[:, None] * place[None, :]) % period * (2.0 * math.pi / period)

    place = torch.arange(size)
    inner = angle(torch.arange(1, half), place).double()
    edge = angle(torch.tensor([0, half]), place).double()
    rows = torch.cat([torch.stack([inner.cos(), -inner.sin()], 1).flatten(0, 1), edge.cos()])
    every = angle(torch.arange(period), place).double()
    cos, sin = every.cos(), every.sin()
    complex_columns = torch.stack([torch.cat([cos, sin], 1), torch.cat([-sin, cos], 1)], 1).flatten(0, 1)
    few = angle(torch.arange(half + 1), place).double()
    real_columns = torch.stack([few.cos(), -few.sin()], 1).flatten(0, 1)
    # Frequencies left out are the conjugates of those kept: these count twice on the way back.
    row_weight = torch.ones(period, dtype=torch.float64)
    row_weight[: 2 * (half - 1)] = 2.0
    column_weight = torch.full((half + 1,), 2.0, dtype=torch.float64)
    column_weight[[0, half]] = 1.0
    column_weight = column_weight.repeat_interleave(2)

    first = torch.cat(
        [
            torch.arange(1, half).repeat_interleave(period),
            torch.tensor([0, half]).repeat_interleave(half + 1),
        ]
    )
    second = torch.cat([torch.arange(period).repeat(half - 1), torch.arange(half + 1).repeat(2)])
    shift = kernel_size // 2 - torch.arange(kernel_size)
    turn = (first[:, None, None] * shift[:, None] + second[:, None, None] * shift) % period
    phase = (turn.double() * (2.0 * math.pi / period)).flatten(1)
    kernel = torch.stack([phase.cos(), -phase.sin()], 1).flatten(0, 1)
    pairs = 2 * (half - 1) * period
    kernel_weight = torch.cat([torch.full((pairs,), 2.0, dtype=torch.float64), column_weight.repeat(2)])

    def cast(matrix: torch.Tensor, dtype: torch.dtype = dtype) -> torch.Tensor:
        return matrix.to(dtype).contiguous()

    return Transforms(
        rows=cast(rows),
        complex_columns=cast(complex_columns),
        real_columns=cast(real_columns),
        rows_back=cast((rows * row_weight[:, None]).T / period**2),
        complex_columns_back=cast(complex_columns.T),
        real_columns_back=cast((real_columns * column_weight[:, None]).T),
        kernel=cast(kernel, torch.float32),
        kernel_back=cast((kernel * kernel_weight[:, None]).T / period**2, torch.float32),
        num_frequencies=(half - 1) * period + 2 * (half + 1),
    )


def to_spectrum(maps: torch.Tensor, matrices: Transforms) -> torch.Tensor:
    """Transform (n, n, c, b) maps to (F, 2c, b): for each frequency the real, then the imaginary parts."""
    size, _, channels, batch = maps.shape
    period = matrices.rows.shape[0]
    inner, each = period // 2 - 1, channels * batch
    rows = torch.mm(matrices.rows, maps.reshape(size, size * each))
    spectrum = maps.new_empty(2 * matrices.num_frequencies, each)
    split = 2 * inner * period
    torch.bmm(
        matrices.complex_columns.expand(inner, -1, -1),
        rows[: 2 * inner].view(inner, 2 * size, each),
        out=spectrum[:split].view(inner, 2 * period, each),
    )
    torch.bmm(
        matrices.real_columns.expand(2, -1, -1),
        rows[2 * inner :].view(2, size, each),
        out=spectrum[split:].view(2, period + 2, each),
    )
    return spectrum.view(matrices.num_frequencies, 2 * channels, batch)


def from_spectrum(spectrum: torch.Tensor, matrices: Transforms) -> torch.Tensor:
    """Transform (F, 2c, b) back to (n, n, c, b) maps."""
    batch, channels = spectrum.shape[2], spectrum.shape[1] // 2
    period, size = matrices.rows.shape
    inner, each = period // 2 - 1, channels * batch
    split = 2 * inner * period
    flat = spectrum.view(2 * matrices.num_frequencies, each)
    rows = spectrum.new_empty(period, size * each)
    torch.bmm(
        matrices.complex_columns_back.expand(inner, -1, -1),
        flat[:split].view(inner, 2 * period, each),
        out=rows[: 2 * inner].view(inner, 2 * size, each),
    )
    torch.bmm(
        matrices.real_columns_back.expand(2, -1, -1),
        flat[split:].view(2, period + 2, each),
        out=rows[2 * inner :].view(2, size, each),
    )
    return torch.mm(matrices.rows_back, rows).view(size, size, channels, batch)
