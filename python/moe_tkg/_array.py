# SPDX-License-Identifier: Apache-2.0
"""Arrays of others as memory that the library reads, without a copy: NumPy, PyTorch, anything with __dlpack__.

PyTorch is never imported here: an object can only be one of its tensors where somebody else has imported it.
"""

from __future__ import annotations

import ctypes
import sys
from ctypes import POINTER, Structure, c_char_p, c_int32, c_int64, c_uint8, c_uint16, c_uint64, c_void_p, py_object
from typing import Any

import ml_dtypes
import numpy as np

from . import _abi
from ._abi import DType, Layout, Status, lib
from ._errors import error

DTYPE_SIZE = [lib.moe_dtype_size(d) for d in DType]
DTYPE_NAME = [lib.moe_dtype_name(d).decode() for d in DType]
_BY_NAME = {name: DType(d) for d, name in enumerate(DTYPE_NAME) if d}

_NUMPY = {
    np.dtype(np.float32): DType.F32,
    np.dtype(np.float16): DType.F16,
    np.dtype(ml_dtypes.bfloat16): DType.BF16,
    np.dtype(ml_dtypes.float8_e4m3fn): DType.E4M3FN,
    np.dtype(ml_dtypes.float8_e4m3): DType.E4M3_IEEE,
    np.dtype(ml_dtypes.float8_e8m0fnu): DType.E8M0,
    np.dtype(np.int32): DType.I32,
    np.dtype(np.uint32): DType.U32,
    np.dtype(np.int64): DType.I64,
}
NUMPY_OF = {int(d): n for n, d in _NUMPY.items()} | {DType.MXFP4_X4: np.dtype(np.uint16)}

# DLPack's type codes, with the bits of an element.
_DLPACK = {
    (0, 32): DType.I32,
    (0, 64): DType.I64,
    (1, 32): DType.U32,
    (2, 16): DType.F16,
    (2, 32): DType.F32,
    (4, 16): DType.BF16,
    (8, 8): DType.E4M3_IEEE,
    (10, 8): DType.E4M3FN,
    (14, 8): DType.E8M0,
}


def dtype_of(name: str | int | DType) -> DType:
    """The element type of this name, such as "bf16", "e4m3fn", "mxfp4_x4"."""
    if isinstance(name, str):
        found = _BY_NAME.get(name)
        if found is None:
            raise error(Status.BAD_ENUM, f"dtype = {name!r}: must be one of {', '.join(_BY_NAME)}")
        return found
    try:
        return DType(name)
    except ValueError:
        raise error(Status.BAD_ENUM, f"dtype = {name!r}: no element type") from None


class Tensor:
    """An array whose elements are of a type, or lie in an order, that the array itself does not say.

    ``dtype``: "mxfp4_x4" for uint16 words of four e2m1 codes, "mxfp8_x4" for uint32 words, "e4m3_ieee" for uint8, ... or
    None for what the array says.  ``layout``: "hbm" or "sbuf".  Refers to ``data``; copies nothing.
    """

    __slots__ = ("data", "dtype", "layout")

    def __init__(self, data: Any, dtype: str | DType | None = None, layout: str | Layout = "hbm"):
        self.data = data
        self.dtype = None if dtype is None else dtype_of(dtype)
        if isinstance(layout, str):
            if layout.upper() not in Layout.__members__:
                raise error(Status.BAD_ENUM, f"layout = {layout!r}: must be 'hbm' or 'sbuf'")
            layout = Layout[layout.upper()]
        self.layout = Layout(layout)


