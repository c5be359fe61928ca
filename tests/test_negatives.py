"""Negative sounds: what they are, that set and seed decide them, and that off-screen sounds are off screen."""

import json
import re

import numpy as np
import pytest
import torch

from ssl_fast.data.annotations import read
from ssl_fast.data.categories import BROAD as CATEGORIES
from ssl_fast.data.categories import broad_categories
from ssl_fast.data.datasets import SampleSet
from ssl_fast.data.io.front_ends import FrontEnd
from ssl_fast.data.negatives import SEEDS, Negatives, negative_spectrograms, negatives
from ssl_fast.data.sample_lists import DataError
from test_annotations import FOLDER, published

FRONT_END = FrontEnd(name="tiny", seconds=0.125, hop=256)


class Toys(SampleSet):
    """Sounds whose samples all have the value (index + 1) / 1000, scaled by noise that the index seeds."""

    def __init__(self, categories, visible=None):
        self.front_end = FRONT_END
        self.ids = [f"toy{i}" for i in range(len(categories))]
        self.image_ids = self.ids
        self.categories = list(categories)
        self.visible = [frozenset(v) for v in (visible or [[c] for c in categories])]

    def waveform(self, index):
        noise = np.random.default_rng(self._checked(index)).uniform(-1, 1, FRONT_END.samples)
        return (noise * (index + 1) / 1000).astype(np.float32)


@pytest.fixture
def toys():
    rng = np.random.default_rng(0)
    names = np.array(["bell", "dog", "cat", "car", "owl"])
    visible = [rng.choice(names, rng.integers(1, 4), replace=False).tolist() for _ in range(60)]
    return Toys([shown[0] for shown in visible], visible)


def test_draws_of_names_that_are_no_utf8(toys, tmp_path):
    toys.ids[0], toys.ids[1] = "caf\udce9", "\u00e9"
    toys.image_ids = toys.ids
    first, again = (negatives(toys, "offscreen", path=tmp_path / "draws.json") for _ in range(2))
    np.testing.assert_array_equal(first.sources, again.sources)
    assert list(json.loads((tmp_path / "draws.json").read_text())["draws"]) == toys.ids


def test_silence(toys):
    drawn = negatives(toys, "silence")
    assert len(drawn) == 60 and drawn.sources is None
    assert drawn[7].dtype == np.float32 and drawn[7].shape == (2000,) and not drawn[7].any()
    got = negative_spectrograms(toys, "silence")
    assert got.shape == (60, 1, *FRONT_END.shape) and got.dtype == torch.float32
    np.testing.assert_allclose(got, np.log(1e-7) / 12, rtol=1e-6)


def test_noise_is_normal_and_clipped(toys):
    drawn = negatives(toys, "noise", seed=3)
    waves = np.stack([drawn[i] for i in range(60)])
    assert waves.dtype == np.float32 and waves.min() == -1 and waves.max() == 1
    assert (np.abs(waves) == 1).mean() == pytest.approx(0.3173, abs=0.01)  # of a normal beyond one sigma
    assert waves[np.abs(waves) < 1].std() == pytest.approx(0.5396, abs=0.01)  # of what is left of it
    assert len({wave.tobytes() for wave in waves}) == 60
    assert np.abs(np.corrcoef(waves) - np.eye(60)).max() < 0.12


@pytest.mark.parametrize("kind", ["noise", "offscreen"])
def test_set_and_seed_decide(toys, kind):
    a, b, c = (negatives(toys, kind, seed) for seed in (0, 0, 1))
    order = list(np.random.default_rng(1).permutation(60))
    forwards, backwards = {i: a[i] for i in range(60)}, {i: b[i] for i in order}
    assert all(np.array_equal(forwards[i], backwards[i]) for i in range(60))
    assert sum(np.array_equal(a[i], c[i]) for i in range(60)) < 20
    assert np.array_equal(a[-1], a[59])
    with pytest.raises(IndexError, match="index: expected -60 to 59, got 60"):
        a[60]


def test_offscreen_sounds_are_of_nothing_in_the_image(toys):
    drawn, count = negatives(toys, "offscreen"), {}
    for i, source in enumerate(drawn.sources):
        assert toys.categories[source] not in toys.visible[i]
        np.testing.assert_array_equal(drawn[i], toys.waveform(source))
        count[source] = count.get(source, 0) + 1
    assert len(count) > 25 and max(count.values()) < 10  # borrowed from all over the set


