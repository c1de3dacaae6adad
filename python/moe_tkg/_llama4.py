# SPDX-License-Identifier: Apache-2.0
"""Llama 4's block, which has no interface for experts: it runs every expert on all tokens, times scores that are 0 where an
expert was not chosen.  Another class takes its place, with the operator's INPUT_SCALE on the chosen ones.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from ._modules import run, slot_of, wants_gradient

_HOME = "transformers.models.llama4.modeling_llama4."
SETTINGS: dict[str, Any] = {"expert_affinities_scaling_mode": "input_scale"}
_blocks: dict[type, type] = {}


def _name(thing: Any) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def is_block(module: nn.Module) -> bool:
    return _name(module) == _HOME + "Llama4TextMoe" or type(module) in _blocks.values()


def known(block: nn.Module) -> bool:
    """The block's parts are those that its formula is known of."""
    for part, name in ((block.experts, "Llama4TextExperts"), (block.router, "Llama4Router")):
        if _name(part) != _HOME + name:
            warnings.warn(
                f"moe_tkg leaves a Llama4TextMoe as it is: it has a {type(part).__name__} for a {name}", stacklevel=4
            )
            return False
    return True


def switch(block: nn.Module) -> None:
    """The block runs its experts by this library from now on."""
    if type(block) not in _blocks.values():
        block.__class__ = _switched(type(block))


def _switched(kind: type) -> type:
    if kind not in _blocks:
        own = {"forward": _forward, "__reduce_ex__": _reduce, "__module__": __name__, "_theirs": kind}
        _blocks[kind] = type(kind.__name__, (kind,), own)
    return _blocks[kind]


def _new(kind: type) -> Any:
    """A block of the class that takes kind's place, without its state."""
    switched = _switched(kind)
    return switched.__new__(switched)


def _reduce(self: Any, _protocol: int) -> Any:
    """Its class has no name that pickle would find it by."""
    return _new, (self._theirs,), self.__dict__


def _forward(self: Any, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    slot = slot_of(self.experts, SETTINGS)
    if slot.handle == 0 or wants_gradient(self, hidden_states, slot):
        return self._theirs.forward(self, hidden_states)
    hidden_states = hidden_states.reshape(-1, self.hidden_dim)
    scores, logits = self.router(hidden_states)
    index = torch.topk(logits, self.top_k, dim=1).indices
    routed = run(slot, hidden_states, index, scores.gather(1, index))
    return self.shared_expert(hidden_states).add_(routed), logits
