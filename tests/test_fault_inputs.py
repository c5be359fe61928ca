"""Files of other programs, and damaged ones, that a generator outside of this repository writes, through what reads
them: each gives what the README of the generator says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ssl_fast.data.io.audio import decode_audio
from ssl_fast.data.io.images import decode_image
from ssl_fast.data.io.media import MediaError
from ssl_fast.data.io.video import frames_of_seconds
from ssl_fast.data.sample_lists import DataError, read_annotations, read_ids
from ssl_fast.models import checkpoints

GENERATOR = Path(
    os.environ.get("SSL_FAST_FAULTS", Path(__file__).resolve().parents[1] / "../shared/faults/make_inputs.py")
).resolve()
pytestmark = pytest.mark.skipif(not GENERATOR.is_file(), reason=f"no generator at {GENERATOR}")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    pytest.importorskip("av")
    subprocess.run([sys.executable, GENERATOR, folder], check=True, stdout=subprocess.DEVNULL)
    return folder


def heard(path):
    """Seconds of a sound, and its first channel with its rate."""
    sound, rate = decode_audio(path)
    return len(sound) / rate, sound[:, 0], rate


def test_an_mp3_is_heard_to_its_end(inputs):
    seconds, sound, rate = heard(inputs / "nox.mp3")
    assert abs(seconds - 10.03) < 0.01
    crossings = [(np.diff(np.sign(part)) != 0).mean() for part in (sound[rate // 4 : rate // 2], sound[2 * rate :])]
    assert crossings[0] > 0.05 and abs(crossings[1] - 0.06 / np.pi) < 0.002  # noise, then the tone to the end


@pytest.mark.parametrize("name", ["click.webm", "camera.mov", "camera.mp4"])
def test_the_click_of_a_film(inputs, name):
    seconds, sound, rate = heard(inputs / name)
    assert abs(seconds - 2) < 0.001
    assert abs(np.flatnonzero(np.abs(sound) > 0.3)[0] / rate - 0.25) < 0.0005
    assert decode_image(inputs / name).shape == (48, 64, 3)
    assert [time for time, _ in frames_of_seconds(inputs / name)] == [0.5, 1.5]


def test_a_flac_of_unknown_length_is_whole_or_named(inputs):
    try:
        assert heard(inputs / "unknown.flac")[0] == 4
    except MediaError as error:
        assert re.fullmatch(r"[^\n]*unknown\.flac: [^\n]*length is unknown[^\n]*", str(error))


@pytest.mark.parametrize("name", ["rf64_cut.wav", "aiff_cut.aiff"])
def test_half_of_a_sound_is_refused(inputs, name):
    with pytest.raises(MediaError, match=f"{name}: truncated"):
        decode_audio(inputs / name)


def test_a_picture_is_turned_whatever_its_other_tags(inputs):
    assert decode_image(inputs / "exif.jpg").shape == (64, 48, 3)


def test_a_name_that_is_no_utf8(inputs):
    seconds, sound, _ = heard(inputs / os.fsdecode(b"caf\xe9.wav"))
    assert seconds == 4
    np.testing.assert_allclose(sound, 0.3 * np.sin(np.arange(64000) * 0.17), atol=1e-4)


def test_lists(inputs):
    with pytest.raises(DataError, match=r"quote\.csv: line 2: "):
        read_ids(inputs / "quote.csv")
    found = read_annotations(inputs / "bom.json")
    assert list(found) == ["id0"] and found["id0"]["class"] == "dog"


def test_numpy_scalars_beside_weights_are_data(inputs):
    with pytest.raises(checkpoints.CheckpointError) as error:
        checkpoints.load(inputs / "numpy_scalar.pth")
    assert "numpy_scalar.pth" in str(error.value) and "damaged" not in str(error.value)
    assert "x" in str(error.value)  # the key that no net has
