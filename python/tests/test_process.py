# SPDX-License-Identifier: Apache-2.0
"""Contexts, threads, forks, and memory that is given back."""

import gc
import os
import subprocess
import sys
import threading
import time
import tracemalloc

import numpy as np
import pytest
from reference import Case
from stored import ROOT

import moe_tkg


@pytest.fixture
def case(rng):
    return Case(rng)


@pytest.fixture
def packed(case):
    return moe_tkg.Experts.pack(case.gate_up, case.down)


def test_context(case, packed):
    want = packed(*case.call)
    for isa in moe_tkg.isa_levels():
        for threads in (1, 2, 3):
            context = moe_tkg.Context(threads=threads, isa=isa)
            assert (context.threads, context.isa) == (threads, isa) and isa in repr(context)
            assert (packed(*case.call, context=context) == want).all()
    for bad in ({"threads": -1}, {"threads": 2000}, {"threads": 2**32 + 1}, {"isa": "avx1024"}):
        with pytest.raises(moe_tkg.MoeValueError):
            moe_tkg.Context(**bad)


def test_number_of_threads():
    before = moe_tkg.get_num_threads()
    try:
        moe_tkg.set_num_threads(3)
        assert moe_tkg.get_num_threads() == moe_tkg.default_context().threads == 3
        with pytest.raises(moe_tkg.MoeValueError, match="threads = 5000"):
            moe_tkg.set_num_threads(5000)
        assert moe_tkg.get_num_threads() == 3
    finally:
        moe_tkg.set_num_threads(before)


def run(code, **environment):
    path = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_environment():
    code = "import moe_tkg; c = moe_tkg.default_context(); print(c.threads, c.isa)"
    assert run(code, MOE_NUM_THREADS="2", MOE_ISA="scalar") == "2 scalar"


def test_pytorch_is_not_imported():
    assert run("import sys, moe_tkg; print('torch' in sys.modules, 'transformers' in sys.modules)") == "False False"


def test_threads(rng, packed, case):
    """One call made by many threads, each with arrays of its own."""
    call, wrong = packed.prepare(), []

    def work(context, mine, want):
        for _ in range(200):
            if (call(*mine.call, context=context) != want).any():
                wrong.append(context)

    shared = moe_tkg.Context(threads=2)
    threads = []
    for context in (None, None, shared, shared, moe_tkg.Context(threads=1)):
        mine = Case(rng, T=int(rng.integers(1, 9)))
        threads.append(threading.Thread(target=work, args=(context, mine, packed(*mine.call))))
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_errors_are_of_their_own_thread(case, packed):
    wrong = []

    def work(by):
        for _ in range(100):
            try:
                packed(case.hidden, np.full_like(case.index, case.E + by), case.weights)
            except moe_tkg.MoeValueError as e:
                if str(case.E + by) not in str(e):
                    wrong.append(str(e))

    threads = [threading.Thread(target=work, args=(by,)) for by in (100, 2000)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_calls_release_the_gil(rng):
    """Another thread comes to run while a call is in the library: it sees the call begun and not ended."""
    case = Case(rng, E=8, I=512, H=512, T=64, K=4)
    packed = moe_tkg.Experts.pack(case.gate_up, case.down)
    context = moe_tkg.Context(threads=1, isa="scalar")
    state, seen, interval = {"in": False}, [], sys.getswitchinterval()

    def watch():
        while not state.get("end"):
            if state["in"]:
                seen.append(1)
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    sys.setswitchinterval(1000)  # nobody is made to give it up
    try:
        watcher.start()
        call = packed.prepare()
        state["in"] = True
        call(*case.call, context=context)
        state["in"] = False
        state["end"] = True
        watcher.join()
    finally:
        state["end"] = True
        sys.setswitchinterval(interval)
    assert len(seen) >= 3


def in_child(work):
    """What work returns, true or false, in a forked child."""
    pid = os.fork()
    if pid == 0:
        code = 2
        try:
            code = 0 if work() else 1
        finally:
            os._exit(code)
    for _ in range(6000):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.05)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    raise AssertionError("the child hangs")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork(case, packed):
    call, context = packed.prepare(), moe_tkg.Context(threads=3)
    want = call(*case.call)
    call(*case.call, context=context)
    threads = moe_tkg.get_num_threads()

    def work():
        again = all((call(*case.call) == want).all() for _ in range(20))
        own = moe_tkg.get_num_threads() == threads  # the child's default context has threads again
        copy = (call(*case.call, context=context) == want).all()
        new = (moe_tkg.Experts.pack(case.gate_up, case.down)(*case.call) == want).all()
        return again and own and copy and new

    assert in_child(work) and in_child(work)
    assert (call(*case.call) == want).all()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork_during_calls(case, packed):
    call, want, state = packed.prepare(), packed(*case.call), {}

    def work():
        while not state.get("end"):
            call(*case.call)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for t in threads:
        t.start()
    try:
        for _ in range(5):
            assert in_child(lambda: (call(*case.call) == want).all())
    finally:
        state["end"] = True
        for t in threads:
            t.join()


