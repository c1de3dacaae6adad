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

from typing import Any, NamedTuple

from torch import nn
from transformers.integrations import moe as _moe

from . import _llama4, _quantizers
from ._modules import NAME, SLOT, Slot, experts_forward, new_slot
from ._source import FORMATS

__all__ = ["NAME", "LayerReport", "accelerate", "release", "report"]

# ---- the registry ----------------------------------------------------------------------------------------------------


def _register() -> None:
    _moe.ALL_EXPERTS_FUNCTIONS.register(NAME, experts_forward)
    try:
        from transformers.integrations.finegrained_fp8 import ALL_FP8_EXPERTS_FUNCTIONS
    except ImportError:  # versions that have no such registry
        return
    ALL_FP8_EXPERTS_FUNCTIONS.register(NAME, experts_forward)
    _quantizers.register()


_register()

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
        slot = module.__dict__.get(SLOT)
        if slot is None or slot.layer is None:
            if slot is not None or _is_experts(module):
                found.append(LayerReport(name, slot.why if slot else "it was not called yet", None, 0, False))
            continue
        call = slot.layer.call
        info = None if call is None else call.experts.info
        form = None if info is None else info.gate_up + (" " + info.packing if info.packing != "plain" else "")
        found.append(LayerReport(name, None, form, 0 if info is None else info.bytes, slot.layer.freed))
    return found


def accelerate(
    model: nn.Module, weights: str | None = None, *, free: bool = False, act_mode: str | None = None
) -> nn.Module:
    """Switches the model's experts to this library, packs every layer now, and returns the model.

    weights    None: as they are.  "bf16-lossless": bf16 in about 12 bits, the same bits come out; "mxfp4", "fp8": requantised
               (``moe_tkg.quantize_mxfp4``; e4m3fn with a scale for each row).  MXFP4 and FP8 stay as they are.
    free       True: frees each layer's parameters once it is packed.  The model then runs by this library alone, and cannot
               be saved, trained or moved back to another implementation.
    act_mode   "exact", "mxfp8" or "int8": what activations are rounded to (``moe_tkg.ActMode``); None: the default.

    A layer that is not recognised is left alone, with a warning.  Raises ValueError if the model has no experts, none that
    can be run, or weights that do not take this act_mode; nothing is changed then.
    """
    if weights not in FORMATS:
        raise ValueError(f"weights = {weights!r}: must be one of {', '.join(map(repr, FORMATS))}")
    more = {} if act_mode is None else {"act_mode": act_mode}
    found = _experts_of(model)
    if not found:
        raise ValueError(f"{type(model).__name__} has no experts of a kind that is known here")
    slots = _slots_of(found, weights, more)
    if all(slot.layer is None for slot in slots):
        raise ValueError(f"{type(model).__name__}: none of its layers can be run: {slots[0].why}")
    for (_, module, _), slot in zip(found, slots):
        if slot.layer is not None and not slot.layer.freed:
            slot.layer.try_out()
        module.__dict__[SLOT] = slot
        if free and slot.layer is not None and not slot.layer.freed:
            slot.layer.free()
    _switch(model, found)
    return model


def _slots_of(
    found: list[tuple[str, nn.Module, nn.Module | None]], weights: str | None, more: dict[str, Any]
) -> list[Slot]:
    """What is to be known of each module: anew, but of those whose weights were freed.  Nothing is packed or changed."""
    slots = []
    for name, module, block in found:
        settings = more if block is None else {**more, **_llama4.SETTINGS}
        slot = module.__dict__.get(SLOT)
        if slot is None or slot.layer is None or not slot.layer.freed:
            slot = new_slot(module, weights, settings, name)
        elif (slot.layer.weights, slot.layer.more) != (weights, settings):
            raise ValueError(
                f"{name}: its weights were freed when they were packed with weights={slot.layer.weights!r}, "
                f"act_mode={slot.layer.more.get('act_mode')!r}"
            )
        slots.append(slot)
    return slots


def release(model: nn.Module) -> None:
    """Frees what is packed, but of layers whose weights were freed.  A later call packs anew, as the weights are then and in
    the same format."""
    for module in model.modules():
        slot = module.__dict__.get(SLOT)
        if slot is None or (slot.layer is not None and slot.layer.freed):
            continue
        if slot.layer is None:  # left alone: to be looked at again
            del module.__dict__[SLOT]
        else:
            slot.layer.forget()


def _experts_of(model: nn.Module) -> list[tuple[str, nn.Module, nn.Module | None]]:
    """Name, experts, and the block around them where that is what has to be switched."""
    found: list[tuple[str, nn.Module, nn.Module | None]] = []
    for name, module in model.named_modules():
        if _is_experts(module):
            found.append((name, module, None))
        elif _llama4.is_block(module) and _llama4.known(module):
            found.append((f"{name}.experts", module.experts, module))
    return found


def _switch(model: nn.Module, found: list[tuple[str, nn.Module, nn.Module | None]]) -> None:
    """experts_implementation="moe_tkg", also where this version lists what it takes."""
    if hasattr(model, "set_experts_implementation"):
        try:
            model.set_experts_implementation(NAME)
        except ValueError:
            pass
    for _, module, block in found:
        if block is not None:
            _llama4.switch(block)
        elif module.config._experts_implementation != NAME:
            where = "_experts_implementation_internal"
            setattr(module.config, where if hasattr(module.config, where) else "_experts_implementation", NAME)
