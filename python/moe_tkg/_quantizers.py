# SPDX-License-Identifier: Apache-2.0
"""Checkpoints whose experts are MXFP4 (gpt-oss) or FP8 (DeepSeek-V3), loaded on the CPU without dequantising the experts.

On a CPU transformers turns all of such a checkpoint into bf16.  With experts_implementation="moe_tkg" the two quantizers
here keep the experts' codes and scales as parameters, which are then packed as they are; the rest of the model becomes bf16
as before.  Without it, or on another device, they are transformers' own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.quantizers import auto
from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer
from transformers.quantizers.quantizer_mxfp4 import Mxfp4HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from ._modules import NAME, Absent, no_state


def _on_cpu(device_map: Any) -> bool:
    """Whether all of a model goes to the CPU; "auto" and its like decide by what there is."""
    if device_map is None:
        return True
    devices = device_map.values() if isinstance(device_map, dict) else [device_map]
    return all(_is_cpu(device) for device in devices)


def _is_cpu(device: Any) -> bool:
    if device in ("auto", "balanced", "balanced_low_0", "sequential"):
        return not torch.accelerator.is_available()
    return str(device).partition(":")[0] == "cpu"


def _parameter(*shape: int, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), requires_grad=False)


def _replace(module: nn.Module, name: str, **parameters: nn.Parameter) -> None:
    """Codes and scales in place of a weight."""
    del module._parameters[name]
    if name not in parameters:
        module.__dict__[name] = Absent(f"{name} is kept as the checkpoint's codes")
    for new, parameter in parameters.items():
        module.register_parameter(new, parameter)
    module._is_hf_initialized = True


class _Kept:
    """Before transformers' own quantizer: what is to be kept is decided when the model is there to be asked."""

    kept = False
    _later: tuple[tuple, dict] | None = None

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        if self.pre_quantized and not self.quantization_config.dequantize and _on_cpu(kwargs.get("device_map")):
            self._later = args, kwargs
        else:
            super().validate_environment(*args, **kwargs)

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> Any:
        if self._later is not None:
            if getattr(model.config.get_text_config(), "_experts_implementation", None) == NAME:
                self.modules_to_not_convert = self.get_modules_to_not_convert(
                    model, self.quantization_config.modules_to_not_convert, model._keep_in_fp32_modules
                )
                self.kept = any(
                    [  # a list: all of them
                        self._keep(module)
                        for name, module in model.named_modules()
                        if should_convert_module(name, self.modules_to_not_convert)
                        and "is_concatenated" in module.__dict__
                    ]
                )
            if not self.kept:
                super().validate_environment(*self._later[0], **self._later[1])
        if self.kept:
            return model
        return super()._process_model_before_weight_loading(model, **kwargs)


class Mxfp4Quantizer(_Kept, Mxfp4HfQuantizer):
    def _keep(self, module: nn.Module) -> bool:
        if type(module).__name__ != "GptOssExperts":
            return False
        E, H, I2 = module.gate_up_proj.shape
        for name, rows, k in (("gate_up_proj", I2, H), ("down_proj", H, I2 // 2)):
            _replace(
                module,
                name,
                **{
                    f"{name}_blocks": _parameter(E, rows, k // 32, 16, dtype=torch.uint8),
                    f"{name}_scales": _parameter(E, rows, k // 32, dtype=torch.uint8),
                },
            )
        return True

    def get_load_operations(self) -> dict:
        return {} if self.kept else super().get_load_operations()


class Fp8Quantizer(_Kept, FineGrainedFP8HfQuantizer):
    def _keep(self, module: nn.Module) -> bool:
        block = self.quantization_config.weight_block_size
        if block is None or block[1] != 128 or module.is_transposed or module.has_bias or not module.has_gate:
            return False
        self.quantization_config.dequantize = True  # all but these
        E, I2, H = module.gate_up_proj.shape
        halves = 2 * -(-(I2 // 2) // block[0])
        scale = torch.float8_e8m0fnu if self.quantization_config.scale_fmt == "ue8m0" else torch.float32
        for name, rows, k, scales in (("gate_up_proj", I2, H, halves), ("down_proj", H, I2 // 2, -(-H // block[0]))):
            _replace(
                module,
                name,
                **{
                    name: _parameter(E, rows, k, dtype=torch.float8_e4m3fn),
                    f"{name}_scale_inv": _parameter(E, scales, -(-k // 128), dtype=scale),
                },
            )
        module.block_size = tuple(block)
        return True

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> Any:
        if self.kept:  # what is not experts is bf16 now, and no configuration says so
            for module in model.modules():
                if "gate_up_proj_scale_inv" in module._parameters:
                    module.register_state_dict_pre_hook(no_state)
        return super()._process_model_after_weight_loading(model, **kwargs)


def register() -> None:
    for name, theirs, ours in (
        ("mxfp4", Mxfp4HfQuantizer, Mxfp4Quantizer),
        ("fp8", FineGrainedFP8HfQuantizer, Fp8Quantizer),
    ):
        if auto.AUTO_QUANTIZER_MAPPING.get(name) is theirs:
            auto.AUTO_QUANTIZER_MAPPING[name] = ours
