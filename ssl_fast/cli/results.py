"""Files of results: what `evaluate`, `train` and `quickstart` write and print of an evaluation."""

import typing
from collections.abc import Sequence
from pathlib import Path

from ..stages import Stages, listed

if typing.TYPE_CHECKING:
    from ..data.scenes.dataset import Scenes
    from ..training.loop import Run

FILES = ("metrics.json", "per_sample.csv", "per_time.csv", "report.html")


def write_results(
    model,
    tests: dict,
    validation,
    out: Path,
    about: dict,
    history: list,
    *,
    quiet: bool,
    notes: Sequence[str] = (),
    stages: Stages | None = None,
    sequence: "Scenes | None" = None,
    **options,
) -> int:
    """Evaluate, and write metrics.json, per_sample.csv and report.html; options as in `evaluation.evaluate`.

    sequence: scenes whose sounds change, on which the model, a localizer, is evaluated over time; adds per_time.csv.
    stages: of the command so far; those here are added to them.
    """
    from ..evaluation import ceilings, evaluate, over_time, overlays, report
    from ..evaluation.results import shortened
    from ..reproducibility import fingerprint

    for note in notes:
        print(note)
    stages = stages or Stages()
    with stages("evaluation"):
        results = evaluate(model, tests, validation=validation, progress=not quiet, **options)
        results["notes"] += notes
        results.update(about, data={name: fingerprint(one) for name, one in tests.items()})
        if options.get("published"):
            results["ceilings"] = {
                name: {
                    rule: row._asdict()
                    for rule, row in ceilings.ceilings(one.ground_truth(i) for i in range(len(one))).items()
                }
                for name, one in tests.items()
            }
        if sequence is None:
            (out / "per_time.csv").unlink(missing_ok=True)  # of results that these replace
        else:
            results["over_time"], rows = over_time.evaluate(model, sequence, validation, progress=not quiet)
            over_time.write_csv(out / "per_time.csv", rows)
    results["seconds"] = dict(stages.seconds)
    results.write_json(out / "metrics.json")
    results.write_csv(out / "per_sample.csv")
    main = results["interactive_on"]
    drawn = {"draw": options["draw"]} if "draw" in options else {}
    with stages("report"):
        shown = overlays.collect(model, tests[main], results, main, **drawn)
        report.write_report(out / "report.html", results, overlays=shown, history=history, config=about)
    print(summary(results))
    for note in results["notes"]:
        if note not in notes:  # those are printed
            print(f"note: {note}")
    print(f"time: {listed(stages.seconds)}")
    if (note := shortened(results)) is not None:
        print(f"*** {note} ***")
    print(f"report: {(out / 'report.html').resolve()}")
    return 0


def summary(results) -> str:
    """The figures that matter most, as text: of the protocols that were asked for, of the default one (all sets, the
    interactive one with its baselines), retrieval, false alarms."""
    from ..evaluation.results import samples_of
    from ..evaluation.thresholds import described

    lines = []
    for name, one in results["sets"].items():
        if "n_silent" in one:
            lines.append(
                f"{name}: {one['n']} samples, {one['n_silent']} of them silent, where every rule that always predicts "
                "pixels is wrong"
            )
        for protocol, computed in results["protocols"][name].items():
            lines += _protocol(f"{name}, protocol {protocol}, {computed['model']['n']} samples", computed)
    columns = {
        "ciou_adaptive": "cIoU adaptive",
        "auc_adaptive": "AUC adaptive",
        "ciou_top50": "cIoU top50",
        "iiou_adaptive": "IIoU adaptive",
        "interactive_pointing": "interactive pointing",
    }
    main, model = results["interactive_on"], results.get("method") or "model"
    order = sorted(results["sets"], key=lambda one: one == main)  # the interactive set last, its baselines below it
    of = {one: f", {samples_of(row)}" if row["samples"]["missing"] else "" for one, row in results["sets"].items()}
    rows = {f"{one}{of[one]}: {model}": results["sets"][one]["model"] for one in order}
    rows |= {f"{main}: {baseline}": row for baseline, row in results["sets"][main]["baselines"].items()}
    title = "protocol default"
    width = max(map(len, (title, *rows)))
    lines.append(f"{title:<{width}}" + "".join(f"  {title}" for title in columns.values()))
    for title, row in rows.items():
        cells = (f"{row[key]:>{len(head)}.3f}" for key, head in columns.items())
        lines.append(f"{title:<{width}}  " + "  ".join(cells))
    for name, one in results["sets"].items():
        lines += _original(name, one) if "original" in one else []
    retrieval = results["retrieval"]
    hit = "class" if "class" in retrieval else "instance"
    for way, title in (("a2i", "sound to image"), ("i2a", "image to sound")) if retrieval else ():
        rates = ", ".join(f"R@{k[1:]} {rate:.3f}" for k, rate in retrieval[hit][way].items())
        lines.append(f"retrieval on {retrieval['set']}, by {hit}: {title} {rates}")
    chosen = results["universal_threshold"]
    by_set = chosen["by_set"].get(main if chosen["chosen_on"] == "test" else chosen["chosen_on"])
    if by_set:
        name = "the test set's own threshold" if chosen["chosen_on"] == "test" else "universal threshold"
        lines.append(f"{name} of {main}: {by_set['model']['value']:.4g}, {described(chosen, main)}")
    alarms = {key: rate for key, rate in results["sets"][main]["model"].items() if key.startswith("pia_")}
    if alarms:
        rates = ", ".join(f"{key} {rate:.3f}" for key, rate in alarms.items())
        lines.append(f"false alarms on {main}, share of the image above that threshold: {rates}")
    separation = {key: results[key] for key in results if key.startswith(("auroc_", "max_difference_"))}
    if separation:
        rates = ", ".join(f"{key} {rate:.3f}" for key, rate in separation.items())
        lines.append(f"maximum of the map on {main}, positive against negative sounds: {rates}")
    if "over_time" in results:
        lines += _over_time(results["over_time"])
    return "\n".join(lines)


