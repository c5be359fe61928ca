"""Localization over time: the scenes whose sounds change, and figures against loops and closed forms."""

import csv
import json

import numpy as np
import pytest
import torch

from ssl_fast.cli.main import main
from ssl_fast.data.negatives import negatives
from ssl_fast.data.scenes import dataset as scenes
from ssl_fast.evaluation import over_time
from ssl_fast.models import LocalizerConfig, build

SETTINGS = scenes.Settings(size=64, categories=5, val=6, sequence=8)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def sequence(cache):
    return scenes.load("sequence", SETTINGS, cache=cache, progress=False)


@pytest.fixture(scope="module")
def validation(cache):
    return scenes.load("val", SETTINGS, cache=cache, progress=False)


def localizer(method, seed=0):
    torch.manual_seed(seed)
    return build(LocalizerConfig.small(method, width=4, dimension=8)).eval()


# ---------------------------------------------------------------------------------------------------------------------
# The split


def test_one_object_sounds_then_nothing_then_the_other(sequence):
    assert len(sequence) == 16 and sequence.front_end.seconds == 4
    first = []
    for i in range(0, 16, 2):
        assert sequence.image_ids[i] == sequence.image_ids[i + 1]
        (start, stop), (other_start, other_stop) = sorted(sequence.heard[i : i + 2].tolist())
        assert min(start, other_start - stop, 4 - other_stop) >= 0.4 - 1e-4
        assert all(0.8 - 1e-4 <= length <= 1.1 + 1e-4 for length in (stop - start, other_stop - other_start))
        first.append(sequence.heard[i, 0] == start)
        for k in (i, i + 1):
            wave = sequence.waveform(k)
            begin, end = (round(16000 * t) for t in sequence.heard[k])
            assert len(wave) == 64000 and not wave[:begin].any() and not wave[end:].any()
            power = [part.std() for part in np.split(wave[begin : begin + 12800], 4)]  # of .2 s each
            assert min(power) > 1e-3
            assert abs(wave[begin : begin + 3]).max() < 0.01 * abs(wave).max() > abs(wave[end - 3 : end]).max()
    assert 0 < sum(first) < 8  # neither order of painting is that of time


# ---------------------------------------------------------------------------------------------------------------------
# Figures


def oracle(sequence, monkeypatch, value):
    """Maps of 16 x 16 cells by `value`(index of the sounding sample or None, samples of the image)."""
    groups = iter([[i, i + 1] for i in range(0, 16, 2)])

    def maps_at(localizer, images, waveforms, times, front_end, way):
        out = []
        for samples in (next(groups) for _ in images):
            sounding = [
                next((k for k in samples if sequence.heard[k, 0] <= t < sequence.heard[k, 1]), None) for t in times
            ]
            out.append(np.stack([value(k, samples) for k in sounding]))
        return np.stack(out).astype(np.float32)

    monkeypatch.setattr(over_time, "maps_at", maps_at)
    rows = over_time.rows(None, sequence, 0.5, "tokens", None)
    return over_time.figures(rows, 0.5), rows


def box(sequence, k):
    """A map that is the box's share of each cell, whose largest pixels are those of the box."""
    return sequence.ground_truth(k).reshape(16, 4, 16, 4).mean((1, 3))


def test_maps_of_what_sounds_are_perfect(sequence, monkeypatch):
    figures, rows = oracle(sequence, monkeypatch, lambda k, _: np.zeros((16, 16)) if k is None else box(sequence, k))
    ones = ("pointing", "interactive_pointing", "ciou_adaptive", "iiou_adaptive", "ciou_universal", "iiou_universal")
    assert all(figures[name] == 1 for name in (*ones, "sound_localized")) and figures["mean_iou_adaptive"] > 0.9
    assert figures["silence_localized"] == figures["silence_area"] == 0
    # 40 times of .1 s; around each of the four changes, those nearer than .1 s are left out
    for image in dict.fromkeys(sequence.image_ids):
        changes = sequence.heard[[i for i, one in enumerate(sequence.image_ids) if one == image]].ravel()
        times = [0.05 + 0.1 * k for k in range(40)]
        kept = [t for t in times if min(abs(t - change) for change in changes) >= 0.1]
        assert rows.seconds[rows.image_id == image] == pytest.approx(kept)


