# SPDX-License-Identifier: Apache-2.0
"""What this package is and what it runs on."""

from __future__ import annotations

import os
import platform
from typing import Any

import numpy as np

from ._abi import directory, lib
from ._context import default_context, isa_levels


def tool() -> str | None:
    """The path of the command moe-tkg that belongs to the libraries; None where the package was built without it."""
    for path in (directory().parent / "bin" / "moe-tkg", directory() / "moe-tkg"):
        if os.access(path, os.X_OK):
            return str(path)
    return None


def show_config(mode: str = "stdout") -> dict[str, Any] | None:
    """Prints versions, where the libraries are, and what calls without a context run on; "dicts" returns it instead."""
    if mode not in ("stdout", "dicts"):
        raise ValueError(f"mode = {mode!r}: must be 'stdout' or 'dicts'")
    context = default_context()
    config = {
        "version": lib.moe_version().decode(),
        "library": str(directory() / "libmoe_tkg.so"),
        "models": (directory() / "libmoe_tkg_io.so").exists(),
        "tool": tool(),
        "machine": platform.machine(),
        "isa_levels": isa_levels(),
        "isa": context.isa,
        "threads": context.threads,
        "processors": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    if mode == "dicts":
        return config
    for name, value in config.items():
        print(f"{name + ':':<12} {' '.join(value) if isinstance(value, list) else value}")
    return None
