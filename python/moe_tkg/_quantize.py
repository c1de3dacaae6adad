# SPDX-License-Identifier: Apache-2.0
"""Weights in fewer bits: to MXFP4 by the rule of OCP, and to fp8 with a scale for each block or row.

Arithmetic on the numbers' bits, a chunk at a time so that it stays in a cache, on threads: NumPy lets them run.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, NamedTuple

import ml_dtypes
import numpy as np

from ._abi import DType, Status
from ._array import NUMPY_OF, View, view
from ._errors import error

CHUNK = 1 << 16  # values


class Quantized(NamedTuple):
    """Codes and scales, for ``Experts.pack``."""

    codes: np.ndarray
    scale: np.ndarray


class _Interface:
    """Memory of another array, for NumPy to look at."""

    def __init__(self, v: View, dtype: np.dtype):
        self.owner = v.owner
        self.__array_interface__ = {
            "version": 3,
            "data": (v.address, True),
            "shape": v.shape,
            "strides": v.strides,
            "typestr": dtype.str,
        }


def as_numpy(name: str, x: Any) -> np.ndarray:
    """Weights of bf16, f16 or f32 as NumPy sees them, without a copy; read only."""
    v = view(name, x)
    if v.dtype not in (DType.BF16, DType.F16, DType.F32):
        raise error(Status.DTYPE, f"{name}: has elements of {v.said}: must be bf16, f16 or f32 to be quantised")
    dtype = NUMPY_OF[v.dtype]
    bits = np.asarray(_Interface(v, np.dtype(f"u{dtype.itemsize}")))
    return bits.view(dtype)


def _threads() -> int:
    return max(1, min(32, len(os.sched_getaffinity(0))))


def _each(work: Callable[[int], None], first: range) -> None:
    if len(first) < 2:
        for i in first:
            work(i)
        return
    with ThreadPoolExecutor(_threads()) as pool:
        for _ in pool.map(work, first):  # raises what a piece raised
            pass


# ---- MXFP4 -------------------------------------------------------------------------------------------------------

# Halves of a unit in the last place of bf16, as differences of its bits from those of the scale: |x| rounds to code i or
# more where the difference is above the i-th.  Midpoints 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5; ties go to the even code.
_ABOVE = [-256, -64 - 1, 32, 96 - 1, 128 + 32, 128 + 96 - 1, 256 + 32]
_MANTISSA = 128
_LOW = 5  # blocks whose largest exponent is below: scales or values have no full exponents of bf16


def _bf16_bits(x: np.ndarray) -> np.ndarray:
    """The upper half of f32's bits; the lowest of them is set where it cuts anything off, which keeps ties apart."""
    if x.dtype == ml_dtypes.bfloat16:
        return np.ascontiguousarray(x).view(np.uint16)
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return (bits >> 16).astype(np.uint16) | ((bits & 0xFFFF) != 0)


