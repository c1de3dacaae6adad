# SPDX-License-Identifier: Apache-2.0
"""Each example of docs/python.md runs by itself and prints what the sentence after it says."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest
from stored import ROOT

EXAMPLES = re.findall(r"^```python\n(.*?)^```\n\nIt prints `([^`]*)`", (ROOT / "docs/python.md").read_text(), re.M | re.S)


def test_every_example_says_what_it_prints():
    assert len(EXAMPLES) == (ROOT / "docs/python.md").read_text().count("```python") > 0


@pytest.mark.parametrize("code, printed", EXAMPLES, ids=range(1, len(EXAMPLES) + 1))
def test_example(code, printed, tmp_path):
    for package in ("torch", "transformers"):
        if f"import {package}" in code and importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    checkpoint = ROOT / "tests/fixtures/gpt_oss_mxfp4"
    if "from_pretrained" in code:  # all of a model
        import tiny_models
        import torch

        checkpoint = tmp_path / "qwen3_moe"
        tiny_models.model("qwen3_moe").to(torch.bfloat16).save_pretrained(checkpoint)
    done = subprocess.run(
        [sys.executable, "-c", code, checkpoint],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == printed
