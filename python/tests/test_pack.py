# SPDX-License-Identifier: Apache-2.0
"""Experts packed from every layout and format that models and checkpoints have, against their decoded weights."""

import gguf
import ml_dtypes
import numpy as np
import pytest
from reference import Case, close, experts

import moe_tkg
from moe_tkg import Experts

BF16 = ml_dtypes.bfloat16
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


@pytest.fixture
def case(rng):
    return Case(rng)


def nibbles(codes):
    return np.stack([codes & 15, codes >> 4], -1).reshape(*codes.shape[:-1], -1)


# ---- layouts ----


@pytest.fixture
def plain(case):
    return Experts.pack(gate=case.gate, up=case.up, down=case.down)


def same(case, packed, plain):
    got, want = packed(*case.call), plain(*case.call)
    assert got.tobytes() == want.tobytes()


def test_apart(case, plain):
    close(plain(*case.call), case.want())


def test_fused(case, plain):
    same(case, Experts.pack(case.gate_up, case.down), plain)
    same(case, Experts.pack(case.in_turns, case.down, is_concatenated=False), plain)


def test_transposed(case, plain):
    down = np.ascontiguousarray(case.down.swapaxes(1, 2))
    for fused, concatenated in ((case.gate_up, True), (case.in_turns, False)):
        fused = np.ascontiguousarray(fused.swapaxes(1, 2))
        same(case, Experts.pack(fused, down, is_transposed=True, is_concatenated=concatenated), plain)


def test_lists(case, plain):
    same(case, Experts.pack(gate=list(case.gate), up=list(case.up), down=[d.copy() for d in case.down]), plain)
    same(case, Experts.pack(list(case.gate_up), list(case.down)), plain)


def test_strides(case, plain):
    wide = np.zeros((case.E * 2, 2 * case.I + 3, case.H + 5), np.float32)
    wide[::2, : 2 * case.I, : case.H] = case.gate_up
    same(case, Experts.pack(wide[::2, : 2 * case.I, : case.H], case.down), plain)


def test_operator(case, plain):
    same(case, Experts.pack_operator(**case.operator), plain)


def test_biases(case, rng):
    gate, up = (rng.standard_normal((case.E, case.I)).astype(np.float32) for _ in range(2))
    down = rng.standard_normal((case.E, case.H)).astype(BF16)
    want = case.want(gate_bias=gate, up_bias=up, down_bias=down)
    apart = Experts.pack(
        gate=case.gate, up=case.up, down=case.down, gate_bias=gate, up_bias=list(up), down_bias=down
    )
    close(apart(*case.call), want)
    together = np.concatenate([gate, up], 1)
    same(case, Experts.pack(case.gate_up, case.down, gate_up_bias=together, down_bias=down), apart)
    turns = np.stack([gate, up], 2).reshape(case.E, -1)
    same(case, Experts.pack(case.in_turns, case.down, gate_up_bias=turns, down_bias=down, is_concatenated=False), apart)


def test_without_a_gate(case):
    packed = Experts.pack(up=case.up, down=case.down)
    assert not packed.info.has_gate
    got = packed.prepare(activation_fn="relu2")(*case.call)
    close(got, experts(None, case.up, case.down, *case.call, act=lambda u: np.maximum(u, 0) ** 2))


def test_lossless(case):
    gate_up, down = case.gate_up.astype(BF16), case.down.astype(BF16)
    plain, packed = Experts.pack(gate_up, down), Experts.pack(gate_up, down, packing="lossless")
    same(case, packed, plain)
    assert packed.info.packing == "lossless" and packed.info.bytes < plain.info.bytes


def test_info(case):
    i = Experts.pack(case.gate_up.astype(np.float16), case.down).info
    assert (i.E, i.H, i.I, i.gate_up, i.down) == (case.E, case.H, case.I, "f16", "f32")
    assert i.has_gate and i.packing == "plain" and i.bytes >= case.E * i.expert_bytes > 0


def test_sources_are_read_once(case, plain):
    gate_up = case.gate_up.copy()
    packed = Experts.pack(gate_up, case.down)
    gate_up[:] = 0
    same(case, packed, plain)


# ---- formats ----


def fp8(rng, shape):
    return (rng.standard_normal(shape) / 8).astype(ml_dtypes.float8_e4m3fn)


def spread(scale, rows, k, shape):
    return np.repeat(np.repeat(scale, rows, -2), k, -1)[..., : shape[-2], : shape[-1]].astype(np.float64)


