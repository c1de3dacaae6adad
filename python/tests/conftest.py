# SPDX-License-Identifier: Apache-2.0
import os
import pathlib
import zlib

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SEED = int(os.environ.get("MOE_SEED", "1"))


@pytest.fixture
def seed(request):
    """One for each test, so that a test has the same data whether it runs alone or with others."""
    value = zlib.crc32(f"{SEED} {request.node.name}".encode())
    print(f"MOE_SEED={SEED}")  # shown where the test fails
    return value


@pytest.fixture
def rng(seed):
    return np.random.default_rng(seed)
