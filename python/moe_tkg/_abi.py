# SPDX-License-Identifier: Apache-2.0
"""The C interface, as include/moe_tkg.h and include/moe_tkg_io.h declare it, by ctypes.

Calls release the GIL.  The libraries are those of the package; $MOE_TKG_LIBRARY names a directory with others.
"""

from __future__ import annotations

import ctypes
import enum
import functools
import os
import pathlib
from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    c_char,
    c_char_p,
    c_float,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_uint64,
    c_void_p,
    sizeof,
)

MAX_RANK = 5
PACKAGE = pathlib.Path(__file__).resolve().parent


class Status(enum.IntEnum):
    """What a call of the library ended with."""

    OK = 0
    NULL_ARG = 1
    ABI = 2
    BAD_ENUM = 3
    VALUE = 4
    DIM = 5
    SHAPE = 6
    DTYPE = 7
    LAYOUT = 8
    UNSUPPORTED = 9
    OVERFLOW = 10
    EXPERT_INDEX = 11
    RANK_RANGE = 12
    ALIGN = 13
    ALIAS = 14
    NOMEM = 15
    ISA = 16
    BUSY = 17
    OPEN = 18
    READ = 19
    WRITE = 20
    FORMAT = 21
    MODEL = 22
    STALE = 23


class DType(enum.IntEnum):
    """Types of elements, as moe_dtype of the C interface."""

    NONE = 0
    BF16 = 1
    F16 = 2
    F32 = 3
    E4M3_IEEE = 4
    E4M3FN = 5
    E8M0 = 6
    MXFP4_X4 = 7
    MXFP8_X4 = 8
    I32 = 9
    U32 = 10
    I64 = 11
    E2M1_X2 = 12
    INT4_X2 = 13
    Q8_0 = 14
    Q4_0 = 15
    Q4_K = 16
    Q5_K = 17
    Q6_K = 18
    GGML_MXFP4 = 19
    GGML_NVFP4 = 20


class Layout(enum.IntEnum):
    """The order that a tensor's elements lie in."""

    HBM = 0
    SBUF = 1


class AffinityScale(enum.IntEnum):
    """How affinities are used."""

    NO_SCALE = 0
    POST_SCALE = 1
    PRE_SCALE = 2
    PRE_SCALE_DELAYED = 3
    INPUT_SCALE = 4


class Activation(enum.IntEnum):
    """What is applied to the gate; SWIGLU has parameters."""

    SILU = 0
    GELU = 1
    GELU_TANH = 2
    SWISH = 3
    RELU = 4
    SWIGLU = 5
    RELU2 = 6


class ActMode(enum.IntEnum):
    """What the hidden input and the intermediate are rounded to before the products."""

    DEFAULT = 0
    EXACT = 1
    MXFP8 = 2
    INT8 = 3


class Packing(enum.IntEnum):
    """How experts are packed; LOSSLESS: bf16 in about 12 bits."""

    PLAIN = 0
    LOSSLESS = 1


class RouterScore(enum.IntEnum):
    """What a router makes of its logits."""

    SOFTMAX = 0
    TOPK_SOFTMAX = 1
    SIGMOID = 2
    SQRT_SOFTPLUS = 3


class GroupRank(enum.IntEnum):
    """What groups of experts are ranked by."""

    TWO_BEST = 0
    BEST = 1


class Tensor(Structure):
    _fields_ = [
        ("data", c_void_p),
        ("dtype", c_int),
        ("layout", c_int),
        ("rank", c_int32),
        ("shape", c_int64 * MAX_RANK),
    ]


class OptionalFloat(Structure):
    _fields_ = [("given", c_int32), ("value", c_float)]


class OptionalInt(Structure):
    _fields_ = [("given", c_int32), ("value", c_int64)]


class TkgArgs(Structure):  # pointers to structs are addresses here: setting one costs a tenth
    _fields_ = [
        ("struct_size", c_size_t),
        ("hidden_input", c_void_p),
        ("expert_gate_up_weights", c_void_p),
        ("expert_down_weights", c_void_p),
        ("expert_affinities", c_void_p),
        ("expert_index", c_void_p),
        ("is_all_expert", c_int32),
        ("rank_id", c_void_p),
        ("expert_gate_up_bias", c_void_p),
        ("expert_down_bias", c_void_p),
        ("expert_gate_up_weights_scale", c_void_p),
        ("expert_down_weights_scale", c_void_p),
        ("hidden_input_scale", c_void_p),
        ("gate_up_input_scale", c_void_p),
        ("down_input_scale", c_void_p),
        ("mask_unselected_experts", c_int32),
        ("expert_affinities_eager", c_void_p),
        ("expert_affinities_scaling_mode", c_int),
        ("activation_fn", c_int),
        ("output_dtype", c_int),
        ("gate_clamp_upper_limit", OptionalFloat),
        ("gate_clamp_lower_limit", OptionalFloat),
        ("up_clamp_upper_limit", OptionalFloat),
        ("up_clamp_lower_limit", OptionalFloat),
        ("output_in_sbuf", c_int32),
        ("is_all_expert_dynamic", c_int32),
        ("block_size", OptionalInt),
        ("act_mode", c_int),
        ("swiglu_alpha", OptionalFloat),
        ("swiglu_up_offset", OptionalFloat),
        ("act_clamp_upper_limit", OptionalFloat),
        ("skip_invalid_experts", c_int32),
        ("experts", c_void_p),
    ]


