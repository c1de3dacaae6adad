# SPDX-License-Identifier: Apache-2.0
"""The Mixture-of-Experts block of a decoder layer, for token generation.

    >>> import moe_tkg
    >>> experts = moe_tkg.Experts.pack(gate_up, down)        # [E, 2 I, H], [E, H, I]
    >>> y = experts(hidden, index, weights)                  # [T, H], [T, K], [T, K]

Arrays are NumPy's (ml_dtypes for bf16 and fp8), PyTorch's, or anything with ``__dlpack__``; they are not copied, and
results are of the kind of ``hidden``.  Errors are ``MoeError``.  Calls release the GIL.
"""

from ._abi import Activation, ActMode, AffinityScale, DType, GroupRank, Packing, RouterScore, Status
from ._abi import lib as _lib
from ._array import Tensor
from ._config import show_config
from ._context import Context, default_context, get_num_threads, isa_levels, set_num_threads
from ._errors import MoeError, MoeMemoryError, MoeOSError, MoeRuntimeError, MoeTypeError, MoeValueError
from ._experts import Call, Experts, ExpertsInfo
from ._model import Layer, LayerInfo, Model
from ._operator import moe_tkg
from ._quantize import Quantized, quantize_fp8, quantize_mxfp4
from ._router import Router, moe_block, router_topk

__version__ = _lib.moe_version().decode()

__all__ = [
    "ActMode",
    "Activation",
    "AffinityScale",
    "Call",
    "Context",
    "DType",
    "Experts",
    "ExpertsInfo",
    "GroupRank",
    "Layer",
    "LayerInfo",
    "Model",
    "MoeError",
    "MoeMemoryError",
    "MoeOSError",
    "MoeRuntimeError",
    "MoeTypeError",
    "MoeValueError",
    "Packing",
    "Quantized",
    "Router",
    "RouterScore",
    "Status",
    "Tensor",
    "__version__",
    "default_context",
    "get_num_threads",
    "isa_levels",
    "moe_block",
    "moe_tkg",
    "quantize_fp8",
    "quantize_mxfp4",
    "router_topk",
    "set_num_threads",
    "show_config",
]
