# SPDX-License-Identifier: Apache-2.0
"""The binding is what the headers declare: structs by the compiler, enumerators and functions by their text."""

import ctypes
import re
import shutil
import subprocess

import pytest
from stored import ROOT

import moe_tkg
from moe_tkg import _abi

HEADERS = [ROOT / "include/moe_tkg.h", ROOT / "include/moe_tkg_io.h"]
STRUCTS = {
    "moe_tensor": _abi.Tensor,
    "moe_optional_float": _abi.OptionalFloat,
    "moe_optional_int": _abi.OptionalInt,
    "moe_tkg_args": _abi.TkgArgs,
    "moe_context_options": _abi.ContextOptions,
    "moe_array": _abi.Array,
    "moe_matrix": _abi.Matrix,
    "moe_experts_args": _abi.ExpertsArgs,
    "moe_experts_info": _abi.ExpertsInfo,
    "moe_router_args": _abi.RouterArgs,
    "moe_router_output": _abi.RouterOutput,
    "moe_block_args": _abi.BlockArgs,
    "moe_model_options": _abi.ModelOptions,
    "moe_model_info": _abi.ModelInfo,
    "moe_layer_info": _abi.LayerInfo,
    "moe_load_options": _abi.LoadOptions,
}


def text():
    return re.sub(r"/\*.*?\*/", "", "\n".join(h.read_text() for h in HEADERS), flags=re.S)


def test_structs(tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    assert set(re.findall(r"^typedef struct (\w+) \{", text(), re.M)) == set(STRUCTS)
    lines = ["#include <moe_tkg_io.h>", "#include <stdio.h>", "int main(void){"]
    want = []
    for name, kind in STRUCTS.items():
        lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
        want.append(f"{name} {ctypes.sizeof(kind)}")
        for field, *_ in kind._fields_:
            lines.append(f'printf("{name}.{field} %zu %zu\\n", offsetof({name}, {field}), sizeof((({name}*)0)->{field}));')
            f = getattr(kind, field)
            want.append(f"{name}.{field} {f.offset} {f.size}")
    (tmp_path / "a.c").write_text("\n".join([*lines, "return 0;}"]))
    subprocess.run([compiler, "-I", str(ROOT / "include"), "a.c", "-o", "a.out"], cwd=tmp_path, check=True, timeout=60)
    got = subprocess.run([tmp_path / "a.out"], capture_output=True, text=True, check=True, timeout=60).stdout.split("\n")
    assert got[:-1] == want


@pytest.mark.parametrize(
    "kind, prefix",
    [
        (moe_tkg.Status, "MOE_(?:E_)?"),
        (moe_tkg.DType, "MOE_(?:DTYPE_(?=NONE))?"),
        (_abi.Layout, "MOE_LAYOUT_"),
        (moe_tkg.AffinityScale, "MOE_"),
        (moe_tkg.Activation, "MOE_"),
        (moe_tkg.ActMode, "MOE_ACT_"),
        (moe_tkg.Packing, "MOE_PACK_"),
        (moe_tkg.RouterScore, "MOE_SCORE_"),
        (moe_tkg.GroupRank, "MOE_GROUP_"),
    ],
)
def test_enumerators(kind, prefix):
    name = {
        "Status": "moe_status",
        "DType": "moe_dtype",
        "Layout": "moe_layout",
        "AffinityScale": "moe_affinity_scale",
        "Activation": "moe_activation",
        "ActMode": "moe_act_mode",
        "Packing": "moe_packing",
        "RouterScore": "moe_router_score",
        "GroupRank": "moe_group_rank",
    }[kind.__name__]
    body = re.search(rf"typedef enum {name} \{{(.*?)\}}", text(), re.S).group(1)
    members, value = {}, -1
    for item in filter(None, (i.strip() for i in body.split(","))):
        symbol, _, given = (p.strip() for p in item.partition("="))
        value = int(given) if given else value + 1
        members[symbol] = value
    members.pop("MOE_DTYPE_COUNT", None)
    assert {re.sub(f"^{prefix}", "", symbol): v for symbol, v in members.items()} == {m.name: m.value for m in kind}


def test_functions():
    declared = set(re.findall(r"MOE_API\s+[\w ]+?[\s*](moe_\w+)\(", text()))
    bound = set(_abi._CORE) | set(_abi._IO)
    assert bound <= declared
    assert declared - bound == {"moe_tkg_part"}  # for threads of a C program


def test_names_of_types_are_the_library_s():
    for d in moe_tkg.DType:
        if d:
            assert moe_tkg.DType[_abi.lib.moe_dtype_name(d).decode().upper()] == d


def test_version():
    version = re.findall(r"#define MOE_VERSION_(?:MAJOR|MINOR|PATCH)\s+(\d+)", HEADERS[0].read_text())
    assert moe_tkg.__version__ == ".".join(version)


def test_config(capsys):
    config = moe_tkg.show_config("dicts")
    assert config["version"] == moe_tkg.__version__ and config["isa"] in config["isa_levels"] and config["models"]
    assert moe_tkg.show_config() is None
    printed = capsys.readouterr().out
    assert all(str(config[name]) in printed for name in ("version", "library", "threads", "numpy"))
    with pytest.raises(ValueError, match="mode"):
        moe_tkg.show_config("json")


def test_all_is_there():
    assert all(getattr(moe_tkg, name).__doc__ for name in moe_tkg.__all__ if name != "__version__")
