# SPDX-License-Identifier: Apache-2.0
"""The Mixture-of-Experts layers of checkpoints: Hugging Face's (safetensors), GGUF's, and packed ones."""

from __future__ import annotations

import os
from ctypes import byref, c_void_p
from typing import Any, Callable, NamedTuple

from . import _abi
from ._abi import Activation, AffinityScale, GroupRank, Packing, RouterScore, Status, io, sized
from ._array import view
from ._context import Context
from ._errors import check, error
from ._experts import Call, Experts
from ._operator import address_of, enumerator, settings
from ._router import run_block


class LayerInfo(NamedTuple):
    """One layer with experts, from its file's headers.

    ``layer`` is its number among all layers.  ``foreign_router``: None, or the name of a rule that this library does not
    have.  ``bytes``: of the layer's tensors in the files; ``expert_bytes``: of one expert's.
    """

    layer: int
    H: int
    I: int  # noqa: E741
    E: int
    K: int
    gate_up_format: str
    down_format: str
    activation: str
    swiglu_alpha: float | None
    swiglu_up_offset: float | None
    gate_clamp_upper_limit: float | None
    up_clamp_upper_limit: float | None
    up_clamp_lower_limit: float | None
    act_clamp_upper_limit: float | None
    has_gate: bool
    has_bias: bool
    scaling: str
    foreign_router: str | None
    score: str
    normalize: bool
    n_group: int
    topk_group: int
    group_rank: str
    has_router_bias: bool
    has_selection_bias: bool
    normalize_epsilon: float
    scale: float
    shared_I: int
    shared_format: str
    has_shared_gate: bool
    bytes: int
    expert_bytes: int


_ENUMS = {"activation": Activation, "scaling": AffinityScale, "score": RouterScore, "group_rank": GroupRank}
_FLAGS = {"has_gate", "has_bias", "normalize", "has_router_bias", "has_selection_bias", "has_shared_gate"}


def _layer_info(i: _abi.LayerInfo) -> LayerInfo:
    values = {}
    for name in LayerInfo._fields:
        value = getattr(i, name)
        if isinstance(value, _abi.OptionalFloat):
            value = value.value if value.given else None
        elif isinstance(value, bytes):
            value = value.decode(errors="replace")
        elif name in _ENUMS:
            value = _ENUMS[name](value).name.lower()
        elif name in _FLAGS:
            value = bool(value)
        values[name] = value
    return LayerInfo(**values)


def _check(status: int) -> None:
    check(status, io().moe_io_last_error)


class Layer:
    """A loaded layer: its experts packed, its router and shared expert.  Serves any number of threads at once."""

    __slots__ = ("address", "info", "packed", "shared", "_args", "_call", "__weakref__")
    address: int
    info: LayerInfo
    packed: Experts
    shared: Experts | None
    _args: _abi.BlockArgs
    _call: Call

    def __init__(self):
        raise TypeError("use Model(path).load(number)")

    @classmethod
    def _of(cls, address: int) -> Layer:
        self = object.__new__(cls)
        self.address = address
        i = sized(_abi.LayerInfo)
        _check(io().moe_layer_describe(address, byref(i)))
        self.info = _layer_info(i)
        self._args = _abi.BlockArgs()
        _check(io().moe_layer_args(address, byref(self._args)))
        hold = _Hold(address)
        self.packed = Experts._of(self._args.experts.experts, hold)
        self.shared = Experts._of(self._args.shared, hold) if self._args.shared else None
        self._call = Call._of(self.packed, _abi.TkgArgs.from_buffer_copy(self._args.experts))
        return self

    def block(
        self,
        hidden: Any,
        *,
        out: Any = None,
        output_dtype: Any = None,
        act_mode: str | int = "default",
        want: tuple[str, ...] = (),
        context: Context | None = None,
    ) -> Any:
        """Router, experts and shared expert: hidden [T, H] or [B, S, H] (bf16, f16, f32; any T), normalised by the caller.

        The result is like hidden, of output_dtype; with want also what the router gave: see ``moe_block``.
        Raises MoeValueError where the router is foreign.
        """
        args = _abi.BlockArgs.from_buffer_copy(self._args)
        settings(args.experts, output_dtype=output_dtype, act_mode=act_mode)
        return run_block(args, hidden, out, want, context)

    def experts(
        self,
        hidden: Any,
        index: Any,
        weights: Any = None,
        *,
        out: Any = None,
        context: Context | None = None,
    ) -> Any:
        """The experts alone, with the caller's index and weights [T, K]: see ``Call``."""
        return self._call(hidden, index, weights, out=out, context=context)

    def save(self, directory: str | os.PathLike) -> None:
        """Writes the layer, packed, to a directory of such layers, which ``Model`` opens and reads at the disk's speed."""
        _check(io().moe_layer_save(self.address, os.fsencode(directory)))

    def __repr__(self) -> str:
        i = self.info
        return f"<moe_tkg.Layer {i.layer} E={i.E} K={i.K} H={i.H} I={i.I} {i.gate_up_format} {i.down_format}>"


