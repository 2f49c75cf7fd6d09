"""`forebay-engine size`."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from forebay_engine.size import architectures, given, gpus, options, quantization, source
from forebay_engine.size.fields import Fields
from forebay_engine.size.kv import Kv, kv_dtype
from forebay_engine.size.model import Model
from forebay_engine.size.plan import Question, answers
from forebay_engine.size.quantization import Scheme
from forebay_engine.size.reserve import Settings
from forebay_engine.size.weights import Weights

DEFAULT_CONTEXT = 8192
CACHE_NOTE = (
    "the checkpoint has scales for an FP8 cache, which SGLang's auto takes (else --kv-dtype bf16)"
)


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
    add("--window-ratio", type=float, metavar="R", help="--swa-full-tokens-ratio; default 0.8")
    add("--efficiency", type=float, default=1.0, metavar="E", help="share of peak (default 1)")
    shape = parser.add_argument_group("without a config.json")
    for name in options.NUMBERS:
        shape.add_argument(f"--{name}", type=int, default=0, metavar="N", help=_HELP.get(name))
    shape.add_argument("--tied", action="store_true", help="the head is the embedding")
    parser.add_argument("--json", action="store_true", help="everything, as JSON")
    parser.add_argument("--explain", action="store_true", help="each number with its formula")


_HELP = {
    "params": "in all; what the layers do not explain is counted as kept whole on each GPU",
    "intermediate": "of the feed-forward part, or of one expert",
    "dense-layers": "the first ones without experts",
    "kv-rank": "of MLA's latent; with --rope-dim, and --nope-dim or --head-dim",
    "q-rank": "of MLA's queries, where they are compressed",
    "nope-dim": "of an MLA head without rotation (--head-dim)",
    "value-dim": "of an MLA head's values (--nope-dim)",
    "window-every": "each so many-th layer has no window; with --window",
}
_NEEDED = ("layers", "hidden", "intermediate", "heads", "vocab")


def run(args: argparse.Namespace) -> int:
    """Print. Returns 0 where a GPU fits, 1 where none does. Raises ValueError: wrong options."""
    try:
        question = _question(args)
        asked = gpus.chosen(args.gpu, args.device)
        strange = set(question.hourly or {}) - {gpu.name for gpu in asked}
        if strange:
            raise ValueError(f"--hourly {', '.join(sorted(strange))}: not among the GPUs asked for")
        found = answers(question, asked)
    except OSError as error:
        said = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        raise ValueError(options.printable(said)) from None
    except ValueError as error:
        raise ValueError(options.printable(str(error))) from None
    from forebay_engine.size import output

    output.write(question, found, as_json=args.json, explained=args.explain)
    return 0 if any(one.fits for one in found) else 1


def _question(args: argparse.Namespace) -> Question:
    options.check(args)
    weights, stored_cache = _weights(args)
    model = weights.model
    limit = model.context or DEFAULT_CONTEXT
    kv = Kv(model, kv_dtype(args.kv_dtype, model, stored_cache))
    if args.window_ratio is not None:
        if not kv.split:
            raise ValueError("--window-ratio: this model has no pool of its own for windows")
        kv = replace(kv, window_ratio=args.window_ratio)
    return Question(
        weights,
        kv,
        args.context or min(DEFAULT_CONTEXT, limit),
        args.batch,
        args.tp,
        args.page,
        Settings(args.mem_fraction, args.free_gib, args.chunk, args.graph_batch),
        args.efficiency,
        options.prices(args.hourly, gpus.known()),
    )


def _weights(args: argparse.Namespace) -> tuple[Weights, str | None]:
    """The model as it is loaded, and how its checkpoint wants the cache kept."""
    if args.model is None:
        return _given(args), None
    asked = [f"--{name}" for name in options.NUMBERS if options.value(args, name)]
    asked += ["--tied"] if args.tied else []
    if asked:
        raise ValueError(f"{', '.join(asked)}: not together with MODEL")
    path = Path(args.model)
    config = source.config(path)
    model = _named(architectures.read(config, other=args.other_params), path)
    size = source.checkpoint_bytes(path)
    if args.weights:
        return _loaded_as(_scheme(args.weights, model), model, config, size), None
    stored = quantization.of_checkpoint(config, model)
    loaded = quantization.PLAIN["bf16"] if stored.name == "fp32" else stored
    cache = quantization.cache_of_checkpoint(config)
    if cache is not None and args.kv_dtype == "auto":
        model = replace(model, notes=(*model.notes, CACHE_NOTE))
    return Weights(model, loaded, size, stored), cache


def _loaded_as(scheme: Scheme, model: Model, config: Fields, size: int | None) -> Weights:
    """Under `--weights`: the files' size corrects it where it is known what they hold."""
    try:
        stored = quantization.of_checkpoint(config, model)
    except ValueError:
        return Weights(model, scheme)
    return Weights(model, scheme, size, stored)


def _given(args: argparse.Namespace) -> Weights:
    missing = [f"--{name}" for name in _NEEDED if not options.value(args, name)]
    if missing:
        raise ValueError(f"MODEL, or numbers: {', '.join(missing)} missing")
    if args.other_params:
        raise ValueError("--other-params: with MODEL; with numbers say --params")
    shape = {name.replace("-", "_"): options.value(args, name) for name in options.NUMBERS}
    model = given.model(given.Numbers(**shape, tied=args.tied))
    return Weights(model, _scheme(args.weights or "bf16", model))


def _named(model: Model, path: Path) -> Model:
    folder = source.folder_of(path) or path
    return replace(model, name=options.printable(folder.resolve().name))


def _scheme(name: str, model: Model) -> Scheme:
    scheme = quantization.named(name)
    held = {matrix.part for matrix in model.matrices()}
    if scheme.parts and not scheme.parts & held:
        what = ", ".join(sorted(scheme.parts))
        raise ValueError(f"--weights {name}: it quantises {what} alone, and the model has none")
    return scheme