@pytest.mark.parametrize("kind", ["none", "matrix", "matrix11", "halves", "rows", "rows1"])
def test_fp8_rows(case, rng, kind):
    E, I, H = case.E, case.I, case.H  # noqa: E741
    w, d = fp8(rng, (E, 2 * I, H)), fp8(rng, (E, H, I))
    if kind == "none":
        ws = ds = None
        full, dfull = np.ones((E, 2 * I)), np.ones((E, H))
    elif kind in ("matrix", "matrix11"):
        ws, ds = rng.random(E).astype(np.float32) + 1, rng.random(E).astype(np.float32) + 1
        full, dfull = np.repeat(ws[:, None], 2 * I, 1), np.repeat(ds[:, None], H, 1)
        if kind == "matrix11":
            ws, ds = ws.reshape(E, 1, 1), ds.reshape(E, 1)
    elif kind == "halves":
        ws, ds = rng.random((E, 2)).astype(np.float32) + 1, rng.random(E).astype(np.float32) + 1
        full, dfull = np.repeat(ws, I, 1), np.repeat(ds[:, None], H, 1)
    else:
        full, dfull = (rng.random(s).astype(np.float32).astype(BF16) for s in ((E, 2 * I), (E, H)))
        ws, ds = (full, dfull) if kind == "rows" else (full[..., None], dfull[..., None])
    packed = Experts.pack(w, d, gate_up_scale=ws, down_scale=ds)
    w = w.astype(np.float64) * np.asarray(full, np.float64)[..., None]
    d = d.astype(np.float64) * np.asarray(dfull, np.float64)[..., None]
    close(packed(*case.call), experts(w[:, :I], w[:, I:], d, *case.call))


def test_fp8_transposed_rows(case, rng):
    E, I, H = case.E, case.I, case.H  # noqa: E741
    w, d = fp8(rng, (E, H, 2 * I)), fp8(rng, (E, I, H))
    ws, ds = (rng.random(s).astype(np.float32) + 1 for s in ((E, 1, 2 * I), (E, 1, H)))
    packed = Experts.pack(w, d, gate_up_scale=ws, down_scale=ds, is_transposed=True)
    w, d = (w.astype(np.float64) * ws).swapaxes(1, 2), (d.astype(np.float64) * ds).swapaxes(1, 2)
    close(packed(*case.call), experts(w[:, :I], w[:, I:], d, *case.call))