def resident():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_memory_of_packed_experts_is_given_back(rng):
    case = Case(rng, E=32, I=256, H=256)
    gate_up, down = case.gate_up, case.down
    for _ in range(3):
        moe_tkg.Experts.pack(gate_up, down)
    gc.collect()
    before = resident()
    for _ in range(30):
        packed = moe_tkg.Experts.pack(gate_up, down)
        packed.prepare()(*case.call)
        with pytest.raises(moe_tkg.MoeError):
            moe_tkg.Experts.pack(gate_up, down[:, :-1])
    size = packed.info.bytes
    del packed
    assert resident() - before < 3 * size


@pytest.mark.parametrize("what, most", [("moe_tkg.Model(path)", 1 << 20), ("model.load(1)", 16 << 20)])
def test_memory_of_models_is_given_back(what, most):
    """In a process of its own: in this one other tests have left free memory."""
    code = f"""
import os, moe_tkg
def resident():
    with open("/proc/self/statm") as f: return int(f.read().split()[1]) * os.sysconf("SC_PAGESIZE")
path = {str(ROOT / "tests/fixtures/gpt_oss_mxfp4")!r}
model = moe_tkg.Model(path)
def some():
    for _ in range(200): {what}
some()
before = resident()
some()
print(resident() - before, len(os.listdir("/proc/self/fd")))
"""
    grown, files = map(int, run(code).split())
    assert grown < most and files < 20


def test_calls_leave_no_python_objects(case, packed):
    call, out = packed.prepare(), np.empty_like(case.hidden)

    def some():
        for _ in range(50):
            call(*case.call, out=out)
            packed(*case.call)
            moe_tkg.moe_tkg(case.hidden, experts=packed, expert_index=case.index)
            with pytest.raises(moe_tkg.MoeError):
                call(case.hidden, case.index + 99, case.weights)

    some()
    gc.collect()
    tracemalloc.start()
    some()
    gc.collect()
    first = tracemalloc.get_traced_memory()[0]
    for _ in range(4):
        some()
    gc.collect()
    more = tracemalloc.get_traced_memory()[0] - first
    tracemalloc.stop()
    assert more < 20_000, f"{more} bytes after 800 calls"


def test_contexts_end_their_threads():
    def threads():
        return len(os.listdir("/proc/self/task"))

    moe_tkg.default_context()
    before = threads()
    for _ in range(10):
        moe_tkg.Context(threads=4)
    gc.collect()
    for _ in range(100):
        if threads() <= before:
            break
        time.sleep(0.01)
    assert threads() <= before


def test_ends_cleanly():
    code = """
import threading, numpy as np, moe_tkg
x = np.ones((4, 64, 64), np.float32)
p = moe_tkg.Experts.pack(gate=x, up=x, down=x)
def forever():
    while True: p(x[0, :2], np.zeros((2, 1), np.int32))
threading.Thread(target=forever, daemon=True).start()
p(x[0, :2], np.zeros((2, 1), np.int32)); print("end")
"""
    assert run(code) == "end"