class _Hold:
    """Frees a layer when nobody refers to it, or to its experts, any more."""

    __slots__ = ("address", "_free")

    def __init__(self, address: int):
        self.address, self._free = address, io().moe_layer_free

    def __del__(self):
        self._free(self.address)


class Model:
    """A checkpoint: a directory, a model.safetensors.index.json, a safetensors file, a GGUF file, or a directory of packed
    layers.  Its headers are read, not its weights.

    ``config``: the config.json of a safetensors model, where it is not beside the files.

    Raises MoeOSError: a file cannot be opened or read.  MoeValueError: it is not sound, or no model that is known.
    """

    __slots__ = ("address", "path", "family", "container", "num_layers", "layers", "__weakref__")

    def __init__(self, path: str | os.PathLike, *, config: str | os.PathLike | None = None):
        self.address = None
        self.path = os.fspath(path)
        options = sized(_abi.ModelOptions, config=None if config is None else os.fsencode(config))
        handle = c_void_p()
        _check(io().moe_model_open(os.fsencode(path), byref(options), byref(handle)))
        self.address = handle.value
        i = sized(_abi.ModelInfo)
        _check(io().moe_model_describe(self.address, byref(i)))
        self.family: str = i.family.decode()
        self.container: str = i.container.decode()
        self.num_layers: int = i.layers
        self.layers: tuple[LayerInfo, ...] = tuple(self._layer(n) for n in range(i.moe_layers))

    def _layer(self, n: int) -> LayerInfo:
        i = sized(_abi.LayerInfo)
        _check(io().moe_model_layer(self.address, n, byref(i)))
        return _layer_info(i)

    def layer(self, number: int) -> LayerInfo:
        """The layer of this number among all layers, from headers; a MoeValueError if it has no experts."""
        for info in self.layers:
            if info.layer == number:
                return info
        numbers = ", ".join(str(info.layer) for info in self.layers)
        raise error(Status.VALUE, f"{self.path}: layer {number} has no experts here; those that have: {numbers}")

    def load(
        self,
        number: int,
        *,
        packing: str | int = "plain",
        progress: Callable[[int, int], Any] | None = None,
        context: Context | None = None,
    ) -> Layer:
        """Reads and packs the layer of this number among all layers.

        packing "lossless": bf16 experts in about 12 bits a weight, with the same results.  progress(done, all) is called
        now and then with bytes; an exception of it ends the loading.

        Raises MoeOSError, MoeValueError, MoeMemoryError.
        """
        raised: list[BaseException] = []

        def call(_user, done, all_):
            try:
                progress(done, all_)
            except BaseException as e:  # goes on where the library has returned
                raised.append(e)
                return 1
            return 0

        options = sized(_abi.LoadOptions, packing=enumerator(Packing, "packing", packing))
        if progress is not None:
            options.progress = _abi.PROGRESS(call)
        handle = c_void_p()
        status = io().moe_model_load(self.address, number, address_of(context), byref(options), byref(handle))
        if raised:
            raise raised[0]
        _check(status)
        return Layer._of(handle.value or 0)

    def matches(self, model: Model) -> bool:
        """Of a directory of packed layers: whether each was made from model as its files are now."""
        status = io().moe_model_matches(self.address, model.address)
        if status == Status.STALE:
            return False
        _check(status)
        return True

    def __repr__(self) -> str:
        return f"<moe_tkg.Model {self.path!r} {self.family} {self.container} layers={len(self.layers)}>"

    def __del__(self):
        if getattr(self, "address", None) is not None:
            io().moe_model_close(self.address)
