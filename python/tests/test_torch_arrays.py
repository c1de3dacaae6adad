# SPDX-License-Identifier: Apache-2.0
"""Tensors of PyTorch as arrays: taken without a copy, and given back."""

import ml_dtypes
import numpy as np
import pytest
from reference import Case

import moe_tkg

torch = pytest.importorskip("torch", reason="PyTorch is not installed")


@pytest.fixture
def case(rng):
    return Case(rng)


def tensors(case):
    return [torch.from_numpy(a) for a in case.call]


def test_call(case):
    packed = moe_tkg.Experts.pack(torch.from_numpy(case.gate_up), torch.from_numpy(case.down))
    want = packed(*case.call)
    got = packed(*tensors(case))
    assert isinstance(got, torch.Tensor) and got.dtype == torch.float32 and (got.numpy() == want).all()
    assert (packed(case.hidden, *tensors(case)[1:]) == want).all()  # the result is of hidden's kind
    out = torch.empty_like(got)
    assert packed(*tensors(case), out=out) is out and torch.equal(out, got)


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("index", ["int32", "int64"])
def test_types(case, name, index):
    dtype = getattr(torch, name)
    packed = moe_tkg.Experts.pack(*(torch.from_numpy(a).to(dtype) for a in (case.gate_up, case.down)))
    hidden, ids, weights = tensors(case)
    got = packed(hidden.to(dtype), ids.to(getattr(torch, index)), weights.to(dtype))
    assert got.dtype == dtype
    theirs = {"bfloat16": ml_dtypes.bfloat16}.get(name, name)
    want = packed(case.hidden.astype(theirs), case.index, case.weights.astype(theirs))
    assert (got.float().numpy() == want.astype(np.float32)).all()
    assert packed.prepare(output_dtype=torch.float32)(hidden.to(dtype), ids, weights).dtype == torch.float32


def test_fp8(case):
    w, d = (torch.from_numpy(a).to(torch.float8_e4m3fn) for a in (case.gate_up, case.down))
    scale = torch.full((case.E,), 2.0)
    packed = moe_tkg.Experts.pack(w, d, gate_up_scale=scale, down_scale=scale)
    wide = moe_tkg.Experts.pack(w.float() * 2, d.float() * 2)
    torch.testing.assert_close(packed(*tensors(case)), wide(*tensors(case)))


def test_views_and_parameters(case):
    gate_up = torch.nn.Parameter(torch.from_numpy(case.gate_up))
    want = moe_tkg.Experts.pack(case.gate_up, case.down)(*case.call)
    turned = gate_up.transpose(1, 2).contiguous(), torch.from_numpy(case.down).transpose(1, 2).contiguous()
    packed = moe_tkg.Experts.pack(turned[0].transpose(1, 2), turned[1].transpose(1, 2))
    assert (packed(*tensors(case)).numpy() == want).all()
    packed = moe_tkg.Experts.pack(list(gate_up), list(torch.from_numpy(case.down)))
    assert (packed(*tensors(case)).numpy() == want).all()


def test_operator_router_block(case):
    operator = {name: torch.from_numpy(a) for name, a in case.operator.items()}
    hidden, index, _ = tensors(case)
    got = moe_tkg.moe_tkg(hidden, **operator, expert_index=index)
    assert (got.numpy() == moe_tkg.moe_tkg(case.hidden, **case.operator, expert_index=case.index)).all()
    weights = torch.from_numpy(np.ascontiguousarray(case.gate_up[0, : case.E]))
    chosen, affinities = moe_tkg.router_topk(hidden, weights, 2)
    assert chosen.dtype == torch.int32 and affinities.dtype == torch.float32
    assert (chosen.numpy() == moe_tkg.router_topk(case.hidden, weights.numpy(), 2)[0]).all()
    packed = moe_tkg.Experts.pack(case.gate_up, case.down)
    block = moe_tkg.moe_block(hidden.bfloat16(), router=moe_tkg.Router(weights, 2), experts=packed)
    assert block.dtype == torch.bfloat16 and block.shape == hidden.shape


def test_router_keeps_its_memory(case):
    weights = torch.nn.Parameter(torch.from_numpy(case.gate_up[0, : case.E].copy()))
    router = moe_tkg.Router(weights, 2)
    hidden = tensors(case)[0]
    before = router(hidden)[0]
    weights.data = torch.zeros_like(weights)
    junk = [torch.full_like(weights, 7) for _ in range(10)]
    assert torch.equal(router(hidden)[0], before) and junk


def test_requantised(case):
    gate_up, down = torch.from_numpy(case.gate_up).bfloat16(), torch.from_numpy(case.down).bfloat16()
    for to in ("mxfp4", "fp8"):
        got = moe_tkg.Experts.pack(gate_up, down, requantize=to)(*case.call)
        again = moe_tkg.Experts.pack(gate_up.float().numpy(), down.float().numpy(), requantize=to)(*case.call)
        assert (got == again).all()


def test_refused(case):
    packed = moe_tkg.Experts.pack(case.gate_up, case.down)
    hidden, index, weights = tensors(case)
    for bad, kind, message in (
        ((hidden.to("meta"), index, weights), moe_tkg.MoeValueError, "hidden: is on device meta"),
        ((hidden.double(), index, weights), moe_tkg.MoeTypeError, "hidden: has elements of torch.float64"),
        ((hidden.t().contiguous().t(), index, weights), moe_tkg.MoeValueError, "hidden: is not contiguous"),
        ((hidden.to_sparse(), index, weights), moe_tkg.MoeValueError, "hidden: has layout torch.sparse_coo"),
        ((hidden, index.short(), weights), moe_tkg.MoeTypeError, "index: has elements of torch.int16"),
    ):
        with pytest.raises(kind, match=message):
            packed(*bad)
