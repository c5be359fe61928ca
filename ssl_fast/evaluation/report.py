"""The page of an evaluation, one self-contained HTML file: no script, no outside address; for light, dark and narrow
screens (report.css)."""

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from ..files import replace_file
from ..terminal import printable
from . import original, pictures
from .overlays import Row, Tile
from .results import samples_of, shortened
from .thresholds import OWN, described

TITLES = {
    "random": "random map",
    "objectness": "image-only object prior",
    "prior": "ImageNet object prior",
    "mixed": "model mixed with it",
}
# Columns of the comparison, as far as a table has them: those that are always open, those behind a fold.
MAIN = {
    "ciou_adaptive": "cIoU adaptive",
    "auc_adaptive": "AUC adaptive",
    "mean_iou_adaptive": "mean IoU adaptive",
    "iiou_adaptive": "IIoU adaptive",
    "iauc_adaptive": "IAUC adaptive",
    "pointing": "pointing",
    "interactive_pointing": "interactive pointing",
}
MORE = {
    "ciou_top50": "cIoU top 50 %",
    "auc_top50": "AUC top 50 %",
    "iiou_top50": "IIoU top 50 %",
    "iauc_top50": "IAUC top 50 %",
    "ciou_universal": "cIoU universal",
    "mean_iou_universal": "mean IoU universal",
    "ciou_test_threshold": "cIoU thr. of test set",
    "mean_iou_test_threshold": "mean IoU thr. of test set",
    "ciou_adaptive_mask": "cIoU adaptive, masks",
    "iiou_adaptive_mask": "IIoU adaptive, masks",
}
PER_IMAGE = ("iiou_", "iauc_", "interactive_")
COMPARING = ("two_sounds", "negatives")  # sections that compare sounds: one row of pictures for each image
SECTIONS = {
    "two_sounds": (
        "The same image under its own sounds",
        "A localizer that hears moves the heat from one object to the other; one that has only learnt what "
        "objects look like shows the same map twice. Images drawn at random.",
    ),
    "negatives": (
        "The same image under sounds of nothing in it",
        "All maps of a row share one colour scale: under silence, noise and the sound of something that is "
        "not in the image, nothing should light up. Samples drawn at random.",
    ),
    "best": ("Best samples", "Highest IoU with the adaptive threshold."),
    "worst": ("Worst samples", "Lowest IoU with the adaptive threshold."),
    "random": ("Random samples", "Drawn at random."),
}
READING = """<p>The <b>adaptive</b> rule predicts as many pixels as the ground truth has, <b>top 50 %</b>
half of the image, and <b>universal</b> all above one threshold; the ground truth is the box of the sounding
object. <b>cIoU</b> is the share of samples with an IoU of at least .5, <b>AUC</b> that share averaged over
thresholds from 0 to 1. On images of one object a predictor that never hears can do very well. What tells
hearing from guessing is the <b>interactive</b> score (<b>IIoU</b>, <b>IAUC</b>): an image counts only if
each of its sounds is localised. <b>Pointing</b> asks whether the maximum of the map lies in the object.
<b>pIA</b> is the share of the image above the universal threshold while nothing visible sounds. All figures
are fractions between 0 and 1.</p>"""
LEGEND = """<div class="scale" role="img" aria-label="Colour scale from dark blue (low) to yellow
(high)"></div> <p><small>Colours run from the minimum to the maximum of a map, or of a row that shares its
scale. Green outline: ground truth of the sound. Ring: maximum of the map.</small></p>"""


def number(value: float) -> str:
    """A rate as the page prints it."""
    return f"{value:.3f}"


def name_of(key: str) -> str:
    return TITLES.get(key, key.replace("_", " "))


def _text(value) -> str:
    return escape(printable(value, keep="\n"), quote=True)


def _picture(light: str, dark: str, alt: str, caption: str = "", full: bool = False) -> str:
    caption = f"<figcaption>{_text(caption)}</figcaption>" if caption else ""
    return (
        f'<figure class="chart{" full" if full else ""}"><picture>'
        f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{_text(alt)}"></picture>{caption}</figure>'
    )


def _section(title: str, *parts: str) -> str:
    return f"<section>\n<h2>{_text(title)}</h2>\n" + "\n".join(part for part in parts if part) + "\n</section>"