def test_maps_of_the_other_object_are_wrong_at_all_times(sequence, monkeypatch):
    def swapped(k, samples):
        return np.zeros((16, 16)) if k is None else box(sequence, sum(samples) - k)

    figures, _ = oracle(sequence, monkeypatch, swapped)
    assert figures["pointing"] == figures["interactive_pointing"] == figures["iiou_adaptive"] == 0
    assert figures["sound_localized"] == 1 and figures["silence_localized"] == 0


def test_a_map_that_never_changes_finds_one_object_and_fills_the_silence(sequence, monkeypatch):
    figures, rows = oracle(sequence, monkeypatch, lambda _, samples: box(sequence, samples[0]))
    assert figures["iiou_adaptive"] == figures["interactive_pointing"] == 0 and figures["silence_localized"] == 1
    first = rows.category == np.array([sequence.categories[sequence.image_ids.index(one)] for one in rows.image_id])
    assert figures["pointing"] == pytest.approx(first[rows.category != ""].mean())


def test_figures_are_those_of_loops(sequence, monkeypatch):
    generator = np.random.default_rng(0)
    noisy = lambda k, samples: generator.random((16, 16)) * 0.8 + (0 if k is None else 0.4 * box(sequence, k))  # noqa: E731
    figures, rows = oracle(sequence, monkeypatch, noisy)
    of_objects, hits, silent, far, every = {}, [], [], [], []
    for image, time, category, iou, universal, point, _, area, _ in zip(*rows):
        samples = [i for i, one in enumerate(sequence.image_ids) if one == image]
        if category == "":
            assert np.isnan(iou) and np.isnan(point)
            silent.append(area)
            if all(abs(time - t) >= 0.5 for t in np.linspace(*sequence.heard[samples].T, 500).ravel()):
                far.append(area > 0)
        else:
            of_objects.setdefault(image, {}).setdefault(category, []).append((iou, point, universal))
            hits.append(iou >= 0.5)
            every.append(universal)

    def worst(column):
        """Of each image, of the object of the lowest mean over its times."""
        return [min(np.mean([row[column] for row in one]) for one in image.values()) for image in of_objects.values()]

    lowest, pointed = worst(0), [value > 0.5 for value in worst(1)]
    assert figures["ciou_adaptive"] == pytest.approx(np.mean(hits)) and 0 < np.mean(hits) < 1
    assert figures["iiou_adaptive"] == np.mean([value >= 0.5 for value in lowest])
    assert figures["interactive_pointing"] == np.mean(pointed)
    assert figures["silence_localized"] == np.mean([area > 0 for area in silent])
    assert figures["silence_area"] == pytest.approx(np.mean(silent)) and 0 < np.mean(far) <= 1
    assert figures["far_silence_localized"] == pytest.approx(np.mean(far))
    assert figures["mean_iou_universal"] == pytest.approx(np.mean(every))
    for rule, values in (("adaptive", lowest), ("universal", worst(2))):
        curve = [np.mean([value >= t for value in values]) for t in np.linspace(0, 1, 21)]
        assert figures[f"iauc_{rule}"] == pytest.approx((sum(curve) - (curve[0] + curve[-1]) / 2) / 20)


# ---------------------------------------------------------------------------------------------------------------------
# Maps over time


def test_windows_are_clips_around_each_time(sequence, validation):
    net, times = localizer("ez_vsl"), np.array([0.05, 1.95, 3.95])
    image = sequence[0]["image"][None]
    wave = torch.from_numpy(sequence.waveform(0) + sequence.waveform(1))[None]
    with torch.no_grad():
        found = over_time.maps_at(net, image, wave, times, validation.front_end, "window")
        for k, t in enumerate(times):
            part = np.zeros(16000, np.float32)
            for sample in range(16000):  # silence beyond the clip
                at = round(t * 16000) - 8000 + sample
                part[sample] = wave[0, at] if 0 <= at < 64000 else 0
            spectrogram = validation.front_end.spectrogram(torch.from_numpy(part))[None, None]
            expected = net(net.normalize_images(image), net.normalize_spectrograms(spectrogram))
            np.testing.assert_allclose(found[0, k], expected[0], rtol=0, atol=1e-5)
        whole = over_time.maps_at(net, image, wave, times, validation.front_end, "clip")
    assert (whole == whole[:, :1]).all()
    with pytest.raises(ValueError, match=r"way: expected one of \('window', 'clip'\) of ez_vsl, got 'tokens'"):
        over_time.maps_at(net, image, wave, times, validation.front_end, "tokens")


