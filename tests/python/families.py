# SPDX-License-Identifier: Apache-2.0
"""Tiny random models of transformers' Mixture-of-Experts families.

FAMILIES says how each is made and where its block is.  make() builds one with random weights; eager()
runs one layer's block as transformers does, in float32, and keeps what its router and experts did."""

import copy
import warnings
from dataclasses import dataclass, field

import torch
import transformers

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(1)  # threads cost more than such models give them to do

SMALL = dict(
    vocab_size=48,
    hidden_size=56,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    max_position_embeddings=64,
    pad_token_id=None,
    bos_token_id=None,
    eos_token_id=None,
)
MLA = dict(kv_lora_rank=8, q_lora_rank=12, qk_rope_head_dim=4, qk_nope_head_dim=6, v_head_dim=10)
LINEAR = dict(
    head_dim=16,
    linear_conv_kernel_dim=3,
    linear_key_head_dim=8,
    linear_value_head_dim=8,
    linear_num_key_heads=2,
    linear_num_value_heads=2,
)
SIGMOID = dict(n_routed_experts=12, num_experts_per_tok=3, first_k_dense_replace=1, routed_scaling_factor=1.75)
QWEN_VISION = dict(depth=1, hidden_size=16, intermediate_size=20, num_heads=2, out_hidden_size=56, patch_size=4)
NEMOTRON = {
    **SMALL,
    "num_hidden_layers": None,
    "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
    "intermediate_size": 36,
    "moe_intermediate_size": 22,
    "moe_shared_expert_intermediate_size": 52,
    "head_dim": 8,
    "mamba_num_heads": 4,
    "mamba_head_dim": 8,
    "ssm_state_size": 8,
    "n_groups": 2,
    "chunk_size": 8,
    "use_mamba_kernels": False,
    "n_routed_experts": 12,
    "num_experts_per_tok": 3,
    "routed_scaling_factor": 1.75,
}


LAYOUTS = "published", "fused"


@dataclass
class Family:
    model: str  # the config's class in transformers
    config: dict
    layer: int = 1  # the one that is tested; layer 0 holds other data
    block: str = "mlp"  # the block's module in the layer; the layer itself: ""
    foreign: str = ""  # what the message says when a whole block is asked for
    within: dict = None  # the text model is text_config of this model, which has other parts of this config
    patch: dict = field(default_factory=dict)  # what is written over the saved config.json
    layouts: tuple = LAYOUTS  # that save_pretrained can write


def sizes(**more):
    return {**SMALL, **more}


