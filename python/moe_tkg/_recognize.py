# SPDX-License-Identifier: Apache-2.0
"""What the experts of a model of transformers compute, in the operator's terms, or why it is not one of its functions.

A function is recognised by what it is, the very function of transformers' own modules, and is then evaluated beside the
operator's formula: a later version that gives it another meaning is not mistaken for the one that is known here.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class NotRecognized(Exception):
    """The text says why."""


@dataclasses.dataclass(frozen=True)
class Gate:
    """act(gate) * up, as the operator defines it.  The names of its settings, and where gate and up lie."""

    activation_fn: str
    has_gate: bool = True
    is_concatenated: bool = True
    swiglu_alpha: float | None = None
    swiglu_up_offset: float | None = None
    gate_clamp_upper_limit: float | None = None
    up_clamp_upper_limit: float | None = None
    up_clamp_lower_limit: float | None = None
    act_clamp_upper_limit: float | None = None

    def settings(self) -> dict[str, Any]:
        given = dataclasses.asdict(self)
        del given["has_gate"], given["is_concatenated"]
        return {name: value for name, value in given.items() if value is not None}

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The formula in x's type, for comparison."""
        if not self.has_gate:
            return self._act(x)
        gate, up = x.chunk(2, dim=-1) if self.is_concatenated else (x[..., ::2], x[..., 1::2])
        gate = gate.clamp(max=_or(self.gate_clamp_upper_limit, math.inf))
        up = up.clamp(_or(self.up_clamp_lower_limit, -math.inf), _or(self.up_clamp_upper_limit, math.inf))
        act = self._act(gate).clamp(max=_or(self.act_clamp_upper_limit, math.inf))
        return act * (up + _or(self.swiglu_up_offset, 0.0))

    def _act(self, g: torch.Tensor) -> torch.Tensor:
        if self.activation_fn == "swiglu":
            return g * torch.sigmoid(g * self.swiglu_alpha)
        return _FORMULAS[self.activation_fn](g)


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


_FORMULAS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda g: F.gelu(g, approximate="tanh"),
    "swish": lambda g: g * torch.sigmoid(1.702 * g),
    "relu": F.relu,
    "relu2": lambda g: F.relu(g).square(),
}

# ---- activations ---------------------------------------------------------------------------------------------------------

_ACTIVATIONS = {
    "transformers.activations.SiLUActivation": "silu",
    "transformers.activations.GELUActivation": "gelu",
    "transformers.activations.GELUTanh": "gelu_tanh",
    "transformers.activations.NewGELUActivation": "gelu_tanh",
    "transformers.activations.FastGELUActivation": "gelu_tanh",
    "transformers.activations.AccurateGELUActivation": "gelu_tanh",
    "transformers.activations.QuickGELUActivation": "swish",
    "transformers.activations.ReLUSquaredActivation": "relu2",
    "torch.nn.modules.activation.SiLU": "silu",
    "torch.nn.modules.activation.ReLU": "relu",
}


def activation(act: Any) -> str:
    """The operator's name of a module or function that activates."""
    kind = type(act)
    if kind is nn.GELU:
        return {"none": "gelu", "tanh": "gelu_tanh"}[act.approximate]
    if (name := _ACTIVATIONS.get(f"{kind.__module__}.{kind.__qualname__}")) is not None:
        return name
    for function, name in ((F.silu, "silu"), (F.relu, "relu"), (torch.relu, "relu")):
        if act is function:
            return name
    said = kind.__name__ if isinstance(act, nn.Module) else getattr(act, "__name__", repr(act))
    raise NotRecognized(f"its activation is {said}")


# ---- gates ---------------------------------------------------------------------------------------------------------------


def _limit(module: nn.Module, name: str) -> float | None:
    limit = getattr(module, name)
    return None if limit is None or math.isinf(limit) else float(limit)


def _both(limit: float | None) -> dict[str, float]:
    if limit is None:
        return {}
    return {"gate_clamp_upper_limit": limit, "up_clamp_upper_limit": limit, "up_clamp_lower_limit": -limit}


def _swiglu(module: nn.Module, alpha: str, limit: str, **more: Any) -> Gate:
    return Gate(
        "swiglu",
        swiglu_alpha=float(getattr(module, alpha)),
        swiglu_up_offset=1.0,
        **_both(_limit(module, limit)),
        **more,
    )


