# SPDX-License-Identifier: Apache-2.0
"""What arrays are taken, without a copy, and what is said of those that are not."""

import ctypes
import sys

import ml_dtypes
import numpy as np
import pytest
from reference import Case, close

import moe_tkg
from moe_tkg import _array


@pytest.fixture
def case(rng):
    return Case(rng)


@pytest.fixture
def packed(case):
    return moe_tkg.Experts.pack(case.gate_up, case.down)


class Foreign:
    """An array of somebody else's, that says what it is by DLPack alone."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **_):
        return self.array.__dlpack__()

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_numpy(case, packed):
    got = packed(*case.call)
    assert type(got) is np.ndarray and got.dtype == np.float32
    close(got, case.want())


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32])
@pytest.mark.parametrize("index", [np.int32, np.uint32, np.int64])
def test_types(case, packed, dtype, index):
    hidden, weights = case.hidden.astype(dtype), case.weights.astype(dtype)
    got = packed(hidden, case.index.astype(index), weights)
    assert got.dtype == dtype
    wide = packed(hidden.astype(np.float32), case.index, weights.astype(np.float32))
    assert (wide.astype(dtype) == got).all()


def test_dlpack(case, packed):
    call = [Foreign(a) for a in case.call]
    assert (packed(*call) == packed(*case.call)).all()


def test_dlpack_frees_once(case, packed):
    hidden = Foreign(case.hidden.copy())
    before = sys.getrefcount(hidden.array)
    for _ in range(10):
        packed(hidden, case.index, case.weights)
    after = sys.getrefcount(hidden.array)
    assert after == before


def test_dlpack_of_another_device(case, packed):
    hidden = Foreign(case.hidden)
    hidden.__class__ = type("Elsewhere", (Foreign,), {"__dlpack_device__": lambda self: (2, 0)})
    with pytest.raises(moe_tkg.MoeValueError, match="hidden: is on device 2:0"):
        packed(hidden, case.index, case.weights)


class DLTensor(ctypes.Structure):
    """With the fields of the owner, in which there is nothing here."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
        ("owner", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    ]


class ByHand:
    """An array by DLPack as the standard allows it and NumPy never writes it."""

    def __init__(self, array, code, bits, lanes=1, offset=0, strides=None):
        self.array = array
        self.shape = (ctypes.c_int64 * array.ndim)(*array.shape)
        self.strides = None if strides is None else (ctypes.c_int64 * array.ndim)(*strides)
        self.tensor = DLTensor(array.ctypes.data - offset, 1, 0, array.ndim, code, bits, lanes, self.shape, self.strides, offset)

    def __dlpack_device__(self):
        return 1, 0

    def __dlpack__(self, **_):
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return new(ctypes.addressof(self.tensor), b"dltensor", None)


def test_dlpack_by_hand(case, packed):
    hidden = case.hidden.astype(ml_dtypes.bfloat16)
    want = packed(hidden, case.index, case.weights)
    for given in ({}, {"offset": 64}, {"strides": (case.H, 1)}):
        got = packed(ByHand(hidden, 4, 16, **given), case.index, case.weights)
        assert got.dtype == ml_dtypes.bfloat16 and (got == want).all()
    one = ByHand(hidden[:1], 4, 16, strides=(1, 1))  # strides of a dimension of 1 say nothing
    assert (packed(one, case.index[:1], case.weights[:1]) == want[:1]).all()
    with pytest.raises(moe_tkg.MoeValueError, match="hidden: is not contiguous"):
        packed(ByHand(hidden, 4, 16, strides=(case.H + 1, 1)), case.index, case.weights)
    with pytest.raises(moe_tkg.MoeTypeError, match="hidden: has elements of DLPack's type 4 of 16 bits in 2 lanes"):
        packed(ByHand(hidden, 4, 16, lanes=2), case.index, case.weights)
    with pytest.raises(moe_tkg.MoeTypeError, match="hidden: has elements of DLPack's type 2 of 64 bits"):
        packed(ByHand(hidden, 2, 64), case.index, case.weights)


