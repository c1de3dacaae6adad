# SPDX-License-Identifier: Apache-2.0
"""The experts' sum in float64, and layers to try it on."""

import numpy as np


def silu(g):
    return g / (1 + np.exp(-g))


def experts(gate, up, down, hidden, index, weights, gate_bias=None, up_bias=None, down_bias=None, act=silu):
    gate, up, down, hidden = (None if a is None else np.asarray(a, np.float64) for a in (gate, up, down, hidden))
    out = np.zeros(hidden.shape)
    for t, row in enumerate(np.asarray(index)):
        for k, e in enumerate(row):
            u = up[e] @ hidden[t] + (0 if up_bias is None else np.asarray(up_bias[e], np.float64))
            if gate is None:
                m = act(u)
            else:
                m = act(gate[e] @ hidden[t] + (0 if gate_bias is None else np.asarray(gate_bias[e], np.float64))) * u
            y = down[e] @ m + (0 if down_bias is None else np.asarray(down_bias[e], np.float64))
            out[t] += y * (1 if weights is None else float(weights[t][k]))
    return out


def close(got, want, tolerance=1e-5):
    """Every row within tolerance of its largest value."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    off = np.abs(got - want).max(-1) / np.maximum(np.abs(want).max(-1), 1e-30)
    assert off.max(initial=0) <= tolerance, f"off by {off.max():.3g} of a row's largest value"


class Case:
    """A small random layer: gate and up [E, I, H], down [E, H, I], and a call on it."""

    def __init__(self, rng, E=5, I=64, H=96, T=4, K=2):  # noqa: E741
        self.E, self.I, self.H, self.T, self.K = E, I, H, T, K
        self.gate, self.up = (rng.standard_normal((E, I, H)).astype(np.float32) / 8 for _ in range(2))
        self.down = rng.standard_normal((E, H, I)).astype(np.float32) / 8
        self.hidden = rng.standard_normal((T, H)).astype(np.float32)
        self.index = rng.integers(0, E, (T, K)).astype(np.int32)
        self.weights = rng.random((T, K)).astype(np.float32)

    @property
    def call(self):
        return self.hidden, self.index, self.weights

    @property
    def gate_up(self):
        return np.concatenate([self.gate, self.up], 1)

    @property
    def in_turns(self):
        return np.stack([self.gate, self.up], 2).reshape(self.E, 2 * self.I, self.H)

    @property
    def operator(self):
        """The same in the operator's shapes."""
        return {
            "expert_gate_up_weights": np.ascontiguousarray(np.stack([self.gate, self.up], 1).transpose(0, 3, 1, 2)),
            "expert_down_weights": np.ascontiguousarray(self.down.transpose(0, 2, 1)),
        }

    def want(self, **more):
        return experts(self.gate, self.up, self.down, *self.call, **more)