def _table(caption: str, head: Sequence[str], rows: Iterable[tuple[str, Iterable[str]]]) -> str:
    """rows: (row title, cells as HTML); the model's row is marked."""
    body = []
    for title, cells in rows:
        mark = ' class="model"' if title == "model" else ""
        cells = "".join(f"<td>{cell}</td>" for cell in cells)
        body.append(f'<tr{mark}><th scope="row">{_text(title)}</th>{cells}</tr>')
    titles = "".join(f'<th scope="col">{_text(title)}</th>' for title in head)
    return (
        f'<div class="wide" tabindex="0"><table><caption>{_text(caption)}</caption>\n'
        f"<thead><tr>{titles}</tr></thead>\n<tbody>\n" + "\n".join(body) + "\n</tbody></table></div>"
    )


# ------------------------------------------------------------------------------------------------ figures


def _card(title: str, value: float, note: str, baseline: tuple[float, str] | None = None) -> str:
    rival = ""
    if baseline is not None:
        who = f" ({name_of(baseline[1])})" if baseline[0] else ""
        rival = f'<dd class="baseline"><small>best without hearing: {number(baseline[0])}{_text(who)}</small></dd>'
    return (
        f'<div class="card"><dt>{_text(title)}</dt><dd class="value">{number(value)}</dd>{rival}'
        f"<dd><small>{_text(note)}</small></dd></div>"
    )


def _cards(results: Mapping) -> str:
    """Headline figures; beside each that of the best image-only baseline."""

    def measured(title, name, key, note, total):
        one = results["sets"][name]
        best = max(((row[key], baseline) for baseline, row in one["baselines"].items()), default=None)
        return _card(title, one["model"][key], f"{note}: {one['model']['counts'][key]} of {one[total]}", best)

    main, retrieval = results["interactive_on"], results["retrieval"]
    success = "samples with IoU ≥ .5, adaptive threshold"
    cards = [measured(f"Success rate on {name}", name, "ciou_adaptive", success, "n") for name in results["sets"]]
    if results["sets"][main]["interactive_images"]:
        cards += [
            measured(f"{title} on {main}", main, key, note, "images")
            for title, key, note in (
                ("Interactive IoU", "iiou_adaptive", "images whose sounds are all localised"),
                ("Interactive pointing", "interactive_pointing", "images where each sound's maximum is in its object"),
            )
        ]
    if retrieval:
        hit = "class" if "class" in retrieval else "instance"
        among = f"retrieval by {hit} among {retrieval['n']} of {retrieval['set']}"
        cards += [
            _card(f"{title} R@1", retrieval[hit][way]["r1"], among)
            for way, title in (("a2i", "Sound to image"), ("i2a", "Image to sound"))
        ]
    alarms = [rate for key, rate in results["sets"][main]["model"].items() if key.startswith("pia_")]
    if alarms:
        own = results["universal_threshold"]["chosen_on"] == "test"
        at = "the test set's own threshold" if own else "the universal threshold"
        lit = f"share of the image above {at} under the worst kind of negative sound; 0 is right"
        cards.append(_card(f"False alarms on {main}", max(alarms), lit))
    return f'<dl class="cards">{"".join(cards)}</dl>'


def _comparison(name: str, one: Mapping) -> str:
    def cell(row, key):
        if key not in row:  # no universal threshold of this predictor
            return ""
        total = "images" if key.startswith(PER_IMAGE) else "n"
        total = row["counts"].get(f"{total}_{key.partition('_')[2]}", one[total])
        return number(row[key]) + (f"<small>{row['counts'][key]} / {total}</small>" if key in row["counts"] else "")

    def part(titles, caption):
        columns = [key for key in titles if key in one["model"]]
        if not one["interactive_images"]:
            columns = [key for key in columns if not key.startswith(PER_IMAGE)]
        rows = {"model": one["model"], **one["baselines"]}.items()
        return _table(
            caption,
            ["", *(titles[key] for key in columns)],
            [(name_of(row), [cell(values, key) for key in columns]) for row, values in rows],
        )

    several = f", {one['interactive_images']} of them with several sounds" if one["interactive_images"] else ""
    silent = f", {one['n_silent']} of them silent" if "n_silent" in one else ""
    title = f"{name}: {samples_of(one)}{silent}, {one['images']} images{several}"
    return (
        part(MAIN, title)
        + f"<details><summary>{_text(name)}: other threshold rules, masks</summary>"
        + part(MORE, f"{name}, continued")
        + "</details>"
    )


