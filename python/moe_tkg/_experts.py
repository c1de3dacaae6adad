# SPDX-License-Identifier: Apache-2.0
"""Packed experts, and calls on them."""

from __future__ import annotations

import contextlib
import ctypes
import os
from ctypes import addressof, byref, c_void_p
from typing import Any, Callable, NamedTuple

from . import _abi
from ._abi import AffinityScale, Packing, Status, lib, sized
from ._array import DTYPE_NAME, DTYPE_SIZE, dense
from ._context import Context
from ._errors import check, error
from ._matrix import matrices
from ._operator import address_of, destination, enumerator, settings, tensors, whole
from ._quantize import requantized


class ExpertsInfo(NamedTuple):
    """What is packed.

    ``gate_up``, ``down``: types of the weights' elements, as they were given.  ``bytes``: in all; ``expert_bytes``: that a
    call reads for one expert, the mean of all.
    """

    E: int
    H: int
    I: int  # noqa: E741
    gate_up: str
    down: str
    has_gate: bool
    packing: str
    bytes: int
    expert_bytes: int


class Experts:
    """The experts of one layer, packed: made by ``pack``, ``pack_operator``, ``load``, or ``Model(path).load(number).packed``.

    They never change, and serve any number of threads and contexts at once.  What they were packed from may be freed.
    """

    __slots__ = ("address", "_owner", "_info", "__weakref__")
    address: int
    _owner: Any
    _info: ExpertsInfo | None

    def __init__(self):
        raise TypeError("use Experts.pack, Experts.pack_operator or Experts.load")

    @classmethod
    def _of(cls, address: int, owner: Any = None) -> Experts:
        self = object.__new__(cls)
        self.address, self._owner, self._info = address, owner, None
        return self

    @classmethod
    def _create(cls, args: _abi.ExpertsArgs, packing: str | int, context: Context | None) -> Experts:
        args.packing = enumerator(Packing, "packing", packing)
        handle = c_void_p()
        check(lib.moe_experts_create(address_of(context), byref(args), byref(handle)))
        return cls._of(handle.value or 0)

    @classmethod
    def pack(
        cls,
        gate_up: Any = None,
        down: Any = None,
        *,
        gate: Any = None,
        up: Any = None,
        gate_up_scale: Any = None,
        gate_scale: Any = None,
        up_scale: Any = None,
        down_scale: Any = None,
        gate_up_row_scale: Any = None,
        gate_row_scale: Any = None,
        up_row_scale: Any = None,
        down_row_scale: Any = None,
        gate_up_bias: Any = None,
        gate_bias: Any = None,
        up_bias: Any = None,
        down_bias: Any = None,
        is_transposed: bool = False,
        is_concatenated: bool = True,
        format: str | None = None,
        down_format: str | None = None,
        block: tuple[int, int] = (128, 128),
        requantize: str | None = None,
        packing: str | int = "plain",
        context: Context | None = None,
    ) -> Experts:
        """Packs the experts of a layer, with E experts, from arrays as models and checkpoints hold them.

        gate_up     [E, 2 I, H], gate first; is_concatenated=False: gate and up in turns; is_transposed: [E, H, 2 I]
        gate, up    [E, I, H] ([E, H, I]) in place of gate_up; without gate: experts that have none
        down        [E, H, I] ([E, I, H])

        Each may be a list of E arrays, and have any strides.  bf16, f16, f32, e4m3fn by their types, and in bytes (uint8),
        of which format (down_format, where down's is another) says what they are:

        "mxfp4"     k / 2 bytes a row, the first of a pair in the low 4 bits; scale e8m0 or uint8 [E, rows, k / 32].
                    Blocks and scales as gpt-oss has them, [E, rows, k / 32, 16], are taken too
        "nvfp4"     the same bytes; scale e4m3fn or uint8 [E, rows, k / 16], row_scale f32 [E] or [E, rows]
        "int4"      k / 2 bytes a row of c + 8; scale bf16 or f16 [E, rows, k / 32], / 64 or / 128
        "fp8"       e4m3fn; scale [E], [E, rows], or of blocks of rows and columns, whose size block says; uint8
                    [E, rows, k / 32]: MXFP8
        "e4m3_ieee"
        "q8_0", "q4_0", "q4_k", "q5_k", "q6_k", "ggml_mxfp4", "ggml_nvfp4"   the blocks of GGUF

        bias        gate_up_bias [E, 2 I] (in turns where gate_up is), gate_bias, up_bias [E, I], down_bias [E, H]
        requantize  "mxfp4": bf16, f16, f32 to MXFP4 (``quantize_mxfp4``); "fp8": to e4m3fn with a scale for each row
        packing     "lossless": bf16 in about 12 bits a weight, with the same results
        context     the threads to pack on, and after which the panels are laid out

        The arrays may be freed or changed afterwards: the packed experts do not follow.

        Raises MoeTypeError, MoeValueError, MoeMemoryError.
        """
        weights = {"gate_up": gate_up, "gate": gate, "up": up, "down": down}
        scales = {"gate_up": gate_up_scale, "gate": gate_scale, "up": up_scale, "down": down_scale}
        row_scales = {"gate_up": gate_up_row_scale, "gate": gate_row_scale, "up": up_row_scale, "down": down_row_scale}
        biases = {"gate_up": gate_up_bias, "gate": gate_bias, "up": up_bias, "down": down_bias}
        down_format = down_format or format
        if requantize is not None:
            format = down_format = requantized(weights, scales, is_transposed, requantize)
            is_transposed = False
        args, keep = matrices(
            weights, scales, row_scales, biases, is_transposed, is_concatenated, format, down_format, block
        )
        packed = cls._create(args, packing, context)
        del keep
        return packed

    @classmethod
    def pack_operator(
        cls,
        expert_gate_up_weights: Any,
        expert_down_weights: Any,
        *,
        expert_gate_up_bias: Any = None,
        expert_down_bias: Any = None,
        expert_gate_up_weights_scale: Any = None,
        expert_down_weights_scale: Any = None,
        packing: str | int = "plain",
        context: Context | None = None,
    ) -> Experts:
        """Packs the operator's tensors, in the shapes of ``moe_tkg.moe_tkg``; a call with them gives the same bits."""
        args = sized(_abi.ExpertsArgs)
        keep = tensors(
            args,
            expert_gate_up_weights=expert_gate_up_weights,
            expert_down_weights=expert_down_weights,
            expert_gate_up_bias=expert_gate_up_bias,
            expert_down_bias=expert_down_bias,
            expert_gate_up_weights_scale=expert_gate_up_weights_scale,
            expert_down_weights_scale=expert_down_weights_scale,
        )
        packed = cls._create(args, packing, context)
        del keep
        return packed

    def save(self, path: str | os.PathLike) -> None:
        """Writes an image of them, complete or not at all, that only this version of the library reads: ``load``."""
        path = os.fspath(path)
        new = f"{path}.{os.getpid()}.new"
        try:
            with open(new, "wb") as file:

                def write(piece: memoryview) -> None:
                    if file.write(piece) != len(piece):
                        raise OSError(f"{path}: came up short")

                callback, finish = _pieces(_abi.WRITE, Status.WRITE, write)
                finish(lib.moe_experts_write(self.address, callback, None))
            os.replace(new, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(new)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike, *, context: Context | None = None) -> Experts:
        """Reads what ``save`` wrote.

        Nothing in the file is believed before it was checked: MoeValueError, with status FORMAT where it is damaged and
        STALE where another version wrote it.  OSError: it cannot be read.
        """
        handle = c_void_p()
        with open(path, "rb", buffering=0) as file:

            def read(piece: memoryview) -> None:
                while len(piece) > 0:
                    n = file.readinto(piece)
                    if not n:
                        raise OSError(f"{os.fspath(path)}: is too short")
                    piece = piece[n:]

            size = os.fstat(file.fileno()).st_size
            callback, finish = _pieces(_abi.READ, Status.READ, read)
            finish(lib.moe_experts_read(address_of(context), callback, None, size, byref(handle)))
        return cls._of(handle.value or 0)

    @property
    def info(self) -> ExpertsInfo:
        """What is packed."""
        if self._info is None:
            i = sized(_abi.ExpertsInfo)
            check(lib.moe_experts_describe(self.address, byref(i)))
            self._info = ExpertsInfo(
                i.E_L,
                i.H,
                i.I,
                DTYPE_NAME[i.gate_up],
                DTYPE_NAME[i.down],
                bool(i.has_gate),
                Packing(i.packing).name.lower(),
                i.bytes,
                i.expert_bytes,
            )
        return self._info

    def prepare(self, **settings: Any) -> Call:
        """A call with these settings, to be made often: see ``Call``."""
        return Call(self, **settings)

    def __call__(
        self,
        hidden: Any,
        index: Any,
        weights: Any = None,
        *,
        out: Any = None,
        context: Context | None = None,
        **settings: Any,
    ) -> Any:
        """``prepare(**settings)(hidden, index, weights, out=out, context=context)``"""
        return Call(self, **settings)(hidden, index, weights, out=out, context=context)

    def __repr__(self) -> str:
        i = self.info
        return f"<moe_tkg.Experts E={i.E} H={i.H} I={i.I} {i.gate_up} {i.down} {i.bytes} bytes>"

    def __del__(self, destroy=lib.moe_experts_destroy):
        if getattr(self, "address", None) is not None and self._owner is None:
            destroy(self.address)


