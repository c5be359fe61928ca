"""What published on real data shows on the embedded scenes: methods and ablations, trained from scratch over seeds.

    python examples/ablations.py --out runs/ablations                # 3 seeds of every row, two at a time: some hours
    python examples/ablations.py --out runs/ablations --only margin  # the rows whose name has "margin" in it
    python examples/ablations.py --out runs/ablations --table        # the table of what is there, in Markdown

Every run is a quickstart recipe with few changes, by default at a third of its length; it leaves NAME-seedN.json with
the figures on single objects and on duo, the interactive set. Runs that are there are not trained again, and what was
interrupted goes on.
"""

import argparse
import concurrent.futures
import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

FIGURES = {
    "single": "single: success rate",
    "duo": "duo: success rate",
    "iiou": "duo: IIoU",
    "pointing": "duo: pointing",
}
KINDS = {"silence": "silence", "noise": "noise", "offscreen": "off-screen"}
UNDER_NEGATIVES = {  # of duo, at the universal threshold of val
    **{f"pia_{kind}": f"pIA, {title}" for kind, title in KINDS.items()},
    "f_loc": "F_LOC",
    "f_auc": "F_AUC",
    **{f"auroc_{kind}": f"AUROC, {title}" for kind, title in KINDS.items()},
    "iiou": "IIoU",
}
NEGATIVES = {"silence": 4, "noise": 4, "offscreen": 8}


@dataclass(frozen=True)
class Row:
    """A recipe for `method` with `loss` options and other `changes` replaced; `faulty` is the share of the training
    images whose sound is that of an object which is not there. `neighbors`: the row whose localizer finds the nearest
    neighbours that conceptual views are drawn from."""

    method: str
    loss: dict = field(default_factory=dict)
    changes: dict = field(default_factory=dict)
    faulty: float = 0.0
    neighbors: str | None = None


METHODS = ("ssl_align", "margin_nce", "ez_vsl", "lvs", "fnac", "ssl_tie", "dense_av")
ROWS = {
    "ssl_align": Row("ssl_align"),
    "margin_nce": Row("margin_nce"),
    "ez_vsl": Row("ez_vsl"),
    "lvs": Row("lvs"),
    "slavc, sum over cells as released": Row("slavc"),
    "slavc, maximum as in the paper": Row("slavc", loss={"reduce": "max"}),
    "fnac": Row("fnac", changes={"nce_epochs": 1.8}),
    "ssl_tie": Row("ssl_tie"),
    "sspl": Row("sspl"),
    "dense_av": Row("dense_av"),
    "hard_positives, of the sample itself": Row("hard_positives"),
    "hard_positives by neighbours": Row(
        "hard_positives", changes={"views": ("augmented", "conceptual")}, neighbors="ssl_align"
    ),
    "ssl_align without s_A": Row("ssl_align", loss={"alignment": False}),
    "ssl_align, s_L by the mean": Row("ssl_align", loss={"pooling": {"name": "mean"}}),
    "ssl_align, s_L by the mean, without s_A": Row("ssl_align", loss={"pooling": {"name": "mean"}, "alignment": False}),
    "ssl_align, two views": Row("ssl_align", changes={"views": ("original", "augmented")}),
    "ssl_align, three views, conceptual by neighbours": Row(
        "ssl_align", changes={"views": ("original", "augmented", "conceptual")}, neighbors="ssl_align"
    ),
} | {
    f"margin_nce, margin {margin:+.1f}, {faulty:.0%} faulty": Row("margin_nce", loss={"margin": margin}, faulty=faulty)
    for faulty in (0.0, 0.25)
    for margin in (0.2, 0.0, -0.2, -0.4)
}
ROWS |= {
    f"{name}, with negatives": replace(row, changes=row.changes | {"negatives": NEGATIVES})
    for name, row in ROWS.items()
    if name in (*METHODS, "slavc, sum over cells as released", "hard_positives, of the sample itself")
}


def faulty_pairs(sample_set, share: float, seed: int):
    """The set with `share` of its spectrograms replaced by those of samples of a category that is not in sight."""
    import numpy as np

    draw = np.random.default_rng((seed, 17))
    sounds = np.arange(len(sample_set))
    for i in draw.permutation(len(sounds))[: round(share * len(sounds))]:
        other = i
        while sample_set.categories[other] in sample_set.visible[i]:
            other = int(draw.integers(len(sounds)))
        sounds[i] = other
    sample_set.spectrograms = sample_set.spectrograms[sounds]
    return sample_set


def mined(sample_set, run: Path, k: int = 50):
    """The neighbours of all samples, of images and of sounds, by the features of the localizer trained in `run`."""
    import torch

    from ssl_fast.data.neighbors import Neighbors, mine
    from ssl_fast.models import checkpoints

    if not (run / "checkpoint.pt").exists():
        raise SystemExit(f"{run}: expected a trained run, whose features find the neighbours; train that row first")
    localizer = checkpoints.load(run).localizer
    visual, audio = [], []
    with torch.inference_mode():
        for part in torch.arange(len(sample_set)).split(256):
            samples = [sample_set[int(i)] for i in part]
            images, sounds = (torch.stack([sample[key] for sample in samples]) for key in ("image", "spectrogram"))
            visual.append(localizer.visual_features(localizer.normalize_images(images))["visual"].mean((2, 3)))
            audio.append(localizer.audio_features(localizer.normalize_spectrograms(sounds))["audio"])
    files = [run / "visual.npy", run / "audio.npy"]
    for features, file in zip((visual, audio), files):
        mine(torch.cat(features).numpy(), sample_set.ids, k, file)
    return tuple(Neighbors(file, sample_set) for file in files)