def _act_behind_limits(module: nn.Module) -> Gate:
    limit = _limit(module, "limit")
    behind = (
        {}
        if limit is None
        else {"act_clamp_upper_limit": limit, "up_clamp_upper_limit": limit, "up_clamp_lower_limit": -limit}
    )
    return Gate(activation(module.act_fn), **behind)


def _fp8(module: nn.Module) -> Gate:
    if module.gate_softcap is not None:
        raise NotRecognized("its gate is capped by a tanh")
    if module.swiglu_alpha is not None:
        return _swiglu(module, "swiglu_alpha", "swiglu_limit")
    return Gate(activation(module.act_fn), **_both(_limit(module, "limit")))


# By the function's home and name.
_GATES = {
    "integrations.moe._default_apply_gate": lambda m: Gate(activation(m.act_fn)),
    "integrations.finegrained_fp8.FP8Experts._apply_gate": _fp8,
    "models.beam.modeling_beam.BeamExperts._apply_gate": lambda m: Gate(activation(m.act_fn)),
    "models.deepseek_v4.modeling_deepseek_v4.DeepseekV4Experts._apply_gate": lambda m: Gate(
        activation(m.act_fn), **_both(_limit(m, "limit"))
    ),
    "models.glm5_next.modeling_glm5_next.Glm5NextTextExperts._apply_gate": lambda m: Gate(
        "silu", **_both(_limit(m, "swiglu_limit"))
    ),
    "models.gpt_oss.modeling_gpt_oss.GptOssExperts._apply_gate": lambda m: _swiglu(
        m, "alpha", "limit", is_concatenated=False
    ),
    "models.hy_v4.modeling_hy_v4.HYV4Experts._apply_gate": lambda m: Gate("silu", **_both(_limit(m, "swiglu_limit"))),
    "models.hy_v4_vl.modeling_hy_v4_vl.HYV4VLExperts._apply_gate": lambda m: Gate(
        "silu", **_both(_limit(m, "swiglu_limit"))
    ),
    "models.minimax_m3_vl.modeling_minimax_m3_vl.MiniMaxM3VLExperts._apply_gate": lambda m: _swiglu(
        m, "swiglu_alpha", "swiglu_limit"
    ),
    "models.openai_privacy_filter.modeling_openai_privacy_filter.OpenAIPrivacyFilterExperts._apply_gate": lambda m: (
        _swiglu(m, "alpha", "limit")
    ),
    "models.step3p7.modeling_step3p7.Step3p7Experts._apply_gate": _act_behind_limits,
}


def _home(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}".removeprefix("transformers.")


def gate(module: nn.Module, I: int) -> Gate:  # noqa: E741
    """What happens between the two products of experts that follow transformers' interface."""
    if getattr(module, "has_post_expert_norm", False):
        raise NotRecognized("it normalises what each expert gives")
    if _home(type(module)) == "models.llama4.modeling_llama4.Llama4TextExperts":  # has its gate in its forward
        return Gate(activation(module.act_fn))
    if getattr(module, "has_gate", True):
        function = module._apply_gate
        function = getattr(function, "__func__", function)
        name = _home(function)
        known = _GATES.get(name)
        if known is None:
            raise NotRecognized(f"its gate is {name}")
        found, theirs = known(module), module._apply_gate
    else:
        found, theirs = Gate(activation(module.act_fn), has_gate=False), module.act_fn
    _compare(found, theirs, I)
    return found


def _compare(found: Gate, theirs: Any, I: int) -> None:  # noqa: E741
    """Of 2 I columns, or I: every kind of value in each place."""
    columns = 2 * I if found.has_gate else I
    steps = torch.arange(8 * columns, dtype=torch.float32)
    x = (torch.sin(steps * 12.9898) * torch.tensor([0.1, 1.0, 4.0, 40.0]).repeat_interleave(2 * columns)).view(
        8, columns
    )
    with torch.no_grad():
        want, got = found(x), theirs(x)
    if got.shape != want.shape or not torch.allclose(got, want, rtol=1e-4, atol=1e-5):
        raise NotRecognized("its gate gives other values than the formula that goes by its name")
