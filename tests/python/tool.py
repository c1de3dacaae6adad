# SPDX-License-Identifier: Apache-2.0
"""Runs moe-tkg on the models that the tests write."""

import os
import pathlib
import subprocess

import numpy as np
from safetensors.numpy import load_file, save_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOOL = os.environ.get("MOE_TKG", str(ROOT / "build/release/moe-tkg"))
TOLERANCE = 1e-5  # of the row's largest value

NOT_SOUND, NO_MODEL = 2, 3  # exit codes


def call(*args):
    """The finished process: returncode, stdout, stderr.  A tool that hangs or is ended by a signal is an error."""
    done = subprocess.run([TOOL, *map(str, args)], capture_output=True, text=True, timeout=120)
    assert done.returncode >= 0, f"signal {-done.returncode}: {done.stderr}"
    return done


def start(model, layer, folder, hidden, ids=None, weights=None, options=()):
    """moe-tkg run; without ids the whole block.  The finished process and the path that it writes to."""
    tensors = {"hidden": np.ascontiguousarray(hidden, np.float32)}
    if ids is not None:
        tensors["topk_ids"] = np.ascontiguousarray(ids, np.int32)
        tensors["topk_weights"] = np.ascontiguousarray(weights, np.float32)
        options = ("--experts-only", *options)
    folder = folder / "run"  # beside the model's files they would be taken for some of them
    folder.mkdir(exist_ok=True)
    given, out = folder / "hidden.safetensors", folder / "out.safetensors"
    save_file(tensors, given)
    out.unlink(missing_ok=True)
    return call("run", "--model", model, "--layer", layer, "--hidden", given, "--out", out, *options), out


def run(model, layer, folder, hidden, ids=None, weights=None, options=()):
    done, out = start(model, layer, folder, hidden, ids, weights, options)
    assert done.returncode == 0, done.stderr
    return load_file(out)["output"]


def refused(model, layer, folder, hidden, *names):
    """The whole block is refused as no usable model, by a message that has one of the names."""
    done, out = start(model, layer, folder, hidden)
    assert done.returncode == NO_MODEL, (done.returncode, done.stderr)
    assert any(name in done.stderr.lower() for name in names), done.stderr
    assert not out.exists()


def check(got, expected):
    """Every row within TOLERANCE of its largest value."""
    expected = np.asarray(expected, np.float64)
    assert got.dtype == np.float32 and got.shape == expected.shape
    assert np.isfinite(expected).all() and (np.abs(expected).max(1) > 0).all()
    off = np.abs(got - expected).max(1) / np.abs(expected).max(1)
    assert off.max() <= TOLERANCE, f"row {off.argmax()} is off by {off.max():.3g} of its largest value"


def compare(model, layer, folder, hidden, ids, weights, experts, block=None):
    """The experts with given ids and weights, and the whole block, against what they should be."""
    check(run(model, layer, folder, hidden, ids, weights), experts)
    if block is not None:
        check(run(model, layer, folder, hidden), block)
