# SPDX-License-Identifier: Apache-2.0
"""Models of transformers, tiny and random, saved and loaded: their experts by moe_tkg against their own."""

from __future__ import annotations

import copy
import io
import os
import warnings

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import moe_tkg  # noqa: E402
import moe_tkg.transformers as accelerated  # noqa: E402
import tiny_models  # noqa: E402

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
FAMILIES = [f for f in tiny_models.FAMILIES if tiny_models.available(f)]


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory):
    """The family, its model with experts of its own, and the same checkpoint with ours."""
    path = tmp_path_factory.mktemp(request.param)
    tiny_models.model(request.param).save_pretrained(path)
    eager, ours = load(path, "eager"), load(path, "moe_tkg")
    if request.param == "llama4":  # has no interface
        accelerated.accelerate(ours)
    yield request.param, eager, ours


def load(path, implementation, dtype=torch.float32, **more):
    kind = transformers.AutoModelForCausalLM
    return kind.from_pretrained(path, experts_implementation=implementation, dtype=dtype, **more).eval()


def twins(family="qwen3_moe", dtype=torch.float32, **more):
    model = tiny_models.model(family, **more).to(dtype)
    other = copy.deepcopy(model)
    model.set_experts_implementation("eager")
    return model, other


def logits(model, batch=3, **more):
    with torch.no_grad():
        return model(**tiny_models.prompts(batch, **more)).logits


def close(got, want, bound=1e-4):
    """Relative to each row's largest."""
    return ((got - want).abs().amax(-1) <= bound * want.abs().amax(-1)).all()


def experts_of(model):
    return [module for _, module, _ in accelerated._experts_of(model)]


# ---- families ------------------------------------------------------------------------------------------------------


def test_families_are_here():
    assert set(FAMILIES) >= {
        "qwen2_moe",
        "qwen3_moe",
        "mixtral",
        "olmoe",
        "deepseek_v3",
        "glm4_moe",
        "granitemoe",
        "gpt_oss",
    }


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_logits(pair, batch):
    family, eager, ours = pair
    assert close(logits(ours, batch), logits(eager, batch))
    found = accelerated.report(ours)
    assert found and all(r.why is None and r.format == "f32" and r.bytes > 0 for r in found)
    assert not accelerated.report(eager) or all(r.bytes == 0 for r in accelerated.report(eager))


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_generate(pair, batch):
    family, eager, ours = pair
    how = dict(max_new_tokens=64, do_sample=False)
    want = eager.generate(**tiny_models.prompts(batch), **how)
    got = ours.generate(**tiny_models.prompts(batch), **how)
    assert want.shape == (batch, 9 + 64)
    assert torch.equal(got, want)
    assert batch == 1 or len(set(want[:, 9:].flatten().tolist())) > 8  # they say something


def test_long_prompt(pair):
    family, eager, ours = pair
    assert close(logits(ours, 2, longest=100), logits(eager, 2, longest=100))  # 200 rows at once


def test_rows_alone(pair):
    """A row of a batch is the row alone, bit for bit."""
    family, _, ours = pair
    for module in experts_of(ours):
        layer = module.__dict__[accelerated.SLOT].layer
        E, H = layer.source.E, layer.source.H
        g = torch.Generator().manual_seed(1)
        hidden, affinities = torch.randn(150, H, generator=g), torch.rand(150, 2, generator=g)
        index = torch.randint(E, (150, 2), generator=g)
        together = layer(hidden, index, affinities)
        for t in (0, 1, 64, 127, 128, 149):
            assert torch.equal(together[t], layer(hidden[t : t + 1], index[t : t + 1], affinities[t : t + 1])[0])


def test_moe_is_not_small(pair):
    """What the experts give matters to the logits: the tests above would see it if they gave something else."""
    family, eager, _ = pair
    other = copy.deepcopy(eager)
    with torch.no_grad():
        for module in experts_of(other):
            module.down_proj.mul_(1.01)
    assert not close(logits(other), logits(eager))


