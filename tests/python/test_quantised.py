# SPDX-License-Identifier: Apache-2.0
"""Quantised safetensors checkpoints, decoded here in float64 from what the formats say.

Where a library that writes such files can be had (compressed-tensors, transformers), it packs or decodes the same
matrices, and has to agree."""

import json

import numpy as np
import pytest
from ml_dtypes import bfloat16, float8_e4m3fn, float8_e8m0fnu

import formats
import moe
import published
from tool import check, compare, refused, run

BLOCKS = dict(quant_method="fp8", fmt="e4m3", weight_block_size=[128, 128], activation_scheme="dynamic")


def compressed(format, ignore=("re:.*gate$", "lm_head"), **weights):
    group = {"targets": ["Linear"], "weights": {"symmetric": True, "dynamic": False, "observer": "minmax", **weights}}
    return dict(
        quant_method="compressed-tensors",
        format=format,
        quantization_status="compressed",
        ignore=list(ignore),
        config_groups={"group_0": {**group, "input_activations": None, "output_activations": None}},
    )


def channel(strategy="channel"):
    return compressed("float-quantized", num_bits=8, type="float", strategy=strategy)


def groups(size):
    return compressed("pack-quantized", num_bits=4, type="int", strategy="group", group_size=size)


MODELOPT = dict(quant_method="modelopt", quant_algo="NVFP4", ignore=["lm_head"])
CT_NVFP4 = compressed("nvfp4-pack-quantized", num_bits=4, type="float", strategy="tensor_group", group_size=16)
PLAIN = formats.dense(bfloat16)

CASES = {
    # name: style, format, H, I, more of published.write()
    "deepseek-v3-fp8": ("deepseek-v3", formats.fp8(128, 128), 256, 128, dict(quantization=BLOCKS)),
    "deepseek-v3-fp8-partial": ("deepseek-v3", formats.fp8(128, 128), 200, 152, dict(quantization=BLOCKS, shards=3)),
    "deepseek-v3.1-fp8": (
        "deepseek-v3",
        formats.fp8(128, 128, powers=True),
        136,
        264,
        dict(quantization={**BLOCKS, "scale_fmt": "ue8m0"}),
    ),
    "qwen3-moe-fp8": ("qwen3-moe", formats.fp8(128, 128, dtype=bfloat16), 320, 192, dict(quantization=BLOCKS)),
    "minimax-m2-fp8": ("minimax-m2", formats.fp8(128, 128), 168, 96, dict(quantization=BLOCKS)),
    "glm-4.5-fp8": ("glm-4.5", formats.fp8(1, 0, ".weight_scale", bfloat16), 120, 72, dict(quantization=channel())),
    "glm-4.5-fp8-f32": ("glm-4.5", formats.fp8(1, 0, ".weight_scale"), 72, 88, dict(quantization=channel())),
    "qwen3-moe-fp8-tensor": (
        "qwen3-moe",
        formats.fp8(0, 0, ".weight_scale"),
        72,
        88,
        dict(quantization=channel("tensor")),
    ),
    "kimi-k2-int4": ("kimi-k2", formats.int4(32), 160, 96, dict(quantization=groups(32), shared=PLAIN, shards=2)),
    "kimi-k2.5-int4": ("kimi-k2.5", formats.int4(32), 96, 64, dict(quantization=groups(32), shared=PLAIN)),
    "qwen3-moe-int4-64": ("qwen3-moe", formats.int4(64), 192, 128, dict(quantization=groups(64))),
    "glm-4.5-int4-128": ("glm-4.5", formats.int4(128), 384, 128, dict(quantization=groups(128))),
    "qwen3-moe-int4-f16": ("qwen3-moe", formats.int4(128, np.float16), 128, 256, dict(quantization=groups(128))),
    "deepseek-v4-mxfp4": (
        "deepseek-v4",
        formats.mxfp4,
        96,
        64,
        dict(
            quantization={**BLOCKS, "scale_fmt": "ue8m0"}, shared=formats.fp8(128, 128, ".scale", float8_e8m0fnu, True)
        ),
    ),
    "qwen3-moe-nvfp4": ("qwen3-moe", formats.nvfp4("modelopt"), 96, 80, dict(quantization=MODELOPT)),
    "nemotron-h-nvfp4": ("nemotron-h", formats.nvfp4("modelopt"), 112, 48, dict(quantization=MODELOPT)),
    "nemotron-h-fp8": (
        "nemotron-h",
        formats.fp8(0, 0, ".weight_scale"),
        72,
        56,
        dict(quantization=dict(quant_method="modelopt", quant_algo="FP8", ignore=["lm_head"])),
    ),
    "glm-4.5-nvfp4": ("glm-4.5", formats.nvfp4("compressed-tensors"), 64, 112, dict(quantization=CT_NVFP4)),
}


