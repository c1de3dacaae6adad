# SPDX-License-Identifier: Apache-2.0
"""The operator by its parameters' names."""

from __future__ import annotations

import ctypes
from ctypes import addressof, byref, c_size_t
from typing import Any, Callable

import numpy as np

from . import _abi
from ._abi import ActMode, Activation, AffinityScale, DType, GroupRank, Packing, RouterScore, Status, lib, sized
from ._array import DTYPE_NAME, NUMPY_OF, View, dense, dtype_of, empty, tensor, writable
from ._context import Context, default_context
from ._errors import check, error


_KINDS = (ActMode, Activation, AffinityScale, GroupRank, Packing, RouterScore)
_MEMBERS = {kind: {m.name.lower(): int(m) for m in kind} for kind in _KINDS}


def enumerator(kind, name: str, value: Any) -> int:
    """A member of kind, its number, or its name in any case, as a number."""
    members = _MEMBERS[kind]
    if isinstance(value, str):
        found = members.get(value)
        if found is None:
            found = members.get(value.lower())
        if found is not None:
            return found
    elif isinstance(value, int) and value in members.values():
        return int(value)
    raise error(Status.BAD_ENUM, f"{name} = {value!r}: must be one of {', '.join(map(repr, members))}")


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


_SCALE_BYTES = ("expert_gate_up_weights_scale", "expert_down_weights_scale", "hidden_input_scale")


def tensors(args: _abi.TkgArgs, **given: Any) -> list[tuple[_abi.Tensor, View]]:
    """Sets the tensors that are not None; args refers to what is returned.  hidden_input comes first."""
    keep = []
    for name, value in given.items():
        if value is None:
            continue
        if name == "rank_id" and isinstance(value, int):
            value = np.array([[value]], np.int64)
        described = tensor(name, value, DType.E8M0 if name in _SCALE_BYTES else None)
        keep.append(described)
        setattr(args, name, addressof(described[0]))
    return keep


def settings(args: _abi.TkgArgs, **given: Any) -> None:
    """Sets what is no tensor: whatever is not None."""
    for name, value in given.items():
        if value is None or value is False:
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
        return out, dense("out", out).address
    v = writable("out", out)
    if v.dtype != dtype:
        raise error(Status.DTYPE, f"out: has elements of {v.said}: must be {DTYPE_NAME[dtype]}")
    if v.shape != shape:
        raise error(Status.SHAPE, f"out: has shape {list(v.shape)}: must be {list(shape)}")
    return out, v.address


