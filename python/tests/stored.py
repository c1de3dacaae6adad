# SPDX-License-Identifier: Apache-2.0
"""Safetensors files as NumPy arrays, of ml_dtypes where it needs them."""

import json
import os
import pathlib

import ml_dtypes
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARED = pathlib.Path(os.environ.get("MOE_SHARED_DIR", ROOT.parent / "shared"))
DTYPES = {
    "F32": np.float32,
    "F64": np.float64,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "U8": np.uint8,
    "U16": np.uint16,
    "U32": np.uint32,
    "I32": np.int32,
    "I64": np.int64,
}


def read(path):
    """Tensors and metadata."""
    data = pathlib.Path(path).read_bytes()
    size = int.from_bytes(data[:8], "little")
    head = json.loads(data[8 : 8 + size])
    metadata = head.pop("__metadata__", {})
    tensors = {}
    for name, t in head.items():
        first, last = (8 + size + at for at in t["data_offsets"])
        tensors[name] = np.frombuffer(bytearray(data[first:last]), DTYPES[t["dtype"]]).reshape(t["shape"])
    return tensors, metadata


def cases(folder):
    """Files of the tree's own golden set and, where it is there, of the larger one."""
    found = {p.name: p for root in (SHARED / "golden", ROOT / "tests/golden") for p in (root / folder).glob("*.safetensors")}
    return sorted(found.values())
