# SPDX-License-Identifier: Apache-2.0
"""The golden cases, through Python."""

import numpy as np
import pytest
from stored import cases, read

import moe_tkg

FLAGS = ("is_all_expert", "mask_unselected_experts", "is_all_expert_dynamic", "output_in_sbuf")
LIMITS = ("gate_clamp_upper_limit", "gate_clamp_lower_limit", "up_clamp_upper_limit", "up_clamp_lower_limit")
DTYPES = {"fp8_e4m3": "e4m3_ieee"}  # as the files call it
PACKED = (
    "expert_gate_up_weights",
    "expert_down_weights",
    "expert_gate_up_bias",
    "expert_down_bias",
    "expert_gate_up_weights_scale",
    "expert_down_weights_scale",
)


def named(path):
    return path.stem


def wrap(name, array, said):
    dtype, sbuf = said.get(f"dtype.{name}"), name == "hidden_input" and said.get("input_in_sbuf") == "1"
    if dtype is None and not sbuf:
        return array
    return moe_tkg.Tensor(array, DTYPES.get(dtype, dtype), "sbuf" if sbuf else "hbm")


def within(got, expected, said, rtol):
    limit = float(said["atol"]) + rtol * np.abs(expected).max()
    assert np.abs(np.asarray(got, np.float64) - expected).max() <= limit


@pytest.mark.parametrize("path", cases("moe_tkg"), ids=named)
def test_operator(path):
    tensors, said = read(path)
    expected = tensors.pop("expected")
    given = {name: wrap(name, array, said) for name, array in tensors.items()}
    settings = {flag: said[flag] == "1" for flag in FLAGS if flag in said}
    settings |= {limit: float(said[limit]) for limit in LIMITS if limit in said}
    if "block_size" in said:
        settings["block_size"] = int(said["block_size"])
    settings["activation_fn"] = said["activation_fn"]
    settings["expert_affinities_scaling_mode"] = said["expert_affinities_scaling_mode"]
    settings["output_dtype"] = said["output_dtype"]
    got = moe_tkg.moe_tkg(**given, **settings)
    assert got.shape == expected.shape
    within(got, expected, said, float(said["rtol_strict"]))

    packed = moe_tkg.Experts.pack_operator(**{name: given.pop(name) for name in PACKED if name in given})
    assert moe_tkg.moe_tkg(**given, **settings, experts=packed).tobytes() == got.tobytes()


def test_operator_has_cases():
    assert len(cases("moe_tkg")) >= 15


def router_of(weights, bias, K, sigmoid, before, normalize):
    score = "sigmoid" if sigmoid else "softmax" if before else "topk_softmax"
    return moe_tkg.Router(weights.T, K, bias=None if bias is None else bias[0], score=score, normalize=normalize)


@pytest.mark.parametrize("path", cases("router_topk"), ids=named)
def test_router(path):
    t, said = read(path)
    before, normalize = said["router_pre_norm"] == "1", said["norm_topk_prob"] == "1"
    router = router_of(t["w"], t.get("w_bias"), int(said["k"]), said["act_fn"] != "SOFTMAX", before, normalize)
    index, logits, affinities, scores = router(t["x"], want=("index", "logits", "affinities", "scores"))
    assert (index == t["expected_index"]).all()
    for got, want in ((logits, t["expected_logits"]), (scores if before and not normalize else affinities, t["expected_affinities"])):
        assert np.abs(got - want).max() <= 1e-5 + 1e-5 * np.abs(want).max()


@pytest.mark.parametrize("path", cases("moe_block"), ids=named)
def test_block(path):
    t, said = read(path)
    everything = said["is_all_expert"] == "1"
    router = router_of(
        t["router_weights"],
        t.get("router_bias"),
        int(said["top_k"]),
        said["router_act_fn"] == "SIGMOID",
        said["router_pre_norm"] == "1",
        said["norm_topk_prob"] == "1",
    )
    output, logits = moe_tkg.moe_block(
        t["inp"],
        router=router,
        gamma=t["gamma"][0],
        norm_epsilon=float(said["eps"]),
        norm_H=int(said.get("hidden_actual", 0)),
        is_all_expert=everything,
        rank_id=int("rank1" in path.stem) if everything else None,
        activation_fn=said["activation_fn"],
        output_dtype="f32",
        want=("logits",),
        **{limit: float(said[limit]) for limit in LIMITS if limit in said},
        **{name: wrap(name, t[name], said) for name in PACKED if name in t},
    )
    assert output.shape == t["inp"].shape
    within(output.reshape(t["expected"].shape), t["expected"], said, float(said["rtol"]))
    within(logits, t["expected_router_logits"], said, float(said["rtol"]))


def test_router_and_block_have_cases():
    assert len(cases("router_topk")) >= 7 and len(cases("moe_block")) >= 4
