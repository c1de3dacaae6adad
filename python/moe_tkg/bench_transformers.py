# SPDX-License-Identifier: Apache-2.0
"""``python -m moe_tkg.bench_transformers``: a model of transformers decodes, by each implementation of its experts.

The model is random, in bf16, with layers as Qwen3-30B-A3B has them (H 2048, I 768, 128 experts, 8 for each token) and as
large a part of its vocabulary as of its layers, so that the step's parts are in proportion.  Each implementation decodes
greedily after a short prompt; times are those of single steps, their median.  Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
import warnings
from typing import Any

import torch
import transformers

import moe_tkg
import moe_tkg.transformers

QWEN3_LAYERS, QWEN3_VOCABULARY = 48, 151936
ALL = ["eager", "grouped_mm", "moe_tkg", "moe_tkg bf16-lossless", "moe_tkg mxfp4"]


def _config(layers: int, tiny: bool) -> transformers.Qwen3MoeConfig:
    vocabulary = QWEN3_VOCABULARY * layers // QWEN3_LAYERS
    size: dict[str, Any] = dict(
        hidden_size=2048,
        moe_intermediate_size=768,
        num_experts=128,
        num_experts_per_tok=8,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        intermediate_size=6144,
        vocab_size=vocabulary - vocabulary % 64,
    )
    if tiny:
        size.update(
            hidden_size=128,
            moe_intermediate_size=64,
            num_experts=16,
            num_attention_heads=4,
            head_dim=32,
            vocab_size=512,
        )
    return transformers.Qwen3MoeConfig(
        num_hidden_layers=layers, norm_topk_prob=True, tie_word_embeddings=False, max_position_embeddings=4096, **size
    )


def _model(config: transformers.Qwen3MoeConfig, seed: int) -> Any:
    """Each layer has memory of its own, and all of them the first one's numbers: drawing them takes longer than copying."""
    torch.manual_seed(seed)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.to_empty(device="cpu").eval()
    first: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for name, p in model.named_parameters():
            kind = ".".join("*" if part.isdigit() else part for part in name.split("."))
            if "norm" in name:
                p.fill_(1)
            elif kind in first:
                p.copy_(first[kind])
            else:
                first[kind] = p.normal_(0, 0.02)
        for module in model.modules():
            if hasattr(module, "inv_freq"):
                inv_freq, module.attention_scaling = module.compute_default_rope_parameters(config)
                module.inv_freq.copy_(inv_freq)
    return model


def _experts(model: Any) -> list[torch.nn.Module]:
    return [layer.mlp.experts for layer in model.model.layers]


def _memory(model: Any) -> int:
    """Bytes of the experts that this implementation needs."""
    packed = sum(r.bytes for r in moe_tkg.transformers.report(model))
    if packed and model.config._experts_implementation == moe_tkg.transformers.NAME:
        return packed
    return sum(p.numel() * p.element_size() for e in _experts(model) for p in e.parameters())