FAMILIES = {
    "gpt-oss": Family(
        "GptOssConfig",
        sizes(intermediate_size=44, head_dim=8, num_local_experts=7, num_experts_per_tok=3, swiglu_limit=1.5),
    ),
    "gpt-oss-square": Family(  # as in gpt-oss, down matrices are as wide as they are high
        "GptOssConfig",
        sizes(intermediate_size=56, head_dim=8, num_local_experts=4, num_experts_per_tok=2, swiglu_alpha=1.25),
    ),
    "qwen2-moe": Family(
        "Qwen2MoeConfig",
        sizes(
            intermediate_size=36,
            moe_intermediate_size=22,
            shared_expert_intermediate_size=52,
            num_experts=9,
            num_experts_per_tok=4,
        ),
    ),
    "qwen2-moe-normalized": Family(
        "Qwen2MoeConfig",
        sizes(
            intermediate_size=36,
            moe_intermediate_size=22,
            shared_expert_intermediate_size=20,
            num_experts=6,
            num_experts_per_tok=2,
            norm_topk_prob=True,
            mlp_only_layers=[0],
        ),
    ),
    "qwen3-moe": Family(
        "Qwen3MoeConfig",
        sizes(
            intermediate_size=36,
            moe_intermediate_size=22,
            head_dim=8,
            num_experts=11,
            num_experts_per_tok=5,
            norm_topk_prob=True,
        ),
    ),
    "qwen3-moe-plain": Family(  # decoder_sparse_step: every second layer
        "Qwen3MoeConfig",
        sizes(
            num_hidden_layers=4,
            intermediate_size=36,
            moe_intermediate_size=22,
            head_dim=8,
            num_experts=5,
            num_experts_per_tok=2,
            decoder_sparse_step=2,
        ),
        layer=3,
    ),
    "qwen3-next": Family(
        "Qwen3NextConfig",
        sizes(
            intermediate_size=36,
            moe_intermediate_size=22,
            shared_expert_intermediate_size=20,
            num_experts=13,
            num_experts_per_tok=4,
            **LINEAR,
        ),
    ),
    "qwen3.5-moe-text": Family(
        "Qwen3_5MoeTextConfig",
        sizes(
            moe_intermediate_size=22,
            shared_expert_intermediate_size=20,
            num_experts=10,
            num_experts_per_tok=3,
            **LINEAR,
        ),
    ),
    "qwen3.5-moe": Family(
        "Qwen3_5MoeConfig",
        sizes(
            moe_intermediate_size=22,
            shared_expert_intermediate_size=20,
            num_experts=10,
            num_experts_per_tok=3,
            **LINEAR,
        ),
        within=dict(vision_config=QWEN_VISION),
    ),
    "qwen3.5-moe-square": Family(  # gate and up together are as wide as they are high
        "Qwen3_5MoeTextConfig",
        sizes(
            moe_intermediate_size=28, shared_expert_intermediate_size=28, num_experts=4, num_experts_per_tok=2, **LINEAR
        ),
    ),
    "qwen3-vl-moe": Family(
        "Qwen3VLMoeConfig",
        sizes(
            intermediate_size=36,
            moe_intermediate_size=22,
            head_dim=8,
            num_experts=10,
            num_experts_per_tok=3,
            rope_parameters=dict(rope_type="default", rope_theta=10000.0, mrope_section=[2, 1, 1]),
        ),
        within=dict(vision_config={**QWEN_VISION, "deepstack_visual_indexes": [0]}),
    ),
    "olmoe": Family("OlmoeConfig", sizes(intermediate_size=22, num_experts=9, num_experts_per_tok=4)),
    "mixtral": Family("MixtralConfig", sizes(intermediate_size=44, num_local_experts=5, num_experts_per_tok=2)),
    "phi-3.5-moe": Family(
        "PhimoeConfig",
        sizes(intermediate_size=44, num_local_experts=6, num_experts_per_tok=2),
        foreign="sparsemixer",
    ),
    "deepseek-v2": Family(
        "DeepseekV2Config",
        sizes(
            intermediate_size=36,
            moe_intermediate_size=22,
            n_routed_experts=9,
            n_shared_experts=2,
            num_experts_per_tok=4,
            first_k_dense_replace=1,
            head_dim=4,
            **MLA,
        ),
    ),
    "deepseek-v2-groups": Family(
        "DeepseekV2Config",
        sizes(
            intermediate_size=36,
            moe_intermediate_size=22,
            n_routed_experts=12,
            n_shared_experts=2,
            num_experts_per_tok=4,
            first_k_dense_replace=1,
            head_dim=4,
            topk_method="group_limited_greedy",
            n_group=4,
            topk_group=2,
            **MLA,
        ),
    ),
    "deepseek-v3": Family(
        "DeepseekV3Config",
        sizes(
            intermediate_size=36,
            moe_intermediate_size=22,
            n_shared_experts=1,
            n_group=4,
            topk_group=2,
            **SIGMOID,
            **MLA,
        ),
    ),
    "deepseek-v3-plain": Family(
        "DeepseekV3Config",
        sizes(
            intermediate_size=36,
            moe_intermediate_size=22,
            n_shared_experts=3,
            n_group=1,
            topk_group=1,
            norm_topk_prob=False,
            **SIGMOID,
            **MLA,
        ),
    ),
    "kimi-k2": Family(
        "DeepseekV3Config",
        sizes(
            intermediate_size=36,
            moe_intermediate_size=22,
            n_shared_experts=1,
            n_group=1,
            topk_group=1,
            **{**SIGMOID, "routed_scaling_factor": 2.827},
            **MLA,
        ),
        patch=dict(model_type="kimi_k2"),
    ),
    "kimi-k2.5": Family(
        "Kimi_K25Config",
        sizes(
            model_type="deepseek_v3",
            intermediate_size=36,
            moe_intermediate_size=22,
            n_shared_experts=1,
            n_group=1,
            topk_group=1,
            **SIGMOID,
            **MLA,
        ),
        within=dict(
            vision_config=dict(
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=20,
                patch_size=4,
                pos_emb_height=4,
                pos_emb_width=4,
            )
        ),
        layouts=("fused",),  # the names that it would have as published are not those of the published files
    ),
    "glm-4.5": Family(
        "Glm4MoeConfig",
        sizes(intermediate_size=36, moe_intermediate_size=22, n_shared_experts=1, head_dim=8, **SIGMOID),
    ),
    "minimax-m2": Family(
        "MiniMaxM2Config", sizes(intermediate_size=44, head_dim=8, num_local_experts=9, num_experts_per_tok=4)
    ),
    "granite-moe": Family(
        "GraniteMoeConfig",
        sizes(intermediate_size=44, num_local_experts=7, num_experts_per_tok=3, residual_multiplier=0.5),
        block="block_sparse_moe",
    ),
    "granite-moe-shared": Family(
        "GraniteMoeSharedConfig",
        sizes(intermediate_size=44, shared_intermediate_size=36, num_local_experts=7, num_experts_per_tok=3),
        block="",
    ),
    "granite-moe-hybrid": Family(
        "GraniteMoeHybridConfig",
        sizes(
            intermediate_size=44,
            shared_intermediate_size=36,
            num_local_experts=7,
            num_experts_per_tok=3,
            layer_types=["mamba", "attention"],
            mamba_n_heads=4,
            mamba_d_state=8,
            mamba_expand=2,
            mamba_chunk_size=8,
        ),
        block="",
    ),
    "llama-4-text": Family(
        "Llama4TextConfig",
        sizes(intermediate_size=44, intermediate_size_mlp=36, head_dim=8, num_local_experts=5),
        block="feed_forward",
    ),
    "llama-4": Family(
        "Llama4Config",
        sizes(
            num_hidden_layers=4,
            intermediate_size=44,
            intermediate_size_mlp=36,
            head_dim=8,
            num_local_experts=6,
            interleave_moe_layer_step=2,
        ),
        layer=3,
        block="feed_forward",
        within=dict(
            vision_config=dict(
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=64,
                image_size=16,
                patch_size=4,
                vision_output_dim=16,
                projector_input_dim=16,
                projector_output_dim=16,
            )
        ),
    ),
    "gemma-4-text": Family(
        "Gemma4TextConfig",
        sizes(
            intermediate_size=36,
            moe_intermediate_size=22,
            head_dim=8,
            global_head_dim=8,
            num_experts=9,
            top_k_experts=3,
            enable_moe_block=True,
            vocab_size_per_layer_input=48,
            hidden_size_per_layer_input=0,
            layer_types=["sliding_attention", "full_attention"],
        ),
        block="",
        foreign="router",
    ),
    "gemma-4": Family(
        "Gemma4Config",
        sizes(
            intermediate_size=36,
            moe_intermediate_size=22,
            head_dim=8,
            global_head_dim=8,
            num_experts=9,
            top_k_experts=3,
            enable_moe_block=True,
            vocab_size_per_layer_input=48,
            hidden_size_per_layer_input=0,
            layer_types=["sliding_attention", "full_attention"],
        ),
        block="",
        foreign="router",
        within=dict(vision_config=None, audio_config=None),
    ),
    "nemotron-h": Family("NemotronHConfig", NEMOTRON, layer=3, block="mixer"),
    "nemotron-h-pattern": Family(  # as it is published
        "NemotronHConfig",
        NEMOTRON,
        layer=3,
        block="mixer",
        patch=dict(layers_block_type=None, hybrid_override_pattern="ME*E", num_hidden_layers=4),
    ),
    "deepseek-v4": Family(
        "DeepseekV4Config",
        sizes(
            num_hidden_layers=3,
            moe_intermediate_size=22,
            num_key_value_heads=1,
            head_dim=8,
            q_lora_rank=12,
            o_groups=2,
            o_lora_rank=6,
            index_n_heads=2,
            index_head_dim=8,
            index_topk=4,
            n_routed_experts=9,
            num_experts_per_tok=4,
            partial_rotary_factor=0.5,
            mlp_layer_types=["hash_moe", "moe", "moe"],
            layer_types=["heavily_compressed_attention"] * 3,
            swiglu_limit=0.75,
        ),
        layer=2,
    ),
    "deepseek-v4-hash": Family(
        "DeepseekV4Config",
        sizes(
            num_hidden_layers=2,
            moe_intermediate_size=22,
            num_key_value_heads=1,
            head_dim=8,
            q_lora_rank=12,
            o_groups=2,
            o_lora_rank=6,
            index_n_heads=2,
            index_head_dim=8,
            index_topk=4,
            n_routed_experts=9,
            num_experts_per_tok=4,
            partial_rotary_factor=0.5,
            mlp_layer_types=["hash_moe", "hash_moe"],
            layer_types=["heavily_compressed_attention"] * 2,
        ),
        foreign="chosen by the token",
    ),
}