# ---- formats -------------------------------------------------------------------------------------------------------


def _dequantized(model, weights):
    """The model with the values that requantised weights stand for."""
    e2m1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
    for module in experts_of(model):
        for name in ("gate_up_proj", "down_proj"):
            p = getattr(module, name)
            w = p.detach().transpose(1, 2) if getattr(module, "is_transposed", name == "llama4") else p.detach()
            if weights == "mxfp4":
                codes, scale = (torch.from_numpy(a) for a in moe_tkg.quantize_mxfp4(w))
                pairs = torch.stack([codes & 15, codes >> 4], -1).flatten(-2).long()
                value = e2m1[pairs].unflatten(-1, (-1, 32)) * torch.exp2(scale.float() - 127)[..., None]
                value = value.flatten(-2)
            else:
                codes, scale = moe_tkg.quantize_fp8(w, None)
                value = torch.from_numpy(codes.astype("f4") * scale[..., None])
            with torch.no_grad():
                p.copy_(value.transpose(1, 2) if w.data_ptr() == p.data_ptr() and w.stride() != p.stride() else value)
    return model


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize("weights", ["mxfp4", "fp8"])
def test_requantized(weights, family):
    sizes = {"gpt_oss": dict(), "qwen3_moe": dict(moe_intermediate_size=64)}[family]
    eager, ours = twins(family, **sizes)
    plain = logits(eager)
    accelerated.accelerate(ours, weights)
    want = logits(_dequantized(eager, weights))
    assert close(logits(ours), want)
    assert not close(want, plain)
    assert {r.format for r in accelerated.report(ours)} == {"e2m1_x2" if weights == "mxfp4" else "e4m3fn"}


def test_lossless():
    """The same bits from fewer bytes."""
    plain, lossless = twins(dtype=torch.bfloat16, hidden_size=128, moe_intermediate_size=128)
    accelerated.accelerate(plain)
    accelerated.accelerate(lossless, "bf16-lossless")
    assert torch.equal(logits(plain), logits(lossless))
    for a, b in zip(accelerated.report(plain), accelerated.report(lossless)):
        assert (a.format, b.format) == ("bf16", "bf16 lossless") and b.bytes < a.bytes


