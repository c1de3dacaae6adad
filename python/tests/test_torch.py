# SPDX-License-Identifier: Apache-2.0
"""torch.ops.moe_tkg.experts: values, bits, graphs, threads, forks, and what it refuses."""

from __future__ import annotations

import concurrent.futures
import gc
import os
import signal
import time

import pytest

torch = pytest.importorskip("torch")

import moe_tkg  # noqa: E402
import moe_tkg.torch  # noqa: E402

E, H, I, K = 6, 64, 48, 3


def weights(dtype, seed=0):
    g = torch.Generator().manual_seed(seed)
    gate_up = torch.randn(E, 2 * I, H, generator=g) / 8
    down = torch.randn(E, H, I, generator=g) / 8
    return gate_up.to(dtype), down.to(dtype)


def tokens(T, dtype, seed=1, index_dtype=torch.int64):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(T, H, generator=g).to(dtype)
    index = (
        torch.stack([torch.randperm(E, generator=g)[:K] for _ in range(T)])
        if T
        else torch.empty(0, K, dtype=torch.int64)
    )
    return hidden, index.to(index_dtype), torch.rand(T, K, generator=g)


def reference(gate_up, down, hidden, index, affinities):
    """In float64, of the numbers as they are."""
    gate_up, down, hidden, affinities = (x.double() for x in (gate_up, down, hidden, affinities))
    out = torch.zeros_like(hidden)
    for t in range(hidden.shape[0]):
        for k in range(index.shape[1]):
            e = int(index[t, k])
            if 0 <= e < E:
                gate, up = (gate_up[e] @ hidden[t]).chunk(2)
                out[t] += affinities[t, k] * (down[e] @ (torch.nn.functional.silu(gate) * up))
    return out


@pytest.fixture(scope="module")
def layer():
    return moe_tkg.torch.Layer(moe_tkg.Experts.pack(*weights(torch.float32)))


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 1.6e-2)])
def test_values(dtype, bound, index_dtype):
    w = weights(dtype)
    layer = moe_tkg.torch.Layer(moe_tkg.Experts.pack(*w))
    x = tokens(5, dtype, index_dtype=index_dtype)
    got, want = layer(*x), reference(*w, *x)
    assert got.dtype == dtype and got.shape == (5, H) and got.is_contiguous()
    assert ((got.double() - want).abs().amax(1) <= bound * want.abs().amax(1)).all()
    for affinities in (x[2].to(torch.bfloat16), x[2].to(torch.float16)):
        again = layer(*x[:2], affinities)
        assert torch.equal(again, layer(*x[:2], affinities.float()))


def test_same_as_the_package(layer):
    x = tokens(4, torch.float32)
    ours = layer.call.experts(*(a.numpy() for a in x))
    assert torch.equal(layer(*x), torch.from_numpy(ours))
    assert torch.equal(torch.ops.moe_tkg.experts(*x, layer.handle), torch.from_numpy(ours))