def spread(model, generator):
    """Random values in every tensor, of a size that makes all the terms of a block count."""
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in state.items():
        if not tensor.is_floating_point() or "rotary" in name or "inv_freq" in name:
            if name.endswith("tid2eid"):
                experts = model.config.n_routed_experts
                rows = [torch.randperm(experts, generator=generator)[: tensor.shape[1]] for _ in tensor]
                tensor.copy_(torch.stack(rows))
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("scale"):  # of Gemma 4's router
            tensor.copy_(1 + 0.2 * noise)
        elif tensor.dim() < 2 or name.endswith("bias"):
            tensor.copy_(0.2 * noise)
        else:
            tensor.copy_(1.5 * noise / tensor.shape[-1] ** 0.5)


def make(family, dtype, seed):
    """A model with random weights of this dtype; in BF16 what its family keeps in float32, as published files do."""
    config = copy.deepcopy(family.config)
    kind = getattr(transformers, family.model)
    if family.within is None:
        config, auto = kind(**config), transformers.AutoModelForCausalLM
    else:
        config = kind(text_config=config, **copy.deepcopy(family.within))
        auto = transformers.AutoModelForImageTextToText
    config._attn_implementation = config._experts_implementation = "eager"
    config.get_text_config()._experts_implementation = "eager"
    with torch.no_grad():
        model = auto.from_config(config).eval()
        spread(model, torch.Generator().manual_seed(seed))
    kept = model._keep_in_fp32_modules_strict or () if dtype == torch.bfloat16 else ()
    for name, tensor in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items():
        if tensor.is_floating_point() and not any(k in name for k in kept):
            tensor.data = tensor.data.to(dtype)
    return model


