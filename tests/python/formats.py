# SPDX-License-Identifier: Apache-2.0
"""Quantised matrices as published safetensors checkpoints hold them.

A format is a function of a generator and a shape [rows, k].  It gives the tensors, by suffix of the matrix's
name, and the matrix that they stand for, in float64."""

import numpy as np
from ml_dtypes import bfloat16, float8_e4m3fn, float8_e8m0fnu

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def values(rng, rows, k):
    """Like a layer's weights: outputs about as large as inputs."""
    return rng.standard_normal((rows, k)) * 1.5 / np.sqrt(k)


def repeat(scales, rows, k, tall, wide):
    """A grid of scales, each for tall x wide elements, at every element."""
    return np.repeat(np.repeat(scales.astype(np.float64), tall, 0), wide, 1)[:rows, :k]


def dense(dtype):
    def make(rng, rows, k):
        w = values(rng, rows, k).astype(dtype)
        return {".weight": w}, w.astype(np.float64)

    return make


def fp8(tall, wide, suffix=".weight_scale_inv", dtype=np.float32, powers=False):
    """E4M3 with a scale for each tile; tall or wide 0: as many as there are, one scale, of shape [rows, 1] or [1]."""

    def make(rng, rows, k):
        high, long = tall or rows, wide or k
        w = values(rng, rows, k)
        grid = -(-rows // high), -(-k // long)
        scale = rng.uniform(0.5, 2, grid) * 3 / np.sqrt(k) / 448
        scale = (np.exp2(np.ceil(np.log2(scale))) if powers else scale).astype(dtype)
        spread = repeat(scale, rows, k, high, long)
        codes = np.clip(w / spread, -448, 448).astype(float8_e4m3fn)
        codes.reshape(-1)[rng.integers(0, codes.size, 8)] = np.array(
            [448, -448, 2**-9, -(2**-9), -0.0, 2**-6, 0.0136, 1]
        )
        if not tall:
            scale = scale.reshape(-1)
        return {".weight": codes, suffix: scale}, codes.astype(np.float64) * spread

    return make


def int4_codes(rng, rows, k):
    return np.clip(np.rint(rng.standard_normal((rows, k)) * 3), -8, 7).astype(np.int8)


def pack_int4(codes):
    """Eight codes + 8 an int32, the first in its lowest bits."""
    nibbles = (codes + 8).astype(np.uint32).reshape(len(codes), -1, 8)
    return (nibbles << (4 * np.arange(8, dtype=np.uint32))).sum(2, dtype=np.uint32).view(np.int32)


def int4(group, dtype=bfloat16):
    def make(rng, rows, k):
        codes = int4_codes(rng, rows, k)
        scale = (rng.uniform(0.5, 2, (rows, k // group)) * 0.5 / np.sqrt(k)).astype(dtype)
        tensors = {".weight_packed": pack_int4(codes), ".weight_scale": scale, ".weight_shape": np.array([rows, k])}
        return tensors, codes * repeat(scale, rows, k, 1, group)

    return make


def pack_e2m1(codes):
    return (codes[..., 0::2] | codes[..., 1::2] << 4).astype(np.uint8)


def e2m1_codes(rng, shape):
    return rng.integers(0, 16, shape).astype(np.uint8)


def e8m0_bytes(rng, shape, k):
    """Powers of two that suit a layer, and here and there the smallest ones."""
    scale = rng.integers(-2, 1, shape) + 126 - round(np.log2(np.sqrt(k)))
    scale.reshape(-1)[rng.integers(0, scale.size, 3)] = [0, 1, 100]
    return scale.astype(np.uint8)


def mxfp4(rng, rows, k):
    """As DeepSeek-V4's experts."""
    codes, scale = e2m1_codes(rng, (rows, k)), e8m0_bytes(rng, (rows, k // 32), k)
    tensors = {".weight": pack_e2m1(codes).view(np.int8), ".scale": scale.view(float8_e8m0fnu)}
    return tensors, E2M1[codes] * repeat(np.exp2(scale.astype(np.float64) - 127), rows, k, 1, 32)


def nvfp4(writer):
    """Of ModelOpt, whose second scale multiplies, or of compressed-tensors, whose global scale divides."""

    def make(rng, rows, k):
        codes = e2m1_codes(rng, (rows, k))
        scale = rng.uniform(20, 448, (rows, k // 16)).astype(float8_e4m3fn)
        scale.reshape(-1)[rng.integers(0, scale.size, 3)] = np.array([448, 2**-9, 0.0078125])
        second = np.float32(rng.uniform(0.8, 1.2) / np.sqrt(k) / 448)
        value = E2M1[codes] * repeat(scale, rows, k, 1, 16)
        if writer == "modelopt":
            tensors = {".weight": pack_e2m1(codes), ".weight_scale": scale, ".weight_scale_2": np.array(second)}
            return {**tensors, ".input_scale": np.array(0.01, np.float32)}, value * np.float64(second)
        divisor = np.float32(1) / second
        tensors = {".weight_packed": pack_e2m1(codes), ".weight_scale": scale, ".weight_global_scale": divisor[None]}
        return {**tensors, ".input_global_scale": np.array([100], np.float32)}, value / np.float64(divisor)

    return make
