# SPDX-License-Identifier: Apache-2.0
"""The router, and a layer's block in one call."""

from __future__ import annotations

from ctypes import addressof, byref, sizeof
from typing import Any

import numpy as np

from . import _abi
from ._abi import DType, GroupRank, RouterScore, Status, lib, sized
from ._array import View, dense, empty, tensor, view
from ._context import Context
from ._errors import check, error
from ._experts import MOST_TOKENS, Experts
from ._operator import address_of, destination, enumerator, settings, tensors, whole

_RESULTS = {"index": np.int32, "weights": np.float32, "logits": np.float32, "affinities": np.float32, "scores": np.float32}


def _vector(name: str, x: Any) -> tuple[_abi.Array, View]:
    v = view(name, x)
    if not v.dtype:
        raise error(Status.DTYPE, f"{name}: has elements of {v.said}: must be bf16, f16 or f32")
    if len(v.shape) != 1:
        raise error(Status.DIM, f"{name}: has shape {list(v.shape)}: must have one dimension")
    return _abi.Array(dtype=v.dtype, data=v.address, row_stride=v.strides[0], column_stride=v.itemsize), v


def _memory(v: View) -> Any:
    """What keeps the memory even where a tensor of PyTorch is given other data."""
    return v.owner.detach() if v.torch else v.owner


def _length(name: str, v: View, n: int) -> None:
    if v.shape != (n,):
        raise error(Status.SHAPE, f"{name}: has shape {list(v.shape)}: must be [{n}]")


class Router:
    """A layer's router, for ``moe_block`` or to be called: chooses K of E experts for each token.

    weights            [E, H]: bf16, f16, f32; any strides
    K                  how many: 1 to min(E, 128)
    bias               [E], added to the logits
    selection_bias     [E], added to the scores for the choice alone
    score              "softmax", "topk_softmax" (over the K chosen), "sigmoid", "sqrt_softplus"
    normalize          divide the K weights by their sum, to which normalize_epsilon is added
    scale              times the weights
    n_group, topk_group  choose from the topk_group best of n_group groups of neighbours
    group_rank         by which they are best: "two_best", the sum of their two best experts, or "best"

    Refers to the arrays' memory, and keeps it.  Raises MoeTypeError, MoeValueError.
    """

    __slots__ = ("E", "H", "K", "_args", "_keep")

    def __init__(
        self,
        weights: Any,
        K: int,
        *,
        bias: Any = None,
        selection_bias: Any = None,
        score: str | int = "softmax",
        normalize: bool = False,
        normalize_epsilon: float = 0.0,
        scale: float = 1.0,
        n_group: int = 0,
        topk_group: int = 0,
        group_rank: str | int = "two_best",
    ):
        v = view("weights", weights)
        if len(v.shape) != 2:
            raise error(Status.DIM, f"weights: has shape {list(v.shape)}: must be [E, H]")
        if not v.dtype:
            raise error(Status.DTYPE, f"weights: has elements of {v.said}: must be bf16, f16 or f32")
        self.E, self.H = v.shape
        self.K = K
        a = sized(
            _abi.RouterArgs,
            E=self.E,
            K=K,
            score=enumerator(RouterScore, "score", score),
            normalize=int(normalize),
            normalize_epsilon=normalize_epsilon,
            scale=scale,
            n_group=n_group,
            topk_group=topk_group,
            group_rank=enumerator(GroupRank, "group_rank", group_rank),
        )
        a.weights = _abi.Array(dtype=v.dtype, data=v.address, row_stride=v.strides[0], column_stride=v.strides[1])
        self._keep = [_memory(v)]
        for name, value in (("bias", bias), ("selection_bias", selection_bias)):
            if value is not None:
                array, kept = _vector(name, value)
                _length(name, kept, self.E)
                setattr(a, name, array)
                self._keep.append(_memory(kept))
        self._args = a

    def __call__(
        self, x: Any, *, want: tuple[str, ...] = ("index", "weights"), context: Context | None = None
    ) -> tuple[Any, ...]:
        """Routes x, [T, H] or [B, S, H].

        Returns what is wanted, in that order and of x's kind: "index" [T, K] i32 (in descending order), "weights" [T, K],
        "logits", "affinities" (the weights at the chosen, 0 elsewhere), "scores" [T, E], all f32.
        """
        described, v = tensor("x", x)
        if v.shape[-1:] != (self.H,):
            raise error(Status.SHAPE, f"x: has shape {list(v.shape)}: must be [T, {self.H}]")
        args = _abi.RouterArgs.from_buffer_copy(self._args)
        args.x = addressof(described)
        results, output = routed(v.torch, _tokens(v.shape), self.E, self.K, want)
        check(lib.moe_router_topk(address_of(context), byref(args), byref(output)))
        return results