def _original(results: Mapping) -> str:
    """Of each set that has figures at the size of its frames these, those of the squares, and the difference."""
    parts = []
    for name, one in results["sets"].items():
        if "original" not in one:
            continue
        found, square = one["original"], f"{one['size'][1]} x {one['size'][0]}"
        keys = [key for key in original.COMPARED if key in found["model"]]
        head = [
            f"{original.COMPARED[key]}{part}" for key in keys for part in (f", {square}", ", own size", ", difference")
        ]
        rows = []
        for row in ("model", *found["baselines"]):
            squares, own = (part["model"] if row == "model" else part["baselines"][row] for part in (one, found))
            cells = [
                cell
                for key in keys
                for cell in (number(squares[key]), number(own[key]), f"{found['difference'][row][key]:+.3f}")
            ]
            rows.append((name_of(row), cells))
        parts.append(_table(original.described(name, one), ["", *head], rows))
    text = (
        "<p>The same maps of the same squares, carried back to each frame, and compared with ground truth in its own "
        "pixels. All other figures of this page are of squares.</p>"
    )
    return _section("At the frames' own size", text, *parts) if parts else ""


def _retrieval(retrieval: Mapping) -> str:
    rows = [
        (f"{title}, by {hit}", [number(rate) for rate in retrieval[hit][way].values()])
        for hit in ("class", "instance")
        if hit in retrieval
        for way, title in (("a2i", "sound to image"), ("i2a", "image to sound"))
    ]
    head = ["", *(f"R@{key.removeprefix('r')}" for key in retrieval["instance"]["a2i"])]
    return _section(
        "Retrieval",
        _table(f"{retrieval['set']}: {retrieval['n']} samples", head, rows),
        "<p><small>By class: the category of the sound is visible in the image. By instance: it is the "
        "image's own sound.</small></p>",
    )


def _leaves(tree: Mapping, *path: str) -> Iterable[tuple[str, float]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, *path, key) if key != "counts" else ()
        else:
            yield " ".join((*path, key)), value


def _pair(key: str) -> str:
    """overlap_noise -> own sound, noise; overlap_silence_noise -> silence, noise"""
    kinds = key.removeprefix("overlap_").removesuffix(f"_{OWN}").split("_")
    return ", ".join(map(name_of_sound, kinds if len(kinds) == 2 else ["positive", *kinds]))


def _protocols(results: Mapping) -> str:
    """Every figure of every protocol that was run beside the default one, a table each."""
    parts = []
    for name, rows in results.get("ceilings", {}).items():
        parts.append(
            _table(
                f"{name}: what half of the pixels (with >: one less) can reach at most, and a square "
                "that looks at nothing",
                ["", "success rate", "AUC"],
                [(row, [number(one["success"]), number(one["auc"])]) for row, one in rows.items()],
            )
        )
    for name, by_protocol in results.get("protocols", {}).items():
        for protocol, computed in by_protocol.items():
            columns = {row: dict(_leaves(one["figures"]["audio_visual"])) for row, one in computed.items()}
            columns |= {
                row: dict(_leaves(figures)) for row, figures in computed["model"]["figures"].items() if row in TITLES
            }
            one = results["sets"][name]  # a protocol counts the samples of all seeds
            draws = "" if computed["model"]["n"] == one["n"] else f", {computed['model']['n']} with all draws"
            table = _table(
                f"{name}: {samples_of(one)}{draws}",
                ["", *map(name_of, columns)],
                [
                    (name_of(key), [f"{values[key]:.4g}" if key in values else "" for values in columns.values()])
                    for key in columns["model"]
                ],
            )
            alarms = computed["model"]["figures"]["audio_visual"].get("false_alarms", {})
            overlaps = {
                _pair(key): value
                for key, value in alarms.items()
                if key.startswith("overlap_") and not key.startswith("overlap_negatives")
            }
            if overlaps:
                parts.append(
                    _picture(
                        *pictures.overlap_bars(overlaps),
                        f"Bars of the mean IoU of the model's predictions "
                        f"under two sounds on {name}: "
                        + "; ".join(f"{pair} {value:.3f}" for pair, value in overlaps.items()),
                        f"{name}, {protocol}: agreement of the model's predictions under two sounds.",
                    )
                )
            parts.append(f"<details><summary>{_text(name)}: protocol {_text(protocol)}</summary>{table}</details>")
    if not parts:
        return ""
    return _section(
        "Published protocols",
        "<p>The same maps as other evaluators would score them. Their figures do not compare "
        "with each other: up-sampling, threshold, comparison and ground truth differ, and each is stored with the "
        "results.</p>",
        *parts,
    )