@pytest.mark.parametrize("name", CASES)
def test_checkpoint(name, tmp_path, rng):
    style, make, H, I, more = CASES[name]
    layer = published.write(tmp_path, rng, style, make, H, I, **more)
    hidden = rng.standard_normal((19, H), np.float32)
    ids, weights = layer.route(hidden)
    weights = weights.astype(np.float32)
    experts = layer.experts(hidden, ids, weights)
    compare(tmp_path, published.LAYER, tmp_path, hidden, ids, weights, experts, layer.block(hidden))


def test_hash_layer(tmp_path, rng):
    """DeepSeek-V4's first layers choose by the token's number: their experts run, the block is refused."""
    published.write(tmp_path, rng, "deepseek-v4", formats.mxfp4, 64, 32, shared=PLAIN)
    hidden = rng.standard_normal((5, 64), np.float32)
    refused(tmp_path, 0, tmp_path, hidden, "chosen by the token")
    ids = rng.permuted(np.tile(np.arange(6), (5, 1)), axis=1)[:, :3]
    assert np.abs(run(tmp_path, 0, tmp_path, hidden, ids, np.ones((5, 3)))).max() > 0


# ---- gpt-oss ------------------------------------------------------------------------------------


GPT_OSS = dict(
    architectures=["GptOssForCausalLM"],
    model_type="gpt_oss",
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    hidden_act="silu",
    vocab_size=32,
    quantization_config=dict(quant_method="mxfp4", modules_to_not_convert=["model.layers.*.mlp.router", "lm_head"]),
)
ORIGINAL = dict(  # OpenAI's own config.json
    num_hidden_layers=2, vocab_size=32, head_dim=8, num_attention_heads=2, num_key_value_heads=1, sliding_window=8
)