def _pieces(kind, failed: Status, work: Callable[[memoryview], None]):
    """A callback of the library for pieces of memory, and what raises, after the call, what work raised in it."""
    raised: list[BaseException] = []

    def call(_user, data, size):
        try:
            work(memoryview((ctypes.c_char * size).from_address(data)).cast("B"))
        except BaseException as e:  # goes on where the library has returned
            raised.append(e)
            return failed
        return Status.OK

    def finish(status: int) -> None:
        if raised:
            raise raised[0]
        check(status)

    return kind(call), finish


MOST_TOKENS = 128  # of one call of the operator in selective mode


class _Slot:
    """The structs of one call."""

    __slots__ = ("args", "hidden", "index", "weights", "reference")

    def __init__(self, template: bytes, weighted: bool):
        self.args = _abi.TkgArgs.from_buffer_copy(template)
        self.hidden, self.index, self.weights = _abi.Tensor(rank=2), _abi.Tensor(rank=2), _abi.Tensor(rank=2)
        self.args.hidden_input = addressof(self.hidden)
        self.args.expert_index = addressof(self.index)
        if weighted:
            self.args.expert_affinities_eager = addressof(self.weights)
        self.reference = byref(self.args)


class Call:
    """The operator in selective mode on packed experts with settled settings, to be called often with little overhead.

    Settings, by the operator's names: ``activation_fn``, ``swiglu_alpha``, ``swiglu_up_offset``, ``gate_clamp_upper_limit``,
    ``gate_clamp_lower_limit``, ``up_clamp_upper_limit``, ``up_clamp_lower_limit``, ``act_clamp_upper_limit``, ``act_mode``,
    ``skip_invalid_experts``, ``output_dtype``, ``expert_affinities_scaling_mode`` ("post_scale" where weights are given,
    "input_scale" for Llama-4).  Any number of threads may use one at once.
    """

    __slots__ = ("experts", "H", "_templates", "_free", "_output_dtype")
    experts: Experts
    H: int

    def __init__(self, experts: Experts, *, expert_affinities_scaling_mode: str | int = "post_scale", **given: Any):
        args = sized(_abi.TkgArgs, experts=experts.address)
        settings(args, expert_affinities_scaling_mode=expert_affinities_scaling_mode, **given)
        self._settle(experts, args)

    @classmethod
    def _of(cls, experts: Experts, args: _abi.TkgArgs) -> Call:
        self = object.__new__(cls)
        self._settle(experts, args)
        return self

    def _settle(self, experts: Experts, args: _abi.TkgArgs) -> None:
        self.experts, self.H = experts, experts.info.H
        self._output_dtype = args.output_dtype
        weighted = bytes(args)
        args.expert_affinities_scaling_mode = AffinityScale.NO_SCALE
        self._templates = bytes(args), weighted
        self._free: tuple[list[_Slot], list[_Slot]] = [], []  # a list's pop and append need no lock

    def __call__(self, hidden: Any, index: Any, weights: Any = None, *, out: Any = None, context: Context | None = None) -> Any:
        """The experts' sum for each token.

        hidden   [T, H] or [B, S, H]: bf16, f16, f32; any T
        index    [T, K] (or [B, S, K]): i32, u32, i64
        weights  like index: bf16, f16, f32; None: the experts' outputs are added as they are
        out      like hidden, of output_dtype (hidden's type); may be hidden itself.  None: a new array of hidden's kind

        Raises MoeTypeError, MoeValueError.
        """
        h = dense("hidden", hidden)
        i = dense("index", index)
        shape = h.shape
        if len(shape) < 2 or shape[-1] != self.H:
            raise error(Status.SHAPE, f"hidden: has shape {list(shape)}: must be [T, {self.H}]")
        if len(i.shape) != len(shape) or i.shape[:-1] != shape[:-1]:
            raise error(Status.SHAPE, f"index: has shape {list(i.shape)}: must be {[*shape[:-1], 'K']}")
        T = 1
        for n in shape[:-1]:
            T *= n
        w_address = w_dtype = 0
        if weights is not None:
            w = dense("weights", weights)
            if w.shape != i.shape:
                raise error(Status.SHAPE, f"weights: has shape {list(w.shape)}: must be that of index, {list(i.shape)}")
            w_address, w_dtype = w.address, w.dtype
        dtype = self._output_dtype or h.dtype
        given = out is not None
        out, address = destination(h.torch, out, shape, dtype)
        arrays = (h.address, h.dtype), (i.address, i.dtype), (w_address, w_dtype)
        if given and T > MOST_TOKENS:
            whole(lambda to: self.at(*arrays, (to, dtype), T, i.shape[-1], context), address, shape, dtype)
        else:
            self.at(*arrays, (address, dtype), T, i.shape[-1], context)
        return out

    def at(
        self,
        hidden: tuple[int, int],
        index: tuple[int, int],
        weights: tuple[int, int],
        out: tuple[int, int],
        T: int,
        K: int,
        context: Context | None = None,
    ) -> None:
        """The same on (address, element type) of dense arrays [T, H], [T, K], [T, K], [T, H]; nothing is checked that the
        library cannot see.  weights (0, 0): none."""
        weighted = weights[1] != 0
        free = self._free[weighted]
        try:
            slot = free.pop()
        except IndexError:
            slot = _Slot(self._templates[weighted], weighted)
        h, i, w = slot.hidden, slot.index, slot.weights
        (h.data, h.dtype), (i.data, i.dtype), (w.data, w.dtype) = hidden, index, weights
        address, slot.args.output_dtype = out
        row = self.H * DTYPE_SIZE[out[1]]
        where = address_of(context)
        done, count = 0, min(T, MOST_TOKENS)
        h.shape[0:2] = count, self.H
        i.shape[0:2] = w.shape[0:2] = count, K
        status = lib.moe_tkg(where, slot.reference, address, count * row)
        while status == 0 and done + count < T:
            done += count
            count = min(T - done, MOST_TOKENS)
            h.shape[0] = i.shape[0] = w.shape[0] = count
            h.data = hidden[0] + done * self.H * DTYPE_SIZE[hidden[1]]
            i.data = index[0] + done * K * DTYPE_SIZE[index[1]]
            w.data = weights[0] + done * K * DTYPE_SIZE[weights[1]]
            status = lib.moe_tkg(where, slot.reference, address + done * row, count * row)
        free.append(slot)
        check(status, first_row=done)
