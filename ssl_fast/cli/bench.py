"""`ssl-fast bench`: time the ops beside their references, or with --step the loss in a whole training step, or with
--data each stage of loading and training."""

import argparse
import contextlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from .options import add_force, add_quiet, add_threads, add_training_set, positive, refuse, unique

HELP = (
    "time every op and loss against plain PyTorch, torch.compile and other packages, or (--step) the loss in a whole "
    "training step, or (--data) the way of samples into training"
)
OPS = (
    "soft_threshold",
    "max",
    "product",
    "mean",
    "cosine_map",
    "ssl_align",
    "margin_nce",
    "lvs",
    "ez_vsl",
    "slavc",
    "fnac",
    "ssl_tie",
    "tokens",
    "token_heads",
)
OWN_SIZES = OPS[-2:]
LOSSES = OPS[5:-2]
DTYPES = ("float32", "bfloat16", "float16", "float64")
COMPILE_MODES = ("default", "max-autotune")  # of torch.compile


def _batches(text: str) -> list[int]:
    values = [int(positive(int)(part)) for part in text.split(",")]
    if min(values) < 2:
        raise argparse.ArgumentTypeError(f"expected batches >= 2 (a positive and a negative), got {text!r}")
    return values


def _maps(text: str) -> list[tuple[int, int]]:
    sides = [[int(positive(int)(side)) for side in part.split("x")] for part in text.split(",")]
    if any(len(side) > 2 for side in sides):
        raise argparse.ArgumentTypeError(f"expected sizes as 7 or 7x9, got {text!r}")
    return [(side[0], side[-1]) for side in sides]


def _names(choices: Sequence[str], text: str) -> list[str]:
    if unknown := [name for name in text.split(",") if name not in choices]:
        raise argparse.ArgumentTypeError(f"expected {', '.join(choices)}; got {', '.join(map(repr, unknown))}")
    return text.split(",")