def gpt_oss(folder, rng, H, I, E, K, original, limit=1.5):
    """Both layers of a model; the second as moe.py's, and its tensors."""
    tensors = {}
    for n in range(2):
        parts = {}
        for name, rows, k in (("gate_up", 2 * I, H), ("down", H, I)):
            codes, scale = formats.e2m1_codes(rng, (E, rows, k)), formats.e8m0_bytes(rng, (E, rows, k // 32), k)
            parts[name + "_blocks"] = formats.pack_e2m1(codes).reshape(E, rows, k // 32, 16)
            parts[name + "_scales"] = scale
            parts[name + "_bias"] = (0.3 * rng.standard_normal((E, rows))).astype(bfloat16)
            parts[name] = formats.E2M1[codes] * np.repeat(np.exp2(scale.astype(np.float64) - 127), 32, 2)
        parts["router"] = formats.values(rng, E, H).astype(bfloat16)
        parts["router_bias"] = rng.standard_normal(E).astype(bfloat16)
        if original:
            names = {"router": f"block.{n}.mlp.gate.weight", "router_bias": f"block.{n}.mlp.gate.bias"}
            for mlp, name in (("mlp1", "gate_up"), ("mlp2", "down")):
                names.update({f"{name}_{p}": f"block.{n}.mlp.{mlp}_weight.{p}" for p in ("blocks", "scales")})
                names[name + "_bias"] = f"block.{n}.mlp.{mlp}_bias"
        else:
            at = f"model.layers.{n}.mlp."
            names = {"router": at + "router.weight", "router_bias": at + "router.bias"}
            for name in ("gate_up", "down"):
                names.update({f"{name}_{p}": f"{at}experts.{name}_proj_{p}" for p in ("blocks", "scales", "bias")})
        tensors.update({names[part]: parts[part] for part in names})
    published.store(folder, tensors)
    if original:
        config = {**ORIGINAL, "num_experts": E, "experts_per_token": K, "swiglu_limit": limit}
    else:
        config = {**GPT_OSS, "num_local_experts": E, "num_experts_per_tok": K, "swiglu_limit": limit}
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": H, "intermediate_size": I}))
    wide = {name: part.astype(np.float64) for name, part in parts.items()}
    layer = moe.Layer(
        wide["gate_up"][:, 0::2],
        wide["gate_up"][:, 1::2],
        wide["down"],
        moe.Router(K, "topk-softmax"),
        wide["router"],
        moe.Activation(alpha=1.702, offset=1, limit=limit),
        router_bias=wide["router_bias"],
        gate_bias=wide["gate_up_bias"][:, 0::2],
        up_bias=wide["gate_up_bias"][:, 1::2],
        down_bias=wide["down_bias"],
    )
    return layer, parts


@pytest.mark.parametrize("original", [False, True], ids=["hf", "original"])
def test_gpt_oss(original, tmp_path, rng):
    layer, _ = gpt_oss(tmp_path, rng, 96, 64, 5, 3, original)
    hidden = rng.standard_normal((19, 96), np.float32)
    ids, weights = layer.route(hidden)
    weights = weights.astype(np.float32)
    experts = layer.experts(hidden, ids, weights)
    compare(tmp_path, 1, tmp_path, hidden, ids, weights, experts, layer.block(hidden))


def test_gpt_oss_limit(tmp_path, rng):
    """The published limit of 7, which the activations of some tokens pass on both sides."""
    layer, _ = gpt_oss(tmp_path, rng, 64, 32, 4, 2, False, limit=7.0)
    hidden = (6 * rng.standard_normal((9, 64))).astype(np.float32)
    check(run(tmp_path, 1, tmp_path, hidden), layer.block(hidden))


def test_gpt_oss_decoder(tmp_path, rng):
    torch = pytest.importorskip("torch")
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
    _, parts = gpt_oss(tmp_path, rng, 96, 64, 3, 2, False)
    for name in ("gate_up", "down"):
        blocks, scales = (torch.from_numpy(parts[f"{name}_{p}"]) for p in ("blocks", "scales"))
        theirs = mxfp4.convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
        assert np.array_equal(theirs.transpose(1, 2).double().numpy(), parts[name])


# ---- the writers themselves ---------------------------------------------------------------------


def compressor(name):
    pytest.importorskip("torch")
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors.base import BaseCompressor

    return BaseCompressor.get_value_from_registry(name)


def scheme(**weights):
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    return QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(symmetric=True, **weights))


@pytest.mark.parametrize("group", [32, 64, 128])
def test_compressed_tensors_int4(group, rng):
    """Its writer gives our bytes for our values, and its reader our values for our bytes."""
    library = compressor("pack-quantized")
    import torch

    tensors, value = formats.int4(group, np.float32)(rng, 24, 256)
    given = {
        "weight": torch.from_numpy(value.astype(np.float32)),
        "weight_scale": torch.from_numpy(tensors[".weight_scale"]),
    }
    how = scheme(num_bits=4, type="int", strategy="group", group_size=group)
    packed = library.compress(given, how)
    assert np.array_equal(packed["weight_packed"].numpy(), tensors[".weight_packed"])
    assert packed["weight_shape"].tolist() == [24, 256]
    assert np.array_equal(library.decompress(packed, how)["weight"].float().numpy(), value.astype(np.float32))


def test_compressed_tensors_nvfp4(rng):
    library = compressor("nvfp4-pack-quantized")
    import torch

    tensors, value = formats.nvfp4("compressed-tensors")(rng, 24, 64)
    given = {
        name[1:]: torch.from_numpy(t.view(np.uint8) if t.dtype == float8_e4m3fn else t) for name, t in tensors.items()
    }
    given["weight_scale"] = given["weight_scale"].view(torch.float8_e4m3fn)
    how = scheme(num_bits=4, type="float", strategy="tensor_group", group_size=16)
    theirs = library.decompress(given, how)["weight"].double().numpy()
    assert np.allclose(theirs, value, rtol=2**-7, atol=0)  # theirs is rounded to BF16


def test_transformers_fp8(rng):
    """transformers' decoding of tiles of 128 x 128, full and partial."""
    torch = pytest.importorskip("torch")
    fp8 = pytest.importorskip("transformers.integrations.finegrained_fp8")
    for rows, k in ((256, 128), (200, 152)):
        tensors, value = formats.fp8(128, 128)(rng, rows, k)
        codes = torch.from_numpy(tensors[".weight"].view(np.uint8)).view(torch.float8_e4m3fn)
        scales = torch.from_numpy(tensors[".weight_scale_inv"])
        theirs = fp8._dequantize_fp8_weight(codes, scales, [128, 128], torch.float32)
        assert np.allclose(theirs.numpy(), value, rtol=2**-23, atol=0)
