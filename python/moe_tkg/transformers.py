# SPDX-License-Identifier: Apache-2.0
"""The experts of models of Hugging Face transformers (version 5), run by this library.

    >>> import moe_tkg.transformers
    >>> model = AutoModelForCausalLM.from_pretrained(path, experts_implementation="moe_tkg")

Importing this registers the experts implementation "moe_tkg".  ``accelerate(model)`` does the same for a model that is
loaded, packs its layers at once, in another format if wanted, and can free what they were packed from.

A layer whose function is not one of the operator's is left alone, with a warning that says why.  docs/python.md says what
is recognised, how numbers are rounded, and when changed weights are noticed.
"""

from __future__ import annotations

import inspect
import threading
import types
import warnings
import weakref
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.integrations import moe as _moe

from ._experts import Call
from ._recognize import NotRecognized
from ._source import FORMATS, Source
from .torch import Layer, _run, context

__all__ = ["NAME", "LayerReport", "accelerate", "report"]

NAME = "moe_tkg"
_lock = threading.RLock()

# ---- a module's experts, packed ------------------------------------------------------------------------------------------


def _version(p: torch.Tensor) -> int:
    return -1 if p.is_inference() else p._version


class _Packed(Layer):
    """A module's experts: packed at the first call, and again at a call that finds its parameters changed."""

    def __init__(self, module: nn.Module, source: Source, weights: str | None, more: dict[str, Any]):
        self.module = weakref.ref(module)
        self.source, self.weights = source, weights
        self.settings = {**source.gate.settings(), **more, "skip_invalid_experts": True}
        self.call: Call | None = None
        self.seen: tuple = ()
        self.freed = False
        self._register()

    def current(self) -> Call:
        if self.freed:
            return self.call
        parameters = self.module()._parameters
        seen = tuple([(p.data_ptr(), _version(p)) for p in map(parameters.__getitem__, self.source.names)])
        if seen != self.seen:
            self._pack(seen)
        return self.call

    def _pack(self, seen: tuple) -> None:
        with _lock:
            if seen == self.seen:
                return
            module = self.module()
            source = Source(module)
            if (why := source.settles(self.weights)) is not None:
                raise ValueError(f"weights = {self.weights!r}: {why}")
            self.source = source
            self.call = None  # frees what was packed before it is packed again
            self.call = source.pack(module, self.weights, context()).prepare(**self.settings)
            self.seen = seen

    def free(self) -> None:
        """The module's weights go; what is packed stays."""
        self.current()
        module = self.module()
        for name in self.source.names:
            shape = tuple(module._parameters[name].shape)
            del module._parameters[name]
            module.__dict__[name] = _Freed(name, shape)
        self.freed = True
        module.register_state_dict_pre_hook(_no_state)


class _Freed:
    """Stands where weights were that have been freed."""

    def __init__(self, name: str, shape: tuple[int, ...]):
        self._said = (
            f"{name} {list(shape)} was freed when moe_tkg packed it: only experts_implementation={NAME!r} runs this layer now"
        )

    def __repr__(self) -> str:
        return f"<{self._said}>"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise RuntimeError(self._said)

    def __getitem__(self, item: Any) -> Any:
        raise RuntimeError(self._said)


def _no_state(module: nn.Module, prefix: str, keep_vars: bool) -> None:
    raise RuntimeError(f"{prefix.removesuffix('.')}: its weights were freed when moe_tkg packed them: it has no state to save")


class _Slot:
    """What a module knows of its packed experts: a number for graphs, or why they are left alone."""

    def __init__(self, layer: _Packed | None = None, why: str | None = None):
        self.layer, self.why = layer, why
        self.handle = 0 if layer is None else layer.handle

    def __deepcopy__(self, memo: dict) -> _Slot | None:
        # A copy has parameters of its own, and so is packed by itself, unless there are none.
        return self if self.layer is not None and self.layer.freed else None

    def __reduce__(self) -> Any:
        if self.layer is not None and self.layer.freed:
            raise RuntimeError("the weights of these experts were freed when moe_tkg packed them: they cannot be saved")
        return type(None), ()


_SLOT = "_moe_tkg"


def _attach(module: nn.Module, weights: str | None = None, more: dict[str, Any] | None = None, name: str = "") -> int:
    """The handle of the module's packed experts, which are made known if they are not; 0: they are left alone."""
    with _lock:
        slot = module.__dict__.get(_SLOT)
        if slot is None:
            slot = module.__dict__[_SLOT] = _slot(module, weights, more or {}, name)
        return slot.handle


def _slot(module: nn.Module, weights: str | None, more: dict[str, Any], name: str) -> _Slot:
    try:
        source = Source(module)
        if (why := source.settles(weights)) is not None:
            raise NotRecognized(why)
    except NotRecognized as reason:
        warnings.warn(f"moe_tkg leaves {name or type(module).__name__} as it is: {reason}", stacklevel=4)
        return _Slot(why=str(reason))
    return _Slot(_Packed(module, source, weights, more))


# Dynamo takes what this returns as a constant of the graph.
_handle = torch.compiler.assume_constant_result(_attach)

# ---- the experts implementation ------------------------------------------------------------------------------------------


def _own_forward(module: nn.Module) -> Any:
    """The class's forward below transformers' dispatch, however often that was put around it."""
    forward = type(module).forward
    while (inner := getattr(forward, "__wrapped__", None)) is not None and forward.__code__.co_filename == _moe.__file__:
        forward = inner
    return forward


def _wants_gradient(module: nn.Module, hidden_states: torch.Tensor) -> bool:
    if not torch.is_grad_enabled():
        return False
    return hidden_states.requires_grad or (module.training and any(p.requires_grad for p in module.parameters()))