def _ops(text: str) -> list[str]:
    return list(LOSSES) if text == "losses" else _names(OPS, text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--json", type=Path, metavar="FILE", help="write header and rows there, after each configuration")
    add_force(parser, "--json")
    add("--markdown", action="store_true", help="print a Markdown table")
    add(
        "--ops",
        type=_ops,
        metavar="A,B",
        help=f"of {', '.join(OPS)} (default: all; the last two have sizes of their own); losses: all losses",
    )
    add(
        "--batch",
        type=_batches,
        metavar="N,N",
        help="default: 32,128,256; on CUDA 256,1024; with --quick 64; with --step 32, on CUDA 128",
    )
    add("--maps", type=_maps, metavar="P,P", help="map sizes, 7 or 7x9; default: 7,14; with --quick 7")
    add("--channels", type=positive(int), metavar="C", help="default: 512")
    add(
        "--dtype",
        type=partial(_names, DTYPES),
        metavar="A,B",
        help=f"of {', '.join(DTYPES)}; default: float32, on CUDA also bfloat16",
    )
    add("--rounds", type=positive(int), metavar="N", help="least number of rounds (default: 9; with --quick 3)")
    add_threads(parser)
    add("--clock", choices=("wall", "cpu"), default="wall", help="clock of the ratios; cpu: on a shared machine")
    add(
        "--compile-modes",
        type=partial(_names, COMPILE_MODES),
        metavar="A,B",
        help=f"of torch.compile, of {', '.join(COMPILE_MODES)} (default: both; on a CPU, where "
        "max-autotune compiles for minutes, default alone)",
    )
    add("--no-compile", action="store_true", help="leave torch.compile out")
    add(
        "--instruction-sets",
        type=lambda text: text.split(","),
        metavar="A,B",
        help="CPU: run each case under each of these in turn; all: those that this processor has (default: the best)",
    )
    add("--flush-l2", action="store_true", help="CUDA: empty the L2 cache before each call")
    add("--tf32", action="store_true", help="CUDA: allow TF32 in float32 products, for all candidates")
    add("--quick", action="store_true", help="one small size, few rounds, no torch.compile")
    add_quiet(parser)
    group = parser.add_argument_group("a whole training step", "of --method and --recipe")
    group.add_argument(
        "--step",
        action="store_true",
        help="time nets and loss: the loss's share with the kernels, plain PyTorch and torch.compile; memory, and on "
        "CUDA the largest batch that fits",
    )
    group = parser.add_argument_group(
        "training data", "of the other options, --device, --json, --batch, --rounds, --threads and --markdown count"
    )
    group.add_argument("--data", type=Path, metavar="DIR", help="time its way into training instead of the ops")
    group.add_argument("--split", metavar="NAME", help="list of ids in --data")
    add_training_set(group)
    group.add_argument("--method", metavar="NAME", help="default: ssl_align; with --step A,B, ez_vsl")
    group.add_argument("--recipe", metavar="NAME", help="quickstart or published (default)")
    group.add_argument("--workers", type=int, metavar="N", help="processes that load samples (default: 2)")


def resolve(args: argparse.Namespace) -> argparse.Namespace:
    """args with its defaults filled in. ValueError for what cannot be run here."""
    import torch

    from ..ops import checks

    options = argparse.Namespace(**vars(args))
    cuda, quick = options.device == "cuda", options.quick
    if cuda and not torch.cuda.is_available():
        raise ValueError("--device cuda: expected a usable CUDA device, got none (see `ssl-fast doctor`)")
    if not cuda and (options.flush_l2 or options.tf32):
        raise ValueError("--flush-l2, --tf32: expected --device cuda, got --device cpu")
    if cuda and options.clock == "cpu":
        raise ValueError("--clock cpu: expected --device cpu, got --device cuda")
    if options.json and not options.json.parent.is_dir():
        raise ValueError(f"--json {options.json}: expected an existing folder, got {options.json.parent}")
    if options.instruction_sets and cuda:
        raise ValueError("--instruction-sets: expected --device cpu, got --device cuda")
    if options.data:
        refuse(
            options,
            "step ops maps channels dtype flush_l2 tf32 quick compile_modes no_compile instruction_sets",
            "expected without --data",
        )
    else:
        refuse(options, "split set_name layout exclude on_missing cache workers", "expected with --data")
    if options.step:
        refuse(options, "ops maps channels flush_l2 quick", "expected without --step")
        if "float64" in (options.dtype or ()):
            raise ValueError(f"--dtype: expected float32, bfloat16 or float16 with --step, got {options.dtype}")
    elif not options.data:
        refuse(options, "method recipe", "expected with --step or --data")
    if options.ops and set(options.ops) <= set(OWN_SIZES):
        refuse(options, "batch maps channels", f"expected with other --ops than {' and '.join(OWN_SIZES)}")
    for name in ("ops", "batch", "maps", "dtype"):
        unique(f"--{name}", getattr(options, name) or [])
    options.method = options.method or ("ez_vsl" if options.step else "ssl_align")
    options.recipe, options.workers = options.recipe or "published", 2 if options.workers is None else options.workers
    if options.step:
        options.batch = options.batch or ([128] if cuda else [32])
    options.ops = options.ops or list(OPS)
    if not options.data:
        options.batch = options.batch or ([64] if quick else [256, 1024] if cuda else [32, 128, 256])
    options.channels = options.channels or 512
    options.maps = options.maps or ([(7, 7)] if quick else [(7, 7), (14, 14)])
    options.dtype = options.dtype or (["float32", "bfloat16"] if cuda and not quick else ["float32"])
    options.rounds = options.rounds or (3 if quick or options.step else 9)
    options.least_seconds = 0.1 if quick else 0.5
    if options.no_compile and options.compile_modes:
        raise ValueError("--compile-modes: expected without --no-compile")
    options.compile_modes = options.compile_modes or list(COMPILE_MODES if cuda else COMPILE_MODES[:1])
    if options.no_compile or quick:
        options.compile_modes = []
    compiled = checks.use_compiled("auto", torch.empty(0, device=options.device))
    options.backend = "compiled" if compiled else "reference"
    options.instruction_sets = _instruction_sets(options.instruction_sets)
    return options


def _instruction_sets(wanted: list[str] | None) -> Sequence[str | None]:
    """Those of the compiled module that are wanted; [None], the one in use, without any wish. ValueError for others."""
    from ..ops import checks

    if not wanted:
        return [None]
    there = checks.extension.instruction_sets() if checks.extension else []
    if wanted == ["all"] and there:
        return there
    if unknown := [name for name in wanted if name not in there]:
        expected = f"all, or some of {', '.join(there)}" if there else "the compiled kernels (see `ssl-fast doctor`)"
        raise ValueError(f"--instruction-sets: expected {expected}; got {', '.join(unknown)}")
    return wanted


def run(args: argparse.Namespace) -> int:
    """Exit code: 0; 1 where a configuration failed (kernels and reference disagree, out of memory)."""
    import torch

    from ..benchmarks import ops, step
    from ..files import claimed

    options = resolve(args)
    kept = contextlib.nullcontext()
    if options.json:
        kept = claimed("--json", [options.json], force=options.force)
    tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.set_num_threads(options.threads or torch.get_num_threads())
    torch.backends.cuda.matmul.allow_tf32 = options.tf32
    try:
        with kept:
            if options.data:
                return _time_data(options)
            return step.run(options) if options.step else ops.run(options)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32


def _time_data(options: argparse.Namespace) -> int:
    from ..benchmarks import data, environment
    from ..training import recipes
    from .samples import training_set

    if options.workers < 0 or len(options.batch or [0]) > 1:
        raise ValueError(f"--workers, --batch: expected one number >= 0, got {options.workers} and {options.batch}")
    recipe = recipes.recipe(options.method, options.recipe, batch_size=options.batch and options.batch[0])
    found = training_set(options, **recipe.reading)
    recipe.steps(len(found))
    return data.run(found, recipe, options, environment.header(options))
