# SPDX-License-Identifier: Apache-2.0
"""The operator by its parameters' names."""

from __future__ import annotations

from ctypes import addressof, byref, c_size_t
from typing import Any

import numpy as np

from . import _abi
from ._abi import ActMode, Activation, AffinityScale, DType, Status, lib, sized
from ._array import DTYPE_NAME, NUMPY_OF, dtype_of, empty, tensor, view, writable
from ._context import Context, default_context
from ._errors import check, error


def enumerator(kind, name: str, value: Any) -> int:
    """A member of kind, or its name in any case, as a number."""
    if isinstance(value, str):
        member = kind.__members__.get(value.upper())
        if member is not None:
            return member
    else:
        try:
            return kind(value)
        except ValueError:
            pass
    names = ", ".join(repr(m.lower()) for m in kind.__members__)
    raise error(Status.BAD_ENUM, f"{name} = {value!r}: must be one of {names}")


_LIMITS = (
    "gate_clamp_upper_limit",
    "gate_clamp_lower_limit",
    "up_clamp_upper_limit",
    "up_clamp_lower_limit",
    "swiglu_alpha",
    "swiglu_up_offset",
    "act_clamp_upper_limit",
)
_FLAGS = (
    "is_all_expert",
    "mask_unselected_experts",
    "output_in_sbuf",
    "is_all_expert_dynamic",
    "skip_invalid_experts",
)
_ENUMS = {
    "expert_affinities_scaling_mode": AffinityScale,
    "activation_fn": Activation,
    "act_mode": ActMode,
}


def settings(args: _abi.TkgArgs, given: dict[str, Any]) -> None:
    """Sets what is no tensor: whatever is not None."""
    for name, value in given.items():
        if value is None:
            continue
        if name in _LIMITS:
            field = getattr(args, name)
            field.given, field.value = 1, value
        elif name in _FLAGS:
            setattr(args, name, int(value))
        elif name in _ENUMS:
            setattr(args, name, enumerator(_ENUMS[name], name, value))
        elif name == "output_dtype":
            args.output_dtype = output_type(value)
        elif name == "block_size":
            args.block_size.given, args.block_size.value = 1, value
        else:
            raise TypeError(f"{name}: no parameter of the operator")


def output_type(value: Any) -> int:
    """An element type by name, or as NumPy or PyTorch have it."""
    if isinstance(value, (str, int)):
        return dtype_of(value)
    for ours, theirs in NUMPY_OF.items():
        try:
            if theirs == value:
                return ours
        except TypeError:
            break
    name = {"torch.bfloat16": "bf16", "torch.float16": "f16", "torch.float32": "f32"}.get(str(value))
    if name is None:
        raise error(Status.BAD_ENUM, f"output_dtype = {value!r}: must be bf16, f16 or f32")
    return dtype_of(name)


def address_of(context: Context | None) -> int | None:
    return (context or default_context()).address


def destination(like_torch: bool, out: Any, shape: tuple[int, ...], dtype: int) -> tuple[Any, int]:
    """The array that a result goes to, and its address."""
    if out is None:
        out = empty(like_torch, dtype, shape)
        return out, view("out", out).address
    v = writable("out", out)
    if v.dtype != dtype:
        raise error(Status.DTYPE, f"out: has elements of {v.said}: must be {DTYPE_NAME[dtype]}")
    if v.shape != shape:
        raise error(Status.SHAPE, f"out: has shape {list(v.shape)}: must be {list(shape)}")
    return out, v.address


def moe_tkg(
    hidden_input: Any,
    *,
    expert_gate_up_weights: Any = None,
    expert_down_weights: Any = None,
    expert_affinities: Any = None,
    expert_index: Any = None,
    is_all_expert: bool = False,
    rank_id: Any = None,
    expert_gate_up_bias: Any = None,
    expert_down_bias: Any = None,
    expert_gate_up_weights_scale: Any = None,
    expert_down_weights_scale: Any = None,
    hidden_input_scale: Any = None,
    gate_up_input_scale: Any = None,
    down_input_scale: Any = None,
    mask_unselected_experts: bool = False,
    expert_affinities_eager: Any = None,
    expert_affinities_scaling_mode: str | int = "no_scale",
    activation_fn: str | int = "silu",
    output_dtype: Any = None,
    gate_clamp_upper_limit: float | None = None,
    gate_clamp_lower_limit: float | None = None,
    up_clamp_upper_limit: float | None = None,
    up_clamp_lower_limit: float | None = None,
    output_in_sbuf: bool = False,
    is_all_expert_dynamic: bool = False,
    block_size: int | None = None,
    act_mode: str | int = "default",
    swiglu_alpha: float | None = None,
    swiglu_up_offset: float | None = None,
    act_clamp_upper_limit: float | None = None,
    skip_invalid_experts: bool = False,
    experts: Any = None,
    out: Any = None,
    context: Context | None = None,
) -> Any:
    args = sized(_abi.TkgArgs)
    keep = []
    for name, value, dtype in (
        ("hidden_input", hidden_input, None),
        ("expert_gate_up_weights", expert_gate_up_weights, None),
        ("expert_down_weights", expert_down_weights, None),
        ("expert_affinities", expert_affinities, None),
        ("expert_index", expert_index, None),
        ("rank_id", np.array([[rank_id]], np.int64) if isinstance(rank_id, int) else rank_id, None),
        ("expert_gate_up_bias", expert_gate_up_bias, None),
        ("expert_down_bias", expert_down_bias, None),
        ("expert_gate_up_weights_scale", expert_gate_up_weights_scale, DType.E8M0),
        ("expert_down_weights_scale", expert_down_weights_scale, DType.E8M0),
        ("hidden_input_scale", hidden_input_scale, DType.E8M0),
        ("gate_up_input_scale", gate_up_input_scale, None),
        ("down_input_scale", down_input_scale, None),
        ("expert_affinities_eager", expert_affinities_eager, None),
    ):
        if value is not None:
            described = tensor(name, value, dtype)
            keep.append(described)
            setattr(args, name, addressof(described[0]))
    settings(
        args,
        {
            "is_all_expert": is_all_expert,
            "mask_unselected_experts": mask_unselected_experts,
            "expert_affinities_scaling_mode": expert_affinities_scaling_mode,
            "activation_fn": activation_fn,
            "output_dtype": output_dtype,
            "gate_clamp_upper_limit": gate_clamp_upper_limit,
            "gate_clamp_lower_limit": gate_clamp_lower_limit,
            "up_clamp_upper_limit": up_clamp_upper_limit,
            "up_clamp_lower_limit": up_clamp_lower_limit,
            "output_in_sbuf": output_in_sbuf,
            "is_all_expert_dynamic": is_all_expert_dynamic,
            "block_size": block_size,
            "act_mode": act_mode,
            "swiglu_alpha": swiglu_alpha,
            "swiglu_up_offset": swiglu_up_offset,
            "act_clamp_upper_limit": act_clamp_upper_limit,
            "skip_invalid_experts": skip_invalid_experts,
        },
    )
    if experts is not None:
        args.experts = experts.address
    described = _abi.Tensor()
    size = c_size_t()
    check(lib.moe_tkg_output(byref(args), byref(described), byref(size)))
    shape = tuple(described.shape[: described.rank])
    like_torch = bool(keep) and keep[0][1].torch
    out, address = destination(like_torch, out, shape, described.dtype)
    check(lib.moe_tkg(address_of(context), byref(args), address, size))
    return out