def _tokens(shape: tuple[int, ...]) -> int:
    T = 1
    for n in shape[:-1]:
        T *= n
    return T


def routed(like_torch: bool, T: int, E: int, K: int, want: tuple[str, ...]) -> tuple[tuple[Any, ...], _abi.RouterOutput]:
    """New arrays for what is wanted of a router."""
    output = _abi.RouterOutput()
    results = []
    for name in want:
        if name not in _RESULTS:
            raise error(Status.BAD_ENUM, f"want = {name!r}: must be of {', '.join(_RESULTS)}")
        columns = K if name in ("index", "weights") else E
        array = empty(like_torch, DType.I32 if name == "index" else DType.F32, (T, columns))
        setattr(output, name, dense(name, array).address or None)
        results.append(array)
    return tuple(results), output


def router_topk(
    x: Any,
    weights: Any,
    K: int,
    *,
    bias: Any = None,
    selection_bias: Any = None,
    score: str | int = "softmax",
    normalize: bool = False,
    normalize_epsilon: float = 0.0,
    scale: float = 1.0,
    n_group: int = 0,
    topk_group: int = 0,
    group_rank: str | int = "two_best",
    want: tuple[str, ...] = ("index", "weights"),
    context: Context | None = None,
) -> tuple[Any, ...]:
    """Chooses K of E experts for each row of x, [T, H] or [B, S, H]: bf16, f16, f32.

    The parameters are those of ``Router``, the results those of a call of one: by default index [T, K] i32 and weights
    [T, K] f32.  Raises MoeTypeError, MoeValueError, MoeMemoryError.
    """
    router = Router(
        weights,
        K,
        bias=bias,
        selection_bias=selection_bias,
        score=score,
        normalize=normalize,
        normalize_epsilon=normalize_epsilon,
        scale=scale,
        n_group=n_group,
        topk_group=topk_group,
        group_rank=group_rank,
    )
    return router(x, want=want, context=context)


def _run_rows(
    args: _abi.BlockArgs,
    h: View,
    address: int,
    dtype: int,
    T: int,
    output: _abi.RouterOutput,
    want: tuple[str, ...],
    context: Context | None,
) -> None:
    """h [T, H] to address and output, as many rows at a time as the library takes."""
    H = h.shape[-1]
    described = _abi.Tensor(h.address, h.dtype, h.layout, 2)
    args.experts.hidden_input = addressof(described)
    row = H * lib.moe_dtype_size(dtype)
    most = T if args.experts.is_all_expert else MOST_TOKENS
    done = 0
    while True:
        count = min(T - done, most)
        described.shape[0:2] = count, H
        described.data = h.address + done * H * h.itemsize
        for name in want:
            columns = args.router.K if name in ("index", "weights") else args.router.E
            start = getattr(output, name)
            setattr(args.routed, name, start and start + done * columns * 4)
        check(lib.moe_block(address_of(context), byref(args), address + done * row, count * row), first_row=done)
        done += count
        if done >= T:
            break