@pytest.mark.parametrize("block", [(32, 128), (1, 128), (64, 128)])
def test_fp8_blocks(rng, block):
    case = Case(rng, I=64, H=200)
    w, d = fp8(rng, (case.E, 128, 200)), fp8(rng, (case.E, 200, 64))
    r = block[0]
    ws = (rng.random((case.E, 128 // r, 2)) + 1).astype(np.float32)
    ds = (rng.random((case.E, -(-200 // r), 1)) + 1).astype(np.float32)
    packed = Experts.pack(w, d, gate_up_scale=ws, down_scale=ds, block=block)
    w = w.astype(np.float64) * spread(ws, *block, w.shape)
    d = d.astype(np.float64) * spread(ds, *block, d.shape)
    close(packed(*case.call), experts(w[:, :64], w[:, 64:], d, *case.call))


def test_fp8_block_across_gate_and_up(rng):
    case = Case(rng)
    w, d = fp8(rng, (case.E, 128, 96)), fp8(rng, (case.E, 96, 64))
    ones = np.ones((case.E, 1, 1), np.float32)
    one_block = np.ones((case.E, 2, 1), np.float32)
    packed = Experts.pack(w, d, gate_up_scale=ones, down_scale=ones)  # one value for all is that, not a block
    assert packed.info.E == case.E
    with pytest.raises(moe_tkg.MoeValueError, match="blocks of 96 rows hold rows of both gate and up"):
        Experts.pack(w, d, gate_up_scale=one_block, down_scale=ones, block=(96, 128))


def mxfp4(rng, shape):
    codes = rng.integers(0, 256, (*shape[:-1], shape[-1] // 2), np.uint8)
    scale = rng.integers(118, 126, (*shape[:-1], shape[-1] // 32), np.uint8)
    return codes, scale, E2M1[nibbles(codes)] * np.repeat(np.exp2(scale - 127.0), 32, -1)


def test_mxfp4(case, rng):
    w, ws, wide = mxfp4(rng, (case.E, 2 * case.I, case.H))
    d, ds, dwide = mxfp4(rng, (case.E, case.H, case.I))
    want = experts(wide[:, ::2], wide[:, 1::2], dwide, *case.call)
    packed = Experts.pack(w, d, gate_up_scale=ws, down_scale=ds, format="mxfp4", is_concatenated=False)
    close(packed(*case.call), want)
    blocks = w.reshape(case.E, 2 * case.I, case.H // 32, 16), d.reshape(case.E, case.H, case.I // 32, 16)
    scales = {"gate_up_scale": ws.view(ml_dtypes.float8_e8m0fnu), "down_scale": ds}
    same(case, Experts.pack(*blocks, **scales, format="mxfp4", is_concatenated=False), packed)
    half = Experts.pack(gate_up=w, down=dwide.astype(np.float32), gate_up_scale=ws, format="mxfp4", is_concatenated=False)
    close(half(*case.call), want)


def test_mxfp8(case, rng):
    w, d = fp8(rng, (case.E, 2 * case.I, case.H)), fp8(rng, (case.E, case.H, case.I))
    ws, ds = (rng.integers(120, 130, (*a.shape[:-1], a.shape[-1] // 32), np.uint8) for a in (w, d))
    packed = Experts.pack(w, d, gate_up_scale=ws, down_scale=ds)
    w, d = (a.astype(np.float64) * np.repeat(np.exp2(s - 127.0), 32, -1) for a, s in ((w, ws), (d, ds)))
    close(packed(*case.call), experts(w[:, : case.I], w[:, case.I :], d, *case.call))


@pytest.mark.parametrize("whole", ["matrix", "halves", "rows"])
def test_nvfp4(case, rng, whole):
    E, I, H = case.E, case.I, case.H  # noqa: E741
    w, d = (rng.integers(0, 256, s, np.uint8) for s in ((E, 2 * I, H // 2), (E, H, I // 2)))
    ws, ds = (rng.random(s).astype(ml_dtypes.float8_e4m3fn) for s in ((E, 2 * I, H // 16), (E, H, I // 16)))
    wr = (rng.random({"matrix": (E,), "halves": (E, 2), "rows": (E, 2 * I)}[whole]) / 4).astype(np.float32)
    dr = (rng.random(E) / 4).astype(np.float32)
    packed = Experts.pack(
        w, d, gate_up_scale=ws.view(np.uint8), down_scale=ds, gate_up_row_scale=wr, down_row_scale=dr, format="nvfp4"
    )
    rows = {"matrix": lambda: np.repeat(wr[:, None], 2 * I, 1), "halves": lambda: np.repeat(wr, I, 1), "rows": lambda: wr}[whole]()
    w = E2M1[nibbles(w)] * np.repeat(ws.astype(np.float64), 16, -1) * rows[..., None].astype(np.float64)
    d = E2M1[nibbles(d)] * np.repeat(ds.astype(np.float64), 16, -1) * dr[:, None, None].astype(np.float64)
    close(packed(*case.call), experts(w[:, :I], w[:, I:], d, *case.call))


@pytest.mark.parametrize("group", [32, 64])
def test_int4(rng, group):
    case = Case(rng, H=128)
    w, d = (rng.integers(0, 256, s, np.uint8) for s in ((case.E, 128, 64), (case.E, 128, 32)))
    ws, ds = (rng.random((*a.shape[:-1], a.shape[-1] * 2 // group)).astype(BF16) for a in (w, d))
    packed = Experts.pack(w, d, gate_up_scale=ws, down_scale=ds, format="int4")
    w, d = ((nibbles(a).astype(np.float64) - 8) * np.repeat(s.astype(np.float64), group, -1) for a, s in ((w, ws), (d, ds)))
    close(packed(*case.call), experts(w[:, :64], w[:, 64:], d, *case.call))


@pytest.mark.parametrize("name", ["q8_0", "q4_0", "q4_k", "q5_k", "q6_k"])
def test_gguf_blocks(rng, name):
    case = Case(rng, E=3, I=256, H=256)
    kind = gguf.GGMLQuantizationType[name.upper()]
    block, size = gguf.GGML_QUANT_SIZES[kind]

    def blocks(rows, k):
        if name in ("q8_0", "q4_0"):
            flat = (rng.standard_normal((case.E * rows, k)) / 8).astype(np.float32)
            return gguf.quants.quantize(flat, kind).reshape(case.E, rows, -1)
        data = rng.integers(0, 256, (case.E, rows, k // block, size), np.uint8)
        scales = {"q4_k": (0, 2), "q5_k": (0, 2), "q6_k": (208,)}[name]
        for at in scales:
            tiny = (rng.random(data.shape[:-1]) / 4096).astype(np.float16)
            data[..., at : at + 2] = tiny[..., None].view(np.uint8)
        return data.reshape(case.E, rows, -1)

    def wide(data):
        return gguf.quants.dequantize(data.reshape(-1, data.shape[-1]), kind).reshape(case.E, data.shape[1], -1)

    gate, up, down = blocks(256, 256), blocks(256, 256), blocks(256, 256)
    packed = Experts.pack(gate=gate, up=up, down=down, format=name)
    close(packed(*case.call), experts(wide(gate), wide(up), wide(down), *case.call), 2e-5)
    fused = Experts.pack(np.concatenate([gate, up], 1), down, format=name)
    same(case, fused, packed)


@pytest.mark.parametrize("to, tolerance", [("mxfp4", 0.5), ("fp8", 0.08)])
def test_requantised(case, to, tolerance):
    packed = Experts.pack(case.gate_up.astype(BF16), case.down, requantize=to)
    close(packed(*case.call), case.want(), tolerance)
    assert packed.info.gate_up == packed.info.down == {"mxfp4": "e2m1_x2", "fp8": "e4m3fn"}[to]
    swapped = (a.swapaxes(1, 2) for a in (case.in_turns.astype(BF16), case.down))
    same(case, Experts.pack(*swapped, requantize=to, is_transposed=True, is_concatenated=False), packed)
    same(case, Experts.pack(list(case.gate_up.astype(BF16)), list(case.down), requantize=to), packed)


# ---- refusals ----


def refused(message, **given):
    with pytest.raises(moe_tkg.MoeError, match=message) as e:
        Experts.pack(**given)
    return e.value


def test_refused(case):
    ok = {"gate_up": case.gate_up, "down": case.down}
    refused("down = None: is required", gate_up=case.gate_up)
    refused("up = None: is required", gate=case.gate, down=case.down)
    refused("up: is given beside gate_up", up=case.up, **ok)
    refused("up_bias: is given without up", up_bias=case.up[:, :, 0], **ok)
    refused(r"down: is \[5, 96, 63\] in values: must be \[5, 96, 64\]", **ok | {"down": case.down[:, :, :-1]})
    refused(r"gate_up: has 127 rows", **ok | {"gate_up": case.gate_up[:, :-1]})
    refused(r"down: is \[4, ", **ok | {"down": case.down[:-1]})
    refused("down: has shape", **ok | {"down": case.down[0]})
    refused(r"down_bias: has shape \[5, 95\]: must be \[E, 96\]", down_bias=case.down[:, :-1, 0], **ok)
    refused("gate_up_bias: has 4 experts: must be 5", gate_up_bias=case.gate_up[:-1, :, 0], **ok)
    refused(r"down_scale: has shape \[5, 3, 3\]", down_scale=np.ones((5, 3, 3), np.float32), **ok)
    refused("down: is an empty list", **ok | {"down": []})
    refused(r"down\[1\]: has float16", **ok | {"down": [case.down[0], case.down[1].astype(np.float16)]})
    refused("down: has elements of float64", **ok | {"down": case.down.astype(np.float64)})
    refused("strides|stride", **ok | {"down": case.down[:, ::-1]})
    refused("dtype = 'q3_k'", format="q3_k", **ok)
    refused("requantize = 'int4'", requantize="int4", **ok)
    refused("packing = 'tight'", packing="tight", **ok)
    refused("bf16", packing="lossless", **ok)
    scale = np.ones((5, 128), np.float32)
    refused("requantize: gate_up has a scale", requantize="fp8", gate_up_scale=scale, **ok)
    e = refused("last must be a multiple of 32", requantize="mxfp4", gate_up=case.gate_up[:, :, :90], down=case.down[:, :90])
    assert e.status == moe_tkg.Status.SHAPE
    nan = case.gate_up.copy()
    nan[3, 5, 7] = np.nan
    for to in ("mxfp4", "fp8"):
        refused("an infinity or a NaN", requantize=to, **ok | {"gate_up": nan})
    w = np.zeros((5, 128, 48), np.uint8)
    refused("gate_up: has elements of uint8: say what they are by format", **ok | {"gate_up": w})
    bad = np.zeros((5, 128, 4), np.uint8)
    refused(r"gate_up_scale: has shape \[5, 128, 4\]: must be \[5, 128, 3\]", gate_up_scale=bad, format="mxfp4", **ok | {"gate_up": w})
    refused("gate_up: uint8 .* cannot be read as q8_0", format="q8_0", **ok | {"gate_up": w})


def test_not_made_by_hand():
    for kind in (Experts, moe_tkg.Layer):
        with pytest.raises(TypeError):
            kind()


# ---- images ----


def test_image(case, tmp_path):
    for packing in ("plain", "lossless"):
        packed = Experts.pack(case.gate_up.astype(BF16), case.down.astype(BF16), packing=packing)
        packed.save(tmp_path / "image")
        again = Experts.load(tmp_path / "image")
        assert again.info == packed.info
        same(case, again, packed)
    assert [p.name for p in tmp_path.iterdir()] == ["image"]


def test_image_refused(case, tmp_path):
    path = tmp_path / "image"
    with pytest.raises(FileNotFoundError):
        Experts.load(path)
    packed = Experts.pack(case.gate_up, case.down)
    with pytest.raises(OSError):
        packed.save(tmp_path / "nowhere" / "image")
    packed.save(path)
    data = bytearray(path.read_bytes())
    for bad in (b"", data[:100], data[:-1], data + b"\0", data[:64] + b"\xff\xff" + data[66:]):
        path.write_bytes(bad)
        with pytest.raises(moe_tkg.MoeValueError):
            Experts.load(path)