def test_without_weights(layer):
    hidden, index, _ = tokens(4, torch.float32)
    assert torch.allclose(layer(hidden, index), layer(hidden, index, torch.ones(4, K)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("T", [0, 1, 127, 128, 129, 300])
def test_rows_alone(layer, T):
    x = tokens(T, torch.float32)
    y = layer(*x)
    assert y.shape == (T, H)
    for t in {0, T // 2, T - 1} if T else ():
        assert torch.equal(y[t : t + 1], layer(*(a[t : t + 1] for a in x)))


def test_outside(layer):
    hidden, index, affinities = tokens(4, torch.float32)
    index[1, 0], index[2, 2], index[3] = E, -1, E
    w = weights(torch.float32)
    want = reference(*w, hidden, index, affinities)
    assert (layer(hidden, index, affinities).double() - want).abs().max() < 1e-5
    assert not layer(hidden, index, affinities)[3].any()


def test_opcheck(layer):
    torch.library.opcheck(torch.ops.moe_tkg.experts.default, (*tokens(3, torch.float32), layer.handle))
    torch.library.opcheck(torch.ops.moe_tkg.experts.default, (*tokens(3, torch.float32)[:2], None, layer.handle))


def test_compile(layer):
    def step(hidden, index, affinities):
        return layer(hidden * 2, index, affinities) + 1

    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    for T in (1, 5, 200):
        x = tokens(T, torch.float32)
        assert torch.equal(compiled(*x), step(*x))


def test_strides(layer):
    hidden, index, affinities = tokens(4, torch.float32)
    want = layer(hidden, index, affinities)
    assert torch.equal(
        layer(hidden.t().contiguous().t(), index.t().contiguous().t(), affinities.t().contiguous().t()), want
    )
    assert torch.equal(layer(torch.stack([hidden, hidden], 1)[:, 1], index, affinities), want)


# ---- threads -------------------------------------------------------------------------------------------------------


@pytest.fixture
def num_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_num_threads(layer, num_threads):
    x = tokens(40, torch.float32)
    results = []
    for threads in (1, 2, 3, 1):
        num_threads(threads)
        assert moe_tkg.torch.context().threads == threads
        results.append(layer(*x))
    assert all(torch.equal(r, results[0]) for r in results)


@pytest.fixture(scope="module")
def wide():
    """A layer and tokens that are worth more than one thread."""
    g = torch.Generator().manual_seed(0)
    packed = moe_tkg.Experts.pack(torch.randn(8, 1024, 512, generator=g), torch.randn(8, 512, 512, generator=g))
    x = torch.randn(64, 512, generator=g), torch.randint(8, (64, 4), generator=g), torch.rand(64, 4, generator=g)
    return moe_tkg.torch.Layer(packed), x


def test_no_threads_of_its_own(wide, num_threads):
    """With PyTorch's OpenMP the calls run on the threads that are there already."""
    if moe_tkg.torch._loop is None:
        pytest.skip("PyTorch's OpenMP is not known here")
    layer, x = wide
    num_threads(2)
    torch.mm(torch.randn(512, 512), torch.randn(512, 512))
    before = set(os.listdir("/proc/self/task"))  # of which some may be ending
    two = layer(*x)
    assert set(os.listdir("/proc/self/task")) <= before
    num_threads(1)
    assert torch.equal(layer(*x), two)


def test_python_threads(layer):
    x = tokens(30, torch.float32)
    want = layer(*x)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(y, want) for y in pool.map(lambda _: layer(*x), range(200)))


def test_fork(wide, num_threads):
    """In a child OpenMP's threads are gone, and PyTorch's own operators would wait for them for ever."""
    layer, x = wide
    num_threads(2)
    torch.mm(torch.randn(512, 512), torch.randn(512, 512))
    want = layer(*x).numpy().tobytes()
    child = os.fork()
    if child == 0:
        first = layer(*x).numpy().tobytes()
        torch.set_num_threads(3)  # a context that is not the parent's
        os._exit(0 if first == layer(*x).numpy().tobytes() == want else 1)
    for _ in range(600):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.05)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the child never came back")
    assert status == 0
    assert layer(*x).numpy().tobytes() == want


class _Rows(torch.utils.data.Dataset):
    def __init__(self, layer, x):
        self.layer, self.x = layer, x

    def __len__(self):
        return len(self.x[0])

    def __getitem__(self, t):
        return self.layer(*(a[t : t + 1] for a in self.x))[0]


def test_data_loader(layer):
    x = tokens(6, torch.float32)
    loader = torch.utils.data.DataLoader(_Rows(layer, x), batch_size=2, num_workers=2, multiprocessing_context="fork")
    assert torch.equal(torch.cat(list(loader)), layer(*x))


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_wrong_arguments(layer):
    hidden, index, affinities = tokens(4, torch.float32)
    for bad, kind, said in [
        ((hidden.double(), index, affinities), TypeError, "hidden: is torch.float64"),
        ((hidden, index.to(torch.int16), affinities), TypeError, "index: is torch.int16"),
        ((hidden, index.float(), affinities), TypeError, "index: is torch.float32"),
        ((hidden, index, affinities.double()), TypeError, "weights: is torch.float64"),
        ((hidden.to("meta"), index, affinities), ValueError, "hidden: is on device meta"),
        ((hidden, index.to("meta"), affinities), ValueError, "index: is on device meta"),
        ((hidden[0], index, affinities), ValueError, r"hidden: has shape \[64\]"),
        ((hidden[:, :32], index, affinities), ValueError, r"hidden: has shape \[4, 32\]: must be \[T, 64\]"),
        ((hidden, index[:3], affinities), ValueError, r"index: has shape \[3, 3\]: must be \[4, K\]"),
        ((hidden, index, affinities[:, :2]), ValueError, r"weights: has shape \[4, 2\]: must be that of index"),
    ]:
        with pytest.raises(kind, match=said):
            layer(*bad)
        with pytest.raises(moe_tkg.MoeError, match=said):
            layer(*bad)


def test_handles():
    x = tokens(2, torch.float32)
    layer = moe_tkg.torch.Layer(moe_tkg.Experts.pack(*weights(torch.float32)))
    handle = layer.handle
    torch.ops.moe_tkg.experts(*x, handle)
    del layer
    gc.collect()
    for gone in (handle, 0, -1, 10**9):
        with pytest.raises(moe_tkg.MoeValueError, match=f"layer = {gone}: no layer"):
            torch.ops.moe_tkg.experts(*x, gone)
    assert moe_tkg.torch.Layer(moe_tkg.Experts.pack(*weights(torch.float32))).handle > handle


def test_no_gradient(layer):
    hidden, index, affinities = tokens(2, torch.float32)
    y = torch.ops.moe_tkg.experts(hidden.requires_grad_(), index, affinities, layer.handle)
    with pytest.raises(RuntimeError):
        y.sum().backward()


def test_meta_gives_shapes(layer):
    hidden, index, affinities = (a.to("meta") for a in tokens(5, torch.bfloat16))
    y = torch.ops.moe_tkg.experts(hidden, index, affinities, layer.handle)
    assert y.shape == (5, H) and y.dtype == torch.bfloat16 and y.is_meta