def test_nothing_is_copied(case):
    for array in (case.hidden, case.index, case.hidden.astype(ml_dtypes.bfloat16)):
        assert _array.view("x", array).address == array.ctypes.data
    assert _array.view("x", Foreign(case.hidden)).address == case.hidden.ctypes.data


def test_bits_with_a_type(case, packed):
    hidden = case.hidden.astype(ml_dtypes.bfloat16)
    said = moe_tkg.Tensor(hidden.view(np.uint16), "bf16")
    assert (packed(said, case.index, case.weights) == packed(hidden, case.index, case.weights)).all()
    as_bytes = moe_tkg.Tensor(hidden.view(np.uint8), "bf16")
    assert (packed(as_bytes, case.index, case.weights) == packed(hidden, case.index, case.weights)).all()


def test_without_weights(case, packed):
    got = packed(case.hidden, case.index)
    case.weights = np.ones_like(case.weights)
    close(got, case.want())


def test_batch(case, packed):
    got = packed(case.hidden[None], case.index[None], case.weights[None])
    assert got.shape == (1, case.T, case.H) and (got[0] == packed(*case.call)).all()


def test_many_tokens(rng, packed):
    case = Case(rng, T=300)
    got = packed(*case.call)
    assert (got == np.concatenate([packed(*(a[t : t + 1] for a in case.call)) for t in range(300)])).all()
    plain = packed(case.hidden, case.index)
    assert (plain[299:] == packed(case.hidden[299:], case.index[299:])).all()


def test_no_tokens(case, packed):
    assert packed(*(a[:0] for a in case.call)).shape == (0, case.H)


def test_out(case, packed):
    want = packed(*case.call)
    out = np.full_like(case.hidden, 7)
    assert packed(*case.call, out=out) is out and (out == want).all()
    hidden = case.hidden.copy()
    packed(hidden, case.index, case.weights, out=hidden)
    assert (hidden == want).all()
    half = np.empty(out.shape, ml_dtypes.bfloat16)
    packed.prepare(output_dtype="bf16")(*case.call, out=half)
    assert (half == want.astype(ml_dtypes.bfloat16)).all()


@pytest.mark.parametrize("name", ["bf16", np.dtype(ml_dtypes.bfloat16), ml_dtypes.bfloat16, moe_tkg.DType.BF16])
def test_output_dtype(case, packed, name):
    got = packed.prepare(output_dtype=name)(*case.call)
    assert got.dtype == ml_dtypes.bfloat16


BAD = [
    (lambda c: (c.hidden.T.copy().T, c.index, c.weights), moe_tkg.MoeValueError, "LAYOUT", "hidden: is not contiguous"),
    (lambda c: (c.hidden, c.index[:, ::-1], c.weights), moe_tkg.MoeValueError, "LAYOUT", "index: is not contiguous"),
    (lambda c: (c.hidden, c.index, c.weights.T.copy().T), moe_tkg.MoeValueError, "LAYOUT", "weights: is not contiguous"),
    (lambda c: (c.hidden.astype(np.float64), c.index, c.weights), moe_tkg.MoeTypeError, "DTYPE", "hidden: .* float64"),
    (lambda c: (c.hidden.astype(">f4"), c.index, c.weights), moe_tkg.MoeTypeError, "DTYPE", "hidden: .*>f4"),
    (lambda c: (c.hidden, c.index.astype(np.int16), c.weights), moe_tkg.MoeTypeError, "DTYPE", "index: .* int16"),
    (lambda c: (c.hidden, c.index.astype(np.float32), c.weights), moe_tkg.MoeTypeError, "DTYPE", "expert_index"),
    (lambda c: (c.hidden, c.index, c.index), moe_tkg.MoeTypeError, "DTYPE", "expert_affinities_eager"),
    (lambda c: (c.hidden[:, :-1].copy(), c.index, c.weights), moe_tkg.MoeValueError, "SHAPE", r"hidden: .*\[4, 95\].*96"),
    (lambda c: (c.hidden, c.index[:-1], c.weights), moe_tkg.MoeValueError, "SHAPE", r"index: .*\[3, 2\]"),
    (lambda c: (c.hidden, c.index, c.weights[:, :1].copy()), moe_tkg.MoeValueError, "SHAPE", r"weights: .*\[4, 1\]"),
    (lambda c: (c.hidden, c.index + c.E, c.weights), moe_tkg.MoeValueError, "EXPERT_INDEX", "expert_index"),
    (lambda c: (c.hidden.tolist(), c.index, c.weights), moe_tkg.MoeTypeError, "NULL_ARG", "hidden: is a list"),
    (lambda c: (c.hidden[0], c.index, c.weights), moe_tkg.MoeValueError, "SHAPE", "hidden"),
]