def _decode(model: Any, batch: int, prompt: int, tokens: int, seed: int) -> tuple[list[float], list[float]]:
    """Seconds of each step, and of its experts."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, model.config.vocab_size, (batch, prompt), generator=g)
    inside = [0.0, 0.0]  # so far, and the begin of the module that runs
    hooks = []
    for e in _experts(model):
        hooks.append(e.register_forward_pre_hook(lambda *_: inside.__setitem__(1, time.perf_counter())))
        hooks.append(
            e.register_forward_hook(lambda *_: inside.__setitem__(0, inside[0] + time.perf_counter() - inside[1]))
        )
    steps, experts = [], []
    with torch.inference_mode():
        out = model(ids, use_cache=True)
        for step in range(tokens + 3):
            token = out.logits[:, -1:].argmax(-1)
            inside[0] = 0.0
            begin = time.perf_counter()
            out = model(token, past_key_values=out.past_key_values, use_cache=True)
            end = time.perf_counter()
            if step >= 3:
                steps.append(end - begin)
                experts.append(inside[0])
    for hook in hooks:
        hook.remove()
    return steps, experts


def _select(model: Any, implementation: str) -> None:
    name, _, weights = implementation.partition(" ")
    if name == moe_tkg.transformers.NAME:
        moe_tkg.transformers.accelerate(model, weights or None)
    else:
        model.set_experts_implementation(name)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    config = _config(arguments.layers, arguments.tiny)
    model = _model(config, arguments.seed)
    results = []
    for implementation in arguments.implementations:
        moe_tkg.transformers.release(model)
        gc.collect()
        _select(model, implementation)
        for batch in arguments.batch:
            steps, experts = _decode(model, batch, arguments.prompt, arguments.tokens, arguments.seed)
            middle = statistics.median(steps)
            results.append(
                dict(
                    implementation=implementation,
                    batch=batch,
                    tokens_per_second=batch / middle,
                    step_ms=middle * 1e3,
                    experts_ms=statistics.median(experts) * 1e3,
                    experts_share=statistics.median(experts) / middle,
                    experts_bytes=_memory(model),
                    steps_ms=[s * 1e3 for s in steps],
                )
            )
            if not arguments.quiet:
                print(f"{implementation}, batch {batch}: {batch / middle:.1f} tokens/s", file=sys.stderr, flush=True)
    return dict(
        model=dict(
            layers=arguments.layers,
            hidden_size=config.hidden_size,
            intermediate_size=config.moe_intermediate_size,
            experts=config.num_experts,
            experts_per_token=config.num_experts_per_tok,
            vocabulary=config.vocab_size,
            dtype="bfloat16",
        ),
        threads=torch.get_num_threads(),
        isa=moe_tkg.default_context().isa,
        versions=dict(moe_tkg=moe_tkg.__version__, torch=torch.__version__, transformers=transformers.__version__),
        results=results,
    )


def merged(files: list[str]) -> dict[str, Any]:
    """The results of several runs of one model, by implementation and batch."""
    found = []
    for name in files:
        with open(name) as file:
            found.append(json.load(file))
    for name, one in zip(files, found):
        if (one["model"], one["threads"]) != (found[0]["model"], found[0]["threads"]):
            raise SystemExit(f"{name}: is of another model or number of threads than {files[0]}")
    results = [r for one in found for r in one["results"]]
    order = list(dict.fromkeys(r["implementation"] for r in results))
    return found[0] | dict(results=sorted(results, key=lambda r: (order.index(r["implementation"]), r["batch"])))


def _best_other(found: dict[str, Any], batch: int) -> float | None:
    others = [
        r["tokens_per_second"]
        for r in found["results"]
        if r["batch"] == batch and not r["implementation"].startswith(moe_tkg.transformers.NAME)
    ]
    return max(others, default=None)


def table(found: dict[str, Any]) -> str:
    lines = [
        "| experts | batch | tokens/s | of the best other | step, ms | experts, ms | share | experts, GB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for r in found["results"]:
        best = _best_other(found, r["batch"])
        times = "" if best is None else f"{r['tokens_per_second'] / best:.2f}x"
        lines.append(
            f"| {r['implementation']} | {r['batch']} | {r['tokens_per_second']:.1f} | {times} | {r['step_ms']:.1f} | "
            f"{r['experts_ms']:.1f} | {100 * r['experts_share']:.0f} % | {r['experts_bytes'] / 1e9:.2f} |"
        )
    return "\n".join(lines)


def plot(found: dict[str, Any], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    batches = sorted({r["batch"] for r in found["results"]})
    names = list(dict.fromkeys(r["implementation"] for r in found["results"]))
    figure, axes = plt.subplots(figsize=(8, 4))
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        heights = [
            r["tokens_per_second"]
            for b in batches
            for r in found["results"]
            if (r["implementation"], r["batch"]) == (name, b)
        ]
        bars = axes.bar(
            [b + (i - (len(names) - 1) / 2) * width for b in range(len(batches))], heights, width, label=name
        )
        axes.bar_label(bars, fmt="%.0f", fontsize=7)
    axes.set_xticks(range(len(batches)), [f"batch {b}" for b in batches])
    axes.set_ylabel("tokens/s")
    m = found["model"]
    axes.set_title(
        f"{m['layers']} layers of Qwen3-30B-A3B's shape, bf16, transformers {found['versions']['transformers']}, "
        f"{found['threads']} threads",
        fontsize=10,
    )
    axes.legend(fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m moe_tkg.bench_transformers", description=__doc__.split("\n\n")[0])
    p.add_argument(
        "files", nargs="*", metavar="FILE", help="what --json wrote: shown together, in place of a measurement"
    )
    p.add_argument("--layers", type=int, default=4)
    p.add_argument("--batch", type=lambda s: [int(b) for b in s.split(",")], default=[1, 4, 16], help="default: 1,4,16")
    p.add_argument("--tokens", type=int, default=16, help="steps that are timed (default: %(default)s)")
    p.add_argument("--prompt", type=int, default=8, help="tokens before them (default: %(default)s)")
    p.add_argument("--implementations", type=lambda s: s.split(","), default=ALL, help=f"default: {','.join(ALL)}")
    p.add_argument("--threads", type=int, help="default: PyTorch's")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--tiny", action="store_true", help="small layers, to see that it works")
    p.add_argument("--json", metavar="FILE", help="also writes all samples there")
    p.add_argument("--plot", metavar="FILE", help="also draws a picture; needs matplotlib")
    p.add_argument("-q", "--quiet", action="store_true")
    arguments = p.parse_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    found = merged(arguments.files) if arguments.files else measure(arguments)
    print(table(found))
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(found, file, indent=1)
    if arguments.plot:
        plot(found, arguments.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
