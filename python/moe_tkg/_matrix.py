# SPDX-License-Identifier: Apache-2.0
"""Weights as checkpoints and models hold them, as matrices with strides: fused, interleaved, transposed, in many formats."""

from __future__ import annotations

import copy
import ctypes
from ctypes import c_void_p
from typing import Any

from . import _abi
from ._abi import DType, Status, lib, sized
from ._array import DTYPE_NAME, View, dtype_of, view
from ._errors import error

# Types of the weights' elements, and what bytes beside them are, by the names of formats.
_FORMATS = {
    "mxfp4": (DType.E2M1_X2, DType.E8M0),
    "nvfp4": (DType.E2M1_X2, DType.E4M3FN),
    "int4": (DType.INT4_X2, None),
    "fp8": (DType.E4M3FN, DType.E8M0),
}


def _format(name: str | None) -> tuple[DType | None, DType | None]:
    if name is None:
        return None, DType.E8M0
    if name in _FORMATS:
        return _FORMATS[name]
    return dtype_of(name), DType.E8M0


class Stack:
    """An array that every expert has one of: ``shape`` and ``strides`` are those of one expert's."""

    def __init__(self, name: str, x: Any, dtype: DType | None = None):
        self.name = name
        if isinstance(x, (list, tuple)):
            views = [view(f"{name}[{e}]", one, dtype) for e, one in enumerate(x)]
            if not views:
                raise error(Status.DIM, f"{name}: is an empty list: must hold an array for each expert")
            for e, v in enumerate(views):
                if (v.shape, v.strides, v.dtype) != (views[0].shape, views[0].strides, views[0].dtype):
                    raise error(
                        Status.SHAPE,
                        f"{name}[{e}]: has {v.said} {list(v.shape)}, strides {list(v.strides)}: must be as {name}[0], "
                        f"{views[0].said} {list(views[0].shape)}, strides {list(views[0].strides)}",
                    )
            self.keep: list[View] = views
            self.addresses: list[int] | None = [v.address for v in views]
            self.address = self.expert_stride = 0
            self.experts = len(views)
            self.shape, self.strides = views[0].shape, views[0].strides
        else:
            v = view(name, x, dtype)
            if not v.shape:
                raise error(Status.DIM, f"{name}: has no dimensions: the first must be experts")
            self.keep = [v]
            self.addresses = None
            self.address, self.expert_stride = v.address, v.strides[0]
            self.experts = v.shape[0]
            self.shape, self.strides = v.shape[1:], v.strides[1:]
        first = self.keep[0]
        self.dtype, self.itemsize = first.dtype, first.itemsize
        if self.dtype == DType.NONE:
            raise error(Status.DTYPE, f"{name}: has elements of {first.said}: say what they are by format=...")
        while len(self.shape) > 2 and self.strides[-2] == self.shape[-1] * self.strides[-1]:
            self.shape = (*self.shape[:-2], self.shape[-2] * self.shape[-1])
            self.strides = (*self.strides[:-2], self.strides[-1])

    def rank(self, most: int, what: str) -> None:
        if len(self.shape) > most:
            raise error(Status.DIM, f"{self.name}: has shape {[self.experts, *self.shape]}: must be {what}")

    def transposed(self) -> Stack:
        other = copy.copy(self)
        if len(self.shape) == 2:
            other.shape, other.strides = self.shape[::-1], self.strides[::-1]
        return other

    def rows(self, first: int, count: int, step: int = 1) -> Stack:
        """Rows first, first + step, ..."""
        other = copy.copy(self)
        offset = first * self.strides[0]
        other.address += offset
        if self.addresses is not None:
            other.addresses = [a + offset for a in self.addresses]
        other.shape = (count, *self.shape[1:])
        other.strides = (self.strides[0] * step, *self.strides[1:])
        return other

    def array(self, keep: list) -> _abi.Array:
        a = _abi.Array(dtype=self.dtype)
        if self.addresses is not None:
            pointers = (c_void_p * len(self.addresses))(*self.addresses)
            keep.append(pointers)
            a.experts = ctypes.cast(pointers, ctypes.POINTER(c_void_p))
        else:
            a.data, a.expert_stride = self.address, self.expert_stride
        if len(self.shape) == 2:
            a.row_stride, a.column_stride = self.strides
        elif len(self.shape) == 1:
            a.row_stride, a.column_stride = self.strides[0], self.itemsize
        else:
            a.row_stride, a.column_stride = 0, self.itemsize
        keep.append(self.keep)
        return a


