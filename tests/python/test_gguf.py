# SPDX-License-Identifier: Apache-2.0
"""GGUF files written by the package gguf; its dequantize() says what the blocks stand for."""

from dataclasses import dataclass, field

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf import quants

import moe
from tool import check, compare, refused, run

LAYER = 1  # the one that is tested, of two
SIGMOID = dict(expert_gating_func=gguf.ExpertGatingFuncType.SIGMOID, expert_weights_norm=True, expert_weights_scale=2.5)
SIGMOID_ROUTER = moe.Router(3, "sigmoid", normalize=True, scale=2.5)


@dataclass
class Arch:
    router: moe.Router
    keys: dict = field(default_factory=dict)  # of add_NAME(value)
    name: str = ""  # the architecture's, where it is not the case's
    gate: bool = True
    merged: bool = False  # gate and up are one tensor
    legacy: bool = False  # a tensor for each expert
    dense: int = 0  # so many layers at the start have no experts
    bias: bool = False  # of router and experts
    selection_bias: bool = False
    shared: str = ""  # the key of its width: none if the architecture has none
    shared_gate: bool = False
    activation: moe.Activation = field(default_factory=moe.Activation)
    on_input: bool = False


ARCHS = {
    "gpt-oss": Arch(
        moe.Router(3, "topk-softmax"), bias=True, activation=moe.Activation(alpha=1.702, offset=1, limit=7)
    ),
    "qwen2moe": Arch(moe.Router(3), shared="expert_shared_feed_forward_length", shared_gate=True),
    "qwen3moe": Arch(moe.Router(3, normalize=True)),
    "qwen3next": Arch(moe.Router(3, normalize=True), shared="expert_shared_feed_forward_length", shared_gate=True),
    "qwen35moe": Arch(
        moe.Router(3, normalize=True), shared="expert_shared_feed_forward_length", shared_gate=True, merged=True
    ),
    "olmoe": Arch(moe.Router(3)),
    "mixtral": Arch(moe.Router(2, normalize=True), name="llama"),
    "mixtral-legacy": Arch(moe.Router(2, normalize=True), name="llama", legacy=True),
    "deepseek2": Arch(
        moe.Router(3, scale=1.5),
        keys=dict(expert_weights_norm=False, expert_weights_scale=1.5, expert_shared_count=1),
        dense=1,
        shared="shared",
    ),
    "deepseek2-groups": Arch(
        moe.Router(2, scale=1.5, groups=3, kept_groups=1, ranked_by=1),
        keys=dict(expert_weights_scale=1.5, expert_group_count=3, expert_group_used_count=1, expert_shared_count=1),
        name="deepseek2",
        shared="shared",
    ),
    "deepseek2-v3": Arch(
        moe.Router(3, "sigmoid", normalize=True, scale=2.5, groups=2, kept_groups=1),
        keys=dict(SIGMOID, expert_group_count=2, expert_group_used_count=1, expert_shared_count=1),
        name="deepseek2",
        dense=1,
        selection_bias=True,
        shared="shared",
    ),
    "glm4moe": Arch(
        SIGMOID_ROUTER, keys=dict(SIGMOID, expert_shared_count=1), dense=1, selection_bias=True, shared="shared"
    ),
    "granitemoe": Arch(moe.Router(3, "topk-softmax")),
    "granitehybrid": Arch(moe.Router(3, "topk-softmax"), shared="expert_shared_feed_forward_length"),
    "llama4": Arch(moe.Router(1), keys=dict(interleave_moe_layer_step=1), shared="shared", on_input=True),
    "minimax-m2": Arch(
        moe.Router(3, "sigmoid", normalize=True),
        keys=dict(expert_gating_func=gguf.ExpertGatingFuncType.SIGMOID),
        selection_bias=True,
    ),
    "nemotron_h_moe": Arch(
        SIGMOID_ROUTER,
        keys=dict(SIGMOID, expert_shared_count=1),
        gate=False,
        selection_bias=True,
        shared="expert_shared_feed_forward_length",
        activation=moe.Activation("relu2"),
    ),
}

# quantize() of the package has no K-quants and no NVFP4: random blocks, but for their F16 scales: size, offsets
SCALES = {Type.Q4_K: (0.06, [0, 2]), Type.Q5_K: (0.03, [0, 2]), Type.Q6_K: (0.02, [208])}
TYPES = [Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.Q4_0, Type.Q4_K, Type.Q5_K, Type.Q6_K, Type.MXFP4, Type.NVFP4]


