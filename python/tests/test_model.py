# SPDX-License-Identifier: Apache-2.0
"""Layers of checkpoints: what they compute, and what is said of files that are none."""

import numpy as np
import pytest
from reference import close
from stored import ROOT, SHARED, read

import moe_tkg

FIXTURES = {p.parent.name: p.parent for root in (SHARED, ROOT / "tests") for p in sorted(root.glob("fixtures/*/case.safetensors"))}


@pytest.fixture(scope="module", params=sorted(FIXTURES))
def fixture(request):
    folder = FIXTURES[request.param]
    tensors, said = read(folder / "case.safetensors")
    path = next(folder.glob("*.gguf"), folder)
    model = moe_tkg.Model(path)
    layer = next(i.layer for i in model.layers if i.layer == 1)
    return model, model.load(layer), tensors, said["cases"].replace(",", " ").split()


def test_experts(fixture):
    _, layer, t, cases = fixture
    for T in cases:
        call = (t[f"{T}.{name}"] for name in ("hidden", "topk_ids", "topk_weights"))
        close(layer.experts(*call), t[f"{T}.expected_experts"])


def test_block(fixture):
    _, layer, t, cases = fixture
    for T in cases:
        got, index, logits = layer.block(t[f"{T}.hidden"], want=("index", "logits"))
        close(got, t[f"{T}.expected_block"])
        close(logits, t[f"{T}.router_logits"])
        assert (np.sort(index, 1) == np.sort(t[f"{T}.topk_ids"], 1)).all()


def test_layer_outlives_its_model_and_experts_their_layer():
    model = moe_tkg.Model(FIXTURES["mixtral_bf16"])
    layer = model.load(0)
    hidden = np.ones((2, layer.info.H), np.float32)
    index, weights = np.array([[0, 1], [2, 3]], np.int32), np.ones((2, 2), np.float32)
    want = layer.experts(hidden, index, weights)
    del model
    assert (layer.experts(hidden, index, weights) == want).all()
    packed = layer.packed
    del layer
    assert (packed(hidden, index, weights) == want).all()


def test_many_tokens():
    layer = moe_tkg.Model(FIXTURES["gpt_oss_mxfp4"]).load(1)
    hidden = np.random.default_rng(0).standard_normal((300, layer.info.H)).astype(np.float32)
    got, *routed = layer.block(hidden, want=("weights", "index", "logits", "affinities", "scores"))
    for at in (slice(0, 1), slice(127, 130), slice(299, 300)):
        part, *some = layer.block(hidden[at], want=("weights", "index", "logits", "affinities", "scores"))
        assert (part == got[at]).all() and all((a == b[at]).all() for a, b in zip(some, routed))
    assert (layer.block(hidden.reshape(3, 100, -1)).reshape(300, -1) == got).all()
    assert layer.block(hidden[:0]).shape == (0, layer.info.H)


def test_output_and_mode():
    layer = moe_tkg.Model(FIXTURES["gpt_oss_mxfp4"]).load(1)
    hidden = np.random.default_rng(0).standard_normal((3, layer.info.H)).astype(np.float32)
    exact, half, rough = layer.block(hidden), layer.block(hidden, output_dtype="f16"), layer.block(hidden, act_mode="int8")
    assert half.dtype == np.float16 and (half == exact.astype(np.float16)).all()
    assert (rough != exact).any()
    close(rough, exact, 0.1)
    out = hidden.copy()
    assert layer.block(out, out=out) is out and (out == exact).all()


def test_info():
    model = moe_tkg.Model(FIXTURES["gpt_oss_mxfp4"])
    assert (model.family, model.container, model.num_layers, len(model.layers)) == ("gpt-oss", "safetensors", 2, 2)
    i = model.layer(1)
    assert (i.layer, i.E, i.K, i.gate_up_format, i.activation, i.score) == (1, 8, 4, "mxfp4", "swiglu", "topk_softmax")
    assert abs(i.swiglu_alpha - 1.702) < 1e-6 and i.gate_clamp_upper_limit == 7 and i.act_clamp_upper_limit is None
    assert i.foreign_router is None and i.has_bias and i.shared_I == 0 and i.bytes > i.E * i.expert_bytes
    layer = model.load(1)
    assert layer.info == i and layer.shared is None and layer.packed.info.gate_up == "e2m1_x2"
    assert moe_tkg.Model(FIXTURES["qwen2_moe_bf16"]).load(1).shared.info.E == 1


def test_lossless():
    model = moe_tkg.Model(FIXTURES["mixtral_bf16"])
    hidden = np.ones((1, model.layer(0).H), np.float32)
    plain, packed = model.load(0), model.load(0, packing="lossless")
    assert packed.packed.info.packing == "lossless" and (packed.block(hidden) == plain.block(hidden)).all()


def test_progress():
    model = moe_tkg.Model(FIXTURES["mixtral_bf16"])
    seen = []
    model.load(0, progress=lambda done, all_: seen.append((done, all_)))
    assert seen and seen == sorted(seen) and seen[-1][0] <= seen[-1][1]

    def stop(done, all_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.load(0, progress=stop)
    model.load(0)


def test_packed_layers(tmp_path):
    model, other = (moe_tkg.Model(FIXTURES[name]) for name in ("mixtral_bf16", "olmoe_f16"))
    layer = model.load(1)
    layer.save(tmp_path / "cache")
    cache = moe_tkg.Model(tmp_path / "cache")
    assert cache.container == "packed" and cache.matches(model) and not cache.matches(other)
    hidden = np.ones((1, layer.info.H), np.float32)
    assert (cache.load(1).block(hidden) == layer.block(hidden)).all()


def test_refused(tmp_path):
    with pytest.raises(OSError) as e:
        moe_tkg.Model(tmp_path / "nothing")
    assert e.value.status == moe_tkg.Status.OPEN and "nothing" in str(e.value)
    with pytest.raises(OSError, match="no model") as e:
        moe_tkg.Model(tmp_path)
    assert e.value.status == moe_tkg.Status.OPEN
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(20))
    with pytest.raises(moe_tkg.MoeValueError) as e:
        moe_tkg.Model(tmp_path / "model.gguf")
    assert e.value.status == moe_tkg.Status.FORMAT
    model = moe_tkg.Model(FIXTURES["mixtral_bf16"])
    for call in (model.load, model.layer):
        with pytest.raises(moe_tkg.MoeValueError, match="layer"):
            call(7)
    with pytest.raises(moe_tkg.MoeError):
        model.load(0).save(FIXTURES["mixtral_bf16"] / "config.json")
    with pytest.raises(moe_tkg.MoeError, match="hidden"):
        model.load(0).block(np.ones(64, np.float32))
    with pytest.raises(moe_tkg.MoeError):
        model.load(0).block(np.ones((1, 63), np.float32))