def _mxfp4_tiny(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The definition, in float64, for blocks of very small numbers: codes [n, 32] and scales [n]."""
    x = np.asarray(x, np.float64)
    largest = np.abs(x).max(1)
    exponent = np.where(largest > 0, np.frexp(largest)[1] - 1, -200)
    scale = np.maximum(exponent - 2 + 127, 0)
    scaled = np.abs(x) / np.exp2(scale - 127.0)[:, None]
    code = np.zeros(x.shape, np.uint8)
    for midpoint, even in ((0.25, 0), (0.75, 1), (1.25, 0), (1.75, 1), (2.5, 0), (3.5, 1), (5.0, 0)):
        code += scaled >= midpoint if even else scaled > midpoint
    return code | (np.signbit(x).astype(np.uint8) << 3), scale.astype(np.uint8)


def _mxfp4(x: np.ndarray, codes: np.ndarray, scales: np.ndarray) -> None:
    """x [n, 32] to codes [n, 16] and scales [n]."""
    bits = _bf16_bits(x)
    size = bits & 0x7FFF
    largest = size.max(1) >> 7
    if largest.max(initial=0) == 255:
        raise error(Status.VALUE, "weights: hold an infinity or a NaN: cannot be quantised")
    scale = largest.astype(np.int16) - 2
    apart = size.view(np.int16) - (scale * _MANTISSA)[:, None]
    code = (apart > _ABOVE[0]).view(np.uint8)
    for above in _ABOVE[1:]:
        code += (apart > above).view(np.uint8)
    code |= (bits >> 12).astype(np.uint8) & 8
    tiny = largest < _LOW
    if tiny.any():
        code[tiny], scale[tiny] = _mxfp4_tiny(x[tiny])
    pairs = code.view(np.uint16)  # little-endian: the first of a pair is the lower byte
    codes[:] = (pairs | (pairs >> 4)).astype(np.uint8)
    scales[:] = scale.astype(np.uint8)


def quantize_mxfp4(weights: Any) -> Quantized:
    """Weights [..., k], k a multiple of 32, as OCP MXFP4: codes uint8 [..., k / 2], the first of a pair in the low 4 bits,
    and e8m0 scales uint8 [..., k / 32].

    A block's scale is 2^(floor(log2(largest)) - 2), not below 2^-127; values are rounded to the nearest code, ties to the
    even one, and to 6 beyond 6.  weights: bf16, f16 or f32, any strides; MoeValueError if one is not finite.
    """
    x = as_numpy("weights", weights)
    if x.ndim < 1 or x.shape[-1] % 32:
        raise error(Status.SHAPE, f"weights: has shape {list(x.shape)}: the last must be a multiple of 32")
    k = x.shape[-1]
    codes = np.empty((*x.shape[:-1], k // 2), np.uint8)
    scales = np.empty((*x.shape[:-1], k // 32), np.uint8)
    _pieces(x, k, lambda piece, at: _mxfp4_rows(piece, codes.reshape(-1, k // 2)[at], scales.reshape(-1, k // 32)[at]))
    return Quantized(codes, scales)


def _mxfp4_rows(x: np.ndarray, codes: np.ndarray, scales: np.ndarray) -> None:
    _mxfp4(x.reshape(-1, 32), codes.reshape(-1, 16), scales.reshape(-1))


def _pieces(x: np.ndarray, k: int, work: Callable[[np.ndarray, slice], None]) -> None:
    """work on some rows of [..., k] at a time, of one matrix each."""
    if x.size == 0:
        return
    rows = x.shape[-2] if x.ndim > 1 else 1
    matrices = x.reshape(1, 1, k) if x.ndim == 1 else x[None] if x.ndim == 2 else x
    step = max(1, CHUNK // k)
    outer = list(np.ndindex(matrices.shape[:-2]))
    starts = [(n, first) for n in range(len(outer)) for first in range(0, rows, step)]

    def run(i: int) -> None:
        n, first = starts[i]
        last = min(first + step, rows)
        work(matrices[outer[n]][first:last], slice(n * rows + first, n * rows + last))

    _each(run, range(len(starts)))


# ---- fp8 ---------------------------------------------------------------------------------------------------------

FP8_LARGEST = np.float32(448)
_FP8_NORMAL = 0x3C800000  # 2^-6 as f32
_FP8_REBIAS = (127 - 7) << 3


def _e4m3fn(x: np.ndarray) -> np.ndarray:
    """f32 of at most 448 to the nearest e4m3fn, ties to even."""
    bits = x.view(np.uint32)
    size = bits & np.uint32(0x7FFFFFFF)
    normal = ((size + np.uint32(0x7FFFF) + ((size >> np.uint32(20)) & np.uint32(1))) >> np.uint32(20)) - np.uint32(_FP8_REBIAS)
    small = np.rint(np.abs(x) * np.float32(512)).astype(np.uint32)  # multiples of 2^-9
    code = np.where(size < _FP8_NORMAL, small, np.minimum(normal, np.uint32(0x7E)))
    return (code | ((bits >> np.uint32(24)) & np.uint32(0x80))).astype(np.uint8)


def _fp8(x: np.ndarray, codes: np.ndarray, scale: np.ndarray, k: int) -> None:
    """n blocks' rows, x [n r, columns], to codes and scale [n, ceil(columns / k)]."""
    columns = x.shape[1]
    x = np.ascontiguousarray(x, np.float32).reshape(len(scale), -1, columns)
    largest = np.maximum.reduceat(np.abs(x).max(1), np.arange(0, columns, k), axis=1)
    if not np.isfinite(largest).all():
        raise error(Status.VALUE, "weights: hold an infinity or a NaN: cannot be quantised")
    scale[:] = np.where(largest > 0, np.maximum(largest / FP8_LARGEST, np.finfo(np.float32).tiny), np.float32(1))
    by = scale if k >= columns else np.repeat(scale, k, axis=1)[:, :columns]
    codes[:] = _e4m3fn(x / by[:, None]).reshape(codes.shape)


def quantize_fp8(weights: Any, block: tuple[int, int] | None = (128, 128)) -> Quantized:
    """Weights [..., rows, k] as e4m3fn, with f32 scales of blocks [..., ceil(rows / block[0]), ceil(k / block[1])], or with
    block None of rows, [..., rows].

    A scale is the block's largest value / 448 (1 for zeros), and codes are value / scale rounded to nearest, ties to even.
    weights: bf16, f16 or f32, any strides; MoeValueError if one is not finite.
    """
    x = as_numpy("weights", weights)
    if x.ndim < 2:
        raise error(Status.DIM, f"weights: has shape {list(x.shape)}: must be [..., rows, k]")
    rows, columns = x.shape[-2:]
    r, k = (1, max(columns, 1)) if block is None else block
    across, down = -(-columns // k), -(-rows // r)
    codes = np.empty(x.shape, np.uint8)
    scales = np.empty((*x.shape[:-2], down, across), np.float32)
    whole, step = rows // r, max(1, CHUNK // max(1, r * columns))  # in blocks of rows
    starts = [range(first, min(first + step, whole)) for first in range(0, whole, step)] + [range(whole, down)] * (whole < down)
    pieces = [(outer, part) for outer in np.ndindex(x.shape[:-2]) for part in starts] if columns else []

    def run(i: int) -> None:
        outer, part = pieces[i]
        at = slice(part.start * r, min(part.stop * r, rows))
        _fp8(x[outer][at], codes[outer][at], scales[outer][part.start : part.stop], k)

    _each(run, range(len(pieces)))
    codes = codes.view(ml_dtypes.float8_e4m3fn)
    return Quantized(codes, scales[..., 0] if block is None else scales)


# ---- a layer's weights -------------------------------------------------------------------------------------------


def requantized(weights: dict[str, Any], scales: dict[str, Any], is_transposed: bool, to: str) -> str:
    """Replaces each of weights, and its scale, by its quantised form, rows first; the name of the format."""
    if to not in ("mxfp4", "fp8"):
        raise error(Status.BAD_ENUM, f"requantize = {to!r}: must be 'mxfp4' or 'fp8'")
    for name, value in weights.items():
        if value is None:
            continue
        if scales[name] is not None:
            raise error(Status.UNSUPPORTED, f"requantize: {name} has a scale: only bf16, f16 and f32 can be requantised")
        many = isinstance(value, (list, tuple))
        done = []
        for e, one in enumerate(value if many else [value]):
            x = as_numpy(f"{name}[{e}]" if many else name, one)
            if is_transposed and x.ndim > 1:
                x = x.swapaxes(-1, -2)
            done.append(quantize_mxfp4(x) if to == "mxfp4" else quantize_fp8(x, None))
        weights[name] = [q.codes for q in done] if many else done[0].codes
        scales[name] = [q.scale for q in done] if many else done[0].scale
    return to