class View:
    """Where an array lies.

    ``dtype``: 0 where it is of no type that has a number; ``said``: the array's own.  ``strides`` are in bytes; None where
    only the shape says them.  ``dense``: in the order of its shape, without gaps.  ``owner`` keeps the memory.  ``torch``: it is a tensor of PyTorch.
    """

    __slots__ = ("address", "dtype", "said", "layout", "itemsize", "shape", "_strides", "dense", "owner", "torch")

    def __init__(self, owner, address, dtype, said, itemsize, shape, strides, dense, torch=False):
        self.owner = owner
        self.address = address
        self.dtype = dtype
        self.said = said
        self.layout = 0
        self.itemsize = itemsize
        self.shape = shape
        self._strides = strides
        self.dense = dense
        self.torch = torch

    @property
    def strides(self) -> tuple[int, ...]:
        if self._strides is None:
            self._strides = _dense_strides(self.shape, self.itemsize)
        return self._strides


def _dense_strides(shape: tuple[int, ...], size: int) -> tuple[int, ...]:
    strides = []
    for n in reversed(shape):
        strides.append(size)
        size *= n
    return tuple(reversed(strides))


def _numpy_view(x: np.ndarray) -> View:
    dtype = x.dtype
    return View(
        x,
        x.__array_interface__["data"][0],
        _NUMPY.get(dtype, 0),
        dtype,
        x.itemsize,
        x.shape,
        x.strides,
        x.flags.c_contiguous,
    )


_torch_dtypes: dict[Any, DType] = {}


def torch_dtypes(torch) -> dict[Any, DType]:
    if not _torch_dtypes:
        for name, dtype in {
            "float32": DType.F32,
            "float16": DType.F16,
            "bfloat16": DType.BF16,
            "float8_e4m3fn": DType.E4M3FN,
            "float8_e8m0fnu": DType.E8M0,
            "float4_e2m1fn_x2": DType.E2M1_X2,
            "int32": DType.I32,
            "uint32": DType.U32,
            "int64": DType.I64,
        }.items():
            if hasattr(torch, name):
                _torch_dtypes[getattr(torch, name)] = dtype
    return _torch_dtypes


def torch_dtype(torch, dtype: int):
    """PyTorch's type of these elements."""
    for theirs, ours in torch_dtypes(torch).items():
        if ours == dtype:
            return theirs
    raise error(Status.DTYPE, f"PyTorch has no type for {DTYPE_NAME[dtype]}")


def not_here(name: str, device: Any) -> Exception:
    return error(Status.UNSUPPORTED, f"{name}: is on device {device}: must be in the processor's memory")


def _torch_view(name: str, x: Any, torch: Any) -> View:
    if not x.is_cpu:
        raise not_here(name, x.device)
    if x.layout != torch.strided:
        raise error(Status.LAYOUT, f"{name}: has layout {x.layout}: must be torch.strided")
    dtype, size, same = x.dtype, x.element_size(), x.is_contiguous()
    return View(
        x,
        x.data_ptr(),
        (_torch_dtypes or torch_dtypes(torch)).get(dtype, 0),
        dtype,
        size,
        tuple(x.shape),
        None if same else tuple([s * size for s in x.stride()]),
        same,
        True,
    )


class _DLTensor(Structure):
    _fields_ = [
        ("data", c_void_p),
        ("device_type", c_int32),
        ("device_id", c_int32),
        ("ndim", c_int32),
        ("code", c_uint8),
        ("bits", c_uint8),
        ("lanes", c_uint16),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),
        ("byte_offset", c_uint64),
    ]


_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype = c_void_p
_capsule_pointer.argtypes = [py_object, c_char_p]
_DL_CPU, _DL_CUDA_HOST, _DL_ROCM_HOST = 1, 3, 11


def _dlpack_view(name: str, x: Any) -> View:
    device = x.__dlpack_device__()
    if int(device[0]) not in (_DL_CPU, _DL_CUDA_HOST, _DL_ROCM_HOST):
        raise not_here(name, f"{int(device[0])}:{device[1]} of DLPack")
    capsule = x.__dlpack__()  # frees what it points to when it is freed itself
    t = _DLTensor.from_address(_capsule_pointer(capsule, b"dltensor"))
    size = (t.bits * t.lanes + 7) // 8
    shape = tuple(t.shape[: t.ndim])
    dense = _dense_strides(shape, size)
    strides = tuple(s * size for s in t.strides[: t.ndim]) if t.strides else dense
    same = all(n == 1 or s == d for n, s, d in zip(shape, strides, dense)) or 0 in shape
    dtype = _DLPACK.get((t.code, t.bits), 0) if t.lanes == 1 else 0
    said = f"DLPack's type {t.code} of {t.bits} bits in {t.lanes} lanes"
    return View(capsule, (t.data or 0) + t.byte_offset, dtype, said, size, shape, strides, same)