def test_tokens_are_those_whose_centres_are_nearest(sequence, validation):
    net, times = localizer("dense_av"), np.arange(0.05, 4, 0.1)
    image, wave = sequence[0]["image"][None], torch.from_numpy(sequence.waveform(0))[None]
    with torch.no_grad():
        found = over_time.maps_at(net, image, wave, times, validation.front_end, "tokens")
        spectrogram = validation.front_end.spectrogram(wave)[:, None]
        maps = net.token_maps(
            net.visual_features(net.normalize_images(image)),
            net.audio_features(net.normalize_spectrograms(spectrogram)),
        )[0].numpy()
    frames = spectrogram.shape[3]
    for k, t in enumerate(times):
        centres = [(c * frames - 0.5) for c in net.token_times(frames)]
        hop, pool = validation.front_end.hop, validation.front_end.pool
        seconds = [((c * pool + (pool - 1) / 2) * hop + 256) / 16000 for c in centres]
        np.testing.assert_array_equal(found[0, k], maps[int(np.argmin([abs(s - t) for s in seconds]))])


def test_frames_are_centred_on_an_impulse(validation):
    front_end = validation.front_end
    wave = torch.zeros(16000)
    wave[9000] = 1
    strength = front_end.spectrogram(wave).mean(0)
    centre = front_end.seconds_of_frames(np.arange(len(strength)))[int(strength.argmax())]
    assert abs(centre - 9000 / 16000) <= front_end.hop * front_end.pool / 16000


@pytest.mark.parametrize("method", ["ez_vsl", "dense_av"])
def test_the_threshold_is_that_of_single_maps(method, validation):
    net, quartiles = localizer(method), []
    with torch.no_grad():
        for kind in ("silence", "noise", "offscreen"):
            drawn, highest = negatives(validation, kind), []
            for i in range(len(validation)):
                visual = net.visual_features(net.normalize_images(validation[i]["image"][None]))
                audio = net.audio_features(net.normalize_spectrograms(drawn.spectrograms([i])))
                maps = net.token_maps(visual, audio)[0] if method == "dense_av" else net.maps(visual, audio)
                highest += [one.max().item() for one in maps]
            quartiles.append(np.percentile(highest, 75))
    assert over_time.threshold(net, validation, batch_size=4).value == pytest.approx(max(quartiles), abs=1e-5)


def test_the_command_writes_what_the_module_finds(cache, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SSL_FAST_CACHE", str(cache))
    arguments = [
        "quickstart",
        "--method",
        "dense_av",
        "--scenes",
        "64",
        "--test-scenes",
        "12",
        "--epochs",
        "1",
        "--quiet",
    ]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 0
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())["over_time"]
    assert list(found["figures"]) == ["tokens"] and found["n"] == 12
    assert "Sounds over time" in (tmp_path / "run" / "report.html").read_text()
    assert "over time, 12 images" in capsys.readouterr().out
    with open(tmp_path / "run" / "per_time.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    silent = [float(row["area"]) > 0 for row in rows if not row["category"]]
    assert np.mean(silent) == pytest.approx(found["figures"]["tokens"]["silence_localized"])
    assert len({row["image_id"] for row in rows}) == 12
    weights = ["--weights", str(tmp_path / "run"), "--out", str(tmp_path / "again"), "--quiet"]
    assert main(["evaluate", "--scenes", "--test-scenes", "12", "--over-time", *weights]) == 0
    again = json.loads((tmp_path / "again" / "metrics.json").read_text())["over_time"]
    assert again["figures"]["tokens"] == pytest.approx(found["figures"]["tokens"], abs=1e-6)
    assert main(["evaluate", "--scenes", "--test-scenes", "12", *weights, "--force"]) == 0  # without --over-time
    assert not (tmp_path / "again" / "per_time.csv").exists()
    assert main(["evaluate", "--data", str(tmp_path), "--over-time", *weights, "--force"]) == 2
    assert "--over-time: expected with --scenes" in capsys.readouterr().err
