# SPDX-License-Identifier: Apache-2.0
"""The reference of the tests (moe.py) against transformers' eager blocks: two definitions that share nothing."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import moe  # noqa: E402
from families import FAMILIES, eager, make  # noqa: E402

SIGMOID = dict(score="sigmoid", normalize=True, scale=1.75)
RULES = {
    "gpt-oss": (moe.Router(3, "topk-softmax"), moe.Activation(alpha=1.702, offset=1, limit=1.5)),
    "qwen2-moe": (moe.Router(4), moe.Activation()),
    "qwen3-moe": (moe.Router(5, normalize=True), moe.Activation()),
    "granite-moe": (moe.Router(3, "topk-softmax"), moe.Activation()),
    "deepseek-v3": (moe.Router(3, groups=4, kept_groups=2, **SIGMOID), moe.Activation()),
    "glm-4.5": (moe.Router(3, **SIGMOID), moe.Activation()),
    "minimax-m2": (moe.Router(4, "sigmoid", normalize=True), moe.Activation()),
    "llama-4-text": (moe.Router(1), moe.Activation()),
    "gemma-4-text": (None, moe.Activation("gelu")),
    "nemotron-h": (moe.Router(3, **SIGMOID), moe.Activation("relu2")),
    "deepseek-v4": (moe.Router(4, "sqrt-softplus", normalize=True, scale=1.5), moe.Activation(limit=0.75)),
}


def read(model, family, name):
    """The layer of a model in memory as the reference's."""
    end = f"layers.{family.layer}."
    tensors = {n.split(end)[1]: t.float().numpy() for n, t in model.state_dict().items() if end in n}

    def get(*suffixes):
        return next((t for n, t in tensors.items() if n.endswith(suffixes)), None)

    up, down = get("experts.up_proj"), get("experts.down_proj")
    gate = bias = None
    fused = get("experts.gate_up_proj")
    if fused is not None:
        bias = get("experts.gate_up_proj_bias")
        if name in ("gpt-oss", "llama-4-text"):  # [E, in, out]
            fused, down = fused.swapaxes(1, 2), down.swapaxes(1, 2)
        if name == "gpt-oss":
            gate, up = fused[:, 0::2], fused[:, 1::2]
        else:
            gate, up = np.split(fused, 2, 1)
    shared = tuple(
        get(f".shared_expert.{m}_proj.weight", f".shared_experts.{m}_proj.weight") for m in ("gate", "up", "down")
    )
    shared_gate = get("shared_expert_gate.weight")
    router, activation = RULES[name]
    return moe.Layer(
        gate,
        up,
        down,
        router,
        get("mlp.gate.weight", "router.weight", "router.proj.weight", "mixer.gate.weight"),
        activation,
        router_bias=get("router.bias"),
        selection_bias=get("e_score_correction_bias"),
        gate_bias=None if bias is None else bias[:, 0::2],
        up_bias=None if bias is None else bias[:, 1::2],
        down_bias=get("experts.down_proj_bias"),
        shared=None if shared[1] is None else shared,
        shared_gate=None if shared_gate is None else shared_gate[0],
        on_input=name == "llama-4-text",
    )


def close(a, b):
    return (np.abs(a - b).max(1) <= 3e-6 * np.abs(a).max(1)).all()


@pytest.mark.parametrize("name", RULES)
def test_reference(name, seed, rng):
    family = FAMILIES[name]
    model = make(family, torch.float32, seed)
    hidden = rng.standard_normal((33, family.config["hidden_size"]), np.float32)
    seen = eager(model, family, hidden)
    layer = read(model, family, name)
    assert close(layer.experts(hidden, seen.ids, seen.weights), seen.experts)
    if seen.block is not None:
        ids, weights = layer.route(hidden)
        order, other = np.argsort(ids, 1), np.argsort(seen.ids, 1)  # some routers do not sort
        assert np.array_equal(np.take_along_axis(ids, order, 1), np.take_along_axis(seen.ids, other, 1))
        assert np.allclose(np.take_along_axis(weights, order, 1), np.take_along_axis(seen.weights, other, 1), rtol=3e-6)
        assert close(layer.block(hidden), seen.block)
