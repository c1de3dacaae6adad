# SPDX-License-Identifier: Apache-2.0
"""The weights of an experts module of transformers: which parameters they are, whether they can be packed, and packing."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ._context import Context
from ._experts import Experts
from ._recognize import Gate, NotRecognized, gate

FORMATS = (None, "bf16-lossless", "mxfp4", "fp8")
_FLOATS = (torch.bfloat16, torch.float16, torch.float32)


class Source:
    """What a module's experts are packed from.

    ``names``: of the parameters.  ``kind``: "plain" (bf16, f16, f32), "fp8" (with the scales of blocks) or "mxfp4" (blocks
    and scales as gpt-oss's files have them).
    """

    def __init__(self, module: nn.Module):
        self.gated = bool(getattr(module, "has_gate", True))
        self.first = "gate_up_proj" if self.gated else "up_proj"
        self.transposed = bool(getattr(module, "is_transposed", type(module).__name__ == "Llama4TextExperts"))
        weights = [self.first, "down_proj"]
        if f"{self.first}_blocks" in module._parameters:
            self.kind = "mxfp4"
            self.names = [f"{name}_{part}" for name in weights for part in ("blocks", "scales")]
        elif module._parameters.get(f"{self.first}_scale_inv") is not None:
            self.kind = "fp8"
            self.names = [name + part for name in weights for part in ("", "_scale_inv")]
        else:
            self.kind = "plain"
            self.names = weights
        if getattr(module, "has_bias", False):
            self.names += [f"{name}_bias" for name in weights]
        for name in self.names:
            self._check(name, module._parameters.get(name))
        self._shapes(module)
        self.gate: Gate = gate(module, self.I)

    def _check(self, name: str, p: Any) -> None:
        if p is None:
            raise NotRecognized(f"it has no parameter {name}")
        if type(p) not in (nn.Parameter, torch.Tensor):
            raise NotRecognized(f"its {name} is a {type(p).__name__}")
        if p.layout != torch.strided:
            raise NotRecognized(f"its {name} is {p.layout}")
        if not p.is_cpu:
            raise NotRecognized(f"its {name} is on device {p.device}")
        if self.kind == "plain" or name.endswith("_bias"):
            if p.dtype not in _FLOATS:
                raise NotRecognized(f"its {name} is {p.dtype}")
        elif self.kind == "mxfp4" and p.dtype != torch.uint8:
            raise NotRecognized(f"its {name} is {p.dtype}, and not uint8")
        elif self.kind == "fp8" and not name.endswith("_scale_inv") and p.dtype != torch.float8_e4m3fn:
            raise NotRecognized(f"its {name} is {p.dtype}, and not float8_e4m3fn")

    def _shapes(self, module: nn.Module) -> None:
        if self.kind == "mxfp4":
            up = module._parameters[f"{self.first}_blocks"].shape
            up, down = (*up[:2], up[-2] * 32), module._parameters["down_proj_blocks"].shape
            down = (*down[:2], down[-2] * 32)
        else:
            up, down = (tuple(module._parameters[name].shape) for name in (self.first, "down_proj"))
            if self.transposed:
                up, down = ((s[0], s[2], s[1]) if len(s) == 3 else s for s in (up, down))
        if len(up) != 3 or len(down) != 3:
            raise NotRecognized(f"its weights have shapes {list(up)} and {list(down)}")
        self.E, self.H, self.I = up[0], up[2], down[2]
        if up[1] != self.I * (2 if self.gated else 1) or down[:2] != (self.E, self.H):
            raise NotRecognized(f"its weights have shapes {list(up)} and {list(down)}, which do not fit together")
        if self.kind == "fp8":
            self.block = self._block(module)

    def _block(self, module: nn.Module) -> tuple[int, int]:
        """Rows and columns that share a scale: 128 columns, as the library has them, and no row of gate beside one of up."""
        up, down = (module._parameters[f"{name}_scale_inv"] for name in (self.first, "down_proj"))
        block = getattr(module, "block_size", None) or (128, 128)
        rows = tuple(block)[0]
        halves = 2 if self.gated else 1
        want = (self.E, halves * -(-self.I // rows), -(-self.H // 128)), (self.E, -(-self.H // rows), -(-self.I // 128))
        if tuple(block)[1] != 128 or (tuple(up.shape), tuple(down.shape)) != want:
            raise NotRecognized(
                f"its scales have shapes {list(up.shape)} and {list(down.shape)}: must be {list(want[0])} and {list(want[1])}, "
                "one for each block of 128 columns"
            )
        if getattr(module, "activation_scheme", "dynamic") == "static":
            raise NotRecognized("its activations are quantised with static scales")
        return rows, 128

    def settle(self, weights: str | None) -> None:
        """Raises NotRecognized where the weights cannot be had in this format."""
        if self.kind == "plain" and weights == "mxfp4" and (self.H % 32 or self.I % 32):
            raise NotRecognized(f"H = {self.H} and I = {self.I} must be multiples of 32 for weights = 'mxfp4'")

    def pack(self, module: nn.Module, weights: str | None, context: Context) -> Experts:
        """The module's experts as its parameters are now.  Weights that are quantised already stay in their format."""
        p = {name: module._parameters[name].detach() for name in self.names}
        biases = {
            "gate_up_bias" if self.gated else "up_bias": p.get(f"{self.first}_bias"),
            "down_bias": p.get("down_proj_bias"),
        }
        how: dict[str, Any] = {"is_concatenated": self.gate.is_concatenated, "context": context, **biases}
        if self.kind == "mxfp4":
            return self._fused(
                *(p[f"{name}_blocks"] for name in (self.first, "down_proj")),
                *(p[f"{name}_scales"] for name in (self.first, "down_proj")),
                format="mxfp4",
                **how,
            )
        up, down = p[self.first], p["down_proj"]
        if self.kind == "fp8":
            return self._fp8(up, down, *(p[f"{name}_scale_inv"].float() for name in (self.first, "down_proj")), how)
        if weights in ("mxfp4", "fp8"):
            how["requantize"] = weights
        elif weights == "bf16-lossless" and up.dtype == down.dtype == torch.bfloat16:
            how["packing"] = "lossless"
        return self._fused(up, down, is_transposed=self.transposed, **how)

    def _fused(self, up: Any, down: Any, up_scale: Any = None, down_scale: Any = None, **how: Any) -> Experts:
        if self.gated:
            return Experts.pack(up, down, gate_up_scale=up_scale, down_scale=down_scale, **how)
        return Experts.pack(up=up, down=down, up_scale=up_scale, down_scale=down_scale, **how)

    def _fp8(self, up: Any, down: Any, up_scale: Any, down_scale: Any, how: dict[str, Any]) -> Experts:
        """Gate and up apart: the last block of either may be a partial one."""
        how.pop("is_concatenated")
        how.update(block=self.block, down=down, down_scale=down_scale)
        if not self.gated:
            return Experts.pack(up=up, up_scale=up_scale, **how)
        half = up_scale.shape[1] // 2
        bias = how.pop("gate_up_bias")
        if bias is not None:
            how.update(gate_bias=bias[:, : self.I], up_bias=bias[:, self.I :])
        return Experts.pack(
            gate=up[:, : self.I], up=up[:, self.I :], gate_scale=up_scale[:, :half], up_scale=up_scale[:, half:], **how
        )
