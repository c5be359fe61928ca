"""Audio front ends against scipy, the published programs' numbers, and files of every kind made on the fly."""

import json
import os
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import soundfile
import torch

from ssl_fast.data.io import audio, front_ends
from ssl_fast.data.io.audio import MediaError, load_audio
from ssl_fast.data.io.front_ends import FRONT_ENDS, FrontEnd, front_end_named

GOLDEN = Path(os.environ.get("SSL_FAST_GOLDEN", Path(__file__).resolve().parents[1] / "../shared/golden")).resolve()


def scipy_log(waveform, front_end):
    """(F, T) float64, before pooling."""
    power = scipy.signal.spectrogram(
        waveform, front_end.sample_rate, nperseg=front_end.window, noverlap=front_end.window - front_end.hop
    )[2]
    return np.log(power + front_end.floor) / front_end.scale


def tone(rate, seconds, hertz=440.0, level=0.5):
    return level * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


# ---------------------------------------------------------------------------------------------------------------------
# Spectrograms


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-7)])
@pytest.mark.parametrize(
    "name", sorted(name for name, one in FRONT_ENDS.items() if type(one) is FrontEnd and not one.mel)
)
def test_spectrogram_equals_scipy(name, dtype, tolerance):
    """Relative to the value; of a chirp, of noise at two levels, of a constant and of silence, in one batch."""
    front_end = replace(FRONT_ENDS[name], pool=1)
    n, rng = front_end.samples, np.random.default_rng(1)
    time = np.arange(n) / front_end.sample_rate
    waves = np.stack(
        [
            0.9 * scipy.signal.chirp(time, 50, time[-1], 7900),
            rng.uniform(-1, 1, n),
            1e-3 * rng.standard_normal(n),
            np.full(n, 0.7),
            np.zeros(n),
        ]
    )
    waves = torch.from_numpy(waves).to(dtype)
    got = front_end.spectrogram(waves)
    assert got.dtype == torch.float32 and got.shape == (5, *front_end.shape)
    for one, wave in zip(got.numpy(), waves.numpy()):
        np.testing.assert_allclose(one, scipy_log(wave.astype(np.float64), front_end), rtol=tolerance)
    np.testing.assert_allclose(got[-1], front_end.silence, rtol=tolerance)


def test_mel_front_end_resamples_and_is_else_the_published_one(tmp_path):
    """At 16 kHz, mono, SSL-TIE's own to the bit (which test_front_ends compares with its description)."""
    time = np.arange(16000 * 11) / 16000
    chirp = 0.5 * scipy.signal.chirp(time, 100, time[-1], 3000)
    for rate, step in ((16000, 1), (8000, 2)):
        soundfile.write(tmp_path / f"{rate}.wav", chirp[::step], rate)
    mel, published = FRONT_ENDS["ssl_tie"], FRONT_ENDS["published/ssltie"]
    got, slow = (mel.spectrogram(torch.from_numpy(mel.load(tmp_path / f"{rate}.wav"))) for rate in (16000, 8000))
    expected = published.spectrogram(torch.from_numpy(published.load(tmp_path / "16000.wav")))
    assert got.shape == mel.shape == (257, 670) and torch.equal(got, expected)
    both = (got > -20) & (slow > -20)  # where the chirp is
    assert both.sum() > 4000 and (got - slow)[both].abs().median() < 0.1
    assert mel.silence == -100 and (mel.spectrogram(torch.zeros(160000)) == -100).all()


def test_the_window_is_scipys():
    expected = scipy.signal.get_window(("tukey", 0.25), 512)
    np.testing.assert_allclose(front_ends._tukey(512).numpy(), expected, atol=1e-15)


def test_silence_is_the_logarithm_of_the_floor():
    front_end = FRONT_ENDS["ez_vsl"]
    np.testing.assert_allclose(front_end.spectrogram(torch.zeros(48000)), np.log(1e-7) / 12, rtol=1e-6)