def _left_alone(slot: Any) -> bool:
    return slot is not None and slot.handle == 0


def experts_forward(
    module: nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor, *rest: Any, **named: Any
) -> torch.Tensor:
    """What transformers calls in place of an experts module's own forward: [T, H], [T, K], [T, K] (or [T, E]) -> [T, H]."""
    slot = module.__dict__.get(_SLOT)
    compiling = torch.compiler.is_compiling()
    handle = slot.handle if slot is not None else (_handle(module) if compiling else _attach(module))
    if handle == 0 or rest or named or not hidden_states.is_cpu:
        return _own_forward(module)(module, hidden_states, top_k_index, top_k_weights, *rest, **named)
    if _wants_gradient(module, hidden_states):
        if not compiling:
            _warn_gradient()
        return _own_forward(module)(module, hidden_states, top_k_index, top_k_weights)
    if top_k_weights.shape[-1] != top_k_index.shape[-1]:
        top_k_weights = top_k_weights.gather(-1, top_k_index.clamp(0, top_k_weights.shape[-1] - 1).long())
    if compiling:
        return torch.ops.moe_tkg.experts(hidden_states, top_k_index, top_k_weights, handle)
    return _run(module.__dict__[_SLOT].layer, hidden_states, top_k_index, top_k_weights)


def _warn_gradient() -> None:
    warnings.warn(
        "moe_tkg: a gradient is wanted, so the model's own experts run; use torch.no_grad() or torch.inference_mode()",
        stacklevel=3,
    )


def _register() -> None:
    _moe.ALL_EXPERTS_FUNCTIONS.register(NAME, experts_forward)
    try:
        from transformers.integrations.finegrained_fp8 import ALL_FP8_EXPERTS_FUNCTIONS
    except ImportError:  # versions that have no such registry
        return
    ALL_FP8_EXPERTS_FUNCTIONS.register(NAME, experts_forward)


_register()

# ---- Llama 4 -------------------------------------------------------------------------------------------------------------


class _Llama4Experts(nn.Module):
    pass


# ---- a whole model -------------------------------------------------------------------------------------------------------


class LayerReport(NamedTuple):
    """One experts module.  ``why``: it is left alone, because ...; ``bytes``: of what is packed, 0 before the first call."""

    name: str
    why: str | None
    format: str | None
    bytes: int
    freed: bool


def _is_experts(module: nn.Module) -> bool:
    """Of a class that transformers' decorator has gone over."""
    return hasattr(type(module), "_apply_gate") and "is_concatenated" in module.__dict__


def report(model: nn.Module) -> list[LayerReport]:
    """What became of each experts module of a model."""
    found = []
    for name, module in model.named_modules():
        slot = module.__dict__.get(_SLOT)
        if slot is None or slot.layer is None:
            if slot is not None or _is_experts(module):
                found.append(LayerReport(name, slot.why if slot else "it was not called yet", None, 0, False))
            continue
        call = slot.layer.call
        info = None if call is None else call.experts.info
        form = None if info is None else info.gate_up + (" " + info.packing if info.packing != "plain" else "")
        found.append(LayerReport(name, None, form, 0 if info is None else info.bytes, slot.layer.freed))
    return found


def accelerate(model: nn.Module, weights: str | None = None, *, free: bool = False, act_mode: str | None = None) -> nn.Module:
    """Switches the model's experts to this library, packs every layer now, and returns the model.

    weights    None: as they are.  "bf16-lossless": bf16 in about 12 bits, the same bits come out; "mxfp4", "fp8": requantised
               (``moe_tkg.torch.quantize_mxfp4``, ``quantize_fp8``).  Weights that are MXFP4 or FP8 already stay as they are.
    free       True: frees each layer's parameters once it is packed.  The model then runs by this library alone, and cannot
               be saved, trained or moved back to another implementation.
    act_mode   "exact", "mxfp8" or "int8": what activations are rounded to (``moe_tkg.ActMode``); None: the default.

    A layer that is not recognised is left alone, with a warning.  Raises ValueError if the model has no experts, or
    none that can be run; nothing is changed then.
    """
    if weights not in FORMATS:
        raise ValueError(f"weights = {weights!r}: must be one of {', '.join(map(repr, FORMATS))}")
    more = {} if act_mode is None else {"act_mode": act_mode}
    found = [(name, module) for name, module in model.named_modules() if _is_experts(module)]
    if not found:
        raise ValueError(f"{type(model).__name__} has no experts of a kind that transformers lets others run")
    for name, module in found:
        slot = module.__dict__.get(_SLOT)
        if slot is not None and slot.layer is not None and slot.layer.freed:
            if slot.layer.weights != weights:
                raise ValueError(f"{name}: its weights were freed when they were packed as weights={slot.layer.weights!r}")
            continue
        module.__dict__.pop(_SLOT, None)
        if _attach(module, weights, more, name):
            layer = module.__dict__[_SLOT].layer
            layer.current()
            if free:
                layer.free()
    if all(_left_alone(module.__dict__[_SLOT]) for _, module in found):
        raise ValueError(f"{type(model).__name__}: none of its experts can be run: {found[0][1].__dict__[_SLOT].why}")
    _switch(model, [module for _, module in found])
    return model


def _switch(model: nn.Module, found: list[nn.Module]) -> None:
    """experts_implementation="moe_tkg", also where this version lists what it takes."""
    if hasattr(model, "set_experts_implementation"):
        try:
            model.set_experts_implementation(NAME)
        except ValueError:
            pass
    for module in found:
        config = module.config
        if config._experts_implementation != NAME:
            where = "_experts_implementation_internal"
            setattr(config, where if hasattr(config, where) else "_experts_implementation", NAME)
