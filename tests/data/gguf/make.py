#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""make.py - writes the files of this folder with the format's own package (gguf on PyPI).

tests/test_gguf_files.c knows what is in them: one file with a value of every type and a tensor of
every type, and a split of three."""
import os

import numpy
from gguf import GGMLQuantizationType as T
from gguf import GGUFValueType as V
from gguf import GGUFWriter
from gguf.constants import GGML_QUANT_SIZES

here = os.path.dirname(os.path.abspath(__file__))


def add_tensor(writer, name, kind, rows, seed):
    """rows x one block of the type, of bytes that count up from seed."""
    block = GGML_QUANT_SIZES[kind][1]
    data = (numpy.arange(rows * block) + seed).astype(numpy.uint8).reshape(rows, block)
    writer.add_tensor(name, data, raw_shape=data.shape, raw_dtype=kind)


def every_type():
    w = GGUFWriter(os.path.join(here, "types.gguf"), "test")
    w.add_custom_alignment(64)
    w.add_uint8("u8", 200)
    w.add_int8("i8", -100)
    w.add_uint16("u16", 60000)
    w.add_int16("i16", -30000)
    w.add_uint32("u32", 4000000000)
    w.add_int32("i32", -2000000000)
    w.add_uint64("u64", 2**63)
    w.add_int64("i64", 2**62)
    w.add_float32("f32", 0.5)
    w.add_float64("f64", 1e-20)
    w.add_bool("yes", True)
    w.add_bool("no", False)
    w.add_string("text", "h\u00e9llo \u20ac")
    w.add_array("layers", [0, 1, 1, 0])
    w.add_array("flags", [True, False, True])
    w.add_array("reals", [0.5, 1.5])
    w.add_array("tokenizer.ggml.tokens", ["<s>", "", "\u00e9", "x" * 100])
    for kind in T:
        if kind != T.Q8_1:  # the package and ggml do not agree on its size
            add_tensor(w, f"t.{kind.name}", kind, 2, int(kind))
    w.add_tensor("four", numpy.arange(24, dtype=numpy.float32).reshape(2, 3, 1, 4))
    write(w)


def write(w):
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def split():
    w = GGUFWriter(os.path.join(here, "split.gguf"), "test", split_max_tensors=2)
    w.add_uint32("test.expert_count", 4)
    for i in range(5):
        w.add_tensor(f"t{i}", numpy.arange(3, dtype=numpy.float32) + 10 * i)
    write(w)


every_type()
split()
