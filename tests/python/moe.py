# SPDX-License-Identifier: Apache-2.0
"""One Mixture-of-Experts layer in float64, from what its definition says: the reference of these tests.

Weights are dense arrays in the order of PyTorch's Linear, rows of outputs: gate, up [E, I, H], down [E, H, I]."""

from dataclasses import dataclass, field

import numpy as np


def sigmoid(x):
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(x, np.float64)))


@dataclass
class Activation:
    """gate and up, or up alone where there is no gate, to the intermediate row."""

    kind: str = "silu"  # silu, gelu (its tanh form), relu2 (of up alone)
    alpha: float = 1.0  # of gate * sigmoid(alpha * gate)
    offset: float = 0.0  # of up
    limit: float = None  # gate at most this, up within +-this, both before the activation

    def __call__(self, gate, up):
        if self.kind == "relu2":
            return np.maximum(up, 0) ** 2
        if self.limit is not None:
            gate, up = np.minimum(gate, self.limit), np.clip(up, -self.limit, self.limit)
        if self.kind == "gelu":
            act = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
        else:
            act = gate * sigmoid(self.alpha * gate)
        return act * (up + self.offset)


@dataclass
class Router:
    K: int
    score: str = "softmax"  # softmax, topk-softmax, sigmoid, sqrt-softplus
    normalize: bool = False
    scale: float = 1.0
    groups: int = 1
    kept_groups: int = 1
    ranked_by: int = 2  # a group's so many best experts

    def __call__(self, logits, selection_bias=None):
        """ids, weights [T, K]: those with the largest score + bias, the lowest index first among equals."""
        if self.score == "topk-softmax":
            score = logits
        elif self.score == "softmax":
            score = np.exp(logits - logits.max(1, keepdims=True))
            score /= score.sum(1, keepdims=True)
        elif self.score == "sigmoid":
            score = sigmoid(logits)
        else:
            score = np.sqrt(np.logaddexp(0, logits))
        choice = score if selection_bias is None else score + selection_bias
        if self.groups > 1:
            grouped = choice.reshape(len(choice), self.groups, -1)
            rank = np.sort(grouped, 2)[:, :, -self.ranked_by :].sum(2)
            kept = np.argsort(-rank, 1, kind="stable")[:, : self.kept_groups]
            mask = np.full(rank.shape, -np.inf)
            np.put_along_axis(mask, kept, 0, 1)
            choice = (grouped + mask[:, :, None]).reshape(choice.shape)
        ids = np.argsort(-choice, 1, kind="stable")[:, : self.K]
        weights = np.take_along_axis(score, ids, 1)
        if self.score == "topk-softmax":
            weights = np.exp(weights - weights.max(1, keepdims=True))
        if self.normalize or self.score == "topk-softmax":
            weights = weights / weights.sum(1, keepdims=True)
        return ids, weights * self.scale


@dataclass
class Layer:
    gate: np.ndarray  # None: no gate
    up: np.ndarray
    down: np.ndarray
    router: Router
    router_weight: np.ndarray  # [E, H]
    activation: Activation = field(default_factory=Activation)
    router_bias: np.ndarray = None
    selection_bias: np.ndarray = None
    gate_bias: np.ndarray = None  # [E, I]
    up_bias: np.ndarray = None
    down_bias: np.ndarray = None  # [E, H]
    shared: tuple = None  # gate, up [Is, H], down [H, Is]
    shared_gate: np.ndarray = None  # [H]
    on_input: bool = False  # the weight multiplies the expert's input

    def mlp(self, x, gate, up, down, gate_bias=0, up_bias=0, down_bias=0):
        g = None if gate is None else x @ gate.T.astype(np.float64) + gate_bias
        u = x @ up.T.astype(np.float64) + up_bias
        return self.activation(g, u) @ down.T.astype(np.float64) + down_bias

    def experts(self, x, ids, weights):
        x, out = np.asarray(x, np.float64), np.zeros(x.shape)
        pick = lambda a, e: None if a is None else a[e]
        for e in np.unique(ids):
            t, k = np.nonzero(ids == e)
            w = np.asarray(weights, np.float64)[t, k, None]
            bias = {
                n: getattr(self, n)[e] for n in ("gate_bias", "up_bias", "down_bias") if getattr(self, n) is not None
            }
            y = self.mlp(x[t] * w if self.on_input else x[t], pick(self.gate, e), self.up[e], self.down[e], **bias)
            np.add.at(out, t, y if self.on_input else y * w)
        return out

    def route(self, x):
        logits = np.asarray(x, np.float64) @ self.router_weight.T.astype(np.float64)
        if self.router_bias is not None:
            logits = logits + self.router_bias
        if self.on_input:  # the choice is by the logits; no other rule is
            ids = np.argsort(-logits, 1, kind="stable")[:, : self.router.K]
            return ids, sigmoid(np.take_along_axis(logits, ids, 1))
        return self.router(logits, self.selection_bias)

    def block(self, x):
        x = np.asarray(x, np.float64)
        out = self.experts(x, *self.route(x))
        if self.shared is not None:
            y = self.mlp(x, *self.shared)
            out += y if self.shared_gate is None else y * sigmoid(x @ self.shared_gate.astype(np.float64))[:, None]
        return out
