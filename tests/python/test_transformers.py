# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that transformers wrote, in both of its layouts: the published one of the family, and the one with
fused experts that it has in memory.  What moe-tkg computes from them is held against transformers' eager block."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from families import FAMILIES, eager, make  # noqa: E402
from tool import NO_MODEL, call, compare, refused  # noqa: E402

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
TOKENS = 17


def save(model, family, folder, **options):
    model.save_pretrained(folder, **options)
    if family.patch:
        config = json.loads((folder / "config.json").read_text())
        config = {k: v for k, v in {**config, **family.patch}.items() if v is not None}
        (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("layout", ["published", "fused"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FAMILIES)
def test_family(name, dtype, layout, tmp_path, seed, rng):
    family = FAMILIES[name]
    model = make(family, DTYPES[dtype], seed)
    save(model, family, tmp_path, save_original_format=layout == "published")
    hidden = rng.standard_normal((TOKENS, family.config["hidden_size"]), np.float32)
    seen = eager(model, family, hidden)
    block = None if family.foreign else seen.block
    compare(tmp_path, family.layer, tmp_path, hidden, seen.ids, seen.weights, seen.experts, block)
    if family.foreign:
        refused(tmp_path, family.layer, tmp_path, hidden, family.foreign)
