# SPDX-License-Identifier: Apache-2.0
"""Checkpoints in the layout in which families publish them, of random quantised matrices.

write() makes a folder with config.json and safetensors files, and gives the tested layer as moe.py's."""

import json
from dataclasses import dataclass, field

import numpy as np
from ml_dtypes import bfloat16
from safetensors.numpy import save_file

import formats
import moe

LAYER = 1  # the one that is tested, of two

QWEN3 = dict(model_type="qwen3_moe", architectures=["Qwen3MoeForCausalLM"], norm_topk_prob=True, decoder_sparse_step=1)
SIGMOID = dict(
    n_shared_experts=1, norm_topk_prob=True, routed_scaling_factor=2.5, scoring_func="sigmoid", topk_method="noaux_tc"
)
DEEPSEEK = dict(
    model_type="deepseek_v3",
    architectures=["DeepseekV3ForCausalLM"],
    first_k_dense_replace=1,
    moe_layer_freq=1,
    **SIGMOID,
)
LLAMA_NAMES = ("gate_proj", "up_proj", "down_proj")
MIXTRAL_NAMES = ("w1", "w3", "w2")


@dataclass
class Style:
    config: dict
    router: moe.Router
    block: str = "model.layers.{}.mlp."
    names: tuple = LLAMA_NAMES  # None for the gate: there is none
    width: str = "moe_intermediate_size"
    count: str = "num_experts"
    selection_bias: str = ""  # its tensor
    shared: str = ""
    activation: moe.Activation = field(default_factory=moe.Activation)
    inner: bool = False  # the sizes are in text_config


