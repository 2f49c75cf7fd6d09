"""`forebay-engine size`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from pathlib import Path

from forebay_engine.size import architectures, given, gpus, quantization, source
from forebay_engine.size.kv import Kv, kv_dtype
from forebay_engine.size.model import Model
from forebay_engine.size.plan import Question, answers
from forebay_engine.size.quantization import Scheme
from forebay_engine.size.reserve import Settings
from forebay_engine.size.weights import Weights

DEFAULT_CONTEXT = 8192


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command and its options."""
    parser.description = (
        "What a model needs and which GPUs have it: memory, tokens at once, rates by the roofline, "
        "prices. Takes a Hugging Face folder or config.json, or numbers by flags."
    )
    add = parser.add_argument
    add("model", nargs="?", metavar="MODEL", help="a folder with config.json, or that file")
    add("--weights", metavar="NAME", help=f"load as: {', '.join(quantization.SCHEMES)}")
    add("--kv-dtype", default="auto", help="auto, bf16, fp16 or fp8 (default %(default)s)")
    add("--other-params", type=int, default=0, metavar="N", help="beside the layers (vision)")
    add("--context", type=int, metavar="N", help="tokens of a sequence (8192, or the model's)")
    add("--batch", type=int, metavar="N", help="sequences at once (default: what fits)")
    add("--tp", type=int, metavar="N", help="GPUs of a group (default: the fewest of 1, 2, 4, 8)")
    add("--gpu", action="append", default=[], metavar="NAME", help="only these; repeatable")
    add(
        "--device",
        action="append",
        default=[],
        metavar="SPEC",
        help="one of yours: name=…,memory-mib=…,bandwidth-gbs=…,bf16-tflops=…; see the docs",
    )
    add(
        "--hourly",
        action="append",
        default=[],
        metavar="GPU=PRICE",
        help="of one GPU an hour; repeatable; without it no prices",
    )
    engine = parser.add_argument_group("as SGLang is set")
    add = engine.add_argument
    add("--mem-fraction", type=float, metavar="F", help="--mem-fraction-static")
    add("--free-gib", type=float, metavar="G", help="the log's avail mem before weights")
    add("--chunk", type=int, metavar="N", help="tokens of a prefill chunk")
    add("--graph-batch", type=int, metavar="N", help="largest decode batch with a graph")
    add("--page", type=int, default=1, metavar="N", help="tokens of a page (default 1)")
    add("--window-ratio", type=float, default=0.8, metavar="R", help="--swa-full-tokens-ratio")
    add("--efficiency", type=float, default=1.0, metavar="E", help="share of peak (default 1)")
    shape = parser.add_argument_group("without a config.json")
    for name in _NUMBERS:
        shape.add_argument(f"--{name}", type=int, default=0, metavar="N", help=_HELP.get(name))
    shape.add_argument("--tied", action="store_true", help="the head is the embedding")
    parser.add_argument("--json", action="store_true", help="everything, as JSON")
    parser.add_argument("--explain", action="store_true", help="each number with its formula")


_NUMBERS = (
    "params",
    "layers",
    "hidden",
    "intermediate",
    "heads",
    "kv-heads",
    "head-dim",
    "vocab",
    "experts",
    "experts-per-token",
    "shared-experts",
    "dense-layers",
    "dense-intermediate",
    "kv-rank",
    "rope-dim",
    "window",
    "window-every",
)
_HELP = {
    "params": "in all; what the layers do not explain is counted as kept whole on each GPU",
    "intermediate": "of the feed-forward part, or of one expert",
    "dense-layers": "the first ones without experts",
    "kv-rank": "of MLA's latent; with --rope-dim",
    "window-every": "each so many-th layer has no window",
}
_NEEDED = ("layers", "hidden", "intermediate", "heads", "vocab")