@pytest.mark.parametrize("call, kind, status, message", BAD)
def test_refused(case, packed, call, kind, status, message):
    out = np.full_like(case.hidden, 7)
    with pytest.raises(kind, match=message) as e:
        packed(*call(case), out=out)
    assert isinstance(e.value, moe_tkg.MoeError) and e.value.status.name == status
    assert (out == 7).all()
    packed(*case.call)  # nothing of a call that failed is left


BAD_OUT = [
    (lambda c: np.empty((c.T, c.H), np.float16), moe_tkg.MoeTypeError, "out: has elements of float16: must be f32"),
    (lambda c: np.empty((c.T + 1, c.H), np.float32), moe_tkg.MoeValueError, "out: has shape"),
    (lambda c: np.empty((c.H, c.T), np.float32).T, moe_tkg.MoeValueError, "out: is not contiguous"),
]


@pytest.mark.parametrize("out, kind, message", BAD_OUT)
def test_out_refused(case, packed, out, kind, message):
    with pytest.raises(kind, match=message):
        packed(*case.call, out=out(case))


def test_out_read_only(case, packed):
    out = np.empty_like(case.hidden)
    out.flags.writeable = False
    with pytest.raises(moe_tkg.MoeValueError, match="out: is read-only"):
        packed(*case.call, out=out)


def test_out_over_another(case, packed):
    memory = np.empty(case.hidden.size + 8, np.float32)
    hidden = memory[:-8].reshape(case.hidden.shape)
    hidden[:] = case.hidden
    with pytest.raises(moe_tkg.MoeValueError) as e:
        packed(hidden, case.index, case.weights, out=memory[8:].reshape(case.hidden.shape))
    assert e.value.status == moe_tkg.Status.ALIAS


@pytest.mark.parametrize("settings", [{"activation_fn": "tanh"}, {"activation_fn": 99}, {"act_mode": "int4"}, {"output_dtype": "f64"}])
def test_names_refused(packed, settings):
    with pytest.raises(moe_tkg.MoeValueError) as e:
        packed.prepare(**settings)
    assert e.value.status == moe_tkg.Status.BAD_ENUM


def test_unknown_setting(packed):
    with pytest.raises(TypeError, match="activation"):
        packed.prepare(activation="silu")


def test_tensor_refused(case):
    with pytest.raises(moe_tkg.MoeValueError, match="dtype = 'f99'"):
        moe_tkg.Tensor(case.hidden, "f99")
    with pytest.raises(moe_tkg.MoeValueError, match="layout = 'psum'"):
        moe_tkg.Tensor(case.hidden, layout="psum")
    with pytest.raises(moe_tkg.MoeTypeError, match="hidden: float32 .* cannot be read as bf16"):
        moe_tkg.Experts.pack(case.gate_up, case.down)(moe_tkg.Tensor(case.hidden, "bf16"), case.index)
    with pytest.raises(moe_tkg.MoeTypeError, match="x: float32 .* cannot be read as e8m0"):
        _array.view("x", moe_tkg.Tensor(case.hidden[:, :1], "e8m0"))


