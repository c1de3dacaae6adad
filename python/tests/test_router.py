# SPDX-License-Identifier: Apache-2.0
"""The router and the block, called from Python; the arithmetic itself is tested in C."""

import numpy as np
import pytest
from reference import Case, close, experts

import moe_tkg


@pytest.fixture
def case(rng):
    return Case(rng, T=7)


@pytest.fixture
def weights(case, rng):
    return rng.standard_normal((case.E, case.H)).astype(np.float32)


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def test_router(case, weights):
    index, chosen, logits, scores = moe_tkg.router_topk(
        case.hidden, weights, 3, normalize=True, scale=2.5, want=("index", "weights", "logits", "scores")
    )
    want = case.hidden.astype(np.float64) @ weights.T
    close(logits, want, 1e-5)
    close(scores, softmax(want), 1e-4)
    order = np.argsort(-want, 1)[:, :3]
    assert index.dtype == np.int32 and (index == order).all()
    best = np.take_along_axis(softmax(want), order, 1)
    close(chosen, 2.5 * best / best.sum(1, keepdims=True), 1e-4)
    again, _ = moe_tkg.Router(np.asfortranarray(weights), 3)(case.hidden)
    assert (again == index).all()


def test_biases_and_groups(case, weights, rng):
    bias, selection = (rng.standard_normal(case.E).astype(np.float32) for _ in range(2))
    index, logits = moe_tkg.router_topk(
        case.hidden, weights, 2, bias=bias, selection_bias=selection * 9, score="sigmoid", want=("index", "logits")
    )
    want = case.hidden.astype(np.float64) @ weights.T + bias
    close(logits, want)
    assert (index == np.argsort(-(1 / (1 + np.exp(-want)) + selection * 9), 1)[:, :2]).all()
    four = moe_tkg.Router(weights[:4], 2, n_group=2, topk_group=1)(case.hidden)[0]
    assert (four // 2 == four[:, :1] // 2).all()
    logits = case.hidden.astype(np.float64) @ weights[:4].T
    best = moe_tkg.Router(weights[:4], 2, n_group=2, topk_group=1, group_rank="best")(case.hidden)[0]
    assert (best // 2 == logits.argmax(1)[:, None] // 2).all()


def test_router_refused(case, weights):
    for given, message in (
        ({"K": 6}, "K = 6"),
        ({"K": 0}, "K = 0"),
        ({"K": 2, "score": "tanh"}, "score = 'tanh'"),
        ({"K": 2, "want": ("gates",)}, "want = 'gates'"),
        ({"K": 2, "bias": weights[0]}, "bias: has shape"),
        ({"K": 2, "bias": weights}, "bias: has shape"),
        ({"K": 2, "scale": float("nan")}, "scale"),
        ({"K": 2, "n_group": 2, "topk_group": 1}, "n_group"),
        ({"K": 2, "group_rank": "worst"}, "group_rank = 'worst'"),
    ):
        with pytest.raises(moe_tkg.MoeError, match=message):
            moe_tkg.router_topk(case.hidden, weights, **given)
    with pytest.raises(moe_tkg.MoeValueError, match="x: has shape"):
        moe_tkg.router_topk(case.hidden[:, :-1].copy(), weights, 2)
    with pytest.raises(moe_tkg.MoeTypeError, match="weights: .* float64"):
        moe_tkg.router_topk(case.hidden, weights.astype(np.float64), 2)
    with pytest.raises(moe_tkg.MoeValueError, match=r"weights: .* \[E, H\]"):
        moe_tkg.router_topk(case.hidden, weights[0], 2)


def test_block(case, weights, rng):
    gamma = rng.standard_normal(case.H).astype(np.float32)
    shared_gate = rng.standard_normal(case.H).astype(np.float32)
    packed = moe_tkg.Experts.pack(case.gate_up, case.down)
    shared = moe_tkg.Experts.pack(case.gate_up[:1], case.down[:1])
    router = moe_tkg.Router(weights, 2, normalize=True)
    given = {"router": router, "gamma": gamma, "norm_epsilon": 1e-6, "shared": shared, "shared_gate": shared_gate}
    got, index = moe_tkg.moe_block(case.hidden, experts=packed, **given, want=("index",))
    n = case.hidden.astype(np.float64)
    n = n / np.sqrt((n**2).mean(1, keepdims=True) + 1e-6) * gamma
    p = np.take_along_axis(softmax(n @ weights.T), index, 1)
    want = experts(case.gate, case.up, case.down, n, index, p / p.sum(1, keepdims=True))
    g = 1 / (1 + np.exp(-(n @ shared_gate)))
    want += g[:, None] * experts(case.gate, case.up, case.down, n, np.zeros((case.T, 1), int), None)
    close(got, want)
    operator = moe_tkg.moe_block(case.hidden, **case.operator, **given)
    assert (operator == got).all()
    everything = moe_tkg.moe_block(case.hidden, experts=packed, **given, is_all_expert=True, rank_id=0)
    close(everything, want)


def test_block_refused(case, weights):
    packed = moe_tkg.Experts.pack(case.gate_up, case.down)
    router = moe_tkg.Router(weights, 2)
    for given, message in (
        ({}, "expert_gate_up_weights"),
        ({"experts": packed, "gamma": case.hidden}, "gamma: has shape"),
        ({"experts": packed, "gamma": case.hidden[0, :-1]}, "gamma: has shape"),
        ({"experts": packed, "shared": packed}, "shared"),
        ({"experts": packed, "want": ("all",)}, "want = 'all'"),
        ({"experts": packed, "activation_fn": "swiglu"}, "swiglu_alpha"),
    ):
        with pytest.raises(moe_tkg.MoeError, match=message):
            moe_tkg.moe_block(case.hidden, router=router, **given)
    other = moe_tkg.Router(weights[:, :-32], 2)
    with pytest.raises(moe_tkg.MoeValueError, match=r"hidden_input: has shape \[7, 96\]: .* router's 64"):
        moe_tkg.moe_block(case.hidden, router=other, experts=packed)
    with pytest.raises(TypeError, match="expert_index"):
        moe_tkg.moe_block(case.hidden, router=router, experts=packed, expert_index=case.index)


def test_block_over_later_rows(rng, weights):
    case = Case(rng, T=200)
    given = {"router": moe_tkg.Router(weights, 2), "experts": moe_tkg.Experts.pack(case.gate_up, case.down)}
    want = moe_tkg.moe_block(case.hidden, **given)
    memory = np.empty((328, case.H), np.float32)
    memory[:200] = case.hidden
    moe_tkg.moe_block(memory[:200], **given, out=memory[128:])
    assert (memory[128:] == want).all()
