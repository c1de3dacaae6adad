# SPDX-License-Identifier: Apache-2.0
"""The experts modules of models of transformers: what each knows of its packed experts, and the call in place of its own.

A module's experts are packed at the first call, and again at a call that finds its parameters changed: other memory, or
changed in place (``Tensor._version``).  Changes in place that PyTorch does not count, through ``.data`` or NumPy, are not seen.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from transformers.integrations import moe as _moe

from ._experts import Call
from ._recognize import NotRecognized
from ._source import Source
from .torch import Layer, _run, context

NAME = "moe_tkg"
_lock = threading.RLock()

# ---- a module's experts, packed ------------------------------------------------------------------------------------------


def _seen(p: torch.Tensor | None) -> tuple[int, ...]:
    """What tells a parameter's memory and its state: other numbers where either is another.

    The storage's identity is not given out again as long as a ``StorageWeakRef`` of it is kept; an address is.
    """
    if p is None:
        return ()
    return p.untyped_storage()._cdata, p.data_ptr(), -1 if p.is_inference() else p._version


class Packed(Layer):
    """A module's experts: packed at the first call, and again at a call that finds its parameters changed."""

    def __init__(self, module: nn.Module, source: Source, weights: str | None, more: dict[str, Any]):
        self.module = weakref.ref(module)
        self.source, self.weights, self.more = source, weights, more
        self.call: Call | None = None
        self.seen: tuple = ()
        self._storages: list[StorageWeakRef] = []
        self.freed = False
        self._register()

    @property
    def own(self) -> bool:
        """The module's own forward can run."""
        return self.source.kind == "plain" and not self.freed

    def current(self) -> Call:
        if self.freed:
            return self.call
        parameters = self.module()._parameters
        seen = tuple([_seen(p) for p in map(parameters.get, self.source.names)])
        if seen != self.seen:
            self._pack(seen)
        return self.call

    def _pack(self, seen: tuple) -> None:
        with _lock:
            if seen == self.seen:
                return
            module = self.module()
            try:
                self.source = Source(module)
                self.source.settle(self.weights)
            except NotRecognized as why:
                raise RuntimeError(f"moe_tkg: the experts of a {type(module).__name__} were changed: {why}") from None
            self.call = None  # frees what was packed before it is packed again
            experts = self.source.pack(module, self.weights, context())
            self.call = experts.prepare(**self.source.gate.settings(), **self.more, skip_invalid_experts=True)
            self._storages = [StorageWeakRef(module._parameters[n].untyped_storage()) for n in self.source.names]
            self.seen = seen

    def forget(self) -> None:
        """What is packed goes; the next call packs anew, in the same format."""
        with _lock:
            self.call, self.seen, self._storages = None, (), []

    def try_out(self) -> None:
        """Packs, and makes a call that uses no expert: raises what settings that do not go together raise."""
        self(torch.zeros(1, self.source.H), torch.full((1, 1), self.source.E), torch.ones(1, 1))

    def free(self) -> None:
        """The module's weights go; what is packed stays."""
        self.current()
        module = self.module()
        for name in self.source.names:
            shape = tuple(module._parameters[name].shape)
            del module._parameters[name]
            module.__dict__[name] = Absent(f"{name} {list(shape)} was freed when moe_tkg packed it")
        self.freed = True
        module.register_state_dict_pre_hook(no_state)


class Absent:
    """Stands where a weight was."""

    def __init__(self, why: str):
        self._said = f"{why}: only experts_implementation={NAME!r} runs this layer"

    def __repr__(self) -> str:
        return f"<{self._said}>"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise RuntimeError(self._said)

    def __getitem__(self, item: Any) -> Any:
        raise RuntimeError(self._said)


def no_state(module: nn.Module, prefix: str, keep_vars: bool) -> None:
    raise RuntimeError(
        f"{prefix.removesuffix('.')}: the weights of these experts are packed by moe_tkg and in no form that can be saved"
    )