def test_operator_by_name(case, packed):
    hidden, index, weights = case.call
    got = moe_tkg.moe_tkg(
        hidden_input=hidden,
        **case.operator,
        expert_index=index,
        expert_affinities_eager=weights,
        expert_affinities_scaling_mode="post_scale",
    )
    assert (got == packed(*case.call)).all()
    affinities = np.zeros((case.T, case.E), np.float32)
    affinities[np.arange(case.T)[:, None], index] = weights
    everything = moe_tkg.moe_tkg(
        hidden,
        experts=packed,
        expert_affinities=affinities,
        expert_affinities_scaling_mode=moe_tkg.AffinityScale.POST_SCALE,
        is_all_expert=True,
        rank_id=0,
    )
    want = np.zeros_like(hidden)
    for t in range(case.T):
        for e in range(case.E):
            one = packed(hidden[t : t + 1], np.array([[e]], np.int32), affinities[t : t + 1, e : e + 1])
            want[t] += one[0]
    close(everything, want)


def test_operator_refuses(case):
    hidden, index, _ = case.call
    with pytest.raises(moe_tkg.MoeTypeError, match="expert_down_weights"):
        moe_tkg.moe_tkg(hidden, expert_gate_up_weights=case.operator["expert_gate_up_weights"], expert_index=index)
    with pytest.raises(moe_tkg.MoeValueError, match="gate_up_input_scale"):
        moe_tkg.moe_tkg(hidden, **case.operator, expert_index=index, gate_up_input_scale=np.ones((5, 1), np.float32))
    with pytest.raises(moe_tkg.MoeValueError, match="expert_down_weights: is not contiguous"):
        given = case.operator | {"expert_down_weights": case.down.transpose(0, 2, 1)}
        moe_tkg.moe_tkg(hidden, **given, expert_index=index)
    with pytest.raises(moe_tkg.MoeValueError, match="6 dimensions"):
        moe_tkg.moe_tkg(hidden.reshape(1, 1, 1, 1, *hidden.shape), **case.operator, expert_index=index)


def test_skip_invalid(case, packed):
    index = case.index.copy()
    index[:, 1] = case.E
    got = packed.prepare(skip_invalid_experts=True)(case.hidden, index, case.weights)
    assert (got == packed(case.hidden, case.index[:, :1].copy(), case.weights[:, :1].copy())).all()


def test_errors_can_be_pickled():
    import pickle

    e = pickle.loads(pickle.dumps(moe_tkg.MoeValueError(moe_tkg.Status.SHAPE, "a: is b")))
    assert e.status == moe_tkg.Status.SHAPE and str(e) == "a: is b" and isinstance(e, ValueError)


def test_every_status_is_an_error():
    from moe_tkg import _errors

    for status in moe_tkg.Status:
        if status:
            assert isinstance(_errors.error(status, "x"), moe_tkg.MoeError)
    assert issubclass(moe_tkg.MoeMemoryError, MemoryError) and issubclass(moe_tkg.MoeOSError, OSError)


def test_float4_of_a_byte_each_is_refused(case):
    with pytest.raises(moe_tkg.MoeTypeError, match="gate_up: has elements of float4_e2m1fn"):
        moe_tkg.Experts.pack(case.gate_up.astype(ml_dtypes.float4_e2m1fn), case.down)


def test_ctypes_array_is_refused(packed, case):
    with pytest.raises(moe_tkg.MoeTypeError, match="must be a NumPy array"):
        packed((ctypes.c_float * 4)(), case.index)


def test_many_tokens_complete_or_not_at_all(rng, packed):
    """More rows than one call of the library takes: nothing is written on an error, and out may lie over later rows."""
    case = Case(rng, T=300)
    want = packed(*case.call)
    memory = np.empty((428, case.H), np.float32)
    memory[:300] = case.hidden
    packed(memory[:300], case.index, case.weights, out=memory[128:])
    assert (memory[128:] == want).all()
    index, hidden = case.index.copy(), case.hidden.copy()
    index[150, 1] = case.E
    with pytest.raises(ValueError, match=r"expert_index\[22\]\[1\] .*rows counted from 128"):
        packed(hidden, index, case.weights, out=hidden)
    assert (hidden == case.hidden).all()