ALLOCATE = CFUNCTYPE(c_void_p, c_size_t, c_size_t, c_void_p)
RELEASE = CFUNCTYPE(None, c_void_p, c_size_t, c_void_p)
PARALLEL_FOR = CFUNCTYPE(None, c_void_p, c_void_p, c_size_t, c_void_p)


class ContextOptions(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("threads", c_int32),
        ("isa", c_char_p),
        ("allocate", ALLOCATE),
        ("release", RELEASE),
        ("user", c_void_p),
        ("parallel_for", PARALLEL_FOR),
        ("parallel_user", c_void_p),
    ]


class Array(Structure):
    _fields_ = [
        ("dtype", c_int),
        ("data", c_void_p),
        ("experts", POINTER(c_void_p)),
        ("expert_stride", c_int64),
        ("row_stride", c_int64),
        ("column_stride", c_int64),
    ]


class Matrix(Structure):
    _fields_ = [
        ("weights", Array),
        ("scale", Array),
        ("bias", Array),
        ("row_scale", Array),
        ("scale_k", c_int32),
        ("scale_rows", c_int32),
    ]


class ExpertsArgs(Structure):
    pass


FETCH = CFUNCTYPE(c_int, c_void_p, c_int64, c_int64, POINTER(ExpertsArgs))
ExpertsArgs._fields_ = [
    ("struct_size", c_size_t),
    ("E_L", c_int64),
    ("H", c_int64),
    ("I", c_int64),
    ("gate", Matrix),
    ("up", Matrix),
    ("down", Matrix),
    ("fetch", FETCH),
    ("fetch_user", c_void_p),
    ("fetch_count", c_int64),
    ("expert_gate_up_weights", c_void_p),
    ("expert_down_weights", c_void_p),
    ("expert_gate_up_bias", c_void_p),
    ("expert_down_bias", c_void_p),
    ("expert_gate_up_weights_scale", c_void_p),
    ("expert_down_weights_scale", c_void_p),
    ("packing", c_int),
]


class ExpertsInfo(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("E_L", c_int64),
        ("H", c_int64),
        ("I", c_int64),
        ("gate_up", c_int),
        ("down", c_int),
        ("has_gate", c_int32),
        ("packing", c_int),
        ("bytes", c_size_t),
        ("expert_bytes", c_size_t),
    ]


class RouterArgs(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("x", c_void_p),
        ("E", c_int64),
        ("K", c_int64),
        ("weights", Array),
        ("bias", Array),
        ("selection_bias", Array),
        ("score", c_int),
        ("normalize", c_int32),
        ("normalize_epsilon", c_float),
        ("scale", c_float),
        ("n_group", c_int32),
        ("topk_group", c_int32),
        ("group_rank", c_int),
    ]


class RouterOutput(Structure):
    _fields_ = [
        ("index", c_void_p),
        ("weights", c_void_p),
        ("logits", c_void_p),
        ("affinities", c_void_p),
        ("scores", c_void_p),
    ]


class BlockArgs(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("experts", TkgArgs),
        ("gamma", Array),
        ("norm_epsilon", c_float),
        ("norm_H", c_int64),
        ("router", RouterArgs),
        ("shared", c_void_p),
        ("shared_gate", Array),
        ("routed", RouterOutput),
    ]


class ModelOptions(Structure):
    _fields_ = [("struct_size", c_size_t), ("config", c_char_p)]


class ModelInfo(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("family", c_char_p),
        ("container", c_char_p),
        ("layers", c_int64),
        ("moe_layers", c_int64),
    ]


class LayerInfo(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("layer", c_int64),
        ("H", c_int64),
        ("I", c_int64),
        ("E", c_int64),
        ("K", c_int64),
        ("gate_up_format", c_char * 24),
        ("down_format", c_char * 24),
        ("activation", c_int),
        ("swiglu_alpha", OptionalFloat),
        ("swiglu_up_offset", OptionalFloat),
        ("gate_clamp_upper_limit", OptionalFloat),
        ("up_clamp_upper_limit", OptionalFloat),
        ("up_clamp_lower_limit", OptionalFloat),
        ("act_clamp_upper_limit", OptionalFloat),
        ("has_gate", c_int32),
        ("has_bias", c_int32),
        ("scaling", c_int),
        ("foreign_router", c_char_p),
        ("score", c_int),
        ("group_rank", c_int),
        ("normalize", c_int32),
        ("n_group", c_int32),
        ("topk_group", c_int32),
        ("has_router_bias", c_int32),
        ("has_selection_bias", c_int32),
        ("normalize_epsilon", c_float),
        ("scale", c_float),
        ("shared_I", c_int64),
        ("shared_format", c_char * 24),
        ("has_shared_gate", c_int32),
        ("bytes", c_uint64),
        ("expert_bytes", c_uint64),
    ]


