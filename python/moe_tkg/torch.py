# SPDX-License-Identifier: Apache-2.0
"""Packed experts as an operator of PyTorch: ``torch.ops.moe_tkg.experts``.

    >>> import torch, moe_tkg, moe_tkg.torch
    >>> layer = moe_tkg.torch.Layer(moe_tkg.Experts.pack(gate_up, down))     # [E, 2 I, H], [E, H, I]
    >>> y = layer(hidden, index, weights)                                    # [T, H], [T, K], [T, K]
    >>> y = torch.ops.moe_tkg.experts(hidden, index, weights, layer.handle)  # the same, in graphs too

Tensors are on the CPU: hidden bf16, f16 or f32, index int32 or int64, weights bf16, f16 or f32.  What is not contiguous is
copied first.  The result is new, contiguous and of hidden's type: sums are f32 and rounded to it once.  An index outside
[0, E) contributes nothing.  There is no backward: where a gradient is wanted, PyTorch raises.

A call runs on as many threads as ``torch.get_num_threads()`` says, and these are PyTorch's own where its OpenMP is known:
no thread waits for work while another library's threads have it.
"""

from __future__ import annotations

import ctypes
import os
import pathlib
import threading
import weakref
from ctypes import Structure, addressof, byref, c_void_p
from typing import Any

import torch

from . import _abi
from ._abi import ContextOptions, Status, lib, sized
from ._array import torch_dtypes
from ._context import Context
from ._errors import check, error
from ._experts import Call, Experts

__all__ = ["Layer", "context"]

_OF_TORCH: dict[torch.dtype, int] = {t: int(d) for t, d in torch_dtypes(torch).items()}
_FLOATS = (torch.bfloat16, torch.float16, torch.float32)
_WHOLE = (torch.int32, torch.int64)

# ---- threads -------------------------------------------------------------------------------------------------------------


class _OpenMP(Structure):
    _fields_ = [("parallel", c_void_p), ("thread", c_void_p), ("threads", c_void_p)]


def _openmp() -> tuple[Any, Any] | None:
    """The loop function and PyTorch's OpenMP for it; None where either is not there.

    The functions are looked up from PyTorch's library, which gives those of the OpenMP that it is linked to, whatever
    others the process has loaded.
    """
    try:
        ours = ctypes.CDLL(str(_abi.directory() / "libmoe_tkg_openmp.so"))
        theirs = ctypes.CDLL(str(pathlib.Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
        functions = _OpenMP(*(ctypes.cast(getattr(theirs, name), c_void_p).value for name in names))
        loop = _abi.PARALLEL_FOR(ctypes.cast(ours.moe_python_openmp, c_void_p).value)
    except (OSError, AttributeError):
        return None
    return loop, functions


class _TorchContext(Context):
    """A context on PyTorch's threads."""

    __slots__ = ("_keep",)

    def __init__(self, threads: int, loop: Any, functions: _OpenMP):
        self.address = None
        self._keep = loop, functions
        options = sized(ContextOptions, threads=threads, parallel_for=loop, parallel_user=addressof(functions))
        handle = c_void_p()
        check(lib.moe_context_create(byref(options), byref(handle)))
        self.address = handle.value


_contexts: dict[int, Context] = {}
_lock = threading.Lock()
_loop = _openmp()


def context() -> Context:
    """The context of ``torch.get_num_threads()`` threads."""
    threads = torch.get_num_threads()
    found = _contexts.get(threads)
    if found is None:
        with _lock:
            found = _contexts.get(threads)
            if found is None:
                found = Context(threads) if _loop is None or threads == 1 else _TorchContext(threads, *_loop)
                _contexts[threads] = found
    return found


def _after_fork_in_child() -> None:
    # OpenMP's threads are not here, and asking it for some would wait for ever: as with PyTorch's own operators.
    global _contexts, _lock, _loop
    _contexts, _lock, _loop = {}, threading.Lock(), None


os.register_at_fork(after_in_child=_after_fork_in_child)

# ---- the operator --------------------------------------------------------------------------------------------------------

_layers: weakref.WeakValueDictionary[int, Layer] = weakref.WeakValueDictionary()
_last_handle = 0


class Layer:
    """Packed experts with the settings of ``moe_tkg.Call`` (activation_fn, limits, ...), and a number that graphs know it by.

    ``handle``: for ``torch.ops.moe_tkg.experts``; never given out twice in a process.  It stands for this object only as
    long as somebody keeps the object.
    """

    def __init__(self, experts: Experts, **settings: Any):
        settings.setdefault("skip_invalid_experts", True)
        self.call = experts.prepare(**settings)
        self._register()

    def _register(self) -> None:
        global _last_handle
        with _lock:
            _last_handle += 1
            self.handle = _last_handle
        _layers[self.handle] = self

    def current(self) -> Call:
        """The call to make now."""
        return self.call

    def __call__(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        """hidden [T, H], index [T, K], weights [T, K] (None: the experts' outputs are added as they are); any T."""
        if torch.compiler.is_compiling():
            return torch.ops.moe_tkg.experts(hidden, index, weights, self.handle)
        return _run(self, hidden, index, weights)


def _checked(name: str, x: torch.Tensor, dtypes: tuple) -> torch.Tensor:
    if not x.is_cpu:
        raise error(Status.UNSUPPORTED, f"{name}: is on device {x.device}: must be on the CPU")
    if x.dtype not in dtypes:
        raise error(Status.DTYPE, f"{name}: is {x.dtype}: must be one of {', '.join(map(str, dtypes))}")
    if x.dim() != 2:
        raise error(Status.DIM, f"{name}: has shape {list(x.shape)}: must have 2 dimensions")
    return x.contiguous()


def _run(layer: Layer, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    hidden = _checked("hidden", hidden, _FLOATS)
    index = _checked("index", index, _WHOLE)
    call = layer.current()
    T, H = hidden.shape
    if H != call.H:
        raise error(Status.SHAPE, f"hidden: has shape {[T, H]}: must be [T, {call.H}]")
    if index.shape[0] != T:
        raise error(Status.SHAPE, f"index: has shape {list(index.shape)}: must be [{T}, K]")
    where = 0, 0
    if weights is not None:
        weights = _checked("weights", weights, _FLOATS)
        if weights.shape != index.shape:
            raise error(
                Status.SHAPE, f"weights: has shape {list(weights.shape)}: must be that of index, {list(index.shape)}"
            )
        where = weights.data_ptr(), _OF_TORCH[weights.dtype]
    out = torch.empty_like(hidden)
    dtype = _OF_TORCH[hidden.dtype]
    call.at(
        (hidden.data_ptr(), dtype),
        (index.data_ptr(), _OF_TORCH[index.dtype]),
        where,
        (out.data_ptr(), dtype),
        T,
        index.shape[1],
        context(),
    )
    return out


@torch.library.custom_op("moe_tkg::experts", mutates_args=(), device_types="cpu")
def _experts(hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor | None, layer: int) -> torch.Tensor:
    found = _layers.get(layer)
    if found is None:
        raise error(Status.VALUE, f"layer = {layer}: no layer of this process has this handle now")
    return _run(found, hidden, index, weights)


@_experts.register_fake
def _(hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor | None, layer: int) -> torch.Tensor:
    return hidden.new_empty(hidden.shape)
