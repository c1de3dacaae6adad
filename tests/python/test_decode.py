# SPDX-License-Identifier: Apache-2.0
"""Every code of every format under the scales at which decoders go wrong, as gguf and ml_dtypes decode them, against
what the library packs and computes (decode_file.c)."""

import pathlib
import subprocess

import gguf
import ml_dtypes
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = ROOT / "build/release"
QK = gguf.GGMLQuantizationType


@pytest.fixture(scope="module")
def checker():
    subprocess.run(["cmake", "--build", BUILD, "--target", "decode_file"], check=True, stdout=subprocess.DEVNULL)
    return BUILD / "tests/decode_file"


def check(checker, path, weights, codes, values, what, scale="none", scales=b"", scale_k=0, scale_rows=0):
    """values [rows, k] are what the bytes in codes and scales mean."""
    rows, k = values.shape
    with open(path, "wb") as f:
        f.write(f"{weights} {scale} {scale_k} {scale_rows} {rows} {k} {what}\n".encode())
        f.write(bytes(codes))
        f.write(bytes(scales))
        f.write(values.astype(np.float64).tobytes())
    done = subprocess.run([checker, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    path.unlink()


# ---- scales ----------------------------------------------------------------------------------------------------------


def f16_scales():
    """Zero, every third subnormal, the first and the last of each exponent, infinity, NaN, and of all others some."""
    some = np.concatenate([np.arange(0, 1024, 3), np.arange(0, 32) * 1024, np.arange(0, 32) * 1024 + 1023,
                           np.arange(0, 32768, 37), [0x7E01, 0x7C01, 0x7BFF]])
    some = np.unique(some).astype(np.uint16)
    return np.concatenate([some, some | 0x8000]).astype(np.uint16)


def floats(bits, kind):
    with np.errstate(all="ignore"):
        return bits.view(kind).astype(np.float64)


def is_computed(values):
    """Finite, and no subnormal of f32, which counts as zero."""
    return np.isfinite(values) & ((np.abs(values) >= 2.0**-126) | (values == 0))


def pairs(codes):
    """4-bit codes as bytes, the first in the low bits."""
    codes = codes.reshape(-1, 2).astype(np.uint8)
    return (codes[:, 0] | codes[:, 1] << 4).tobytes()


# ---- blocks of GGUF --------------------------------------------------------------------------------------------------


def blocks_of(kind, rng):
    """uint8 [n, bytes]: codes swept, scales swept, then random."""
    size, bytes_ = gguf.GGML_QUANT_SIZES[kind]
    halves = f16_scales()
    if kind == QK.Q8_0:  # all 256 codes beside every scale
        b = np.zeros((len(halves), 8, bytes_), np.uint8)
        b[:, :, 0:2] = halves.view(np.uint8).reshape(-1, 1, 2)
        b[:, :, 2:] = np.arange(256, dtype=np.uint8).reshape(1, 8, 32)
        return b.reshape(-1, bytes_)
    if kind == QK.Q4_0:  # all 16 codes in both halves of a byte beside every scale there is
        every = np.arange(65536, dtype=np.uint32).astype(np.uint16)
        b = np.zeros((65536, bytes_), np.uint8)
        b[:, 0:2] = every.view(np.uint8).reshape(-1, 2)
        low = np.arange(16, dtype=np.uint8)
        b[:, 2:] = low | (low + np.arange(65536).reshape(-1, 1)).astype(np.uint8) % 16 << 4
        return b
    if kind == QK.MXFP4:  # every scale beside every pair of codes
        b = np.zeros((256, 16, bytes_), np.uint8)
        b[:, :, 0] = np.arange(256).reshape(-1, 1)
        b[:, :, 1:] = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
        return b.reshape(-1, bytes_)
    if kind == QK.NVFP4:  # every scale in each of its four places, beside every pair of codes
        b = np.zeros((256, 8, bytes_), np.uint8)
        b[:, :, 0:4] = (np.arange(256).reshape(-1, 1, 1) + 64 * np.arange(4)) % 256
        b[:, :, 4:] = np.arange(256, dtype=np.uint8).reshape(1, 8, 32)
        return b.reshape(-1, bytes_)
    n = 4096
    b = rng.integers(0, 256, (n, bytes_), dtype=np.uint8)
    i = np.arange(n).reshape(-1, 1)
    if kind == QK.Q6_K:
        b[:, 192:208] = (i + 16 * np.arange(16)) % 256  # each int8 scale in each of its places
        b[: n // 2, :128] = (i[: n // 2] + 2 * np.arange(128)) % 256
        d = [208]
    else:  # each of 64 scales beside each of 64 minima, in each of the eight places that 6 bits are packed to
        j = np.arange(8)
        sc, m = (i + 8 * j) % 64, (i // 64 + 9 * j) % 64
        b[:, 4:8] = sc[:, :4] | sc[:, 4:] >> 4 << 6
        b[:, 8:12] = m[:, :4] | m[:, 4:] >> 4 << 6
        b[:, 12:16] = sc[:, 4:] & 15 | (m[:, 4:] & 15) << 4
        d = [0, 2]
    for place, at in enumerate(d):
        half = halves[(i[:, 0] * (7 + 4 * place)) % len(halves)]
        b[:, at : at + 2] = half.view(np.uint8).reshape(-1, 2)
    return b


KINDS = {"q8_0": QK.Q8_0, "q4_0": QK.Q4_0, "q4_k": QK.Q4_K, "q5_k": QK.Q5_K, "q6_k": QK.Q6_K, "ggml_mxfp4": QK.MXFP4,
         "ggml_nvfp4": QK.NVFP4}


@pytest.mark.parametrize("name", KINDS)
def test_blocks(checker, tmp_path, rng, name):
    blocks = blocks_of(KINDS[name], rng)
    with np.errstate(all="ignore"):
        values = gguf.quants.dequantize(blocks, KINDS[name])
    if name == "ggml_mxfp4":  # ggml has no NaN there; OCP's E8M0 does, and so has the library
        values[blocks[:, 0] == 255] = np.nan
    if name == "ggml_nvfp4":  # a sign bit that ggml does not look at; with 0x7F, its zero, it is zero here too
        values.reshape(-1, 4, 16)[blocks[:, :4] == 255] = 0
    k = values.shape[1]
    rows = len(blocks) * k // 256
    values = values.reshape(rows, 256)
    # An infinity or NaN among a row's scales is in all its products: without these rows all are computed.
    finite = np.isfinite(values).all(1)
    codes = blocks.reshape(rows, -1)
    check(checker, tmp_path / "all", name, codes.tobytes(), values, "packed32")
    keep = np.flatnonzero(finite)[:: max(1, finite.sum() // 256)]
    check(checker, tmp_path / "finite", name, codes[keep].tobytes(), values[keep], "computed32")


# ---- codes with scales beside them -----------------------------------------------------------------------------------


def e4m3fn(codes):
    return np.asarray(codes, np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)


def e2m1(codes):
    return np.asarray(codes, np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float64)


def e8m0(codes):
    return np.asarray(codes, np.uint8).view(ml_dtypes.float8_e8m0fnu).astype(np.float64)


def int4(codes):
    """Codes c of c - 8, by the type of the integers 0 .. 7, -8 .. -1."""
    return (np.asarray(codes, np.uint8) ^ 8).view(ml_dtypes.int4).astype(np.float64)


def swept(n, k, codes):
    """[n, k] codes, each row beginning further on."""
    return (np.arange(n).reshape(-1, 1) * 5 + np.arange(k)) % codes


def scaled(checker, path, weights, decode, codes, scale, scale_values, scale_bytes, scale_k, what, scale_rows=0):
    """codes [rows, k], 4 bits in pairs; scales [rows, k / scale_k]."""
    with np.errstate(all="ignore"):
        values = decode(codes) * np.repeat(scale_values, scale_k, axis=1)
    data = codes.astype(np.uint8).tobytes() if weights == "e4m3fn" else pairs(codes)
    check(checker, path, weights, data, values, what, scale, scale_bytes, scale_k, scale_rows)


ALL = np.arange(256, dtype=np.uint8)


@pytest.mark.parametrize("weights, decode, codes", [("e4m3fn", e4m3fn, 256), ("e2m1_x2", e2m1, 16)])
def test_mx(checker, tmp_path, weights, decode, codes):
    """Every code beside every E8M0 scale."""
    row = np.tile(np.arange(256) % codes, (256, 1))
    for what, keep in [("packed", ALL), ("computed", ALL[:255])]:
        scales = np.tile(keep.reshape(-1, 1), (1, 8))
        c = row[keep].copy()
        if what == "computed":
            c[c & 0x7F == 0x7F] = 0  # NaN would be in all products of its row
        scaled(checker, tmp_path / what, weights, decode, c, "e8m0", e8m0(scales), scales.tobytes(), 32, what)


def test_nvfp4(checker, tmp_path):
    """Every E2M1 code beside every E4M3 scale, subnormal, NaN and negative ones too."""
    for what, keep in [("packed", ALL), ("computed", ALL[ALL & 0x7F != 0x7F])]:
        scales = (np.tile(keep.reshape(-1, 1), (1, 16)) + 0 * np.arange(16)).astype(np.uint8)
        scaled(checker, tmp_path / what, "e2m1_x2", e2m1, swept(len(keep), 256, 16), "e4m3fn", e4m3fn(scales),
               scales.tobytes(), 16, what)


@pytest.mark.parametrize("scale_k", [32, 64, 128])
@pytest.mark.parametrize("scale", ["bf16", "f16"])
def test_int4(checker, tmp_path, scale, scale_k):
    """Every code beside every scale that bf16 and f16 have."""
    kind = {"bf16": ml_dtypes.bfloat16, "f16": np.float16}[scale]
    every = np.arange(65536, dtype=np.uint32).astype(np.uint16)
    if scale_k != 32:
        every = every[::7]
    fine = is_computed(floats(every, kind))
    for what, bits in [("packed", every), ("computed", every[fine][::61])]:
        per_row = 256 // scale_k
        bits = bits[: len(bits) // per_row * per_row].reshape(-1, per_row)
        values = floats(bits, kind)
        scaled(checker, tmp_path / what, "int4_x2", int4, swept(len(bits), 256, 16), scale, values, bits.tobytes(),
               scale_k, what)


@pytest.mark.parametrize("scale", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("scale_rows", [1, 64, 128])
def test_fp8_grid(checker, tmp_path, rng, scale, scale_rows):
    """Every code beside scales of all magnitudes."""
    kind = {"f32": np.float32, "bf16": ml_dtypes.bfloat16, "f16": np.float16}[scale]
    wide = {"f32": np.uint32, "bf16": np.uint16, "f16": np.uint16}[scale]
    bits = rng.integers(0, np.iinfo(wide).max, (64 if scale_rows == 1 else 12, 2), dtype=wide, endpoint=True)
    special = np.array([0, 1.0, -1.0, np.inf, -np.inf, np.nan], np.float32).astype(kind).view(wide)
    bits[: len(special), 0] = special
    bits[: 4, 1] = [1, 3, wide(1) << (8 * wide(0).itemsize - 1), (wide(1) << (8 * wide(0).itemsize - 1)) + 1]
    for what in "packed", "computed":
        grid = bits
        values = floats(grid, kind)
        if what == "computed":
            fine = is_computed(values).all(1)
            grid, values = grid[fine], values[fine]
            if scale_rows > 1:  # rows are computed 64 at a time, and each time from a new one of the grid
                grid, values = grid[:8], values[:8]
        rows = len(grid) * scale_rows
        codes = np.tile(ALL, (rows, 1))
        if what == "computed":
            codes[codes & 0x7F == 0x7F] = 0
        with np.errstate(all="ignore"):
            expected = e4m3fn(codes) * np.repeat(np.repeat(values, scale_rows, axis=0), 128, axis=1)
        check(checker, tmp_path / what, "e4m3fn", codes.tobytes(), expected, what, scale, grid.tobytes(), 128,
              scale_rows)


# ---- codes alone -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights, kind", [("e4m3fn", ml_dtypes.float8_e4m3fn), ("e4m3_ieee", ml_dtypes.float8_e4m3),
                                           ("bf16", ml_dtypes.bfloat16), ("f16", np.float16)])
def test_plain(checker, tmp_path, weights, kind):
    """Every code there is."""
    n = 256 ** np.dtype(kind).itemsize
    codes = np.arange(n, dtype=np.uint32).astype(np.uint8 if n == 256 else np.uint16)
    values = floats(codes, kind)
    check(checker, tmp_path / "all", weights, codes.tobytes(), values.reshape(-1, 256), "packed")
    fine = is_computed(values)
    codes, values = codes[fine], values[fine]
    rows = len(codes) // 128
    step = max(1, rows // 64)
    check(checker, tmp_path / "finite", weights, codes[: rows * 128].reshape(rows, 128)[::step].tobytes(),
          values[: rows * 128].reshape(rows, 128)[::step], "computed")
