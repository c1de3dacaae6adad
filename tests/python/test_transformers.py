# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that transformers wrote, in both of its layouts: the published one of the family, and the one with
fused experts that it has in memory.  What moe-tkg computes from them is held against transformers' eager block."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from families import FAMILIES, NEMOTRON, SIGMOID, Family, eager, make, sizes  # noqa: E402
from tool import check, compare, refused, run  # noqa: E402

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
CASES = [(name, layout) for name, family in FAMILIES.items() for layout in family.layouts]


def save(model, family, folder, layout="published", **options):
    model.save_pretrained(folder, save_original_format=layout == "published", **options)
    if family.patch:
        config = json.loads((folder / "config.json").read_text())
        config = {k: v for k, v in {**config, **family.patch}.items() if v is not None}
        (folder / "config.json").write_text(json.dumps(config))


def draw(rng, family, tokens=17):
    return rng.standard_normal((tokens, family.config["hidden_size"]), np.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name, layout", CASES)
def test_family(name, layout, dtype, tmp_path, seed, rng):
    family = FAMILIES[name]
    model = make(family, DTYPES[dtype], seed)
    save(model, family, tmp_path, layout)
    hidden = draw(rng, family)
    seen = eager(model, family, hidden)
    if family.foreign:
        refused(tmp_path, family.layer, tmp_path, hidden, family.foreign)
    block = None if family.foreign else seen.block
    compare(tmp_path, family.layer, tmp_path, hidden, seen.ids, seen.weights, seen.experts, block)


@pytest.mark.parametrize("name", ["qwen2-moe", "gpt-oss", "glm-4.5"])
def test_shards(name, tmp_path, seed, rng):
    """Sharded, opened by the folder and by the index."""
    family = FAMILIES[name]
    model = make(family, torch.bfloat16, seed)
    save(model, family, tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    hidden = draw(rng, family)
    block = eager(model, family, hidden).block
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        check(run(path, family.layer, tmp_path, hidden), block)


def test_file(tmp_path, seed, rng):
    """Opened by the one file, the configuration beside it or elsewhere."""
    family = FAMILIES["mixtral"]
    model = make(family, torch.float32, seed)
    save(model, family, tmp_path)
    hidden = draw(rng, family, 1)
    block = eager(model, family, hidden).block
    check(run(tmp_path / "model.safetensors", family.layer, tmp_path, hidden), block)


@pytest.mark.parametrize("tokens", [1, 2, 64])
def test_tokens(tokens, tmp_path, seed, rng):
    family = FAMILIES["deepseek-v3"]
    model = make(family, torch.bfloat16, seed)
    save(model, family, tmp_path)
    hidden = draw(rng, family, tokens)
    check(run(tmp_path, family.layer, tmp_path, hidden), eager(model, family, hidden).block)


def test_latent(tmp_path, seed, rng):
    """Experts between two projections of the hidden rows: a block that is not of this library's kind."""
    family = Family("NemotronHConfig", {**NEMOTRON, "moe_latent_size": 32}, layer=3)
    save(make(family, torch.float32, seed), family, tmp_path)
    refused(tmp_path, family.layer, tmp_path, draw(rng, family), "latent")


UNKNOWN = {
    "dots1": sizes(intermediate_size=36, moe_intermediate_size=22, n_shared_experts=2, head_dim=8, **SIGMOID),
    "ernie4_5_moe": sizes(intermediate_size=36, moe_intermediate_size=22, moe_num_experts=9, moe_k=3),
    "qwen3": sizes(intermediate_size=36, head_dim=8),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_unknown(kind, tmp_path, seed, rng):
    """A family that is not known here is not taken for one that has the same tensors; the message says what it is."""
    family = Family(type(transformers.AutoConfig.for_model(kind)).__name__, UNKNOWN[kind])
    save(make(family, torch.float32, seed), family, tmp_path)
    refused(tmp_path, 1, tmp_path, draw(rng, family), kind)