STYLES = {
    "qwen3-moe": Style(QWEN3, moe.Router(3, normalize=True)),
    "deepseek-v3": Style(
        {**DEEPSEEK, "n_group": 2, "topk_group": 1},
        moe.Router(3, "sigmoid", normalize=True, scale=2.5, groups=2, kept_groups=1),
        count="n_routed_experts",
        selection_bias="gate.e_score_correction_bias",
        shared="shared_experts.",
    ),
    "kimi-k2": Style(
        {**DEEPSEEK, "model_type": "kimi_k2", "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.827},
        moe.Router(3, "sigmoid", normalize=True, scale=2.827),
        count="n_routed_experts",
        selection_bias="gate.e_score_correction_bias",
        shared="shared_experts.",
    ),
    "kimi-k2.5": Style(
        {**DEEPSEEK, "model_type": "kimi_k2", "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.827},
        moe.Router(3, "sigmoid", normalize=True, scale=2.827),
        block="language_model.model.layers.{}.mlp.",
        count="n_routed_experts",
        selection_bias="gate.e_score_correction_bias",
        shared="shared_experts.",
        inner=True,
    ),
    "glm-4.5": Style(
        dict(
            model_type="glm4_moe",
            architectures=["Glm4MoeForCausalLM"],
            first_k_dense_replace=1,
            n_group=1,
            topk_group=1,
            n_shared_experts=1,
            norm_topk_prob=True,
            routed_scaling_factor=2.5,
        ),
        moe.Router(3, "sigmoid", normalize=True, scale=2.5),
        count="n_routed_experts",
        selection_bias="gate.e_score_correction_bias",
        shared="shared_experts.",
    ),
    "minimax-m2": Style(
        dict(
            model_type="minimax_m2",
            architectures=["MiniMaxM2ForCausalLM"],
            scoring_func="sigmoid",
            use_routing_bias=True,
        ),
        moe.Router(3, "sigmoid", normalize=True),
        block="model.layers.{}.block_sparse_moe.",
        names=MIXTRAL_NAMES,
        width="intermediate_size",
        count="num_local_experts",
        selection_bias="e_score_correction_bias",
    ),
    "nemotron-h": Style(
        dict(
            model_type="nemotron_h",
            architectures=["NemotronHForCausalLM"],
            hybrid_override_pattern="EE",
            mlp_hidden_act="relu2",
            n_group=1,
            topk_group=1,
            n_shared_experts=1,
            norm_topk_prob=True,
            routed_scaling_factor=2.5,
        ),
        moe.Router(3, "sigmoid", normalize=True, scale=2.5),
        block="backbone.layers.{}.mixer.",
        names=(None, "up_proj", "down_proj"),
        count="n_routed_experts",
        selection_bias="gate.e_score_correction_bias",
        shared="shared_experts.",
        activation=moe.Activation("relu2"),
    ),
    "deepseek-v4": Style(
        dict(
            model_type="deepseek_v4",
            architectures=["DeepseekV4ForCausalLM"],
            n_shared_experts=1,
            norm_topk_prob=True,
            num_hash_layers=1,
            routed_scaling_factor=1.5,
            scoring_func="sqrtsoftplus",
            swiglu_limit=1.25,
            topk_method="noaux_tc",
        ),
        moe.Router(3, "sqrt-softplus", normalize=True, scale=1.5),
        block="layers.{}.ffn.",
        names=MIXTRAL_NAMES,
        count="n_routed_experts",
        selection_bias="gate.bias",
        shared="shared_experts.",
        activation=moe.Activation(limit=1.25),
    ),
}


def write(folder, rng, style, make, H, I, E=6, shared=None, quantization=None, shards=1):
    """make, shared: formats of the experts and of the shared expert (the experts' unless given)."""
    style = STYLES[style]
    tensors = {"model.norm.weight": np.ones(H, bfloat16)}

    def matrix(kind, name, rows, k):
        parts, value = kind(rng, rows, k)
        tensors.update({name + suffix: part for suffix, part in parts.items()})
        return value

    def mlp(kind, prefix, width):
        gate, up, down = style.names
        first = None if gate is None else matrix(kind, prefix + gate, width, H)
        return first, matrix(kind, prefix + up, width, H), matrix(kind, prefix + down, H, width)

    config = {
        "hidden_size": H,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 32,
        "hidden_act": "silu",
        style.width: I,
        style.count: E,
        "num_experts_per_tok": style.router.K,
        **style.config,
    }
    if style.width != "intermediate_size":
        config["intermediate_size"] = 2 * I
    if style.shared:
        config["moe_shared_expert_intermediate_size"] = I
    dense = "first_k_dense_replace" in config
    if dense:
        mlp(formats.dense(bfloat16), style.block.format(0), 2 * I)
    for n in range(dense, 2):
        at = style.block.format(n)
        stacks = zip(*(mlp(make, f"{at}experts.{e}.", I) for e in range(E)))
        gate, up, down = (None if a[0] is None else np.stack(a) for a in stacks)
        layer = moe.Layer(gate, up, down, style.router, None, style.activation)
        layer.router_weight = matrix(formats.dense(bfloat16), at + "gate", E, H)
        if style.selection_bias:
            bias = tensors[at + style.selection_bias] = (0.1 * rng.standard_normal(E)).astype(np.float32)
            layer.selection_bias = bias.astype(np.float64)
        if style.shared:
            layer.shared = mlp(shared or make, at + style.shared, I)
    if style.config.get("num_hash_layers"):  # layer 0 of DeepSeek-V4 has a table in the bias's place
        del tensors[style.block.format(0) + style.selection_bias]
        table = rng.permuted(np.tile(np.arange(E), (32, 1)), axis=1)[:, : style.router.K]
        tensors[style.block.format(0) + "gate.tid2eid"] = table
    if quantization:
        config["quantization_config"] = quantization
    if style.inner:
        config = dict(model_type="kimi_k25", architectures=["KimiK25ForConditionalGeneration"], text_config=config)
    (folder / "config.json").write_text(json.dumps(config))
    store(folder, tensors, shards)
    return layer


def store(folder, tensors, shards=1):
    names = sorted(tensors)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return
    files = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({n: tensors[n] for n in names if files[n] == file}, folder / file, {"format": "pt"})
    total = sum(t.nbytes for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