PROGRESS = CFUNCTYPE(c_int, c_void_p, c_uint64, c_uint64)


class LoadOptions(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("packing", c_int),
        ("progress", PROGRESS),
        ("user", c_void_p),
    ]


WRITE = CFUNCTYPE(c_int, c_void_p, c_void_p, c_size_t)
READ = CFUNCTYPE(c_int, c_void_p, c_void_p, c_size_t)

_CORE = {
    "moe_status_name": (c_char_p, [c_int]),
    "moe_last_error": (c_char_p, []),
    "moe_version": (c_char_p, []),
    "moe_version_number": (c_int, []),
    "moe_dtype_size": (c_size_t, [c_int]),
    "moe_dtype_k": (c_size_t, [c_int]),
    "moe_dtype_name": (c_char_p, [c_int]),
    "moe_context_create": (c_int, [POINTER(ContextOptions), POINTER(c_void_p)]),
    "moe_context_destroy": (c_int, [c_void_p]),
    "moe_context_threads": (c_int32, [c_void_p]),
    "moe_context_isa": (c_char_p, [c_void_p]),
    "moe_isa_level": (c_char_p, [c_size_t]),
    "moe_experts_bytes": (c_int, [c_void_p, POINTER(ExpertsArgs), POINTER(c_size_t)]),
    "moe_experts_create": (c_int, [c_void_p, POINTER(ExpertsArgs), POINTER(c_void_p)]),
    "moe_experts_destroy": (c_int, [c_void_p]),
    "moe_experts_describe": (c_int, [c_void_p, POINTER(ExpertsInfo)]),
    "moe_experts_write": (c_int, [c_void_p, WRITE, c_void_p]),
    "moe_experts_read": (c_int, [c_void_p, READ, c_void_p, c_size_t, POINTER(c_void_p)]),
    "moe_tkg": (c_int, [c_void_p, c_void_p, c_void_p, c_size_t]),
    "moe_tkg_output": (c_int, [c_void_p, POINTER(Tensor), POINTER(c_size_t)]),
    "moe_router_topk": (c_int, [c_void_p, POINTER(RouterArgs), POINTER(RouterOutput)]),
    "moe_block": (c_int, [c_void_p, c_void_p, c_void_p, c_size_t]),
}

_IO = {
    "moe_io_last_error": (c_char_p, []),
    "moe_model_open": (c_int, [c_char_p, POINTER(ModelOptions), POINTER(c_void_p)]),
    "moe_model_close": (None, [c_void_p]),
    "moe_model_describe": (c_int, [c_void_p, POINTER(ModelInfo)]),
    "moe_model_layer": (c_int, [c_void_p, c_int64, POINTER(LayerInfo)]),
    "moe_model_load": (c_int, [c_void_p, c_int64, c_void_p, POINTER(LoadOptions), POINTER(c_void_p)]),
    "moe_layer_free": (c_int, [c_void_p]),
    "moe_layer_args": (c_int, [c_void_p, POINTER(BlockArgs)]),
    "moe_layer_describe": (c_int, [c_void_p, POINTER(LayerInfo)]),
    "moe_layer_save": (c_int, [c_void_p, c_char_p]),
    "moe_model_matches": (c_int, [c_void_p, c_void_p]),
}


def directory() -> pathlib.Path:
    """Where the libraries are."""
    other = os.environ.get("MOE_TKG_LIBRARY")
    return pathlib.Path(other) if other else PACKAGE / "lib"


def _load(name: str, functions: dict) -> ctypes.CDLL:
    library = ctypes.CDLL(str(directory() / name))
    for symbol, (result, arguments) in functions.items():
        function = getattr(library, symbol)
        function.restype = result
        function.argtypes = arguments
    return library


lib = _load("libmoe_tkg.so", _CORE)


@functools.lru_cache(maxsize=None)
def io() -> ctypes.CDLL:
    """The library of models; an ImportError where the package was built without it."""
    try:
        return _load("libmoe_tkg_io.so", _IO)
    except OSError as error:
        raise ImportError(f"this moe_tkg was built without the library that reads models: {error}") from error


def sized(kind, **fields):
    """A struct that says its own size."""
    return kind(struct_size=sizeof(kind), **fields)