@pytest.mark.parametrize("dtype, bound", [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_half_types(dtype, bound):
    """The experts' output is of the model's type, and as near to the truth as that lets it be."""
    model, ours = twins(dtype=dtype)
    accelerated.accelerate(ours)
    theirs, module = experts_of(model)[0], experts_of(ours)[0]
    g = torch.Generator().manual_seed(0)
    hidden, index = torch.randn(20, 64, generator=g).to(dtype), torch.randint(8, (20, 2), generator=g)
    affinities = torch.rand(20, 2, generator=g).to(dtype)
    with torch.no_grad():
        got = module(hidden, index, affinities)
        want = theirs.double()(hidden.double(), index, affinities.double())
    assert got.dtype == dtype
    assert close(got.double(), want, bound)


def test_unsuited_shape_is_left_alone():
    eager, ours = twins(moe_intermediate_size=40)
    with (
        pytest.warns(UserWarning, match="H = 64 and I = 40 must be multiples of 32 for"),
        pytest.raises(ValueError, match="40"),
    ):
        accelerated.accelerate(ours, "mxfp4")
    with pytest.raises(ValueError, match="weights = 'int3': must be one of"):
        accelerated.accelerate(ours, "int3")
    accelerated.accelerate(ours)
    assert close(logits(ours), logits(eager))


# ---- freed weights, copies, changes ----------------------------------------------------------------------------------


def test_free(tmp_path):
    eager, ours = twins()
    accelerated.accelerate(ours, free=True)
    for module in experts_of(ours):
        assert sum(p.numel() for p in module.parameters()) == 0
    assert all(r.freed for r in accelerated.report(ours))
    want = logits(ours)
    assert close(want, logits(eager))
    assert torch.equal(logits(copy.deepcopy(ours)), want)
    accelerated.accelerate(ours)  # nothing left to do
    with pytest.raises(ValueError, match="its weights were freed when they were packed with weights=None"):
        accelerated.accelerate(ours, "fp8")
    with pytest.raises(RuntimeError, match="in no form that can be saved"):
        ours.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="cannot be saved"):
        torch.save(ours, io.BytesIO())
    with pytest.raises(RuntimeError, match="a gradient is wanted"):
        ours(**tiny_models.prompts(1))
    ours.set_experts_implementation("eager")
    with pytest.raises(RuntimeError, match="was freed when moe_tkg packed it: only experts_implementation='moe_tkg'"):
        logits(ours)


def test_accelerate_that_fails():
    """Nothing is changed: what was packed before goes on."""
    eager, ours = twins(moe_intermediate_size=64)
    accelerated.accelerate(ours, "mxfp4", act_mode="int8")
    want = logits(ours)
    with pytest.raises(ValueError, match="act_mode = 'int9': must be one of"):
        accelerated.accelerate(ours, act_mode="int9", free=True)
    with pytest.raises(ValueError, match="act_mode = INT8: needs"):
        accelerated.accelerate(ours, act_mode="int8", free=True)
    assert not any(r.freed for r in accelerated.report(ours))
    assert torch.equal(logits(ours), want)
    accelerated.accelerate(ours, "mxfp4", act_mode="int8", free=True)
    with pytest.raises(ValueError, match="packed with weights='mxfp4', act_mode='int8'"):
        accelerated.accelerate(ours, "mxfp4")
    assert torch.equal(logits(ours), want)


def test_changed_weights():
    """Found by the memory and by PyTorch's count of changes in place; not where PyTorch does not count."""
    eager, ours = twins()
    ours.set_experts_implementation("moe_tkg")
    logits(ours)

    def same():
        return close(logits(ours), logits(eager))

    for model in (eager, ours):
        with torch.no_grad():
            experts_of(model)[0].down_proj[0].mul_(-2)
    assert same()
    for model in (eager, ours):
        experts_of(model)[1].gate_up_proj = torch.nn.Parameter(experts_of(model)[1].gate_up_proj.detach() * 0.5)
    assert same()
    state = {name: t * 1.5 if ".experts." in name else t for name, t in eager.state_dict().items()}
    for model in (eager, ours):
        model.load_state_dict(state)
    assert same()
    for model in (eager, ours):
        experts_of(model)[0].down_proj.data.mul_(3)
    assert not same()
    accelerated.release(ours)
    assert same()


def test_release_keeps_the_format():
    _, ours = twins()
    accelerated.accelerate(ours, weights="fp8")
    formats = [layer.format for layer in accelerated.report(ours)]
    want = logits(ours)
    accelerated.release(ours)
    assert all(layer.bytes == 0 for layer in accelerated.report(ours))
    assert torch.equal(logits(ours), want)
    assert [layer.format for layer in accelerated.report(ours)] == formats


def test_changed_weights_at_the_same_address():
    """Memory that was freed is given out again: an address does not tell one tensor from the next."""
    eager, ours = twins()
    accelerated.accelerate(ours)
    values = experts_of(ours)[0].down_proj.detach().clone().numpy()
    for _ in range(3):
        values *= -2
        experts_of(eager)[0].down_proj = torch.nn.Parameter(torch.from_numpy(values.copy()))
        experts_of(ours)[0].down_proj = torch.nn.Parameter(torch.from_numpy(values))
        assert close(logits(ours), logits(eager))


def test_changed_activation():
    """It is looked at again with the weights."""
    eager, ours = twins()
    accelerated.accelerate(ours)
    for model in (eager, ours):
        experts_of(model)[0].act_fn = torch.nn.GELU()
        with torch.no_grad():
            experts_of(model)[0].down_proj.mul_(2)
    assert close(logits(ours), logits(eager))


def test_changed_beyond_recognition():
    _, ours = twins()
    accelerated.accelerate(ours)
    experts_of(ours)[0].act_fn = torch.nn.Tanh()
    logits(ours)  # nobody looks at what is not a parameter
    with torch.no_grad():
        experts_of(ours)[0].down_proj.mul_(2)
    with pytest.raises(RuntimeError, match="the experts of a Qwen3MoeExperts were changed: its activation is Tanh"):
        logits(ours)


def test_copies():
    """A copy is packed from its own parameters, and a pickled model brings nothing of ours."""
    eager, ours = twins()
    accelerated.accelerate(ours)
    other = copy.deepcopy(ours)
    for model in (other, eager):
        with torch.no_grad():
            experts_of(model)[0].down_proj.mul_(-1)
    assert close(logits(other), logits(eager))
    assert not close(logits(ours), logits(eager))
    file = io.BytesIO()
    torch.save(other, file)
    file.seek(0)
    back = torch.load(file, weights_only=False)
    assert close(logits(back), logits(eager))


def test_copies_keep_the_format():
    """Requantised weights and rounded activations are a function of their own, and a copy has the same."""
    _, ours = twins(moe_intermediate_size=64)
    accelerated.accelerate(ours, "mxfp4", act_mode="int8")
    assert torch.equal(logits(copy.deepcopy(ours)), logits(ours))
    once_more = copy.deepcopy(copy.deepcopy(ours))  # of one that was not packed yet
    assert torch.equal(logits(once_more), logits(ours))
    assert {r.format for r in accelerated.report(once_more)} == {"e2m1_x2"}


def test_copies_of_llama4():
    """Its block is of a class that is made here."""
    eager, ours = twins("llama4")
    accelerated.accelerate(ours)
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    for other in (torch.load(file, weights_only=False), copy.deepcopy(ours)):
        with torch.no_grad():
            for model in (other, eager):
                experts_of(model)[0].down_proj.mul_(-1)
            assert close(logits(other), logits(eager))
            experts_of(eager)[0].down_proj.mul_(-1)
        assert all(r.bytes for r in accelerated.report(other))
    assert close(logits(ours), logits(eager))


@pytest.mark.parametrize("family", ["qwen3_moe", "llama4"])
def test_compile_a_copy(family):
    """One that was not packed yet."""
    torch._dynamo.reset()  # it compiles a function so many times in a process, and no more
    eager, ours = twins(family)
    accelerated.accelerate(ours)
    assert close(logits(torch.compile(copy.deepcopy(ours), fullgraph=True)), logits(eager))


def test_switching_back():
    eager, ours = twins()
    accelerated.accelerate(ours)
    ours.set_experts_implementation("eager")
    assert torch.equal(logits(ours), logits(eager))
    ours.set_experts_implementation("moe_tkg")
    assert close(logits(ours), logits(eager))


def test_save_and_load(tmp_path):
    eager, ours = twins()
    accelerated.accelerate(ours)
    ours.save_pretrained(tmp_path)
    assert torch.equal(logits(load(tmp_path, "eager")), logits(eager))


# ---- what is not recognised ------------------------------------------------------------------------------------------


def left_alone(model, said):
    """With a warning that says why, and the model's own results."""
    own = copy.deepcopy(model)
    own.set_experts_implementation("eager")
    model.set_experts_implementation("moe_tkg")
    with pytest.warns(UserWarning, match=said):
        got = logits(model)
    assert torch.equal(got, logits(own))
    found = accelerated.report(model)
    assert found and all(r.why and r.format is None for r in found)
    with pytest.raises(ValueError, match="none of its layers can be run"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        accelerated.accelerate(model)


@pytest.mark.parametrize("act", ["tanh", "mish", "leaky_relu"])
def test_unknown_activation(act):
    left_alone(tiny_models.model("mixtral", hidden_act=act), "leaves MixtralExperts as it is: its activation is")


@pytest.mark.parametrize(
    "act", ["silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "relu", "relu2", "quick_gelu"]
)
def test_known_activation(act):
    eager, ours = twins("mixtral", hidden_act=act)
    accelerated.accelerate(ours)
    assert close(logits(ours), logits(eager))


def test_gate_of_its_own():

    def gate(self, gate_up):
        a, b = gate_up.chunk(2, dim=-1)
        return self.act_fn(a) * (b + 0.25)

    model = tiny_models.model("mixtral")
    for module in experts_of(model):
        module.__dict__["_apply_gate"] = gate.__get__(module)
    model.set_experts_implementation("moe_tkg")
    with pytest.warns(UserWarning, match="its gate is .*gate"):
        logits(model)


def test_gate_of_another_version(monkeypatch):
    """A known name with another meaning."""
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

    def other(self, gate_up):
        gate, up = gate_up[..., ::2], gate_up[..., 1::2]
        return (up.clamp(-self.limit, self.limit) + 1.125) * gate * torch.sigmoid(gate * self.alpha)

    other.__module__, other.__qualname__ = GptOssExperts._apply_gate.__module__, GptOssExperts._apply_gate.__qualname__
    monkeypatch.setattr(GptOssExperts, "_apply_gate", other)
    model = tiny_models.model("gpt_oss")
    model.set_experts_implementation("moe_tkg")
    with pytest.warns(UserWarning, match="its gate gives other values than the formula that goes by its name"):
        logits(model)


def test_other_experts():
    """A norm behind each expert; parameters of another kind, on another device, of another type."""
    for change, said in [
        (lambda m: setattr(m, "has_post_expert_norm", True), "normalises"),
        (
            lambda m: setattr(m, "gate_up_proj", torch.nn.Parameter(m.gate_up_proj.double())),
            "gate_up_proj is torch.float64",
        ),
        (lambda m: setattr(m, "down_proj", torch.nn.Parameter(m.down_proj.to("meta"))), "down_proj is on device meta"),
        (lambda m: setattr(m, "down_proj", torch.nn.Parameter(m.down_proj[:, :-1])), "do not fit together"),
        (lambda m: setattr(m, "gate_up_proj", None), "has no parameter gate_up_proj"),
    ]:
        model = tiny_models.model("qwen3_moe")
        for module in experts_of(model):
            change(module)
        with pytest.warns(UserWarning, match=said), pytest.raises(ValueError, match=said):
            accelerated.accelerate(model)
        assert all(accelerated.SLOT not in m.__dict__ for m in experts_of(model))


def test_some_layers():
    """What can be run is; the rest is left alone."""
    eager, ours = twins()
    for model in (eager, ours):
        experts_of(model)[1].act_fn = torch.nn.Tanh()
    with pytest.warns(UserWarning, match="leaves model.layers.1.mlp.experts as it is: its activation is Tanh"):
        accelerated.accelerate(ours)
    assert [r.why for r in accelerated.report(ours)] == [None, "its activation is Tanh"]
    assert close(logits(ours), logits(eager))


def test_no_experts():
    dense = transformers.AutoModelForCausalLM.from_config(
        transformers.Qwen3Config(
            hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=32
        )
    )
    with pytest.raises(ValueError, match="Qwen3ForCausalLM has no experts"):
        accelerated.accelerate(dense)


def test_gradient():
    """The model's own experts run where one is wanted."""
    eager, ours = twins()
    ours.set_experts_implementation("moe_tkg")
    with pytest.warns(UserWarning, match="a gradient is wanted"):
        ours(**tiny_models.prompts(2)).logits.sum().backward()
    eager(**tiny_models.prompts(2)).logits.sum().backward()
    for a, b in zip(ours.parameters(), eager.parameters()):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("what", ["hidden", "weights", "parameters"])
def test_gradient_of_one_part(what):
    """Of the hidden state, of the router's weights, of the experts themselves; also out of training."""
    eager, ours = twins()
    accelerated.accelerate(ours)
    g = torch.Generator().manual_seed(2)
    hidden, weights = torch.randn(3, 64, generator=g), torch.rand(3, 2, generator=g)
    index = torch.tensor([[0, 1], [2, 3], [4, 5]])
    got = []
    for model in (eager, ours):
        module = experts_of(model)[0].requires_grad_(what == "parameters")
        h, w = hidden.clone().requires_grad_(what == "hidden"), weights.clone().requires_grad_(what == "weights")
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            module(h, index, w).square().sum().backward()
        got.append({"hidden": h, "weights": w, "parameters": module.down_proj}[what].grad)
    assert any("a gradient is wanted" in str(w.message) for w in said)
    assert torch.equal(*got)


def test_sentinels():
    """Ids equal to num_experts, of expert parallelism, contribute nothing."""
    eager, ours = twins()
    accelerated.accelerate(ours)
    a, b = experts_of(eager)[0], experts_of(ours)[0]
    g = torch.Generator().manual_seed(2)
    hidden, index, affinities = (
        torch.randn(9, 64, generator=g),
        torch.randint(9, (9, 2), generator=g),
        torch.rand(9, 2, generator=g),
    )
    assert (index == 8).any()
    with torch.no_grad():
        assert close(b(hidden, index, affinities), a(hidden, index, affinities))
        index[:] = 8
        assert not b(hidden, index, affinities).any()


def test_weights_of_all_experts():
    """top_k_weights [T, E] in place of [T, K]."""
    _, ours = twins()
    accelerated.accelerate(ours)
    module = experts_of(ours)[0]
    g = torch.Generator().manual_seed(2)
    hidden, every = torch.randn(9, 64, generator=g), torch.rand(9, 8, generator=g)
    index = torch.stack([torch.randperm(8, generator=g)[:2] for _ in range(9)])
    with torch.no_grad():
        assert torch.equal(module(hidden, index, every), module(hidden, index, every.gather(1, index)))


def test_version_with_a_list(monkeypatch):
    """Early versions took names from a list alone."""

    def refuse(self, requested):
        if requested == "moe_tkg":
            raise ValueError("not supported")
        return requested or "eager"

    monkeypatch.setattr(transformers.PreTrainedModel, "get_correct_experts_implementation", refuse)
    eager, ours = twins()
    accelerated.accelerate(ours)
    assert close(logits(ours), logits(eager))
    assert all(r.bytes for r in accelerated.report(ours))


# ---- graphs, forks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "llama4"])
def test_compile(family):
    torch._dynamo.reset()
    eager, ours = twins(family)
    if family == "llama4":
        accelerated.accelerate(ours)
    else:
        ours.set_experts_implementation("moe_tkg")
    compiled = torch.compile(ours, fullgraph=True)
    for batch in (1, 3):  # nothing is packed before the first graph is made
        assert close(logits(compiled, batch), logits(eager, batch))
    assert all(r.bytes for r in accelerated.report(ours))
    for model in (eager, ours):
        with torch.no_grad():
            experts_of(model)[0].down_proj.mul_(-1)
    assert close(logits(compiled), logits(eager))


def test_fork():
    _, ours = twins()
    accelerated.accelerate(ours)
    want = logits(ours)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as PyTorch's own workers do: its OpenMP does not survive a fork
    child = os.fork()
    if child == 0:
        os._exit(0 if close(logits(ours), want) else 1)
    torch.set_num_threads(threads)
    assert os.waitpid(child, 0)[1] == 0


# ---- quantised checkpoints -------------------------------------------------------------------------------------------


def rewrite(path, change, quantization):
    """The checkpoint's tensors by change(name, tensor) -> a dict, and the configuration's entry."""
    import json

    from safetensors.torch import load_file, save_file

    file = path / "model.safetensors"
    tensors = {}
    for name, t in load_file(file).items():
        tensors.update(change(name, t))
    save_file(tensors, file, {"format": "pt"})
    settings = json.loads((path / "config.json").read_text())
    settings["quantization_config"] = quantization
    (path / "config.json").write_text(json.dumps(settings))
    return tensors


@pytest.fixture(scope="module")
def gpt_oss_mxfp4(tmp_path_factory):
    path = tmp_path_factory.mktemp("gpt-oss-mxfp4")
    tiny_models.model("gpt_oss").to(torch.bfloat16).save_pretrained(path)

    def change(name, t):
        if not name.endswith(("gate_up_proj", "down_proj")):
            return {name: t}
        codes, scale = moe_tkg.quantize_mxfp4(t.transpose(1, 2))
        return {
            f"{name}_blocks": torch.from_numpy(codes).unflatten(-1, (-1, 16)).contiguous(),
            f"{name}_scales": torch.from_numpy(scale),
        }

    kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    rewrite(path, change, {"quant_method": "mxfp4", "modules_to_not_convert": kept})
    return path


def dequantized(path, implementation="eager", dtype=torch.float32):
    return load(path, implementation, dtype, quantization_config=transformers.Mxfp4Config(dequantize=True))


def test_gpt_oss_mxfp4(gpt_oss_mxfp4, tmp_path):
    """The checkpoint's codes are packed as they are."""
    eager, ours = dequantized(gpt_oss_mxfp4), load(gpt_oss_mxfp4, "moe_tkg")
    for module in experts_of(ours):
        assert {n for n, _ in module.named_parameters()} == {
            f"{name}_{part}" for name in ("gate_up_proj", "down_proj") for part in ("blocks", "scales", "bias")
        }
    assert close(logits(ours), logits(eager))
    assert {r.format for r in accelerated.report(ours)} == {"e2m1_x2"}
    how = dict(max_new_tokens=32, do_sample=False)
    assert torch.equal(ours.generate(**tiny_models.prompts(3), **how), eager.generate(**tiny_models.prompts(3), **how))
    ours.save_pretrained(tmp_path)
    assert torch.equal(logits(dequantized(tmp_path)), logits(eager))
    accelerated.accelerate(ours, free=True)
    assert close(logits(ours), logits(eager))
    with pytest.raises(RuntimeError, match="only experts_implementation='moe_tkg' runs this layer"):
        ours.set_experts_implementation("eager")
        logits(ours)


def test_gpt_oss_mxfp4_half(gpt_oss_mxfp4):
    ours = load(gpt_oss_mxfp4, "moe_tkg", torch.bfloat16)
    eager = dequantized(gpt_oss_mxfp4, dtype=torch.bfloat16)
    assert close(logits(ours).float(), logits(eager).float(), 0.1)


def test_gpt_oss_mxfp4_by_transformers(gpt_oss_mxfp4, monkeypatch):
    """Without experts_implementation="moe_tkg" it is loaded as if this package were not there."""
    from transformers.quantizers import quantizer_mxfp4

    monkeypatch.setattr(quantizer_mxfp4, "is_accelerate_available", lambda: True)
    assert torch.equal(logits(load(gpt_oss_mxfp4, "eager")), logits(dequantized(gpt_oss_mxfp4)))
    monkeypatch.setattr(quantizer_mxfp4, "is_accelerate_available", lambda: False)
    with pytest.raises(ImportError, match="Using mxfp4 requires Accelerate"):
        load(gpt_oss_mxfp4, "eager")


def test_device_map(monkeypatch):
    """Codes are kept where all of a model goes to the CPU."""
    from moe_tkg._quantizers import _on_cpu

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    for device_map in (None, "cpu", torch.device("cpu"), {"": "cpu"}, {"": torch.device("cpu", 0)}, "auto", "balanced"):
        assert _on_cpu(device_map)
    for device_map in ("cuda", "cuda:0", 0, {"a": "cpu", "b": 0}, {"a": "cpu", "b": "disk"}):
        assert not _on_cpu(device_map)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert _on_cpu("cpu") and not _on_cpu("auto")


def test_gpt_oss_mxfp4_asked_to_be_bf16(gpt_oss_mxfp4):
    model = dequantized(gpt_oss_mxfp4, "moe_tkg")
    assert experts_of(model)[0].gate_up_proj.dtype == torch.float32
    assert close(logits(model), logits(dequantized(gpt_oss_mxfp4)))


@pytest.mark.parametrize("intermediate", [128, 192])
def test_deepseek_v3_fp8(tmp_path, intermediate, monkeypatch):
    """Experts stay FP8 with scales of blocks; what else is FP8 in the checkpoint becomes what the model is."""
    sizes = dict(hidden_size=256, moe_intermediate_size=intermediate)
    model = tiny_models.model("deepseek_v3", scale=1.0, **sizes).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    values = {}

    def change(name, t):
        whole = ("embed", "lm_head", "mlp.gate.weight", "shared_experts" if intermediate % 128 else "-")
        if t.dim() != 2 or any(part in name for part in whole):  # transformers takes 192 rows for two blocks of 96
            values[name] = t
            return {name: t}
        codes, scale = moe_tkg.quantize_fp8(t)
        codes, scale = torch.from_numpy(codes.view("u1")).view(torch.float8_e4m3fn), torch.from_numpy(scale)
        wide = scale.repeat_interleave(128, 0)[: t.shape[0]].repeat_interleave(128, 1)[:, : t.shape[1]]
        values[name] = codes.float() * wide
        return {name: codes, name.replace("weight", "weight_scale_inv"): scale}

    quantization = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    }
    tensors = rewrite(tmp_path, change, quantization)
    assert any("experts.0.gate_proj.weight_scale_inv" in name for name in tensors)
    ours = load(tmp_path, "moe_tkg")
    module = experts_of(ours)[0]
    assert module.gate_up_proj.dtype == torch.float8_e4m3fn and module.gate_up_proj_scale_inv.dtype == torch.float32

    from safetensors.torch import save_file

    plain = tmp_path / "plain"
    plain.mkdir()
    config = model.config
    config.dtype = torch.float32
    config.save_pretrained(plain)
    save_file(
        {name: t.float().contiguous() for name, t in values.items()}, plain / "model.safetensors", {"format": "pt"}
    )
    eager = load(plain, "eager")
    assert close(logits(ours), logits(eager))
    assert {r.format for r in accelerated.report(ours)} == {"e4m3fn"}
    if intermediate % 128 == 0:  # transformers takes a partial block for a whole one of fewer rows
        from transformers.quantizers import quantizer_finegrained_fp8

        monkeypatch.setattr(quantizer_finegrained_fp8, "is_accelerate_available", lambda: True)
        assert close(logits(load(tmp_path, "eager")), logits(eager))
    with pytest.raises(RuntimeError, match="in no form that can be saved"):
        ours.save_pretrained(tmp_path / "again")


# ---- the benchmark ---------------------------------------------------------------------------------------------------


def test_bench(capsys, tmp_path):
    import json

    from moe_tkg import bench_transformers

    file = tmp_path / "b.json"
    arguments = ["--tiny", "--batch", "1,2", "--tokens", "2", "--layers", "1", "-q", "--json", str(file)]
    assert bench_transformers.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 2 * len(bench_transformers.ALL)
    found = json.loads(file.read_text())["results"]
    assert [r["implementation"] for r in found[::2]] == bench_transformers.ALL
    assert all(r["tokens_per_second"] > 0 and 0 < r["experts_share"] < 1 for r in found)
    size = {r["implementation"]: r["experts_bytes"] for r in found}
    assert size["moe_tkg mxfp4"] < size["moe_tkg bf16-lossless"] < size["moe_tkg"] < 1.1 * size["eager"]