@pytest.mark.parametrize("pool", [2, 3, 5])
def test_pooling_averages_blocks_of_the_logarithm(pool):
    front_end = replace(FRONT_ENDS["ez_vsl"], pool=pool)
    wave = np.random.default_rng(2).uniform(-1, 1, front_end.samples)
    log = scipy_log(wave, front_end)
    bands, frames = (n // pool for n in log.shape)
    expected = [
        [log[pool * f : pool * f + pool, pool * t : pool * t + pool].mean() for t in range(frames)]
        for f in range(bands)
    ]
    got = front_end.spectrogram(torch.from_numpy(wave))
    assert got.shape == front_end.shape == (bands, frames)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_batches_of_any_shape_and_stride_give_the_same_bits():
    front_end = FRONT_ENDS["scenes"]
    waves = torch.from_numpy(np.random.default_rng(3).uniform(-1, 1, (2, 3, front_end.samples)).astype(np.float32))
    whole = front_end.spectrogram(waves)
    assert whole.shape == (2, 3, *front_end.shape) and whole.is_contiguous()
    strided = waves.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert not strided.is_contiguous() and torch.equal(front_end.spectrogram(strided), whole)
    for i in range(2):
        for j in range(3):
            assert torch.equal(front_end.spectrogram(waves[i, j]), whole[i, j])


def test_shapes_are_the_published_ones():
    shapes = {name: FRONT_ENDS[name].shape for name in ("ez_vsl", "slavc", "fnac", "lvs", "ssl_align")}
    centre = (257, 200)
    assert shapes == {"ez_vsl": centre, "slavc": centre, "fnac": centre, "lvs": (257, 671), "ssl_align": (257, 299)}


@pytest.mark.parametrize(
    "waveforms, error, message",
    [
        (np.zeros(1000), TypeError, "waveforms: expected a float32 or float64 tensor, got ndarray"),
        (torch.zeros(1000, dtype=torch.int16), TypeError, "got torch.int16"),
        (torch.zeros(4, 511), ValueError, r"waveforms: expected \(..., 512\) or longer, got \(4, 511\)"),
        (torch.tensor(1.0), ValueError, r"got \(\)"),
    ],
)
def test_bad_waveforms(waveforms, error, message):
    with pytest.raises(error, match=message):
        FRONT_ENDS["ez_vsl"].spectrogram(waveforms)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"hop": 0}, "hop: expected an integer >= 1, got 0"),
        ({"sample_rate": 16000.0}, "sample_rate: expected an integer >= 1, got 16000.0"),
        ({"window": 511}, "window: expected an even number of samples, got 511"),
        ({"seconds": 0.01}, "seconds: expected 1 frames or more, of 512 samples with a hop of 238, got 160 samples"),
        ({"seconds": float("nan")}, "seconds: expected > 0, got nan"),
        ({"offset": "end"}, "offset: expected one of centre, start, got 'end'"),
        ({"channels": "left"}, "channels: expected one of mean, first, got 'left'"),
        ({"clip_seconds": 2.0}, "clip_seconds: expected at least the 3.0 s heard, got 2.0"),
    ],
)
def test_bad_front_ends(change, message):
    with pytest.raises(ValueError, match=message):
        replace(FRONT_ENDS["ez_vsl"], **change)


def test_front_ends_by_name():
    assert front_end_named("lvs") is FRONT_ENDS["lvs"]
    own = FrontEnd(name="own", seconds=2.0, hop=160)
    assert front_end_named(own) is own
    with pytest.raises(ValueError, match="front_end: expected a FrontEnd or one of ez_vsl, .*, got 'vgg'"):
        front_end_named("vgg")


# ---------------------------------------------------------------------------------------------------------------------
# The published programs' numbers. They read as the two fields say (see FRONT_ENDS).

PIPELINES = {
    "ezvsl": replace(FRONT_ENDS["ez_vsl"], reader="int16"),
    "fnac": replace(FRONT_ENDS["fnac"], reader="int16"),
    "lvs": FRONT_ENDS["lvs"],
    "sslalign": replace(FRONT_ENDS["ssl_align"], channels="first"),
}


@pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden folder {GOLDEN}")
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_golden_audio(pipeline):
    recorded, front_end = json.loads((GOLDEN / "audio.json").read_text()), PIPELINES[pipeline]
    files = sorted({key.split(".")[0] for key in recorded if key.split(".")[1] == pipeline})
    assert files, f"{GOLDEN / 'audio.json'} holds nothing for {pipeline}"
    for file in files:
        waveform = torch.from_numpy(front_end.load(GOLDEN / "wav" / f"{file}.wav"))
        got = front_end.spectrogram(waveform)[None].double().numpy()
        expected = {part: recorded[f"{file}.{pipeline}.{part}"] for part in ("shape", "sum", "abs2", "every997")}
        assert list(got.shape) == expected["shape"]
        np.testing.assert_allclose(got.reshape(-1)[::997], expected["every997"], rtol=1e-5, err_msg=file)
        np.testing.assert_allclose([got.sum(), (got**2).sum()], [expected["sum"], expected["abs2"]], rtol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Files


@pytest.mark.parametrize(
    "name, options, tolerance",
    [
        ("8 bit.wav", {"subtype": "PCM_U8"}, 2**-7),
        ("16 bit.wav", {"subtype": "PCM_16"}, 2**-15),
        ("24 bit.wav", {"subtype": "PCM_24"}, 2**-22),
        ("32 bit.wav", {"subtype": "PCM_32"}, 2**-22),
        ("float.wav", {"subtype": "FLOAT"}, 1e-7),
        ("double.wav", {"subtype": "DOUBLE"}, 1e-7),
        ("mu law.wav", {"subtype": "ULAW"}, 0.02),
        ("größe 音.flac", {"subtype": "PCM_24"}, 2**-22),
        ("vorbis.ogg", {"subtype": "VORBIS"}, 0.05),
        ("layer three.mp3", {"subtype": "MPEG_LAYER_III", "format": "MP3"}, 0.05),
    ],
)
def test_sample_formats(tmp_path, name, options, tolerance):
    wave = tone(16000, 1)
    soundfile.write(tmp_path / name, wave, 16000, **options)
    got = load_audio(tmp_path / name, sample_rate=16000)
    assert got.dtype == np.float32 and got.shape == (16000,)
    inner = slice(2000, -2000)  # lossy codecs take time to settle at the ends
    np.testing.assert_allclose(got[inner], wave[inner], atol=tolerance)


@pytest.mark.parametrize("channels", [1, 2, 8])
def test_channels_are_averaged(tmp_path, channels):
    waves = np.random.default_rng(channels).uniform(-0.9, 0.9, (5000, channels)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", waves, 16000, subtype="FLOAT")
    np.testing.assert_allclose(load_audio(tmp_path / "a.wav", sample_rate=16000), waves.mean(1), atol=1e-7)
    np.testing.assert_array_equal(load_audio(tmp_path / "a.wav", sample_rate=16000, channels="first"), waves[:, 0])


def test_the_int16_reader_rounds_the_mix_up(tmp_path):
    whole = np.array([[1, 2], [-1, -2], [3, 3], [-32768, -32767], [32767, 32767]], np.int16)
    soundfile.write(tmp_path / "a.wav", whole, 16000, subtype="PCM_16")
    got = load_audio(tmp_path / "a.wav", sample_rate=16000, reader="int16")
    np.testing.assert_allclose(got * 32767, [2, -1, 3, -32767, 32767], rtol=1e-6)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 22254, 44100, 48000, 96000])
def test_resampling_keeps_pitch_length_and_level(tmp_path, rate):
    """A tone below every Nyquist frequency comes out as the same tone at 16 kHz."""
    soundfile.write(tmp_path / "a.wav", tone(rate, 1.5, 997.0), rate, subtype="FLOAT")
    got = load_audio(tmp_path / "a.wav", sample_rate=16000)
    assert abs(len(got) - 24000) <= 1
    inner = slice(1000, 23000)
    np.testing.assert_allclose(got[inner], tone(16000, 1.5, 997.0)[inner], atol=2e-3)


def test_resampling_lets_no_aliases_through(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(44100, 1, 12000.0), 44100, subtype="FLOAT")
    assert np.abs(load_audio(tmp_path / "a.wav", sample_rate=16000)[500:-500]).max() < 0.01