@dataclass
class Seen:
    """What eager() saw: numpy arrays; block is None where transformers' block needs more than hidden states."""

    hidden: object  # what the experts were given
    ids: object
    weights: object
    experts: object
    block: object


def eager(model, family, hidden):
    """Runs the layer's block in float32 on the model's weights, widened; hidden is [T, H]."""
    model = model.float()
    lists = (module for name, module in model.named_modules() if name.endswith("layers") and "vision" not in name)
    layer = next(lists)[family.layer]
    block = layer.get_submodule(family.block)
    experts = next(module for name, module in layer.named_modules() if name.split(".")[-1] == "experts")
    kept = {}

    def keep(module, args, kwargs, out):
        assert not kwargs
        kept["args"], kept["out"] = args, out

    hook = experts.register_forward_hook(keep, with_kwargs=True)
    x = torch.from_numpy(hidden)
    with torch.no_grad():
        if "gemma" in family.model.lower():
            _, weights, ids = layer.router(x)
            experts(x, ids, weights)
            out = None
        elif "granitemoe" in family.model.lower() and hasattr(layer, "shared_mlp"):
            out = layer.block_sparse_moe(x[None])[0] + layer.shared_mlp(x)
        elif getattr(block, "is_hash", False):
            tokens = torch.arange(len(x)) % model.config.vocab_size
            out = block(x[None], input_ids=tokens[None])[0]
        else:
            out = block(x[None])
            out = out[0] if isinstance(out, tuple) else out
            out = out.reshape(x.shape)
    hook.remove()
    if len(kept["args"]) == 1:  # Llama 4: every expert is given every token, scaled by its score, mostly by 0
        with torch.no_grad():
            scores = block.router(x)[0]
        weights, ids = scores.topk(block.top_k)
        kept["out"] = kept["out"].reshape(scores.shape[1], *x.shape).sum(0)
        kept["args"] = x, ids, weights
    given, ids, weights = kept["args"]
    array = lambda t: None if t is None else t.detach().numpy()
    return Seen(array(given), ids.numpy(), array(weights.float()), array(kept["out"]), array(out))