def _per_row(s: Stack, rows: int) -> Stack | None:
    """[rows], [rows, 1], or one value; None: it is none of these."""
    one = copy.copy(s)
    if len(s.shape) == 2 and s.shape[1] == 1 and s.shape[0] in (1, rows):
        one.shape, one.strides = s.shape[:1], s.strides[:1]
    if one.shape == (1,) and rows != 1:
        one.shape, one.strides = (), ()
    return one if one.shape in ((), (rows,)) else None


class Part:
    """One matrix of every expert: weights, scale, scale of rows, bias; of a fused one the halves are two of these."""

    def __init__(self, name: str, weights: Any, scale: Any, row_scale: Any, bias: Any, transposed: bool, format: str | None):
        dtype, scale_dtype = _format(format)
        self.name = name
        self.weights = Stack(name, weights, dtype)
        self.weights.rank(2, "[E, rows, columns]")
        if len(self.weights.shape) != 2:
            raise error(
                Status.DIM, f"{name}: has shape {[self.weights.experts, *self.weights.shape]}: must be [E, rows, columns]"
            )
        self.scale = None if scale is None else Stack(f"{name}_scale", scale, scale_dtype)
        if transposed:
            self.weights = self.weights.transposed()
            self.scale = self.scale and self.scale.transposed()
        self.row_scale = None if row_scale is None else Stack(f"{name}_row_scale", row_scale)
        self.bias = None if bias is None else Stack(f"{name}_bias", bias)
        self.n = self.weights.shape[0]
        self.k = self.weights.shape[1] * max(1, lib.moe_dtype_k(self.weights.dtype))
        self.scale_k = self.scale_rows = 0

    def settle(self, block: tuple[int, int]) -> None:
        """What kind of scale it is, and whether shapes fit."""
        for what in ("scale", "row_scale", "bias"):
            s = getattr(self, what)
            if s is not None and s.experts != self.weights.experts:
                raise error(Status.SHAPE, f"{s.name}: has {s.experts} experts: must be {self.weights.experts}, as {self.name}")
        if self.bias is not None and self.bias.shape != (self.n,):
            raise error(Status.SHAPE, f"{self.bias.name}: has shape {[self.bias.experts, *self.bias.shape]}: must be [E, {self.n}]")
        if self.row_scale is not None:
            self.row_scale = self._rows_of(self.row_scale)
        if self.scale is not None:
            self._settle_scale(self.scale, block)

    def _rows_of(self, s: Stack) -> Stack:
        found = _per_row(s, self.n)
        if found is None:
            halves = s.shape == (2,) and self.name == "gate_up"
            if not halves:
                raise error(Status.SHAPE, f"{s.name}: has shape {[s.experts, *s.shape]}: must be [E, {self.n}] or [E]")
            found = s
        return found

    def _settle_scale(self, s: Stack, block: tuple[int, int]) -> None:
        if self.weights.dtype in (DType.E2M1_X2, DType.INT4_X2) or s.dtype == DType.E8M0:
            self.scale_k = {DType.E8M0: 32, DType.E4M3FN: 16}.get(s.dtype, 0)
            if not self.scale_k and len(s.shape) == 2 and s.shape[1]:
                self.scale_k = self.k // s.shape[1]
            want = (self.n, self.k // self.scale_k if self.scale_k else 0)
            if s.shape != want:
                raise error(Status.SHAPE, f"{s.name}: has shape {[s.experts, *s.shape]}: must be {[s.experts, *want]}")
            return
        if (found := _per_row(s, self.n)) is not None or (s.shape == (2,) and self.name == "gate_up"):
            self.scale = found or s
            return
        rows, k = block
        want = (-(-self.n // rows), -(-self.k // k))
        if s.shape != want:
            raise error(
                Status.SHAPE,
                f"{s.name}: has shape {[s.experts, *s.shape]}: must be [E], [E, {self.n}], or {[s.experts, *want]} for blocks "
                f"of {rows} rows and {k} columns",
            )
        self.scale_rows, self.scale_k = rows, k

    def half(self, which: int, concatenated: bool) -> Part:
        """The rows of gate (0) or up (1) of a fused one."""
        if self.n % 2:
            raise error(Status.SHAPE, f"{self.name}: has {self.n} rows: must be an even number, gate's and up's")
        n = self.n // 2
        other = copy.copy(self)
        first, step = (which * n, 1) if concatenated else (which, 2)
        other.weights = self.weights.rows(first, n, step)
        other.n = n
        for what in ("scale", "row_scale", "bias"):
            s = getattr(self, what)
            if s is None or s.shape == ():
                continue
            if s.shape == (2,) and self.n != 2:
                s = s.rows(which, 1)
                s.shape = s.strides = ()
            elif what == "scale" and self.scale_rows > 1:
                if not concatenated or n % self.scale_rows:
                    raise error(
                        Status.UNSUPPORTED,
                        f"{s.name}: blocks of {self.scale_rows} rows hold rows of both gate and up: give the two apart",
                    )
                s = s.rows(which * (n // self.scale_rows), n // self.scale_rows)
            else:
                s = s.rows(first, n, step)
            setattr(other, what, s)
        return other

    def matrix(self, keep: list) -> _abi.Matrix:
        m = _abi.Matrix(scale_k=self.scale_k, scale_rows=self.scale_rows)
        for what in ("weights", "scale", "row_scale", "bias"):
            s = getattr(self, what)
            if s is not None:
                setattr(m, what, s.array(keep))
        return m


def matrices(
    weights: dict[str, Any],
    scales: dict[str, Any],
    row_scales: dict[str, Any],
    biases: dict[str, Any],
    is_transposed: bool,
    is_concatenated: bool,
    format: str | None,
    down_format: str | None,
    block: tuple[int, int],
) -> tuple[_abi.ExpertsArgs, list]:
    """Arguments for moe_experts_create, and what keeps their memory."""
    fused = weights["gate_up"] is not None
    wanted = ("gate_up", "down") if fused else ("gate", "up", "down")
    for name, value in weights.items():
        if value is not None and name not in wanted:
            raise error(Status.UNSUPPORTED, f"{name}: is given beside gate_up, which holds it")
        if value is None and name in wanted and name != "gate":
            raise error(Status.NULL_ARG, f"{name} = None: is required")
    parts: dict[str, Part] = {}
    for name in weights:
        if weights[name] is None:
            for kind, given in (("scale", scales), ("row_scale", row_scales), ("bias", biases)):
                if given[name] is not None:
                    raise error(Status.UNSUPPORTED, f"{name}_{kind}: is given without {name}")
            continue
        part = Part(
            name,
            weights[name],
            scales[name],
            row_scales[name],
            biases[name],
            is_transposed,
            down_format if name == "down" else format,
        )
        part.settle(block)
        parts[name] = part
    if fused:
        both = parts.pop("gate_up")
        parts["gate"], parts["up"] = both.half(0, is_concatenated), both.half(1, is_concatenated)
    up, down = parts["up"], parts["down"]
    for name, part in parts.items():
        want = (up.weights.experts, down.n, up.n) if name != "down" else (up.weights.experts, up.k, up.n)
        if name == "down":
            got = (part.weights.experts, part.n, part.k)
            if got != want:
                raise error(Status.SHAPE, f"down: is [{got[0]}, {got[1]}, {got[2]}] in values: must be {list(want)}")
        elif (part.weights.experts, part.n, part.k) != (up.weights.experts, up.n, up.k):
            raise error(Status.SHAPE, f"{name}: is {[part.weights.experts, part.n, part.k]} in values: must be as up")
    args = sized(_abi.ExpertsArgs, E_L=up.weights.experts, H=up.k, I=up.n)
    keep: list = []
    for name, part in parts.items():
        setattr(args, name, part.matrix(keep))
    return args, keep