def _as(name: str, v: View, dtype: DType) -> None:
    """Elements of v are to be read as dtype; where v is of bytes, several of them are one element."""
    size = DTYPE_SIZE[dtype]
    if v.itemsize != size:
        last = v.shape[-1] if v.shape else 0
        if v.itemsize != 1 or last % size != 0 or (last > 1 and v.strides[-1] != 1):
            raise error(
                Status.DTYPE,
                f"{name}: {v.said} of shape {list(v.shape)} cannot be read as {DTYPE_NAME[dtype]} of {size} bytes each",
            )
        v._strides = (*v.strides[:-1], size)
        v.shape = (*v.shape[:-1], last // size)
        v.itemsize = size
    v.dtype = dtype


def view(name: str, x: Any, dtype: DType | None = None) -> View:
    """Where x lies; read as dtype, if that is given and x is not of a type that has a number of its own."""
    layout, said = 0, None
    if type(x) is Tensor:
        said, layout, x = x.dtype, x.layout, x.data
    if isinstance(x, np.ndarray):
        v = _numpy_view(x)
    elif isinstance(x, getattr(torch := sys.modules.get("torch"), "Tensor", ())):
        v = _torch_view(name, x, torch)
    elif hasattr(x, "__dlpack__"):
        v = _dlpack_view(name, x)
    else:
        raise error(
            Status.NULL_ARG,
            f"{name}: is a {type(x).__name__}: must be a NumPy array, a PyTorch tensor, or have __dlpack__",
        )
    if layout:
        v.layout = layout
    if said:
        if said != v.dtype:
            _as(name, v, said)
    elif dtype and not v.dtype:
        _as(name, v, dtype)
    return v


def dense(name: str, x: Any, dtype: DType | None = None) -> View:
    """The same of an array that must have a type with a number, and be in the order of its shape."""
    v = view(name, x, dtype)
    if not v.dtype:
        raise error(Status.DTYPE, f"{name}: has elements of {v.said}: say what they are by moe_tkg.Tensor(array, dtype=...)")
    if not v.dense:
        raise error(
            Status.LAYOUT,
            f"{name}: is not contiguous: shape {list(v.shape)}, strides {list(v.strides)} bytes: copy it first",
        )
    return v


def tensor(name: str, x: Any, dtype: DType | None = None) -> tuple[_abi.Tensor, View]:
    """x as a moe_tensor, and what keeps its memory.  x is dense, in the order of its shape."""
    v = dense(name, x, dtype)
    rank = len(v.shape)
    if rank > _abi.MAX_RANK:
        raise error(Status.DIM, f"{name}: has {rank} dimensions: must be at most {_abi.MAX_RANK}")
    t = _abi.Tensor(v.address, v.dtype, v.layout, rank)
    t.shape[:rank] = v.shape
    return t, v


def empty(like_torch: bool, dtype: int, shape: tuple[int, ...]) -> Any:
    """A new array of the caller's kind."""
    if like_torch:
        torch = sys.modules["torch"]
        return torch.empty(shape, dtype=torch_dtype(torch, dtype))
    return np.empty(shape, NUMPY_OF[dtype])


def writable(name: str, out: Any) -> View:
    """Where a result goes: dense, and not read-only."""
    v = dense(name, out)
    if isinstance(v.owner, np.ndarray) and not v.owner.flags.writeable:
        raise error(Status.VALUE, f"{name}: is read-only")
    return v
