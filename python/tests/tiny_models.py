# SPDX-License-Identifier: Apache-2.0
"""Tiny random models of each family, as configurations of transformers."""

from __future__ import annotations

import torch
import transformers

VOCABULARY = 96
_BASE = dict(
    vocab_size=VOCABULARY,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=None,
    tie_word_embeddings=False,
)

# By family: the configuration's class, and what differs from the base.
FAMILIES: dict[str, tuple[str, dict]] = {
    "qwen3_moe": (
        "Qwen3MoeConfig",
        dict(
            intermediate_size=96,
            moe_intermediate_size=48,
            num_experts=8,
            num_experts_per_tok=2,
            head_dim=16,
            norm_topk_prob=True,
        ),
    ),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        dict(
            intermediate_size=96,
            moe_intermediate_size=40,
            shared_expert_intermediate_size=56,
            num_experts=6,
            num_experts_per_tok=3,
        ),
    ),
    "qwen3_next": (
        "Qwen3NextConfig",
        dict(
            intermediate_size=96,
            moe_intermediate_size=48,
            shared_expert_intermediate_size=32,
            num_experts=8,
            num_experts_per_tok=2,
            head_dim=16,
            linear_num_value_heads=4,
            linear_num_key_heads=2,
            linear_key_head_dim=16,
            linear_value_head_dim=16,
            layer_types=["linear_attention", "full_attention"],
        ),
    ),
    "mixtral": ("MixtralConfig", dict(intermediate_size=80, num_local_experts=4, num_experts_per_tok=2)),
    "olmoe": ("OlmoeConfig", dict(intermediate_size=48, num_experts=8, num_experts_per_tok=4)),
    "deepseek_v3": (
        "DeepseekV3Config",
        dict(
            num_key_value_heads=4,
            intermediate_size=96,
            moe_intermediate_size=48,
            n_routed_experts=8,
            n_shared_experts=1,
            num_experts_per_tok=3,
            n_group=2,
            topk_group=1,
            first_k_dense_replace=1,
            q_lora_rank=32,
            kv_lora_rank=16,
            qk_rope_head_dim=8,
            qk_nope_head_dim=16,
            v_head_dim=16,
        ),
    ),
    "glm4_moe": (
        "Glm4MoeConfig",
        dict(
            intermediate_size=96,
            moe_intermediate_size=48,
            n_routed_experts=8,
            n_shared_experts=1,
            num_experts_per_tok=2,
            n_group=1,
            topk_group=1,
            first_k_dense_replace=1,
            head_dim=16,
        ),
    ),
    "granitemoe": (
        "GraniteMoeConfig",
        dict(intermediate_size=48, num_local_experts=8, num_experts_per_tok=2),
    ),
    "gpt_oss": (
        "GptOssConfig",
        dict(intermediate_size=64, num_local_experts=8, num_experts_per_tok=2, head_dim=16, sliding_window=32),
    ),
    "llama4": (
        "Llama4TextConfig",
        dict(
            intermediate_size=48,
            intermediate_size_mlp=96,
            num_local_experts=4,
            num_experts_per_tok=1,
            head_dim=16,
            interleave_moe_layer_step=1,
            attention_chunk_size=64,
        ),
    ),
    "gemma4": (
        "Gemma4TextConfig",
        dict(
            intermediate_size=96,
            enable_moe_block=True,
            num_experts=8,
            top_k_experts=2,
            moe_intermediate_size=48,
            head_dim=16,
            sliding_window=32,
            hidden_size_per_layer_input=16,
            vocab_size_per_layer_input=VOCABULARY,
        ),
    ),
}


def available(family: str) -> bool:
    return hasattr(transformers, FAMILIES[family][0])


def config(family: str, **more):
    kind, given = FAMILIES[family]
    return getattr(transformers, kind)(**{**_BASE, **given, **more})


def model(family: str, seed: int = 7, scale: float = 4.0, **more):
    """Random, with experts whose outputs matter: the usual initial values are so small that the residual drowns them."""
    torch.manual_seed(seed)
    made = transformers.AutoModelForCausalLM.from_config(config(family, **more)).eval()
    with torch.no_grad():
        for name, p in made.named_parameters():
            if ".experts." in name or "_proj" in name or "gate" in name or "router" in name:
                p.copy_(torch.randn(p.shape) * 0.02 * scale)
            elif name.endswith("bias"):
                p.copy_(torch.randn(p.shape) * 0.1)
        for name, b in made.named_buffers():
            if name.endswith("e_score_correction_bias"):
                b.copy_(torch.rand(b.shape) * 0.1)
    return made


def prompts(batch: int, longest: int = 9, seed: int = 3) -> dict[str, torch.Tensor]:
    """Token ids with padding on the left, and the mask."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, VOCABULARY, (batch, longest), generator=g)
    mask = torch.ones_like(ids)
    for b in range(batch):
        pad = b % 4 if batch > 1 else 0
        ids[b, :pad], mask[b, :pad] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}