def test_offscreen_is_uniform_among_what_is_allowed():
    toys = Toys(["bell"] + ["dog", "cat", "owl"] * 2, [["bell", "cat"]] + [["dog"], ["cat"], ["owl"]] * 2)
    sources = [negatives(toys, "offscreen", seed).sources[0] for seed in range(800)]
    where, counts = np.unique(sources, return_counts=True)
    assert where.tolist() == [1, 3, 4, 6]  # dogs and owls
    assert counts.min() > 150 and counts.max() < 250


@pytest.mark.parametrize("kind", ["silence", "noise", "offscreen"])
def test_spectrograms_in_parts_equal_the_whole(toys, kind, monkeypatch):
    monkeypatch.setattr("ssl_fast.data.negatives._BATCH", 7)
    drawn = negatives(toys, kind, seed=2)
    whole = negative_spectrograms(toys, kind, seed=2)
    assert whole.shape == (60, 1, *FRONT_END.shape) and not whole.requires_grad
    for i in (0, 31, 59):
        assert torch.equal(whole[i, 0], FRONT_END.spectrogram(torch.from_numpy(np.asarray(drawn[i]))))
    part = np.array([5, 59, 5])
    assert torch.equal(drawn.spectrograms(part), whole[torch.from_numpy(part)])
    assert drawn.spectrograms([]).shape == (0, 1, *FRONT_END.shape)


@pytest.mark.parametrize(
    "categories, visible, message",
    [
        (["bell", None], None, "sample 'toy1': expected to know its category, for off-screen sounds"),
        (
            ["bell", "dog"],
            [["bell"], []],
            "sample 'toy1': expected to know what its image shows, for off-screen sounds",
        ),
        (["bell", "bell"], None, r"sample 'toy0': expected a sound of another category in the set, .*\(bell\)"),
        (
            ["a", "b", "b"],
            [["a"], ["a", "b"], ["b"]],
            r"sample 'toy1': expected a sound of another category .*\(a, b\)",
        ),
    ],
)
def test_sets_without_offscreen_sounds(categories, visible, message):
    toys = Toys(categories, visible)
    with pytest.raises(ValueError, match=message):
        negatives(toys, "offscreen")
    assert len(negatives(toys, "noise")) == len(categories)


def test_unknown_kinds():
    with pytest.raises(ValueError, match="kind: expected one of silence, noise, offscreen, got 'music'"):
        Negatives(Toys(["a"]), "music")


# ---------------------------------------------------------------------------------------------------------------------
# Broad categories, and draws on disk

BROAD = {"bell": "devices", "car": "vehicles", "dog": "animals", "cat": "animals", "owl": "animals"}


def test_offscreen_of_another_broad_category():
    heard = ["bell", "dog", "cat", "owl", "owl", "car"]
    toys = Toys(heard, [["dog", "car"] if one == "dog" else [one] for one in heard])
    drawn = [negatives(toys, "offscreen", seed, broad=BROAD).sources for seed in range(900)]
    for i, allowed in enumerate(([1, 2, 3, 4, 5], [0], [0, 5], [0, 5], [0, 5], [0, 1, 2, 3, 4])):
        assert sorted({sources[i] for sources in drawn}) == allowed
    # for the bell first animals or vehicles, one half each, then one of the four animals
    counts = np.bincount([sources[0] for sources in drawn], minlength=6)
    assert abs(counts[5] - 450) < 60 and (abs(counts[1:5] - 112.5) < 40).all()
    with pytest.raises(ValueError, match=r"sample 'toy0': .* all are of what it shows \(animals\)"):
        negatives(Toys(["dog", "cat"], [["dog"], ["cat", "bell"]]), "offscreen", broad=BROAD)
    with pytest.raises(ValueError, match="sample 'toy1': expected categories that have a broad one, got 'drum'"):
        negatives(Toys(["dog", "drum"]), "offscreen", broad=BROAD)