def test_odd_ratios_are_rounded_a_little(monkeypatch):
    """The table of 22254 : 16000 as it stands would take 350 MB; the usual ratios stay exact."""
    import torchaudio

    asked = []
    monkeypatch.setattr(torchaudio.functional, "resample", lambda x, a, b: asked.append((a, b)) or x)
    for rate in (22254, 11127, 44100, 48000, 11025):
        audio.resample(np.zeros(100, np.float32), rate, 16000)
    assert all(max(pair) <= 1400 for pair in asked)
    assert all(abs(16000 * a / b / rate - 1) < 1e-6 for (a, b), rate in zip(asked, (22254, 11127)))
    assert asked[2:] == [(441, 160), (3, 1), (441, 640)]


@pytest.mark.parametrize("offset, first", [("centre", 1000), ("start", 0)])
def test_segments(tmp_path, offset, first):
    ramp = np.arange(10000) / 20000
    soundfile.write(tmp_path / "a.wav", ramp, 8000, subtype="DOUBLE")
    got = load_audio(tmp_path / "a.wav", sample_rate=8000, seconds=1.0, offset=offset)
    np.testing.assert_allclose(got, ramp[first : first + 8000], atol=1e-7)


def test_short_files_are_tiled(tmp_path):
    ramp = np.arange(300) / 300
    soundfile.write(tmp_path / "a.wav", ramp, 8000, subtype="DOUBLE")
    got = load_audio(tmp_path / "a.wav", sample_rate=8000, seconds=0.1)
    np.testing.assert_allclose(got, np.concatenate([ramp, ramp, ramp[:200]]), atol=1e-7)


def test_the_clip_is_cut_before_the_segment(tmp_path):
    ramp = np.arange(20000) / 20000
    soundfile.write(tmp_path / "a.wav", ramp, 8000, subtype="DOUBLE")
    front_end = FrontEnd(name="x", sample_rate=8000, seconds=0.5, hop=100, clip_seconds=1.0)
    np.testing.assert_allclose(front_end.load(tmp_path / "a.wav"), ramp[2000:6000], atol=1e-7)


@pytest.mark.parametrize("shift, start", [(-300, 1700), (300, 2300), (-5000, 0), (5000, 4000)])
def test_a_segment_moves_within_its_clip(shift, start):
    front_end = FrontEnd(name="x", sample_rate=8000, seconds=0.5, hop=100)
    ramp = np.arange(8000, dtype=np.float32)
    np.testing.assert_array_equal(front_end.segment(ramp, shift), ramp[start : start + 4000])


def test_full_scale_is_clipped_and_nonsense_refused(tmp_path):
    wave = tone(8000, 0.5, level=1.4)
    soundfile.write(tmp_path / "loud.wav", wave, 8000, subtype="FLOAT")
    np.testing.assert_allclose(load_audio(tmp_path / "loud.wav", sample_rate=8000), wave.clip(-1, 1), atol=1e-6)
    soundfile.write(tmp_path / "integers.wav", 32767 * wave, 8000, subtype="FLOAT")
    message = r"integers\.wav: expected samples within full scale, \[-1, 1\], got a peak of 45"
    with pytest.raises(MediaError, match=message):
        load_audio(tmp_path / "integers.wav", sample_rate=8000)


def test_a_front_end_loads_what_it_hears(tmp_path):
    wave = np.random.default_rng(5).uniform(-0.5, 0.5, (5 * 44100, 2))
    soundfile.write(tmp_path / "a.flac", wave, 44100)
    front_end = FRONT_ENDS["ssl_align"]
    got = front_end.load(tmp_path / "a.flac")
    whole = load_audio(tmp_path / "a.flac", sample_rate=16000)
    assert got.shape == (front_end.samples,) == (48000,) and len(whole) == 80000
    np.testing.assert_array_equal(got, np.tile(whole, 2)[56000:104000])


# ---------------------------------------------------------------------------------------------------------------------
# Broken files: an error that names the file and the reason


def broken(folder: Path, kind: str) -> Path:
    wave = np.random.default_rng(0).normal(0, 0.1, 32000)
    path = folder / f"{kind}.wav"
    if kind == "missing":
        return path
    if kind == "folder":
        path.mkdir()
    elif kind == "no bytes":
        path.touch()
    elif kind == "no samples":
        soundfile.write(path, np.zeros((0, 1)), 16000)
    elif kind == "text":
        path.write_text("no sound " * 100)
    elif kind in ("nan", "inf"):
        wave[1600] = float(kind)
        soundfile.write(path, wave, 16000, subtype="FLOAT")
    elif kind == "head only":
        soundfile.write(path, wave, 16000)
        path.write_bytes(path.read_bytes()[:30])
    else:
        path = folder / f"{kind}"
        options = {"format": "MP3", "subtype": "MPEG_LAYER_III"} if path.suffix == ".mp3" else {}
        soundfile.write(path, wave, 16000, **options)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) * 6 // 10])
    return path


