"""Answers for one image and sound, and for each second of a video: maps by another way, scores by closed forms."""

import re
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from ssl_fast.cli import main as cli
from ssl_fast.data.io.audio import MediaError, decode_audio, to_mono
from ssl_fast.data.io.front_ends import FrontEnd
from ssl_fast.data.io.images import load_image
from ssl_fast.data.scenes import dataset as scenes
from ssl_fast.evaluation import evaluate
from ssl_fast.inference.localize import Answer, LocalizationPipeline, Panel, scale_of
from ssl_fast.inference.sheets import sheet
from ssl_fast.models import ResNet18, checkpoints
from ssl_fast.models.object_prior import ObjectPrior


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with the image of a scene of a bell and a phone, and both sounds; the scene."""
    folder = tmp_path_factory.mktemp("scene")
    one = scenes.scene(scenes.Settings(), "duo", 1)
    Image.fromarray(one.image).save(folder / "image.png")
    for name, waveform in zip(one.categories, one.waveforms):
        soundfile.write(folder / f"{name}.wav", waveform, 16000)
    return folder, one


def answer(audio_visual, prior=None, threshold=None):
    prior = np.zeros((2, 2), np.float32) if prior is None else prior
    return Answer(np.zeros((8, 8, 3), np.uint8), np.asarray(audio_visual, np.float32), prior, threshold, ("a", "b"))


def test_the_embedded_model_localizes_what_it_hears(monkeypatch, tmp_path):
    """The floors of a quickstart, on 60 scenes of two objects that it was not trained on."""
    monkeypatch.setenv("SSL_FAST_CACHE", str(tmp_path))
    duo = scenes.load("duo", scenes.Settings(duo=60), progress=False)
    found = checkpoints.load(checkpoints.EMBEDDED)
    figures = evaluate(found.localizer, {"duo": duo}, negatives=[], progress=False)["sets"]["duo"]["model"]
    assert figures["ciou_adaptive"] > 0.7 and figures["iiou_adaptive"] > 0.5
    assert figures["interactive_pointing"] > 0.7


def test_map_is_that_of_the_evaluation(pipeline, files):
    folder, _one = files
    got = pipeline.localize(pipeline.read_image(folder / "image.png"), pipeline.read_sound(folder / "bell.wav"))
    found, (waveform, rate) = pipeline.found, soundfile.read(folder / "bell.wav", dtype="float32")
    with torch.inference_mode():
        images = found.localizer.normalize_images(load_image(folder / "image.png", 112)[None])
        spectrogram = found.front_end.spectrogram(torch.from_numpy(waveform))[None, None]
        expected = found.localizer(images, found.localizer.normalize_spectrograms(spectrogram))[0].numpy()
    assert rate == 16000 and got.audio_visual.shape == (7, 7)
    np.testing.assert_allclose(got.audio_visual, expected, rtol=0, atol=1e-5)


def test_each_sound_is_found_in_its_object_and_silence_nowhere(pipeline, files):
    _, one = files
    sounds = [waveform.astype(np.float32) / 32768 for waveform in one.waveforms]
    for waveform, (left, top, right, bottom) in zip(sounds, one.boxes):
        scores = pipeline.localize(one.image, waveform).scores()
        assert left <= scores["x"] * 112 < right and top <= scores["y"] * 112 < bottom and scores["found"]
    assert not pipeline.localize(one.image, np.zeros(16000, np.float32)).scores()["found"]


def test_scores_of_a_known_map():
    """Halves of -.2 and .6: the upper quarter of a bilinear map of two columns is all .6."""
    scores = answer([[-0.2, 0.6], [-0.2, 0.6]], threshold=0.2).scores()
    assert (scores["x"], scores["y"]) == (0.75, 0.25)
    assert scores["maximum"] == pytest.approx(0.6) and scores["minimum"] == pytest.approx(-0.2)
    assert scores["confidence"] == pytest.approx(0.6) and scores["area"] == 0.5 and scores["found"]
    nothing = answer([[-0.2, 0.6]], threshold=0.6).scores()
    assert nothing["area"] == 0 and nothing["found"] is False
    assert answer([[-0.2, 0.6]]).scores()["found"] is None


def test_mixture_is_that_of_the_ranges():
    prior = np.array([[0.0, 4.0], [8.0, 4.0]], np.float32)
    got = answer([[0.5, 0.1], [0.3, 0.3]], prior).mixed(0.25)
    corners = 0.25 * np.array([[1, 0], [0.5, 0.5]]) + 0.75 * np.array([[0, 0.5], [1, 0.5]])
    np.testing.assert_allclose(got[[0, 0, -1, -1], [0, -1, 0, -1]], corners.ravel(), atol=1e-6)
    assert got.shape == (224, 224)
    with pytest.raises(ValueError, match="alpha"):
        answer([[0.5, 0.1]], prior).mixed(1.5)


def test_colours_below_the_threshold_stay_dark():
    assert scale_of([np.array([[0.1, 0.3]])], None) == pytest.approx((0.1, 0.3))
    assert scale_of([np.array([[0.1, 0.9]]), np.array([[0, 0.6]])], 0.5) == pytest.approx((0.1, 0.9))
    assert scale_of([np.array([[0.1, 0.2]])], 0.5) == pytest.approx((0.4, 0.6))  # all of it is coldest


def test_panels_show_the_map():
    """The picture is the greyed image where the map is lowest, mostly the last colour where it is highest."""
    image = np.full((448, 448, 3), 100, np.uint8)
    halves, flat = np.array([[0, 1], [0, 1]], np.float32), np.array([[1, 1]], np.float32)
    own, prior, mixed = Answer(image, halves, flat, None, ("a", "b")).panels(1.0)
    yellow = np.array([240, 249, 33])
    for panel in (own, mixed):
        assert np.abs(panel.picture[200, 2] - 80.0).max() <= 1
        np.testing.assert_allclose(panel.picture[200, -2], 0.15 * 80 + 0.85 * yellow, atol=2)
    assert (own.low, own.high, own.title) == (0, 1, "a: cosine") and np.abs(prior.picture - 80.0).max() <= 1


def test_sheet_has_colour_bars_with_the_threshold():
    """Columns of 300 pixels, 16 apart; the bar of the first map ends in the first and the last colour of plasma and has
    a white mark where the threshold of .45 lies between 0 and .9."""
    image = np.full((448, 300, 3), 100, np.uint8)
    panel = Panel("a: cosine", image, 0.0, 0.9, 0.45)
    got = sheet(image, [panel, Panel("b", image, 0.0, 1.0, None)])
    assert got.shape[1] == 16 + 3 * (300 + 16) and (got[200, 16:316] == 100).all()
    bars = [row for row in range(got.shape[0]) if (got[row, 16 + 316] == (12, 7, 134)).all()]
    assert bars and min(bars) > 448
    row = got[bars[0], 332:632]
    assert np.abs(row[-1].astype(int) - (239, 248, 33)).max() <= 1
    (white,) = np.nonzero((row == 255).all(1))
    assert np.abs(white.mean() - 150) <= 1 and len(white) <= 3
    other = got[bars[0], 648:948]
    assert not (other == 255).all(1).any()
    assert (got[min(bars) + 14 :, 332:632] < 100).any()  # numbers below


def test_object_weights_give_the_prior(files, tmp_path, capsys):
    folder, one = files
    torch.manual_seed(1)
    torch.save(ResNet18().state_dict(), tmp_path / "net.pth")
    prior = ObjectPrior(tmp_path / "net.pth")
    pipeline = LocalizationPipeline(checkpoints.load(checkpoints.EMBEDDED), prior, "ImageNet features")
    got = pipeline.localize(one.image, np.zeros(16000, np.float32))
    image = torch.from_numpy(one.image.transpose(2, 0, 1).copy())[None]
    np.testing.assert_allclose(got.prior, prior(image)[0].numpy(), rtol=1e-5)
    command = ["localize", str(folder / "image.png"), str(folder / "bell.wav"), "-o", str(tmp_path / "a.png")]
    assert cli.main([*command, "--object-weights", str(tmp_path / "net.pth")]) == 0


def test_command_writes_picture_and_map_and_says_what_it_found(files, tmp_path, pipeline, capsys):
    folder, one = files
    out = tmp_path / "out.png"
    assert cli.main(["localize", str(folder / "image.png"), str(folder / "phone.wav"), "-o", str(out)]) == 0
    said = capsys.readouterr().out
    expected = pipeline.localize(one.image, pipeline.read_sound(folder / "phone.wav"))
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected.audio_visual)
    assert "the embedded quickstart model, which knows the twelve categories" in said
    scores = expected.scores()
    assert f"maximum {scores['maximum']:.3f} at ({scores['x']:.2f}, {scores['y']:.2f})" in said
    assert f"{scores['area']:.1%} of the image is above the universal threshold {pipeline.threshold:.3f}" in said
    assert np.asarray(Image.open(out)).std() > 10
    silent = tmp_path / "silent.flac"
    soundfile.write(silent, np.zeros(100, np.float32), 8000)  # short, of another rate
    assert cli.main(["localize", str(folder / "image.png"), str(silent), "-o", str(out), "--force"]) == 0
    assert "nothing is above the universal threshold" in capsys.readouterr().out


def test_weights_without_a_threshold_and_with_one_given(files, tmp_path, capsys, pipeline):
    folder, _ = files
    checkpoints.write(checkpoints.Checkpoint(**{**vars(pipeline.found), "threshold": None}), tmp_path / "mine.pt")
    command = [
        "localize",
        str(folder / "image.png"),
        str(folder / "phone.wav"),
        "--weights",
        str(tmp_path / "mine.pt"),
        "-o",
        str(tmp_path / "out.png"),
    ]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert "universal threshold unknown" in said and "embedded" not in said
    assert cli.main([*command, "--threshold", "0.9", "--force"]) == 0
    assert "nothing is above the universal threshold 0.900" in capsys.readouterr().out


def written(kind, image, path):
    """An image of a kind beside the usual; what it shows."""
    if kind == "wide cmyk":
        image.convert("CMYK").resize((300, 40)).save(path.with_suffix(".jpg"))
        return path.with_suffix(".jpg")
    if kind == "animated gif":
        image.save(path.with_suffix(".gif"), save_all=True, append_images=[image.rotate(90)])
        return path.with_suffix(".gif")
    image.save(path.with_suffix("." + kind))
    return path.with_suffix("." + kind)


@pytest.mark.parametrize("kind", ["webp", "bmp", "tiff", "animated gif", "wide cmyk"])
def test_images_of_any_format(kind, files, tmp_path, pipeline):
    folder, one = files
    path = written(kind, Image.fromarray(one.image), tmp_path / "image")
    scores = pipeline.localize(pipeline.read_image(path), pipeline.read_sound(folder / "phone.wav")).scores()
    left, top, right, bottom = one.boxes[one.categories.index("phone")]
    assert left <= scores["x"] * 112 < right and top <= scores["y"] * 112 < bottom


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["absent.png", "bell.wav"], "absent.png: no such file"),
        (["image.png", "absent.wav"], "absent.wav: no such file"),
        (["bell.wav", "bell.wav"], "bell.wav: cannot be read as an image"),
        (["image.png", "image.png"], "image.png: cannot be read as audio"),
        (["image.png"], "SOUND: expected with an image"),
        (["image.png", "bell.wav", "-o", "out.mp4"], "--out out.mp4: expected .png"),
        (["image.png", "bell.wav", "-o", "no/out.png"], "--out no/out.png: expected an existing folder"),
        (["image.png", "bell.wav", "--alpha", "1.2"], "--alpha: expected within [0, 1], got 1.2"),
        (["image.png", "bell.wav", "--weights", "bell.wav"], "bell.wav: truncated, damaged or not a checkpoint"),
        (["image.png", "bell.wav", "--threshold", "nan"], "threshold: expected a finite cosine, got nan"),
        (["image.png", "bell.wav", "--weights-layout", "lvs"], "--weights-layout: expected with --weights"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(arguments, said, files, monkeypatch, capsys):
    monkeypatch.chdir(files[0])
    before = sorted(files[0].iterdir())
    assert cli.main(["localize", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and sorted(files[0].iterdir()) == before


def test_inputs_of_another_type_are_refused(pipeline):
    image, waveform = np.zeros((4, 4, 3), np.uint8), np.zeros(16000, np.float32)
    for wrong in (image[..., :1], image.astype(np.float32), image[:0]):
        with pytest.raises(ValueError, match=re.escape("image: expected uint8 (H, W, 3)")):
            pipeline.localize(wrong, waveform)
    for wrong in (waveform[:-1], waveform.astype(np.float64)):
        with pytest.raises(ValueError, match=re.escape("waveform: expected float32 (16000,)")):
            pipeline.localize(image, wrong)


# ---------------------------------------------------------------------------------------------------------------------
# Videos


@pytest.fixture(scope="module")
def video(files):
    """2.9 s: the scene upright, then mirrored; a second of the bell, a second of the phone, silence."""
    pytest.importorskip("av", reason="videos are read and written by PyAV")
    from films import film

    folder, one = files
    image = np.asarray(Image.fromarray(one.image).resize((224, 224)))
    waveforms = dict(zip(one.categories, one.waveforms / 32768))
    sound = np.concatenate([waveforms["bell"], waveforms["phone"], np.zeros(14400)])[:, None]
    frames = [image] * 25 + [image[:, ::-1]] * 48
    return film(folder / "video.mp4", frames, size=(224, 224), sound=sound.astype(np.float32))


def test_a_map_for_each_second_of_a_video(video, files, tmp_path, capsys):
    out = tmp_path / "out.mp4"
    assert cli.main(["localize", str(video), "-o", str(out), "--quiet"]) == 0
    maps, one = np.load(tmp_path / "out.npy"), files[1]
    lines = re.findall(r"^ +(\d+) s: maximum \S+ at \((\S+), (\S+)\).*; (.*) above", capsys.readouterr().out, re.M)
    assert maps.shape == (2, 7, 7) and [line[0] for line in lines] == ["0", "1"]
    for k, name in enumerate(("bell", "phone")):
        left, top, right, bottom = one.boxes[one.categories.index(name)] / 112
        x, y = float(lines[k][1]), float(lines[k][2])
        assert left <= (x if k == 0 else 1 - x) < right and top <= y < bottom
    from ssl_fast.data.io.video import frames_of_seconds

    frames = dict(frames_of_seconds(out))  # what was written can be read, with its sound
    assert list(frames) == [0.5, 1.5] and np.abs(frames[0.5].astype(int) - frames[1.5]).mean() > 2
    heard, original = (decode_audio(path)[0][8000:20000, 0] for path in (out, video))
    assert np.corrcoef(heard, original)[0, 1] > 0.9


def test_a_video_as_gif(video, tmp_path):
    assert cli.main(["localize", str(video), "-o", str(tmp_path / "out.gif"), "--quiet"]) == 0
    with Image.open(tmp_path / "out.gif") as image:
        assert (image.n_frames, image.info["duration"]) == (2, 1000)


def test_a_full_disk_for_temporary_files_is_named(monkeypatch, tmp_path):
    from films import film as written
    from ssl_fast.inference import film

    path = written(tmp_path / "a.mp4", [100] * 3, fps=1, sound=np.zeros((3 * 16000, 1)))
    monkeypatch.setattr(film.tempfile, "TemporaryFile", lambda: open("/dev/full", "wb", buffering=0))  # noqa: SIM115
    with pytest.raises(OSError, match=f"No space left on device: '{film.tempfile.gettempdir()}'"):
        film.read_sound(path)


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_memory_does_not_grow_with_the_length_of_a_video(suffix, monkeypatch, tmp_path):
    """Of frames and of pictures that are written, two or three live at a time."""
    from films import film as written
    from ssl_fast.inference import film

    alive, most = {"frame": 0, "sheet": 0}, {"frame": 0, "sheet": 0}

    def counted(kind, array):
        array = array.copy()
        alive[kind] += 1
        most[kind] = max(most[kind], alive[kind])
        weakref.finalize(array, lambda: alive.update({kind: alive[kind] - 1}))
        return array

    frames = film.frames_of_seconds
    monkeypatch.setattr(
        film, "frames_of_seconds", lambda path: ((at, counted("frame", one)) for at, one in frames(path))
    )
    monkeypatch.setattr(Answer, "sheet", lambda *args: counted("sheet", np.zeros((34, 50, 3), np.uint8)))
    path = written(tmp_path / "a.mp4", [100] * 6, fps=1, sound=np.zeros((6 * 16000, 1)))
    assert cli.main(["localize", str(path), "-o", str(tmp_path / f"out{suffix}"), "--quiet"]) == 0
    assert max(most.values()) <= 3 and not any(alive.values())


@pytest.mark.parametrize("rate, length", [(16000, 5.0), (44100, 5.0), (48000, 5.0), (8000, 5.0), (44100, 0.6)])
def test_what_is_heard_of_a_second_is_that_of_the_whole_sound(rate, length, monkeypatch):
    from ssl_fast.inference import film

    front_end = FrontEnd(name="x", seconds=1.0, hop=160)
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, (round(rate * length), 2)).astype(np.float32)
    times = [k + 0.5 for k in range(int(length))] or [length / 2]
    monkeypatch.setattr(film, "frames_of_seconds", lambda path: iter([(at, None) for at in times]))
    pipeline = SimpleNamespace(front_end=front_end, localize=lambda frame, waveform: waveform)
    pipeline.heard = lambda *args: LocalizationPipeline.heard(pipeline, *args)
    whole = to_mono("a", sound, rate, 16000)
    got = list(film.localize(pipeline, "a", sound, rate))
    assert len(got) == len(times)
    for at, waveform in zip(times, got):
        first = min(max(0, round(at * 16000) - 8000), max(0, len(whole) - 16000))
        np.testing.assert_allclose(waveform, np.tile(whole, 2)[first : first + 16000], atol=2e-6)


def test_the_sound_of_a_video_in_a_file_is_that_in_memory(video, tmp_path):
    from films import clip
    from ssl_fast.inference import film

    (sound, rate), (expected, at) = film.read_sound(video), decode_audio(video)
    assert isinstance(sound, np.memmap) and rate == at
    np.testing.assert_array_equal(sound, expected)
    wrong = np.zeros((32000, 1))
    wrong[8000] = np.nan
    path = clip(tmp_path / "a.mov", "libx264", "pcm_f32le", wrong, 16000)
    for read in (film.read_sound, decode_audio):
        with pytest.raises(MediaError, match=r"a.mov: expected finite samples, got nan at 0\.500 s"):
            read(path)


def test_a_video_is_not_written_over(video, tmp_path, capsys):
    path = tmp_path / "a.mp4"
    path.write_bytes(video.read_bytes())
    assert cli.main(["localize", str(path), "-o", str(path), "--quiet"]) == 2
    assert "a.mp4: this command reads it" in capsys.readouterr().err
    assert path.read_bytes() == video.read_bytes()


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["-o", "out.png"], "--out out.png: expected .mp4, .gif"),
        (["--alpha", "nan"], "--alpha: expected within [0, 1]"),
    ],
)
def test_bad_options_of_videos(video, arguments, said, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["localize", str(video), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_torch_compiler_is_not_loaded_for_one_answer(files, tmp_path):
    """It would add a second to the start of the command."""
    code = (
        "import sys; from ssl_fast.cli import main as cli; code = cli.main(sys.argv[1:]); "
        "sys.exit(code or 'torch._dynamo' in sys.modules)"
    )
    command = ["localize", str(files[0] / "image.png"), str(files[0] / "bell.wav"), "-o", str(tmp_path / "a.png")]
    subprocess.run([sys.executable, "-c", code, *command], check=True)


# ---------------------------------------------------------------------------------------------------------------------
# Over time


def test_tokens_of_parts_are_those_of_the_whole_sound(token_pipeline, monkeypatch):
    from ssl_fast.inference import localize

    sound = np.random.default_rng(0).uniform(-0.5, 0.5, 16000 * 5 + 77).astype(np.float32)
    net, front_end = token_pipeline.found.localizer, token_pipeline.front_end
    with torch.no_grad():
        whole = net.audio_features(
            net.normalize_spectrograms(front_end.spectrogram(torch.from_numpy(sound))[None, None])
        )["audio"][0]
    for part in (7, 16, whole.shape[1]):
        monkeypatch.setattr(localize, "PART", part)
        got, times = token_pipeline.tokens(sound)
        assert got.shape == whole.shape == (8, len(times))
        np.testing.assert_allclose(got, whole, rtol=0, atol=2e-5 * whole.abs().max().item())
    assert np.diff(times) == pytest.approx(float(token_pipeline.token_step))
    with pytest.raises(ValueError, match="method: expected a localizer with audio tokens"):
        LocalizationPipeline(checkpoints.load(checkpoints.EMBEDDED)).tokens(sound)
    with pytest.raises(ValueError, match="frames: expected as many as make a token"):
        token_pipeline.tokens(sound[:100])


def test_tokens_go_on_where_a_published_front_end_keeps_the_middle_of_a_clip():
    """published/sslalign_ezvsl is published/ezvsl that keeps 200 frames of a longer clip."""
    from ssl_fast.models import LocalizerConfig, build

    torch.manual_seed(0)
    net = build(LocalizerConfig.small("dense_av", width=2, dimension=8)).eval()
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, 16000 * 7).astype(np.float32)
    (got, times), (expected, same) = (
        LocalizationPipeline(
            checkpoints.Checkpoint(Path("x"), net, {"method": "dense_av", "front_end": name}, "ssl_fast")
        ).tokens(sound)
        for name in ("published/sslalign_ezvsl", "published/ezvsl")
    )
    assert got.shape == (8, len(times)) and len(times) > 100
    np.testing.assert_array_equal(times, same)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


def test_a_video_has_a_map_for_each_token(token_pipeline, monkeypatch, tmp_path, capsys):
    """Frames are grey, and change at 1 s: each token sees the frame of its time."""
    from films import film
    from ssl_fast.cli import localize as command

    sound = np.random.default_rng(0).uniform(-0.5, 0.5, (32000, 1))
    path = film(tmp_path / "a.mp4", [40] * 25 + [220] * 25, sound=sound)
    monkeypatch.setattr(command, "load_pipeline", lambda args: token_pipeline)
    assert cli.main(["localize", str(path), "-o", str(tmp_path / "out.mp4"), "--quiet"]) == 0
    maps, (heard, rate) = np.load(tmp_path / "out.npy"), decode_audio(path)
    net, front_end = token_pipeline.found.localizer, token_pipeline.front_end
    assert rate == front_end.sample_rate
    with torch.no_grad():
        spectrogram = front_end.spectrogram(torch.from_numpy(heard[:, 0]))[None, None]
        audio = torch.nn.functional.normalize(
            net.audio_features(net.normalize_spectrograms(spectrogram))["audio"].double()[0], dim=0
        )
        lines = re.findall(r"^ +(\d+\.\d+) s: maximum (\S+) at", capsys.readouterr().out, re.M)
        assert len(maps) == audio.shape[1] == len(lines)
        frames = [net.normalize_images(torch.full((1, 3, 112, 112), grey, dtype=torch.uint8)) for grey in (40, 220)]
        cells = [torch.nn.functional.normalize(net.visual_features(x)["visual"].double()[0], dim=0) for x in frames]
        for k, (time, highest) in enumerate(lines):
            products = [
                torch.einsum("chw,c->hw", cells[float(time) >= 1][part], audio[part, k])
                for part in (slice(0, 4), slice(4, 8))
            ]
            expected = torch.maximum(*products)
            np.testing.assert_allclose(maps[k], expected, atol=0.02)  # the codec's greys are not exact
            assert float(highest) == pytest.approx(maps[k].max(), abs=2e-3)
    with_sound, _ = decode_audio(tmp_path / "out.mp4")
    assert len(with_sound) / 16000 == pytest.approx(len(maps) * float(token_pipeline.token_step), abs=0.1)
    short = film(tmp_path / "short.mp4", [40], sound=sound[:640])
    assert cli.main(["localize", str(short), "-o", str(tmp_path / "none.mp4"), "--quiet"]) == 2
    assert re.search(r"short.mp4: its sound of \d+ samples is too short", capsys.readouterr().err)