@pytest.mark.parametrize("kind", ["silence", "noise", "offscreen"])
def test_draws_are_written_and_read_back(toys, kind, tmp_path, monkeypatch):
    path = tmp_path / "draws.json"
    first = negatives(toys, kind, SEEDS[0], path=path)
    record = json.loads(path.read_text())
    assert (record["kind"], record["seed"], list(record["draws"])) == (kind, 1234, toys.ids)
    for i, draw in enumerate(record["draws"].values()):
        assert draw == {"file": f"toy{first.sources[i]}" if kind == "offscreen" else None, "offset": 0.0}
    before = path.read_bytes()
    monkeypatch.setattr("ssl_fast.data.negatives._draw", lambda *_: pytest.fail("drawn, though there is a file"))
    again = negatives(toys, kind, SEEDS[0], path=path)
    assert all(np.array_equal(first[i], again[i]) for i in range(60)) and path.read_bytes() == before


def test_a_file_decides(toys, tmp_path):
    """Draws of another origin, in the order of the file."""
    path = tmp_path / "draws.json"
    seen = [set(shown) for shown in toys.visible]
    other = [max(j for j in range(60) if toys.categories[j] not in seen[i]) for i in range(60)]
    draws = {f"toy{i}": {"file": f"toy{j}", "offset": 0} for i, j in enumerate(other)}
    path.write_text(json.dumps({"kind": "offscreen", "seed": 7, "draws": draws}))
    assert negatives(toys, "offscreen", 7, path=path).sources.tolist() == other


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda r: r.update(kind="noise"), "kind: expected 'offscreen', got 'noise'"),
        (lambda r: r.update(seed=1), "seed: expected 5, got 1"),
        (lambda r: r.pop("draws"), "expected kind, seed and draws as JSON, got KeyError('draws')"),
        (
            lambda r: r["draws"].pop("toy59"),
            "expected draws for the 60 samples of the set in their order, got 59 that differ from 'the end' on",
        ),
        (lambda r: r.update(draws=dict(sorted(r["draws"].items()))), "got 60 that differ from 'toy10' on"),
        (
            lambda r: r["draws"]["toy3"].update(file="dog"),
            "'toy3': expected the sound of a sample of the set from 0 s on",
        ),
        (lambda r: r["draws"]["toy3"].update(file=["dog"]), "(null for silence and noise), got ['dog'] from"),
        (lambda r: r["draws"]["toy3"].update(offset=1.5), "from 1.5"),
        (lambda r: r["draws"]["toy3"].update(file="toy3"), "1 sounds are not off screen: for 'toy3' that of 'toy3'"),
    ],
)
def test_files_that_do_not_fit(toys, tmp_path, change, message):
    path = tmp_path / "draws.json"
    negatives(toys, "offscreen", 5, path=path)
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(DataError, match=re.escape(f"{path}: ") + ".*" + re.escape(message)):
        negatives(toys, "offscreen", 5, path=path)
    path.write_text("[" * 100_000)
    with pytest.raises(DataError, match="draws.json: expected kind, seed and draws as JSON, got maximum recursion"):
        negatives(toys, "offscreen", 5, path=path)
    path.write_text("{")
    with pytest.raises(DataError, match="draws.json: expected kind, seed and draws as JSON, got Expecting property"):
        negatives(toys, "offscreen", 5, path=path)


@published
@pytest.mark.parametrize("name, file", [("vgg-ss", "vggss.json"), ("is3", "synthetic3240_bbox.json")])
def test_offscreen_sounds_of_published_sets(name, file):
    samples, broad = read(name, FOLDER / file).samples, broad_categories(name)
    shown = {}
    for sample in samples:
        shown.setdefault(sample.group, set()).add(sample.category)
    toys = Toys([sample.category for sample in samples], [shown[sample.group] for sample in samples])
    first, second = (negatives(toys, "offscreen", seed, broad=broad).sources for seed in SEEDS[:2])
    assert (first == second).mean() < 0.05
    expected, got = dict.fromkeys(CATEGORIES, 0.0), dict.fromkeys(CATEGORIES, 0)
    for sample, source in zip(samples, first):
        seen = {broad[one] for one in shown[sample.group]}
        got[broad[samples[source].category]] += broad[samples[source].category] not in seen
        for other in set(CATEGORIES) - seen:
            expected[other] += 1 / (8 - len(seen))
    assert sum(got.values()) == len(samples)
    for one in CATEGORIES:  # within five standard deviations of a uniform draw
        assert abs(got[one] - expected[one]) < 5 * expected[one] ** 0.5, one