class Slot:
    """What a module knows of its packed experts: a number for graphs, or why they are left alone."""

    def __init__(self, layer: Packed | None = None, why: str | None = None):
        self.layer, self.why = layer, why
        self.handle = 0 if layer is None else layer.handle

    def __deepcopy__(self, memo: dict) -> Slot | None:
        # A copy has parameters of its own, and so is packed by itself, in the same format, unless there are none.
        layer = self.layer
        if layer is None or layer.freed:
            return None if layer is None else self
        module = memo.get(id(layer.module()))
        return None if module is None else Slot(Packed(module, layer.source, layer.weights, layer.more))

    def __reduce__(self) -> Any:
        if self.layer is not None and self.layer.freed:
            raise RuntimeError("the weights of these experts were freed when moe_tkg packed them: they cannot be saved")
        return type(None), ()


SLOT = "_moe_tkg"


def attach(module: nn.Module, more: dict[str, Any] | None = None) -> Slot:
    """What the module knows of its packed experts; recognises them if it knows nothing yet."""
    with _lock:
        slot = module.__dict__.get(SLOT)
        if slot is None:
            slot = module.__dict__[SLOT] = new_slot(module, None, more or {})
        return slot


def new_slot(module: nn.Module, weights: str | None, more: dict[str, Any], name: str = "") -> Slot:
    """What would be known of the module's experts; nothing is packed yet."""
    try:
        source = Source(module)
        source.settle(weights)
    except NotRecognized as reason:
        warnings.warn(f"moe_tkg leaves {name or type(module).__name__} as it is: {reason}", stacklevel=4)
        return Slot(why=str(reason))
    return Slot(Packed(module, source, weights, more))


# Dynamo takes what this returns as a constant of the graph.
_constant_attach = torch.compiler.assume_constant_result(attach)


def slot_of(module: nn.Module, more: dict[str, Any] | None = None) -> Slot:
    """``attach``, in graphs too."""
    slot = module.__dict__.get(SLOT)
    if slot is None:
        slot = (_constant_attach if torch.compiler.is_compiling() else attach)(module, more)
    return slot


# ---- the call ------------------------------------------------------------------------------------------------------------


def own_forward(module: nn.Module) -> Any:
    """The class's forward below transformers' dispatch, however often that was put around it."""
    forward = type(module).forward
    while (
        inner := getattr(forward, "__wrapped__", None)
    ) is not None and forward.__code__.co_filename == _moe.__file__:
        forward = inner
    return forward


def wants_gradient(module: nn.Module, hidden: torch.Tensor, slot: Slot, weights: torch.Tensor | None = None) -> bool:
    """The model's own experts are to run, with a warning.  Raises RuntimeError where they cannot."""
    if not torch.is_grad_enabled():
        return False
    routed = weights is not None and weights.requires_grad
    if not (hidden.requires_grad or routed or any(p.requires_grad for p in module.parameters())):
        return False
    if not slot.layer.own:
        raise RuntimeError(
            "moe_tkg: a gradient is wanted, and the weights that it would need were freed or are packed codes: "
            "use torch.no_grad() or torch.inference_mode()"
        )
    if not torch.compiler.is_compiling():
        warnings.warn(
            "moe_tkg: a gradient is wanted, so the model's own experts run: use torch.no_grad() or torch.inference_mode()",
            stacklevel=4,
        )
    return True


def run(slot: Slot, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    if torch.compiler.is_compiling():
        return torch.ops.moe_tkg.experts(hidden, index, weights, slot.handle)
    return _run(slot.layer, hidden, index, weights)


def experts_forward(
    module: nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """What transformers calls in place of an experts module's own forward: [T, H], [T, K], [T, K] (or [T, E]) -> [T, H]."""
    if not hidden_states.is_cpu:
        return own_forward(module)(module, hidden_states, top_k_index, top_k_weights)
    slot = slot_of(module)
    if slot.handle == 0 or wants_gradient(module, hidden_states, slot, top_k_weights):
        return own_forward(module)(module, hidden_states, top_k_index, top_k_weights)
    if top_k_weights.shape[-1] != top_k_index.shape[-1]:
        top_k_weights = top_k_weights.gather(-1, top_k_index.clamp(0, top_k_weights.shape[-1] - 1).long())
    return run(slot, hidden_states, top_k_index, top_k_weights)
