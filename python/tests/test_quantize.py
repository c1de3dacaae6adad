# SPDX-License-Identifier: Apache-2.0
"""Quantised weights, against the definitions in float64."""

import ml_dtypes
import numpy as np
import pytest

import moe_tkg
from moe_tkg import _quantize

BF16 = ml_dtypes.bfloat16
VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def mxfp4(x):
    """OCP MX: scale 2^(floor(log2(largest)) - 2), nearest value, ties to the even code."""
    x = np.asarray(x, np.float64)
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    largest = np.abs(blocks).max(-1)
    exponent = np.where(largest > 0, np.frexp(largest)[1] - 1, -1000)
    scale = np.clip(exponent - 2, -127, 127)
    off = np.abs((np.abs(blocks) / np.exp2(scale)[..., None])[..., None] - VALUES)
    best = off.min(-1)
    code = np.zeros(blocks.shape, np.uint8)
    for i in (7, 5, 3, 1, 6, 4, 2, 0):  # the last that is as near wins: even ones
        code[off[..., i] == best] = i
    code |= np.signbit(blocks).astype(np.uint8) << 3
    code = code.reshape(*x.shape[:-1], -1, 2)
    return code[..., 0] | code[..., 1] << 4, (scale + 127).astype(np.uint8)


def draw(rng, kind, shape):
    x = rng.standard_normal(shape)
    if kind == "ties":
        x = rng.integers(-64, 65, shape) / 8
    elif kind == "near ties":
        x = rng.integers(-64, 65, shape) / 8 * (1 + rng.integers(-1, 2, shape) * 2.0**-20)
    elif kind == "wide":
        x *= np.exp2(rng.integers(-140, 120, shape))
    elif kind in ("tiny", "tinier"):
        x *= 2.0 ** (-124 if kind == "tiny" else -134)
    elif kind == "zeros":
        x *= 0
    return x


@pytest.mark.parametrize("kind", ["normal", "ties", "near ties", "wide", "tiny", "tinier", "zeros"])
@pytest.mark.parametrize("dtype", [np.float32, BF16, np.float16])
def test_mxfp4(rng, kind, dtype):
    with np.errstate(over="ignore"):
        x = draw(rng, kind, (3, 50, 96)).astype(dtype)
    x = np.where(np.isfinite(x.astype(np.float32)), x, dtype(0)).astype(dtype)
    codes, scale = moe_tkg.quantize_mxfp4(x)
    want = mxfp4(x)
    assert (scale == want[1]).all() and (codes == want[0]).all()


def test_mxfp4_strides_and_ranks(rng):
    x = rng.standard_normal((4, 64, 96)).astype(np.float32)
    for view in (x.swapaxes(1, 2), x[::2], x[:, ::-1], x[0], x[0, 0], x[:, :0]):
        codes, scale = moe_tkg.quantize_mxfp4(view)
        want = mxfp4(view) if view.size else (np.empty((4, 0, 48)), np.empty((4, 0, 3)))
        assert codes.shape == want[0].shape and (codes == want[0]).all() and (scale == want[1]).all()


def test_e4m3fn():
    bits = np.arange(1 << 16, dtype=np.uint32) << 16
    x = np.concatenate([(bits | low).view(np.float32) for low in (0, 1, 0x8000, 0xFFFF)])
    x = x[np.abs(x) <= 448]
    assert (_quantize._e4m3fn(x) == x.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)).all()


@pytest.mark.parametrize("block", [(128, 128), (1, 128), (32, 64), None])
@pytest.mark.parametrize("dtype", [np.float32, BF16])
def test_fp8(rng, block, dtype):
    x = rng.standard_normal((2, 100, 300)).astype(dtype)
    x[0, :32, :128] = 0
    codes, scale = moe_tkg.quantize_fp8(x, block)
    assert codes.dtype == ml_dtypes.float8_e4m3fn and codes.shape == x.shape
    r, k = block or (1, 300)
    wide = x.astype(np.float32)
    for at in np.ndindex(2, -(-100 // r), -(-300 // k)):
        here = (at[0], slice(at[1] * r, (at[1] + 1) * r), slice(at[2] * k, (at[2] + 1) * k))
        largest = np.abs(wide[here]).max()
        want = np.float32(largest) / np.float32(448) if largest > 0 else 1
        assert scale[at if block else at[:2]] == want
        assert (codes[here].view(np.uint8) == (wide[here] / want).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)).all()


def test_fp8_of_tiny_numbers():
    x = np.full((1, 32), 1e-44, np.float32)
    codes, scale = moe_tkg.quantize_fp8(x, None)
    assert np.isfinite(codes.astype(np.float32)).all() and scale[0] > 0


@pytest.mark.parametrize("function", [moe_tkg.quantize_mxfp4, moe_tkg.quantize_fp8])
def test_refused(function):
    x = np.zeros((4, 64), np.float32)
    for bad in (np.inf, -np.inf, np.nan):
        y = x.copy()
        y[2, 40] = bad
        for dtype in (np.float32, BF16):
            with pytest.raises(moe_tkg.MoeValueError, match="an infinity or a NaN"):
                function(y.astype(dtype))
    with pytest.raises(moe_tkg.MoeTypeError, match="int32"):
        function(x.astype(np.int32))
    with pytest.raises(moe_tkg.MoeTypeError, match="is a list"):
        function(x.tolist())


def test_shapes_refused():
    with pytest.raises(moe_tkg.MoeValueError, match="multiple of 32"):
        moe_tkg.quantize_mxfp4(np.zeros((4, 65), np.float32))
    with pytest.raises(moe_tkg.MoeValueError, match="rows, k"):
        moe_tkg.quantize_fp8(np.zeros(64, np.float32))


def test_source_is_not_written(rng):
    x = rng.standard_normal((64, 64)).astype(np.float32)
    before = x.copy()
    moe_tkg.quantize_mxfp4(x), moe_tkg.quantize_fp8(x)
    assert (x == before).all() and not _quantize.as_numpy("x", x).flags.writeable