def _false_positives(results: Mapping) -> str:
    chosen = results["universal_threshold"]
    parts = []
    for name, one in results["sets"].items():
        kinds = {
            key: key.removeprefix("pia_").removesuffix(f"_{OWN}") for key in one["model"] if key.startswith("pia_")
        }
        if not kinds:
            continue
        own = chosen["chosen_on"] == "test"
        thresholds = chosen["by_set"][name if own else chosen["chosen_on"]]
        rows = [
            (name_of(row), [number(values[key]) for key in kinds] + [number(thresholds[row]["value"])])
            for row, values in {"model": one["model"], **one["baselines"]}.items()
            if row in thresholds
        ]
        threshold = "the test set's own threshold" if own else "the universal threshold"
        parts.append(
            _table(
                f"{name}: share of the image above {threshold} (pIA), {described(chosen, name)}",
                ["", *(name_of_sound(kind) for kind in kinds.values()), "threshold"],
                rows,
            )
        )
        measures = {key: key.split("_", 1) for key in one["model"] if key.startswith("auroc_")}
        measures |= {key: key.rsplit("_", 1) for key in one["model"] if key.startswith("max_difference_")}
        if measures:
            titles = {"auroc": "AUROC", "max_difference": "difference"}
            parts.append(
                _table(
                    f"{name}: does anything here sound? The maximum of the map, of sounds of something visible against "
                    "each kind: AUROC, and mean difference",
                    ["", *(f"{titles[measure]}, {name_of_sound(kind)}" for measure, kind in measures.values())],
                    [
                        (name_of(row), [number(values[key]) for key in measures])
                        for row, values in {"model": one["model"], **one["baselines"]}.items()
                    ],
                )
            )
        medians = "; ".join(f"{name_of_sound(kind)} median {five[2]:.3f}" for kind, five in one["map_maxima"].items())
        parts.append(
            _picture(
                *pictures.maxima_boxes(one["map_maxima"], thresholds["model"]["value"]),
                f"Box plots of the maximum of the map on {name}: {medians}",
                f"Maximum of the model's map on {name}: range and quartiles over the samples.",
            )
        )
    if not parts:
        return ""
    own = (
        "Here it was chosen on the test set's own negatives, for want of another: what depends on it is optimistic, "
        "and says so in its name. "
    )
    return _section(
        "Sounds of nothing visible",
        "<p>The threshold of a predictor is the highest third quartile of its map maxima over the kinds of negative "
        f"sound. {own if chosen['chosen_on'] == 'test' else ''}"
        "A predictor that never hears has the same map under every sound.</p>",
        *parts,
    )


def name_of_sound(kind: str) -> str:
    return pictures.SOUNDS.get(kind, kind)


# ------------------------------------------------------------------------------------------------ overlays


def heard(tile: Tile) -> str:
    if tile.category is None:
        return name_of_sound(tile.sound)
    return tile.category if tile.sound == "positive" else f"{name_of_sound(tile.sound)}: {tile.category}"


def _figure(tile: Tile, low: float, high: float) -> str:
    extent = f"min {tile.map.min():.2f}, max {tile.map.max():.2f}"
    sound, iou = heard(tile), "" if tile.iou is None else f", IoU {tile.iou:.2f}"
    alt = f"Heat map of {tile.sample} under the sound: {sound}; {extent}{iou}"
    player = ""
    if tile.waveform is not None:
        player = (
            f'<audio controls preload="none" aria-label="{_text(f"Sound: {sound}")}" '
            f'src="{pictures.wav(tile.waveform, tile.sample_rate)}"></audio>'
        )
    return (
        f'<figure><img src="{pictures.jpeg(pictures.overlay(tile, low, high))}" alt="{_text(alt)}">'
        f"<figcaption><b>{_text(sound)}</b>{iou}<br>{extent}</figcaption>{player}</figure>"
    )


def _row(row: Row, plain: bool) -> str:
    """The figures of a row, before them the image itself where `plain`."""
    first, extents = row.tiles[0], [(float(tile.map.min()), float(tile.map.max())) for tile in row.tiles]
    common = min(low for low, _ in extents), max(high for _, high in extents)
    out = [_figure(tile, *(common if row.common_scale else extent)) for tile, extent in zip(row.tiles, extents)]
    if plain:
        image = pictures.jpeg(pictures.enlarged(first.image))
        out.insert(
            0,
            f'<figure><img src="{image}" alt="{_text(f"Image {first.image_id}")}">'
            f"<figcaption>{_text(first.image_id)}</figcaption></figure>",
        )
    return "".join(out)


def _grid(figures: Sequence[str], columns: int) -> str:
    return f'<div class="row" style="--n:{columns}">{"".join(figures)}</div>'