def whole(work: Callable[[int], None], out: int, shape: tuple[int, ...], dtype: int) -> None:
    """work(address), of several calls of the library, whose result goes to out complete or not at all.

    A later call may read what an earlier one's rows would lie over.
    """
    result = np.empty(shape, NUMPY_OF[dtype])
    work(result.ctypes.data)
    ctypes.memmove(out, result.ctypes.data, result.nbytes)


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
    """The Mixture-of-Experts block of the operator, by its parameters' names.

    T tokens, H hidden size, I intermediate size, K experts per token, E_L experts whose weights are here, E experts that
    there are affinities for; nH = H / 512, nI = ceil(I / 512), I_p partitions of the MX down weights.

    Arrays are dense, in the order of their shapes; MX words are ``Tensor(words, "mxfp4_x4")`` of uint16 or
    ``Tensor(words, "mxfp8_x4")`` of uint32, IEEE e4m3 in bytes ``Tensor(bytes, "e4m3_ieee")``, scales of MX uint8 or e8m0,
    SBUF layouts ``Tensor(array, layout="sbuf")``.

    hidden_input                  [T, H] or [B, S, H]: bf16, f16, f32; or in SBUF
    expert_gate_up_weights        [E_L, H, 2, I]: bf16, f16, f32, e4m3; MX [E_L, 128, 2, nH, I]
    expert_down_weights           [E_L, I, H], likewise; MX [E_L, I_p, nI, H]
    expert_affinities             [T, E]: bf16, f16, f32; with "post_scale" or "input_scale"
    expert_index                  [T, K]: i32, u32, i64
    is_all_expert                 every expert for every token; else those of expert_index, and T is at most 128
    rank_id                       a number, or [1, 1]: local expert e has affinity column rank_id * E_L + e
    expert_gate_up_bias           [E_L, 2, I]; MX [E_L, I_p, 2, nI, 4]
    expert_down_bias              [E_L, H]
    expert_gate_up_weights_scale  f32 [E_L, 2, I] or [E_L, 2, 1]; MX e8m0 [E_L, 16, 2, nH, I]
    expert_down_weights_scale     f32 [E_L, H] or [E_L, 1]; MX e8m0 [E_L, I_p / 8, nI, H]
    hidden_input_scale            e8m0 [128, nH, T] of a pre-quantised hidden_input
    expert_affinities_eager       [T, K], in place of expert_affinities in selective mode
    expert_affinities_scaling_mode  "no_scale", "post_scale", "input_scale"
    activation_fn                 "silu", "gelu", "gelu_tanh", "swish", "relu", "swiglu", "relu2"
    output_dtype                  "bf16", "f16", "f32", or NumPy's or PyTorch's; None: hidden_input's
    act_mode                      "default", "exact", "mxfp8", "int8"
    skip_invalid_experts          an index outside [0, E_L) contributes nothing instead of being an error
    experts                       ``Experts`` in place of weights, scales and biases: many times faster
    out                           where the result goes, of its type and shape; may be hidden_input.  None: a new array
    context                       the threads to run on; None: ``default_context()``

    What is left out is as include/moe_tkg.h says.  Returns [T, H] of hidden_input's kind, with output_in_sbuf
    [128, T, H / 128]; PyTorch's gradients do not flow through it.

    Raises MoeTypeError: an element type that is not taken, a required array that is missing.  MoeValueError: a shape,
    value, layout, device or combination that is not taken, an index out of range.  MoeMemoryError.  The text is the
    library's and names argument, value and limit; nothing has then been written to out.
    """
    args = sized(_abi.TkgArgs)
    keep = tensors(
        args,
        hidden_input=hidden_input,
        expert_gate_up_weights=expert_gate_up_weights,
        expert_down_weights=expert_down_weights,
        expert_affinities=expert_affinities,
        expert_index=expert_index,
        rank_id=rank_id,
        expert_gate_up_bias=expert_gate_up_bias,
        expert_down_bias=expert_down_bias,
        expert_gate_up_weights_scale=expert_gate_up_weights_scale,
        expert_down_weights_scale=expert_down_weights_scale,
        hidden_input_scale=hidden_input_scale,
        gate_up_input_scale=gate_up_input_scale,
        down_input_scale=down_input_scale,
        expert_affinities_eager=expert_affinities_eager,
    )
    settings(
        args,
        is_all_expert=is_all_expert,
        mask_unselected_experts=mask_unselected_experts,
        expert_affinities_scaling_mode=expert_affinities_scaling_mode,
        activation_fn=activation_fn,
        output_dtype=output_dtype,
        gate_clamp_upper_limit=gate_clamp_upper_limit,
        gate_clamp_lower_limit=gate_clamp_lower_limit,
        up_clamp_upper_limit=up_clamp_upper_limit,
        up_clamp_lower_limit=up_clamp_lower_limit,
        output_in_sbuf=output_in_sbuf,
        is_all_expert_dynamic=is_all_expert_dynamic,
        block_size=block_size,
        act_mode=act_mode,
        swiglu_alpha=swiglu_alpha,
        swiglu_up_offset=swiglu_up_offset,
        act_clamp_upper_limit=act_clamp_upper_limit,
        skip_invalid_experts=skip_invalid_experts,
    )
    if experts is not None:
        args.experts = experts.address
    described = _abi.Tensor()
    size = c_size_t()
    check(lib.moe_tkg_output(byref(args), byref(described), byref(size)))
    shape = tuple(described.shape[: described.rank])
    out, address = destination(keep[0][1].torch, out, shape, described.dtype)
    check(lib.moe_tkg(address_of(context), byref(args), address, size))
    return out