def train(name: str, seed: int, epochs: int, out: Path) -> None:
    """One run, on one thread."""
    import torch

    from ssl_fast.data.scenes import dataset as scenes
    from ssl_fast.evaluation import evaluate
    from ssl_fast.files import replace_file
    from ssl_fast.training import loop as training
    from ssl_fast.training import recipes

    torch.set_num_threads(1)
    row = ROWS[name]
    recipe = recipes.recipe(row.method, epochs=epochs, vertical_flip=True, loss=row.loss, **row.changes)
    training_set = faulty_pairs(scenes.load("train", progress=False), row.faulty, seed)
    neighbors = None if row.neighbors is None else mined(training_set, _file(out, row.neighbors, seed).with_suffix(""))
    file = _file(out, name, seed)
    run = training.train(
        training_set, recipe, seed=seed, out=file.with_suffix(""), resume=True, neighbors=neighbors, progress=False
    )
    tests = {split: scenes.load(split, progress=False) for split in ("single", "duo")}
    validation = scenes.load("val", progress=False)
    results = evaluate(run.localizer, tests, validation=validation, published=["vssl_eval"], progress=False)
    single, duo = (results["sets"][split]["model"] for split in tests)
    of_paper = results["protocols"]["duo"]["vssl_eval"]["model"]["figures"]["audio_visual"]["false_alarms"]
    figures = {
        "single": single["ciou_adaptive"],
        "duo": duo["ciou_adaptive"],
        "iiou": duo["iiou_adaptive"],
        "pointing": duo["interactive_pointing"],
    }
    figures |= {key: (duo | of_paper)[key] for key in UNDER_NEGATIVES if key not in figures}
    record = {
        "name": name,
        "seed": seed,
        "epochs": epochs,
        "steps": run.steps,
        "seconds": run.seconds,
        "loss": run.final_loss,
        "chance": run.chance,
        "versions": results["versions"],
        "figures": figures,
    }
    replace_file(file, json.dumps(record, indent=1))


def _file(out: Path, name: str, seed: int) -> Path:
    return out / f"{''.join(c if c.isalnum() or c in '+-.' else '_' for c in name)}-seed{seed}.json"


def table(out: Path, names: list[str], seeds: list[int], titles: dict[str, str]) -> str:
    """Markdown: of each row the mean over seeds of the figures in `titles`, and from the lowest to the highest."""
    lines = ["| | " + " | ".join(titles.values()) + " | loss / chance |", "| --- |" + " ---: |" * (len(titles) + 1)]
    for name in names:
        files = [_file(out, name, seed) for seed in seeds]
        runs = [json.loads(file.read_text()) for file in files if file.exists()]
        runs = [run for run in runs if run["figures"].keys() >= titles.keys()]
        if not runs:
            continue
        cells = []
        for key in titles:
            values = [run["figures"][key] for run in runs]
            cells.append(f"{statistics.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})")
        cells.append(f"{statistics.mean(run['loss'] / run['chance'] for run in runs):.2f}")
        count = "" if len(runs) == len(seeds) else f", {len(runs)} of {len(seeds)} seeds"
        lines.append(f"| {name}{count} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seeds", default="0,1,2", metavar="N,N")
    parser.add_argument("--epochs", type=int, default=6, metavar="N", help="of 4,000 scenes (default: 6)")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="runs at a time (default: 2)")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose name has it")
    parser.add_argument("--table", action="store_true", help="train nothing")
    parser.add_argument("--one", nargs=2, metavar=("NAME", "SEED"), help=argparse.SUPPRESS)  # what --jobs starts
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.one:
        train(args.one[0], int(args.one[1]), args.epochs, args.out)
        return 0
    seeds, names = [int(seed) for seed in args.seeds.split(",")], [name for name in ROWS if args.only in name]
    if not names:
        parser.error(f"--only {args.only}: expected a part of one of these: {'; '.join(ROWS)}")
    if not args.table:
        from ssl_fast.data.scenes import dataset as scenes
        from ssl_fast.progress import progress_bar

        for split in ("train", "val", "single", "duo"):
            scenes.load(split)  # made once, before several runs ask for them
        missing = [(name, seed) for seed in seeds for name in names if not _file(args.out, name, seed).exists()]
        command = [sys.executable, __file__, "--out", str(args.out), "--epochs", str(args.epochs), "--one"]
        with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
            runs = [pool.submit(subprocess.run, [*command, name, str(seed)], check=True) for name, seed in missing]
            for done in progress_bar(concurrent.futures.as_completed(runs), total=len(runs), desc="runs", unit="run"):
                done.result()
    print(table(args.out, names, seeds, FIGURES), table(args.out, names, seeds, UNDER_NEGATIVES), sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