def _overlays(overlays: Mapping[str, Sequence[Row]]) -> tuple[str, str]:
    """The sections that compare sounds, and those that show single samples."""
    unknown = [section for section in overlays if section not in SECTIONS]
    if unknown:
        raise ValueError(f"overlays: expected sections among {list(SECTIONS)}, got {unknown}")
    out = {}
    for section in SECTIONS:
        rows = overlays.get(section)
        if not rows:
            continue
        if section in COMPARING:
            figures = "".join(_grid([_row(row, True)], len(row.tiles) + 1) for row in rows)
            pairs = max(len(row.tiles) for row in rows) == 2
            figures = f'<div class="pairs">{figures}</div>' if pairs else figures
        else:
            figures = _grid([_row(row, False) for row in rows], len(rows))
        title, note = SECTIONS[section]
        out[section] = _section(title, f"<p>{note}</p>", "" if out else LEGEND, figures)
    singles = [part for section, part in out.items() if section not in COMPARING]
    return "\n".join(part for section, part in out.items() if section in COMPARING), "\n".join(singles)


# ------------------------------------------------------------------------------------------------ page


def _over_time(found: Mapping) -> str:
    heads = list(next(iter(found["figures"].values())))
    rows = [(way, [number(value) for value in figures.values()]) for way, figures in found["figures"].items()]
    text = (
        f"{found['n']} images in which one object sounds, then nothing, then the other; every {found['step']} s "
        f"counts, but for {found['margin']} s around a change. Of a localizer without audio tokens, <b>window</b> is "
        "the map of a part of the sound around each time, <b>clip</b> that of all of it. Universal threshold: "
        f"{found['threshold']:.4g}."
    )
    return _section("Sounds over time", f"<p>{text}</p>", _table("Over time", [name_of(head) for head in heads], rows))


def _training(history, chance: float | None) -> str:
    loss = pictures.history_columns(history).get("loss", [])
    alt = f"Training curves; loss from {loss[0]:.3f} to {loss[-1]:.3f}" if len(loss) else "Training curves"
    return _section("Training", _picture(*pictures.training_curves(history, chance), alt, full=True))


def _footer(results: Mapping, config: Mapping) -> str:
    notes = "".join(f"<li>{_text(note)}</li>" for note in results["notes"])
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    settings = {"config": config, "protocol": results["protocol"]}
    settings = json.dumps(settings, indent=1, default=str, ensure_ascii=False)
    left_out = f"<h2>Left out</h2><ul>{notes}</ul>" if notes else ""
    return (
        f"<footer>{left_out}<h2>Versions and settings</h2><p><small>{_text(versions)}</small></p>"
        f'<pre tabindex="0">{_text(settings)}</pre></footer>'
    )


def render(
    results: Mapping,
    *,
    overlays: Mapping[str, Sequence[Row]] | None = None,
    history=None,
    config: Mapping | None = None,
) -> str:
    """The page as text; arguments as in `write_report`."""
    config = dict(config or {})
    about = {key: config.get(key, results.get(key)) for key in ("method", "seed")}
    title = "Sound source localization"
    title += "" if about["method"] is None else f": {about['method']}"
    title += "" if about["seed"] is None else f", seed {about['seed']}"
    comparisons = [_comparison(name, one) for name, one in results["sets"].items()]
    sounds, singles = _overlays(overlays or {})
    note = shortened(results)
    banner = f'<p class="warning" role="alert">{_text(note)}</p>' if note else ""
    parts = [
        f"<header><h1>{_text(title)}</h1>{banner}</header>",
        _cards(results),
        _section("How to read the numbers", READING),
        sounds,
        _section("Model and predictors that never hear", *comparisons),
        _original(results),
        _false_positives(results),
        _protocols(results),
        _over_time(results["over_time"]) if "over_time" in results else "",
        _retrieval(results["retrieval"]) if results["retrieval"] else "",
        _training(history, config.get("chance")) if history else "",
        singles,
        _footer(results, config),
    ]
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    policy = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{_text(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<style>\n{style}</style>\n</head>\n<body>\n'
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )


def write_report(
    path,
    results: Mapping,
    *,
    overlays: Mapping[str, Sequence[Row]] | None = None,
    history=None,
    config: Mapping | None = None,
) -> None:
    """Write the page of an evaluation: headline figures, overlays, tables beside the image-only baselines, box plots,
    curves, settings.

    results: what `evaluate` gives, or the content of a metrics.json. overlays: what `overlays.collect` gives.
    history: the training log, a list of records or a mapping of lists with `step`, `loss`, `learning_rate`,
    `mean_weight` as far as there are. config: what the footer prints; `method`, `seed` also stand in the title,
    `chance` (loss of a collapsed net) in the loss curve. The file is written under another name and renamed. Raises
    ValueError for an unknown section of overlays.
    """
    replace_file(path, render(results, overlays=overlays, history=history, config=config))
