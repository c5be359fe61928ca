"""The report page: well-formed, self-contained, escaped, and with the figures of the results."""

import base64
import io
import json
import re
import wave
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from evaluation_fakes import SIDE, FakeLocalizer, FakeSet
from ssl_fast.evaluation import evaluate, overlays, pictures, report
from ssl_fast.evaluation.overlays import Row, Tile

DUO = [[(c % 4, 0, 0, 2, 2), ((c + 1) % 4, 2, 1, 2, 3)] for c in range(8)]
HOSTILE = ["<script>alert(1)</script>", "\"quoted\" & 'co'", "</figure><b>", "löwe"]
VOID = {"meta", "img", "br", "source"}
HISTORY = [
    {"step": i, "loss": 4.0 / (1 + i), "learning_rate": 1e-3, "mean_weight": 1 - i / 40, "device": "cpu"}
    for i in range(40)
]


class Page(HTMLParser):
    """Elements with their attributes and text; fails on unbalanced tags."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.text = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        element = {"tag": tag, "text": "", **dict(attributes)}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1]["tag"] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        if not (self.open and self.open[-1]["tag"] == "style"):
            self.text.append(data)
        for element in self.open:
            element["text"] += data

    def all(self, tag):
        return [element for element in self.elements if element["tag"] == tag]


@pytest.fixture(scope="module")
def job():
    sets = {
        "single": FakeSet([[(c % 4, 1, 1, 2, 2)] for c in range(6)], names=HOSTILE, masks=True),
        "duo": FakeSet(DUO, names=HOSTILE, masks=True),
    }
    localizer = FakeLocalizer(alarm=0.5)
    results = evaluate(localizer, sets, validation=FakeSet(DUO, prefix="val"), progress=False)
    return localizer, sets, results, overlays.collect(localizer, sets["duo"], results, "duo", pairs=3, negatives=2)


@pytest.fixture(scope="module")
def text(job):
    config = {"method": "ez_vsl", "seed": 3, "note": HOSTILE}
    return report.render(job[2], overlays=job[3], history=HISTORY, config=config)


def test_the_page_is_balanced_and_loads_nothing(text):
    page = Page(text)
    assert not re.search(r"(https?:)?//[a-z]", re.sub(r"data:[a-z/]+;base64,[A-Za-z0-9+/=]+", "", text))
    for element in page.elements:
        for attribute in ("src", "srcset", "href", "action", "poster"):
            assert element.get(attribute, "data:").startswith("data:")
    assert not page.all("script") and not page.all("link") and not page.all("iframe")
    policy = next(e["content"] for e in page.all("meta") if e.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert not any(attribute.startswith("on") for element in page.elements for attribute in element)


def test_the_page_is_accessible(text):
    page = Page(text)
    assert page.all("html")[0]["lang"] == "en" and "width=device-width" in text
    assert all(image["alt"] for image in page.all("img"))
    assert all(player["aria-label"] and "controls" in player for player in page.all("audio"))
    assert all("scope" in cell for cell in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table")) and len(page.all("h1")) == 1
    assert "prefers-color-scheme:dark" in text


def test_names_are_escaped_and_still_readable(text):
    page = Page(text)
    captions = " ".join(element["text"] for element in page.all("figcaption"))
    for name in HOSTILE:
        assert name in captions, name
    assert any(HOSTILE[0] in image["alt"] for image in page.all("img"))
    assert any(HOSTILE[1] in player["aria-label"] for player in page.all("audio"))
    assert page.all("h1")[0]["text"] == "Sound source localization: ez_vsl, seed 3"
    settings = json.loads(page.all("pre")[0]["text"])
    assert settings["config"]["note"] == HOSTILE and settings["protocol"]["name"] == "default"


def test_the_tables_hold_the_figures(job, text):
    results = job[2]
    rows = [(element["text"]) for element in Page(text).all("tr")]
    titles = {
        "model": "model",
        "whole_image": "whole image",
        "centre_box": "centre box",
        "random": "random map",
        "objectness": "image-only object prior",
    }
    for name, one in results["sets"].items():
        for predictor, row in {"model": one["model"], **one["baselines"]}.items():
            columns = [key for key in report.MAIN if name == "duo" or not key.startswith(report.PER_IMAGE)]
            expected = titles[predictor]
            for key in columns:
                expected += f"{row[key]:.3f}"
                if key in row["counts"]:
                    total = one["images"] if key.startswith(("iiou", "interactive")) else one["n"]
                    expected += f"{row['counts'][key]} / {total}"
            assert expected in rows
            thresholds = results["universal_threshold"]["by_set"]["validation"]
            pia = "".join(f"{row[f'pia_{kind}']:.3f}" for kind in ("silence", "noise", "offscreen"))
            assert f"{titles[predictor]}{pia}{thresholds[predictor]['value']:.3f}" in rows
    for hit in ("class", "instance"):
        for way, title in (("a2i", "sound to image"), ("i2a", "image to sound")):
            recalls = results["retrieval"][hit][way]
            assert f"{title}, by {hit}" + "".join(f"{recalls[k]:.3f}" for k in ("r1", "r5", "r10")) in rows


def test_the_headline_figures_stand_beside_the_best_image_only_one(job, text):
    results = job[2]
    cards = [element["text"] for element in Page(text).all("div") if element.get("class") == "card"]
    best = max(row["ciou_adaptive"] for row in results["sets"]["single"]["baselines"].values())
    single = next(card for card in cards if card.startswith("Success rate on single"))
    assert f"{results['single_ciou_adaptive']:.3f}" in single and f"best without hearing: {best:.3f}" in single
    assert "6 of 6" in single
    assert any(card.startswith(f"Interactive IoU on duo{results['iiou_adaptive']:.3f}") for card in cards)
    worst = max(results[f"pia_{kind}"] for kind in ("silence", "noise", "offscreen"))
    assert any(card.startswith(f"False alarms on duo{worst:.3f}") for card in cards)


def decoded(uri, mime):
    prefix = f"data:{mime};base64,"
    assert uri.startswith(prefix)
    return io.BytesIO(base64.b64decode(uri[len(prefix) :], validate=True))


def test_every_picture_and_sound_can_be_opened(job, text):
    page = Page(text)
    pictures_ = page.all("img")
    tiles = sum(len(row.tiles) for rows in job[3].values() for row in rows)
    assert len(page.all("audio")) == tiles
    # each tile, the plain image of each comparing row, two box plots, the curves
    assert len(pictures_) == tiles + len(job[3]["two_sounds"]) + len(job[3]["negatives"]) + 3
    for picture in pictures_:
        mime = "image/png" if picture["src"].startswith("data:image/png") else "image/jpeg"
        assert min(Image.open(decoded(picture["src"], mime)).convert("RGB").size) > 200
    for source in page.all("source"):
        dark = np.asarray(Image.open(decoded(source["srcset"], "image/png")).convert("L"))
        assert np.median(dark) < 60
    for player in page.all("audio"):
        with wave.open(decoded(player["src"], "audio/wav")) as sound:
            assert (sound.getframerate(), sound.getnframes(), sound.getnchannels()) == (16000, 160, 1)


def test_a_banner_tells_of_a_shortened_run_alone(job):
    for about in ({}, {"shortened": False, "steps": 2250, "planned_steps": 2250}):
        assert not [e for e in Page(report.render({**job[2], **about})).elements if e.get("role") == "alert"]
    page = Page(report.render({**job[2], "shortened": True, "steps": 1317, "planned_steps": 2250}))
    (banner,) = [e for e in page.all("p") if e.get("role") == "alert"]
    assert "after 1,317 of 2,250 steps" in banner["text"]
    assert page.elements.index(banner) < page.elements.index(page.all("dl")[0])  # above the headline figures


def test_the_page_of_metrics_json_is_the_same(job):
    reloaded = json.loads(json.dumps(job[2]))
    assert report.render(reloaded, config={"seed": 1}) == report.render(job[2], config={"seed": 1})


def test_write_report_replaces_the_file(tmp_path, job):
    path = tmp_path / "report.html"
    path.write_text("old")
    report.write_report(path, job[2])
    assert path.read_text() == report.render(job[2]) and list(tmp_path.iterdir()) == [path]


def test_results_that_lack_parts_make_a_page(job):
    localizer, sets, _, _ = job
    nameless = FakeSet(DUO)
    nameless.categories = [None] * len(nameless)
    for options in ({"negatives": ()}, {"baselines": {}}, {"validation": None}):
        results = evaluate(localizer, {"<set>": nameless}, progress=False, **{"validation": sets["duo"]} | options)
        shown = overlays.collect(localizer, nameless, results, "<set>", pairs=1, negatives=1, extremes=1, random=1)
        page = Page(report.render(results, overlays=shown))
        assert "set <set>: no retrieval by class" in page.all("footer")[0]["text"] and not page.all("set")
        assert any("own sound" in caption["text"] for caption in page.all("figcaption"))
        text = " ".join(page.text)
        assert ("Sounds of nothing visible" in text) == ("negatives" not in options)
        assert ("what depends on it is optimistic" in text) == ("validation" in options)


def test_unknown_sections_are_an_error(job):
    with pytest.raises(ValueError, match=r"overlays: expected sections among .*, got \['prettiest'\]"):
        report.render(job[2], overlays={"prettiest": []})


# ------------------------------------------------------------------------------------------------ overlays


def test_what_is_shown_is_chosen_by_numbers_and_seed(job):
    localizer, sets, results, shown = job
    iou, ids = results.samples["duo"]["iou_adaptive"], sets["duo"].ids
    best = [row.tiles[0].sample for row in shown["best"]]
    worst = [row.tiles[0].sample for row in shown["worst"]]
    assert sorted((iou[ids.index(i)] for i in best), reverse=True) == sorted(iou, reverse=True)[:4]
    assert [iou[ids.index(i)] for i in worst] == sorted(iou)[:4]
    for row in shown["two_sounds"]:
        assert len(row.tiles) == 2 and len({tile.image_id for tile in row.tiles}) == 1 and not row.common_scale
        assert (row.tiles[0].image == row.tiles[1].image).all() and (row.tiles[0].map != row.tiles[1].map).any()
    for row in shown["negatives"]:
        assert [tile.sound for tile in row.tiles][1:] == ["silence", "noise", "offscreen"] and row.common_scale
        index = ids.index(row.tiles[0].sample)
        for tile in row.tiles[1:]:
            assert tile.map.max() == pytest.approx(results.samples["duo"][f"{tile.sound}_max"][index])
            assert not tile.ground_truth.any() and tile.iou is None
        assert not row.tiles[1].waveform.any()
        away = row.tiles[3]
        assert away.category not in sets["duo"].visible[index] and row.tiles[1].category is None
        assert away.waveform[0] * 16 == HOSTILE.index(away.category) + 1
        assert f"off-screen sound: {away.category}" in report.heard(away)
    for section in ("best", "worst", "random"):
        for row in shown[section]:
            index = ids.index(row.tiles[0].sample)
            assert row.tiles[0].iou == iou[index] and row.tiles[0].map.max() == results.samples["duo"]["map_max"][index]
            np.testing.assert_array_equal(row.tiles[0].waveform, sets["duo"].waveform(index))
    again = overlays.collect(localizer, sets["duo"], results, "duo", pairs=3, negatives=2)
    other = overlays.collect(localizer, sets["duo"], results, "duo", pairs=3, negatives=2, seed=1)

    def samples(chosen):
        return [tile.sample for rows in chosen.values() for row in rows for tile in row.tiles]

    assert samples(again) == samples(shown) != samples(other)


def tile(heat, truth=None):
    truth = np.zeros((SIDE, SIDE), np.float32) if truth is None else truth
    image = np.full((SIDE, SIDE, 3), 100, np.uint8)
    return Tile(image, np.asarray(heat, np.float32), truth, "positive", "bell", "s", "i")


def test_one_sound_of_several_sources_is_no_comparison_of_sounds():
    """Of a duet that is heard at once, and of the frames of a video."""
    localizer, duet = FakeLocalizer(), FakeSet([[(0, 0, 0, 2, 2), (0, 2, 1, 2, 3)], [(1, 0, 0, 2, 2)]])
    results = evaluate(localizer, {"duet": duet}, negatives=["silence"], progress=False)
    assert overlays.collect(localizer, duet, results, "duet")["two_sounds"] == []


def test_the_overlay_outlines_the_truth_and_rings_the_maximum():
    truth = np.zeros((SIDE, SIDE), np.float32)
    truth[4:8, 8:16] = 1
    heat = np.zeros((4, 4))
    heat[2, 1] = 1
    picture = pictures.overlay(tile(heat, truth), 0, 1).astype(int)
    scale = pictures.SIDE // SIDE
    inside, outside = picture[4 * scale + 1, 10 * scale], picture[4 * scale - 1, 10 * scale]
    assert inside.tolist() == [120, 255, 170]  # the outline lies within the region ...
    assert abs(outside - picture[0, 0]).max() <= 2  # ... and not around it
    assert picture[6 * scale, pictures.SIDE - 1].tolist() == [120, 255, 170]  # closed at the frame
    centre = np.array([2.5, 1.5]) * pictures.SIDE / 4
    white = np.argwhere((picture == 255).all(2))
    radius = np.hypot(*(white + 0.5 - centre).T)
    assert len(white) > 50 and radius.min() > 4 and radius.max() < 8


def test_colours_follow_the_scale_of_the_row():
    low, high = tile(np.linspace(0, 0.2, 16).reshape(4, 4)), tile(np.linspace(0, 1, 16).reshape(4, 4))
    own, shared, full = (
        pictures.overlay(t, 0, top)[-20:, -20:].astype(int).mean((0, 1)) for t, top in ((low, 0.2), (low, 1), (high, 1))
    )
    assert abs(own - full).max() < 2 and full[0] - shared[0] > 80
    flat = pictures.overlay(tile(np.full((4, 4), 0.3)), 0.3, 0.3)  # a constant map: no heat, no ring
    assert np.unique(flat.reshape(-1, 3), axis=0).shape == (1, 3)


def test_images_keep_their_aspect(job):
    image = np.zeros((30, 60, 3), np.uint8)
    assert pictures.enlarged(image).shape == (pictures.SIDE // 2, pictures.SIDE, 3)
    wide = Tile(image, np.eye(4, dtype=np.float32), np.zeros((30, 60), np.float32), "silence", None, "s", "i")
    assert pictures.overlay(wide, 0, 1).shape == (pictures.SIDE // 2, pictures.SIDE, 3)
    page = Page(report.render(job[2], overlays={"two_sounds": [Row((wide, wide, wide))]}))
    sizes = [Image.open(decoded(p["src"], "image/jpeg")).size for p in page.all("img") if "jpeg" in p["src"][:20]]
    assert sizes == [(pictures.SIDE, pictures.SIDE // 2)] * 4
    assert [e["style"] for e in page.all("div") if e.get("class") == "row"] == ["--n:4"]


def test_wav_holds_the_samples_clipped():
    signal = np.array([0, 0.5, -1, 1.5, -3], np.float32)
    with wave.open(decoded(pictures.wav(signal, 8000), "audio/wav")) as sound:
        assert sound.getframerate() == 8000
        samples = np.frombuffer(sound.readframes(9), "<i2")
    np.testing.assert_array_equal(samples, [0, 16384, -32767, 32767, -32767])


@pytest.mark.slow
def test_history_as_records_or_columns():
    columns = {key: [record[key] for record in HISTORY] for key in HISTORY[0]}
    a, b = pictures.history_columns(HISTORY), pictures.history_columns(columns)
    assert list(a) == list(b) == ["step", "loss", "learning_rate", "mean_weight"]
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])
    assert pictures.training_curves(HISTORY) == pictures.training_curves(columns)
    assert pictures.training_curves(HISTORY) != pictures.training_curves(HISTORY, chance=3.5)
    sparse = pictures.history_columns([{"loss": 1.0}, {"loss": None, "accuracy": 2}])
    np.testing.assert_array_equal(sparse["step"], [0, 1])
    np.testing.assert_array_equal(sparse["accuracy"], [np.nan, 2])
    light, dark = pictures.training_curves([{"step": 0, "loss": 1.0}])
    assert light != dark