def _original(name: str, one: dict) -> list[str]:
    """Lines of a set at the size of its frames: of each predictor the figures, and their difference to the squares'."""
    from ..evaluation.original import COMPARED, described

    found = one["original"]
    rows = {"model": found["model"], **found["baselines"]}
    width = max(map(len, (name, *rows)))
    lines = [described(name, one), f"{name:<{width}}" + "".join(f"  {title:<17}" for title in COMPARED.values())]
    for row, figures in rows.items():
        cells = (f"{figures[key]:.3f} ({found['difference'][row][key]:+.3f})" for key in COMPARED)
        lines.append(f"{row:<{width}}" + "".join(f"  {cell:<17}" for cell in cells))
    return [line.rstrip() for line in lines]


def _over_time(found: dict) -> list[str]:
    title = f"over time, {found['n']} images"
    names = {
        "iiou_adaptive": "IIoU adaptive",
        "ciou_adaptive": "cIoU adaptive",
        "pointing": "pointing",
        "sound_localized": "sound localized",
        "silence_localized": "silence localized",
        "far_silence_localized": "far from sounds",
    }
    lines = [title + "".join(f"  {name}" for name in names.values())]
    for way, figures in found["figures"].items():
        cells = (f"{figures[key]:>{len(name)}.3f}" for key, name in names.items() if key in figures)
        lines.append(f"{way:<{len(title)}}  " + "  ".join(cells))
    return lines


def _protocol(title: str, computed: dict) -> list[str]:
    """Lines of a published protocol: a figure in each, under its name in metrics.json, for each predictor. Not those on
    subsets of the samples."""
    columns = {
        predictor if row == "model" and predictor != "audio_visual" else row: _figures(figures)
        for row, one in computed.items()
        for predictor, figures in one["figures"].items()
    }
    names = list(columns["model"])
    width = max(map(len, (title, *names)))
    lines = [f"{title:<{width}}" + "".join(f"  {head:>8}" for head in columns)]
    for name in names:
        cells = (
            f"{_number(figures[name]) if name in figures else '':>{max(8, len(head))}}"
            for head, figures in columns.items()
        )
        lines.append(f"{name:<{width}}  " + "  ".join(cells).rstrip())
    return lines


def _figures(families: dict) -> dict:
    """{"FIGURE" or "RULE FIGURE": number} of the families of figures of one predictor."""
    out = {}
    for family in families.values():
        for key, value in family.items():
            if key == "counts":
                continue
            if isinstance(value, dict):
                out |= {f"{key} {name}": one for name, one in value.items() if not isinstance(one, dict)}
            else:
                out[key] = value
    return out


def _number(value: float) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def about_weights(checkpoint: Path, method: str, seed: int | None, recipe: dict) -> dict:
    """Fields of metrics.json on a checkpoint: method, seed, file and its SHA-256, recipe, torch's threads."""
    import torch

    from ..models.storage import digest

    return {
        "method": method,
        "seed": seed,
        "weights": str(checkpoint),
        "weights_sha256": digest(checkpoint),
        "recipe": recipe,
        "threads": torch.get_num_threads(),
    }


def about_run(run: "Run") -> dict:
    """Fields of metrics.json on a training run."""
    return {
        "train_seconds": run.seconds,
        "steps": run.steps,
        "planned_steps": run.planned_steps,
        "shortened": run.shortened,
        "final_loss": run.final_loss,
        "chance": run.chance,
        "precision": run.precision,
        "step_seconds": run.stages,
    }