def blocks(rng, kind, shape):
    """Bytes of random weights, and the weights."""
    k = shape[-1]
    if kind in SCALES or kind == Type.NVFP4:
        elements, bytes = gguf.GGML_QUANT_SIZES[kind]
        data = rng.integers(0, 256, (*shape[:-1], k // elements, bytes), np.uint8)
        if kind == Type.NVFP4:  # all its scales are allowed; these make values about as large as the others
            data[..., :4] = rng.integers(1, 24, data[..., :4].shape)
            data[..., :4].reshape(-1)[:3] = [0, 0x7F, 0x7E]
        size, offsets = SCALES.get(kind, (0, []))
        for offset in offsets:
            scale = rng.uniform(0.5, 2, data.shape[:-1]) * size / np.sqrt(k) / 16
            scale *= rng.choice([-1, 1], scale.shape)
            scale.reshape(-1)[0] = 2**-24
            data[..., offset : offset + 2] = scale.astype(np.float16)[..., None].view(np.uint8)
        data = data.reshape(*shape[:-1], -1)
    else:
        weights = (rng.standard_normal(shape) * 1.5 / np.sqrt(k)).astype(np.float32)
        weights.reshape(-1)[0] = 1e-6
        data = quants.quantize(weights, kind)
    return data, quants.dequantize(data, kind).reshape(shape).astype(np.float64)


class File:
    """A model on its way into a GGUF file, or several."""

    def __init__(self, path, arch, rng, **options):
        self.writer, self.rng = gguf.GGUFWriter(path, arch, **options), rng

    def matrix(self, name, kind, *shape):
        data, value = blocks(self.rng, kind, shape)
        self.writer.add_tensor(name, data, raw_dtype=kind)
        return value

    def vector(self, name, *shape, size=0.2):
        data = (size * self.rng.standard_normal(shape)).astype(np.float32)
        self.writer.add_tensor(name, data)
        return data.astype(np.float64)

    def close(self):
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()


def merge(parts):
    """Two (bytes, values) as one of twice the rows."""
    return tuple(np.concatenate(a, 1) for a in zip(*parts))


def write(path, rng, case, gate_up, down, H, I, E=6, alignment=None, second=False, **options):
    """A model of two layers; the second as moe.py's."""
    arch = ARCHS[case]
    file = File(path, arch.name or case, rng, **options)
    writer, wide = file.writer, 2 * I if arch.shared and arch.shared != "shared" else I
    if alignment:
        writer.add_custom_alignment(alignment)
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(H)
    writer.add_head_count(2)
    writer.add_feed_forward_length(I if arch.name == "llama" else 2 * I)
    writer.add_expert_count(E)
    writer.add_expert_used_count(arch.router.K)
    if arch.name != "llama":
        writer.add_expert_feed_forward_length(I)
    if arch.shared and arch.shared != "shared":
        getattr(writer, "add_" + arch.shared)(wide)
    if arch.dense:
        writer.add_leading_dense_block_count(arch.dense)
    for key, value in arch.keys.items():
        getattr(writer, "add_" + key)(value)
    file.vector("token_embd.weight", 32, H)
    for n in range(arch.dense):
        for part, rows, k in (("gate", 2 * I, H), ("up", 2 * I, H), ("down", H, 2 * I)):
            file.matrix(f"blk.{n}.ffn_{part}.weight", Type.F16, rows, k)
    for n in range(arch.dense, 2):
        at = f"blk.{n}.ffn_"
        file.vector(at + "norm.weight", H)
        layer = moe.Layer(None, None, None, arch.router, None, arch.activation, on_input=arch.on_input)
        layer.router_weight = file.vector(at + "gate_inp.weight", E, H, size=1.5 / np.sqrt(H))
        if arch.legacy:
            stacks = {"gate": (gate_up, I, H), "up": (gate_up, I, H), "down": (down, H, I)}
            for part, (kind, rows, k) in stacks.items():
                all = [file.matrix(f"{at}{part}.{e}.weight", kind, rows, k) for e in range(E)]
                setattr(layer, part, np.stack(all))
        else:
            if arch.merged:
                data, value = merge([blocks(rng, gate_up, (E, I, H)) for _ in range(2)])
                writer.add_tensor(at + "gate_up_exps.weight", data, raw_dtype=gate_up)
                layer.gate, layer.up = np.split(value, 2, 1)
            else:
                layer.gate = file.matrix(at + "gate_exps.weight", gate_up, E, I, H) if arch.gate else None
                layer.up = file.matrix(at + "up_exps.weight", gate_up, E, I, H)
            layer.down = file.matrix(at + "down_exps.weight", down, E, H, I)
        if second:  # of NVFP4: a scale for each expert
            for part in ("gate", "up", "down"):
                scale = rng.uniform(0.5, 2, E).astype(np.float32)
                writer.add_tensor(f"{at}{part}_exps.scale", scale)
                setattr(layer, part, getattr(layer, part) * scale.astype(np.float64)[:, None, None])
        if arch.bias:
            layer.router_bias = file.vector(at + "gate_inp.bias", E)
            layer.gate_bias = file.vector(at + "gate_exps.bias", E, I)
            layer.up_bias = file.vector(at + "up_exps.bias", E, I)
            layer.down_bias = file.vector(at + "down_exps.bias", E, H)
        if arch.selection_bias:
            layer.selection_bias = file.vector(f"blk.{n}.exp_probs_b.bias", E, size=0.1)
        if arch.shared:
            first = file.matrix(at + "gate_shexp.weight", gate_up, wide, H) if arch.gate else None
            up = file.matrix(at + "up_shexp.weight", gate_up, wide, H)
            layer.shared = first, up, file.matrix(at + "down_shexp.weight", down, H, wide)
        if arch.shared_gate:
            layer.shared_gate = file.vector(at + "gate_inp_shexp.weight", H)
    file.close()
    return layer


def compare_all(path, folder, rng, layer, H):
    hidden = rng.standard_normal((19, H), np.float32)
    ids, weights = layer.route(hidden)
    weights = weights.astype(np.float32)
    compare(path, LAYER, folder, hidden, ids, weights, layer.experts(hidden, ids, weights), layer.block(hidden))


@pytest.mark.parametrize("case", ARCHS)
def test_architecture(case, tmp_path, rng):
    H, I = (64, 96) if case == "gpt-oss" else (72, 40)
    kind = Type.MXFP4 if case == "gpt-oss" else Type.BF16
    layer = write(tmp_path / "model.gguf", rng, case, kind, kind, H, I)
    compare_all(tmp_path / "model.gguf", tmp_path, rng, layer, H)


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name.lower())
@pytest.mark.parametrize("case", ["qwen3moe", "glm4moe"])
def test_type(case, kind, tmp_path, rng):
    H, I = (512, 256) if kind in SCALES else (128, 64) if kind == Type.NVFP4 else (96, 160)
    layer = write(tmp_path / "model.gguf", rng, case, kind, kind, H, I)
    compare_all(tmp_path / "model.gguf", tmp_path, rng, layer, H)


@pytest.mark.parametrize(
    "case, gate_up, down, H, I",
    [
        ("qwen3moe", Type.Q4_K, Type.Q6_K, 256, 512),
        ("qwen2moe", Type.Q5_K, Type.Q8_0, 256, 224),
        ("qwen35moe", Type.Q4_K, Type.Q5_K, 512, 512),
        ("mixtral-legacy", Type.Q4_0, Type.Q8_0, 64, 96),
        ("nemotron_h_moe", Type.NVFP4, Type.Q8_0, 64, 96),
        ("gpt-oss", Type.Q8_0, Type.Q8_0, 96, 64),
        ("deepseek2-v3", Type.Q4_0, Type.F16, 96, 72),
    ],
)
def test_mixture(case, gate_up, down, H, I, tmp_path, rng):
    layer = write(tmp_path / "model.gguf", rng, case, gate_up, down, H, I)
    compare_all(tmp_path / "model.gguf", tmp_path, rng, layer, H)


def test_second_scale(tmp_path, rng):
    layer = write(tmp_path / "model.gguf", rng, "qwen3moe", Type.NVFP4, Type.NVFP4, 128, 64, second=True)
    compare_all(tmp_path / "model.gguf", tmp_path, rng, layer, 128)


@pytest.mark.parametrize("alignment", [8, 64, 128, 4096])
def test_alignment(alignment, tmp_path, rng):
    layer = write(tmp_path / "model.gguf", rng, "qwen2moe", Type.Q8_0, Type.BF16, 64, 40, alignment=alignment)
    compare_all(tmp_path / "model.gguf", tmp_path, rng, layer, 64)


@pytest.mark.parametrize("most", [2, 5])
def test_split(most, tmp_path, rng):
    layer = write(tmp_path / "model.gguf", rng, "glm4moe", Type.Q4_0, Type.Q8_0, 64, 96, split_max_tensors=most)
    files = sorted(tmp_path.glob("model-00001-of-*.gguf"))
    assert len(files) == 1 and not (tmp_path / "model.gguf").exists()
    compare_all(files[0], tmp_path, rng, layer, 64)
    compare_all(tmp_path, tmp_path, rng, layer, 64)


def test_gemma4(tmp_path, rng):
    """Its router has a norm and scales of its own: the experts run, the block is refused."""
    H, I, E = 64, 40, 6
    file = File(tmp_path / "model.gguf", "gemma4", rng)
    writer = file.writer
    writer.add_block_count(1)
    writer.add_embedding_length(H)
    writer.add_feed_forward_length(2 * I)
    writer.add_expert_count(E)
    writer.add_expert_used_count(2)
    writer.add_expert_feed_forward_length(I)
    for part, rows, k in (("gate", 2 * I, H), ("up", 2 * I, H), ("down", H, 2 * I)):
        file.matrix(f"blk.0.ffn_{part}.weight", Type.F16, rows, k)
    file.vector("blk.0.ffn_gate_inp.weight", E, H)
    gate_up = file.matrix("blk.0.ffn_gate_up_exps.weight", Type.BF16, E, 2 * I, H)
    down = file.matrix("blk.0.ffn_down_exps.weight", Type.BF16, E, H, I)
    file.close()
    hidden = rng.standard_normal((7, H), np.float32)
    ids = rng.permuted(np.tile(np.arange(E), (7, 1)), axis=1)[:, :2]
    weights = rng.uniform(0.1, 1, ids.shape).astype(np.float32)
    gate, up = np.split(gate_up, 2, 1)
    layer = moe.Layer(gate, up, down, None, None, moe.Activation("gelu"))
    refused(tmp_path / "model.gguf", 0, tmp_path, hidden, "gemma", "router")
    check(run(tmp_path / "model.gguf", 0, tmp_path, hidden, ids, weights), layer.experts(hidden, ids, weights))
