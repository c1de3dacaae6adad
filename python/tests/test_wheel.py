# SPDX-License-Identifier: Apache-2.0
"""The wheel that $MOE_TKG_WHEEL names, by itself: in an environment that has its dependencies and nothing else."""

import importlib.metadata
import os
import pathlib
import re
import subprocess
import sys
import zipfile

import pytest
from stored import ROOT

import moe_tkg

WHEEL = os.environ.get("MOE_TKG_WHEEL")
pytestmark = pytest.mark.skipif(not WHEEL, reason="MOE_TKG_WHEEL is not set")
DEPENDENCIES = ("numpy", "ml_dtypes")

SMOKE = """
import sys
import numpy as np, ml_dtypes, moe_tkg
assert moe_tkg.__file__.startswith(sys.prefix), moe_tkg.__file__
bf16 = ml_dtypes.bfloat16
w = np.ones((4, 64, 64), bf16) / bf16(64)
experts = moe_tkg.Experts.pack(gate=w, up=w, down=w, packing="lossless")
y = experts(np.ones((2, 64), bf16), np.array([[0, 3], [1, 1]]), np.ones((2, 2), np.float32))
assert y.dtype == bf16 and abs(float(y[0, 0]) - 1.4621) < 0.01, y
layer = moe_tkg.Model(sys.argv[1]).load(1)
assert layer.block(np.ones((1, layer.info.H), np.float32)).shape == (1, layer.info.H)
config = moe_tkg.show_config("dicts")
assert config["library"].startswith(sys.prefix) and config["models"] and config["tool"].startswith(sys.prefix), config
print(moe_tkg.__version__, *config["isa_levels"])
"""


@pytest.fixture(scope="module")
def bin(tmp_path_factory):
    """The programs of a new environment with the wheel; its dependencies are links to those that are here."""
    path = tmp_path_factory.mktemp("wheel") / "venv"
    subprocess.run([sys.executable, "-m", "venv", path], check=True, timeout=120)
    python = path / "bin" / "python"
    done = run(python, "-m", "pip", "install", "--no-index", "--no-deps", WHEEL)
    assert done.returncode == 0, done.stderr
    site = pathlib.Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())
    for name in DEPENDENCIES:
        here = importlib.metadata.distribution(name)
        for top in {f.parts[0] for f in here.files} - {"..", "__pycache__"}:
            (site / top).symlink_to(here.locate_file(top))
    return path / "bin"


def run(*command):
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "MOE_TKG_LIBRARY", "LD_LIBRARY_PATH")}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=clean, cwd="/")


def test_works(bin):
    done = run(bin / "python", "-I", "-c", SMOKE, ROOT / "tests/fixtures/gpt_oss_mxfp4")
    assert done.returncode == 0, done.stderr
    version, *levels = done.stdout.split()
    assert version == moe_tkg.__version__ and levels == moe_tkg.isa_levels()


def test_dependencies_are_met(bin):
    done = run(bin / "python", "-m", "pip", "check")
    assert done.returncode == 0, done.stdout


def test_tool(bin):
    version = f"moe-tkg {moe_tkg.__version__}"
    for command in ([bin / "moe-tkg"], [bin / "python", "-m", "moe_tkg"]):
        done = run(*command, "--version")
        assert done.returncode == 0 and version in done.stdout, done.stderr
        assert run(*command, "dance").returncode not in (0, 1) and run(*command, "info").returncode == 0
    cases = sorted((ROOT / "tests/golden/moe_tkg").glob("*.safetensors"))
    done = run(bin / "moe-tkg", "verify", *cases)
    assert done.returncode == 0, done.stdout + done.stderr


def test_name_and_contents():
    name = pathlib.Path(WHEEL).name
    assert re.fullmatch(rf"moe_tkg-{moe_tkg.__version__}-py3-none-manylinux_2_\d+_\w+\.whl", name)
    with zipfile.ZipFile(WHEEL) as wheel:
        names = {i.filename for i in wheel.infolist() if not i.is_dir()}
        modes = {i.filename: i.external_attr >> 16 for i in wheel.infolist()}
        metadata = next(n for n in names if n.endswith(".dist-info/METADATA"))
        said = wheel.read(metadata).decode()
    wanted = {"lib/libmoe_tkg.so", "lib/libmoe_tkg_io.so", "bin/moe-tkg", "py.typed", "__init__.py", "__main__.py"}
    assert {f"moe_tkg/{n}" for n in wanted} <= names
    assert modes["moe_tkg/bin/moe-tkg"] & 0o111
    assert all(n.startswith(("moe_tkg/", "moe_tkg-")) and not n.endswith((".c", ".h", ".a", ".pyc")) for n in names)
    modules = {p.name for p in (ROOT / "python/moe_tkg").glob("*.py")}
    assert modules == {n.split("/")[1] for n in names if re.fullmatch(r"moe_tkg/\w+\.py", n)}
    assert f"Version: {moe_tkg.__version__}" in said and "Requires-Python: >=3.10" in said