def run(args: argparse.Namespace) -> int:
    """Print. Returns 0 where a GPU fits, 1 where none does. Raises ValueError: wrong options."""
    question = _question(args)
    asked = gpus.chosen(args.gpu, args.device)
    strange = set(question.hourly or {}) - {gpu.name for gpu in asked}
    if strange:
        raise ValueError(f"--hourly {', '.join(sorted(strange))}: not among the GPUs asked for")
    found = answers(question, asked)
    from forebay_engine.size import explain, render

    if args.json:
        import msgspec

        text = msgspec.json.encode(render.document(question, found))
        sys.stdout.write(msgspec.json.format(text, indent=2).decode() + "\n")
    else:
        from rich.console import Console

        # Redirected output is not cut at a terminal's width.
        console = Console(
            highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160
        )
        lines = render.summary(question)
        if args.explain:
            lines += ["", *explain.parameters(question)]
            for width in sorted({one.tp for one in found}):
                lines += ["", *explain.cache(question, width)]
            for one in found:
                lines += ["", *explain.answer(question, one)]
        console.print("\n".join(lines), markup=False)
        console.print(render.table(question, found))
        console.print("\n".join(render.footer(found)), markup=False)
    return 0 if any(one.fits for one in found) else 1


def _question(args: argparse.Namespace) -> Question:
    for name in ("context", "batch", "tp", "chunk", "graph_batch", "page"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')}: at least 1")
    if args.mem_fraction is not None and not 0 < args.mem_fraction <= 1:
        raise ValueError("--mem-fraction: above 0, at most 1")
    if not 0 < args.efficiency <= 1:
        raise ValueError("--efficiency: above 0, at most 1")
    if not 0 < args.window_ratio <= 1:
        raise ValueError("--window-ratio: above 0, at most 1")
    if args.free_gib is not None and args.free_gib <= 0:
        raise ValueError("--free-gib: above 0")
    weights = _weights(args)
    model = weights.model
    return Question(
        weights,
        Kv(model, kv_dtype(args.kv_dtype, model), args.window_ratio),
        args.context or min(DEFAULT_CONTEXT, model.context),
        args.batch,
        args.tp,
        args.page,
        Settings(args.mem_fraction, args.free_gib, args.chunk, args.graph_batch),
        args.efficiency,
        _prices(args.hourly),
    )


def _weights(args: argparse.Namespace) -> Weights:
    shape = {name.replace("-", "_"): getattr(args, name.replace("-", "_")) for name in _NUMBERS}
    if args.model is None:
        missing = [f"--{name}" for name in _NEEDED if not shape[name]]
        if missing:
            raise ValueError(f"MODEL, or numbers: {', '.join(missing)} missing")
        if any(value < 0 for value in shape.values()):
            raise ValueError("the numbers of a model must not be negative")
        model = given.model(given.Numbers(**shape, tied=args.tied))
        return Weights(model, _scheme(args, quantization.PLAIN["bf16"]))
    if any(shape.values()):
        asked = ", ".join(f"--{name.replace('_', '-')}" for name, value in shape.items() if value)
        raise ValueError(f"{asked}: not together with MODEL")
    path = Path(args.model)
    config = source.config(path)
    model = _named(architectures.read(config, other=args.other_params), path)
    stored = quantization.of_checkpoint(config, model)
    loaded = quantization.PLAIN["bf16"] if stored.name == "fp32" else stored
    return Weights(model, _scheme(args, loaded), source.checkpoint_bytes(path), stored)


def _named(model: Model, path: Path) -> Model:
    folder = path if path.is_dir() else path.parent if path.name == "config.json" else path
    return replace(model, name=folder.resolve().name)


def _scheme(args: argparse.Namespace, otherwise: Scheme) -> Scheme:
    return quantization.named(args.weights) if args.weights else otherwise


def _prices(words: list[str]) -> dict[str, Decimal]:
    names = {name.lower(): name for name in gpus.known()}
    found = {}
    for word in words:
        name, sign, price = word.partition("=")
        try:
            value = Decimal(price)
        except InvalidOperation:
            value = Decimal("NaN")
        if not sign or not value.is_finite() or value <= 0:
            raise ValueError(f"--hourly {word}: GPU=PRICE with a price above 0 is needed")
        found[names.get(name.lower(), name)] = value
    return found