@pytest.mark.parametrize(
    "kind, message",
    [
        ("missing", "no such file"),
        ("folder", "not a file"),
        ("no bytes", r"empty file \(0 bytes\)"),
        ("no samples", "expected audio, got a file of no samples"),
        ("text", r"cannot be read as audio \(Format not recognised\)"),
        ("nan", r"expected finite samples, got nan at 0\.100 s"),
        ("inf", r"expected finite samples, got inf at 0\.100 s"),
        ("head only", "cannot be read as audio"),
        ("cut.wav", "truncated, its header tells of 64044 bytes, the file has 38426"),
        ("cut.flac", "cannot be read as audio .*lost sync"),
        ("cut.ogg", "truncated, its last page is incomplete"),
        ("cut.mp3", "truncated, its last frame has 108 of 144 bytes"),
    ],
)
def test_broken_files_are_named(tmp_path, kind, message):
    path = broken(tmp_path, kind)
    with pytest.raises(MediaError, match=message) as caught:
        load_audio(path, sample_rate=16000, seconds=3.0)
    assert str(caught.value).startswith(f"{path}: ")


def test_streamed_wavs_have_no_length_and_are_taken(tmp_path):
    """Programs that write to a pipe leave 0 or the largest number where the length should stand."""
    soundfile.write(tmp_path / "a.wav", tone(16000, 1), 16000)
    whole, data = load_audio(tmp_path / "a.wav", sample_rate=16000), (tmp_path / "a.wav").read_bytes()
    assert data[36:40] == b"data"
    for of_file, of_samples in ((0, 32000), *[(n, n) for n in (0xFFFFFFFF, 0x7FFFF024, 0x7FFFFFFE)]):
        lengths = struct.pack("<I", of_file), struct.pack("<I", of_samples)
        (tmp_path / "a.wav").write_bytes(data[:4] + lengths[0] + data[8:40] + lengths[1] + data[44:])
        np.testing.assert_array_equal(load_audio(tmp_path / "a.wav", sample_rate=16000), whole)


def test_an_mp3_without_a_table_of_contents_is_taken(tmp_path):
    """Its number of samples is guessed from the first frame; here twice what it has."""
    wave = np.random.default_rng(0).normal(0, 0.2, 160000) * (np.arange(160000) > 80000)
    options = {"format": "MP3", "subtype": "MPEG_LAYER_III", "bitrate_mode": "VARIABLE", "compression_level": 0.5}
    soundfile.write(tmp_path / "a.mp3", wave, 16000, **options)
    data = (tmp_path / "a.mp3").read_bytes()
    (tmp_path / "a.mp3").write_bytes(data[data.index(data[:2], 2) :])
    assert soundfile.info(tmp_path / "a.mp3").frames > 200000
    assert 155000 < len(load_audio(tmp_path / "a.mp3", sample_rate=16000)) < 165000


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="offset: expected one of centre, start, got 'end'"):
        load_audio(tmp_path / "a.wav", sample_rate=16000, offset="end")


@pytest.mark.parametrize("device", ["cuda"])
def test_devices_agree(device):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    front_end = FRONT_ENDS["ez_vsl"]
    waves = torch.rand(4, front_end.samples, generator=torch.Generator().manual_seed(0)) * 2 - 1
    got, expected = front_end.spectrogram(waves.to(device)).cpu(), front_end.spectrogram(waves)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=0)


def test_samples_that_are_only_read_in_a_stream(tmp_path):
    """Here libsndfile cannot tell how many there are before it has read them."""
    soundfile.write(tmp_path / "a.wav", tone(8000, 1), 8000, subtype="GSM610")
    got = load_audio(tmp_path / "a.wav", sample_rate=8000)
    assert 8000 <= len(got) <= 8000 + 320  # a block more
    np.testing.assert_allclose(got[320:7680], tone(8000, 1)[320:7680], atol=0.1)