def run_block(
    args: _abi.BlockArgs,
    hidden: Any,
    out: Any,
    want: tuple[str, ...],
    context: Context | None,
) -> Any:
    """The block for any number of tokens; args without hidden_input and what is routed."""
    h = dense("hidden_input", hidden)
    shape = h.shape
    if len(shape) < 2:
        raise error(Status.DIM, f"hidden_input: has shape {list(shape)}: must be [T, H] or [B, S, H]")
    T = _tokens(shape)
    dtype = args.experts.output_dtype or h.dtype
    given = out is not None
    out, address = destination(h.torch, out, shape, dtype)
    results, output = routed(h.torch, T, args.router.E, args.router.K, want)

    def work(to: int) -> None:
        _run_rows(args, h, to, dtype, T, output, want, context)

    if given and T > MOST_TOKENS:
        whole(work, address, shape, dtype)
    else:
        work(address)
    return (out, *results) if want else out


def moe_block(
    hidden_input: Any,
    *,
    router: Router,
    experts: Experts | None = None,
    gamma: Any = None,
    norm_epsilon: float = 0.0,
    norm_H: int = 0,
    shared: Experts | None = None,
    shared_gate: Any = None,
    want: tuple[str, ...] = (),
    out: Any = None,
    context: Context | None = None,
    **parameters: Any,
) -> Any:
    """RMSNorm, router, experts and shared expert of a layer in one call.

        n = x / sqrt(sum(x^2) / norm_H + norm_epsilon) * gamma          (x without gamma)
        y = sum of the experts' rows, times their weights, + g * shared(n)
        g = sigmoid(shared_gate . n)                                    (1 without shared_gate)

    hidden_input  [T, H] or [B, S, H]: bf16, f16, f32; any T
    router        ``Router``, whose E is that of the experts
    experts       ``Experts``; or the operator's weights, scales and biases by their names
    gamma         [H]; norm_H 0: H
    shared        ``Experts`` with E = 1 and the same H; shared_gate [H]
    want          of the router's results, such as ("index", "logits"): then (y, index, logits) is returned
    out           where y goes: like hidden_input, of output_dtype.  None: a new array of hidden_input's kind
    parameters    of ``moe_tkg``: activation_fn, limits, output_dtype, act_mode, is_all_expert, rank_id,
                  expert_affinities_scaling_mode, skip_invalid_experts, ...

    Raises MoeTypeError, MoeValueError, MoeMemoryError.
    """
    args = _abi.BlockArgs(struct_size=sizeof(_abi.BlockArgs))
    args.experts.struct_size = sizeof(_abi.TkgArgs)
    arrays = {name: parameters.pop(name) for name in list(parameters) if name.startswith("expert_") and name in _WEIGHTS}
    if "rank_id" in parameters:
        arrays["rank_id"] = parameters.pop("rank_id")
    keep: list[Any] = tensors(args.experts, **arrays)
    settings(args.experts, **parameters)
    if experts is not None:
        args.experts.experts = experts.address
    for name, value in (("gamma", gamma), ("shared_gate", shared_gate)):
        if value is not None:
            array, kept = _vector(name, value)
            _length(name, kept, router.H)
            setattr(args, name, array)
            keep.append(kept)
    shape = view("hidden_input", hidden_input).shape
    if shape[-1:] != (router.H,):  # the library cannot see how long the router's rows are
        raise error(Status.SHAPE, f"hidden_input: has shape {list(shape)}: the last must be the router's {router.H}")
    args.norm_epsilon, args.norm_H = norm_epsilon, norm_H
    args.router = router._args
    if shared is not None:
        args.shared = shared.address
    return run_block(args, hidden_input, out, want, context)


_WEIGHTS = (
    "expert_gate_up_weights",
    "expert_down_weights",
    "expert_gate_up_bias",
    "expert_down_bias",
    "expert_gate_up_weights_scale",
    "expert_down_weights_scale",
)
