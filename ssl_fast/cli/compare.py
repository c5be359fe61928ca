"""`ssl-fast compare`: figures of several evaluations on the samples that all of them have."""

import argparse
import json
from pathlib import Path

from .options import add_force, natural, positive, unique

HELP = "compare evaluations on the samples that all of them have"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "results",
        type=Path,
        nargs="+",
        metavar="RESULT",
        help="two or more folders of evaluate or quickstart, or per_sample.csv of such",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write all figures and the ids that fell away, as JSON"
    )
    parser.add_argument(
        "--resamples",
        type=positive(int),
        default=10_000,
        metavar="N",
        help="draws of the bootstrap behind the intervals (default: 10000)",
    )
    parser.add_argument("--seed", type=natural, default=0, metavar="N", help="of these draws (default: 0)")
    add_force(parser, "--out")


def run(args: argparse.Namespace) -> int:
    from ..evaluation import comparison
    from ..files import claimed, replace_file

    if len(args.results) < 2:
        raise ValueError(f"RESULT: expected two or more, got {args.results[0]}")
    results = {str(path): comparison.read(path) for path in unique("RESULT", args.results)}
    compared = comparison.compare(results, resamples=args.resamples, seed=args.seed)
    if args.out is not None:
        inputs = [path / comparison.FILE if path.is_dir() else path for path in args.results]
        with claimed("--out", [args.out], inputs=inputs, force=args.force):
            sets = {
                name: one
                | {
                    "differences": {
                        title: {k: d._asdict() for k, d in by.items()} for title, by in one["differences"].items()
                    }
                }
                for name, one in compared.items()
            }
            about = {"results": list(results), "resamples": args.resamples, "seed": args.seed, "sets": sets}
            replace_file(args.out, json.dumps(about, indent=1, allow_nan=False) + "\n")
    print("\n\n".join(_lines(name, one) for name, one in compared.items()))
    left = sorted({name for one in results.values() for name in one} - set(compared))
    if left:
        print(f"note: not all results have the set {', '.join(left)}")
    print("note: retrieval, and figures by a threshold of the test set itself, are of all samples of a result alone")
    return 0


def _lines(name: str, one: dict) -> str:
    """A table of a set: figures in lines, results in columns, with the interval of the difference to the first."""
    letters = {title: f"[{number}]" for number, title in enumerate(one["figures"], 1)}
    first, *others = letters
    lines = [f"{name}: {one['n']:,} samples of {one['images']:,} images that all results have"]
    for title, letter in letters.items():
        away = len(one["fell_away"][title])
        lines.append(f"  {letter} {title}" + (f", without {away:,} more samples" if away else ""))
    figures = [figure for figure in one["figures"][first] if all(figure in one["figures"][title] for title in others)]
    width = max(map(len, figures))
    lines.append(
        f"{'':<{width}}  {letters[first]:>6}"
        + "".join(f"  {letters[title]:>6}  {'difference':<25}" for title in others)
    )
    for figure in figures:
        cells = f"{figure:<{width}}  {one['figures'][first][figure]:6.3f}"
        for title in others:
            value, low, high = one["differences"][title][figure]
            cells += f"  {one['figures'][title][figure]:6.3f}  {value:+.3f} [{low:+.3f}, {high:+.3f}]" + (
                " *" if low > 0 or high < 0 else "  "
            )
        lines.append(cells.rstrip())
    lines.append("difference to [1], with its 95 % interval of images drawn again; * where that is without 0")
    return "\n".join(lines)
