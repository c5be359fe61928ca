"""Published checkpoints: the golden maps through files as the programs wrote them, and what is said of other files."""

import json
import math
import os
import re
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from ssl_fast.cli import main as cli
from ssl_fast.models import checkpoints, storage
from ssl_fast.models.checkpoints import load
from ssl_fast.models.published import LAYOUTS
from ssl_fast.models.storage import CheckpointError
from ssl_fast.training.recipes import recipe

GOLDEN = Path(os.environ.get("SSL_FAST_GOLDEN", Path(__file__).resolve().parents[1] / "../shared/golden")).resolve()
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden folder {GOLDEN}")
PREFIXED = {"lvs", "slavc", "slavc_momentum"}  # always, and at times


def published_weights(salt, shapes):
    """The README of the golden folder tells how."""
    state = {}
    for key, shape in shapes.items():
        x = np.random.default_rng(zlib.crc32(f"{salt}:{key}".encode())).standard_normal(shape)
        last = key.rsplit(".", 1)[-1]
        if last == "num_batches_tracked":
            x = np.array(7)
        elif last == "running_var":
            x = np.exp(0.2 * x)
        elif last in ("running_mean", "bias"):
            x = 0.1 * x
        elif len(shape) == 1:
            x = 1 + 0.1 * x
        else:
            x = x * math.sqrt(2 / math.prod(shape[1:]))
        state[key] = torch.from_numpy(np.asarray(x, np.float32))
    return state


def weights(name):
    keys = json.loads((GOLDEN / "checkpoint_keys.json").read_text())
    return published_weights((GOLDEN / "salt.txt").read_text().strip(), keys[name])


# Metrics that the training loops of the programs store beside the weights: means of numpy.
METRICS = dict.fromkeys(("ezvsl", "fnac", "margin"), ("best_cIoU", "best_Auc"))
METRICS |= dict.fromkeys(("slavc", "slavc_momentum"), ("best_Precision", "best_AP", "best_F1"))
METRICS |= {"ssltie": ("best_miou",)}


def write(path, name, state, wrapped=True, numpy_1=False):
    """A file as the program's training loop writes it; numpy_1: with numpy 1, whose pickles have other names."""
    if name in PREFIXED:
        state = {f"module.{key}": value for key, value in state.items()}
    if not wrapped:
        torch.save(state, path)
        return path
    net = torch.nn.Linear(2, 1)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    stored = {LAYOUTS[name].container: state, "epoch": 7, "optimizer": optimizer.state_dict(), "iteration": np.int64(9)}
    stored |= {"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1).state_dict()}
    stored |= {metric: np.mean(np.float32([0.5, 0.7])) for metric in METRICS.get(name, ())}
    stored |= {"history": np.linspace(0, 1, 3)}
    torch.save(stored, path, _use_new_zipfile_serialization=not numpy_1)  # one plain pickle after the other
    if numpy_1:
        data = path.read_bytes()
        assert data.count(b"numpy._core.multiarray") or np.__version__.startswith("1.")
        path.write_bytes(data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    return path


def maps_of(localizer):
    random = np.random.default_rng(zlib.crc32(f"{(GOLDEN / 'salt.txt').read_text().strip()}:input".encode()))
    images = random.standard_normal((2, 3, 224, 224)).astype(np.float32)
    spectrograms = (-1 + 0.2 * random.standard_normal((2, 1, 257, 200))).astype(np.float32)
    with torch.no_grad():
        return localizer(torch.from_numpy(images), torch.from_numpy(spectrograms)).numpy()


@pytest.mark.parametrize(
    "name, method, unused, heard",
    [
        ("ezvsl", "ez_vsl", 0, 3.0),
        ("fnac", "ez_vsl", 0, 3.0),
        ("slavc", "slavc", 248, 3.0),
        ("slavc_momentum", "slavc", 248, 3.0),
        ("lvs", "lvs", 8, 10.0),
        ("sslalign", "ssl_align", 8, 3.0),
        ("ssltie", "ssl_tie", 17, 10.0),
    ],
)
def test_golden_maps_of_files_as_published(name, method, unused, heard, tmp_path):
    path = write(tmp_path / "best.pth", name, weights(name))
    found = load(path, layout=name if name == "slavc_momentum" else None)
    np.testing.assert_allclose(maps_of(found.localizer), np.load(GOLDEN / "checkpoints.npz")[name], rtol=0, atol=1e-4)
    assert (found.recipe["method"], len(found.unused)) == (method, unused)
    assert found.front_end.seconds == heard
    released = {"lvs": ("crop", "pillow"), "ssltie": ("crop", "pillow"), "sslalign": ("squash", "torch_aliased")}
    assert (found.reading["fit"], found.reading["resampler"]) == released.get(name, ("squash", "pillow"))


@pytest.mark.parametrize("name", ["ezvsl", "lvs", "ssltie"])
def test_files_written_with_numpy_1(name, tmp_path):
    path = write(tmp_path / "best.pth", name, weights(name), numpy_1=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = load(path)
    np.testing.assert_allclose(maps_of(found.localizer), np.load(GOLDEN / "checkpoints.npz")[name], rtol=0, atol=1e-4)


def test_arrays_of_objects_are_not_read(tmp_path):
    """They are pickles of any object."""
    torch.save({"model": {"a": torch.ones(1)}, "x": np.array([print], object)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="what could run code is not read"):
        load(tmp_path / "a.pth")


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_hear_and_see_as_the_published_recipes(name):
    layout = LAYOUTS[name]
    published = recipe(layout.method, "published")
    expected = published.reading
    assert expected == {key: getattr(layout, {"size": "image_size"}.get(key, key)) for key in expected}


def test_heads_that_the_released_evaluator_drops_are_reported(tmp_path):
    state = weights("sslalign") | {"proj_v.weight": torch.ones(3)}
    found = load(write(tmp_path / "a.pth", "sslalign", state))
    assert "proj_v.weight" in found.unused and found.layout == "sslalign"


def test_every_key_that_does_not_fit_is_named(tmp_path):
    state = weights("ezvsl")
    del state["audnet.layer3.1.bn2.running_var"]
    state["img_proj.bias"] = torch.zeros(7)
    state["img_proj3.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as error:
        load(write(tmp_path / "a.pth", "ezvsl", state))
    said = str(error.value)
    assert said.startswith(f"{tmp_path / 'a.pth'}: 3 keys do not fit the layout 'ezvsl'")
    assert "(as audnet.layer3.1.bn2.running_var)" in said and "unexpected img_proj3.weight" in said
    assert "img_proj.bias: expected (512,), got (7,)" in said


def test_bare_weights(tmp_path):
    load(write(tmp_path / "a.pth", "ezvsl", weights("ezvsl"), wrapped=False))
    path = write(tmp_path / "b.pth", "lvs", weights("lvs"), wrapped=False)
    with pytest.raises(CheckpointError, match="weights of lvs, sslalign or ssltie, whose keys are the same: say"):
        load(path)
    assert load(path, "lvs").layout == "lvs"


@pytest.mark.parametrize(
    "state, said",
    [
        (
            {"model": {"weight": torch.ones(2)}},
            "expected a checkpoint of this project or of ezvsl, .* got keys as weight",
        ),
        ({"epoch": 3}, "expected a checkpoint of this project, or weights alone or under model, .*, got epoch"),
        ({"net": {"conv.weight": torch.zeros(1)}}, "expected a checkpoint of this project, or .*, got net$"),
        ({}, "expected a checkpoint of this project, or .*, got nothing"),
        ([1, 2], "expected the format .*, got 'list'"),
    ],
)
def test_other_files_are_refused(state, said, tmp_path):
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=f"a.pth: {said}"):
        load(tmp_path / "a.pth")
    with pytest.raises(ValueError, match="layout: expected one of ezvsl, .* got 'vslnet'"):
        load(tmp_path / "a.pth", "vslnet")


class Code:
    def __reduce__(self):
        return os.mkdir, (str(Path(os.environ["SSL_FAST_TEST_TRACE"])),)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_FAST_TEST_TRACE", str(tmp_path / "ran"))
    torch.save({"model": Code()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="evil.pth: truncated, .* what could run code is not read"):
        load(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_published_weights_as_safetensors_and_converted(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(weights("slavc"), tmp_path / "a.safetensors")
    found = load(tmp_path / "a.safetensors", "slavc_momentum")
    checkpoints.write(found, tmp_path / "ours.pt")
    again = load(tmp_path / "ours.pt")
    expected = np.load(GOLDEN / "checkpoints.npz")["slavc_momentum"]
    np.testing.assert_allclose(maps_of(again.localizer), expected, rtol=0, atol=1e-4)
    assert (again.layout, again.front_end.name, again.image_size) == ("slavc_momentum", "slavc", 224)


def test_evaluation_names_unused_keys_and_hears_by_the_published_front_end(tmp_path, capsys):
    path = write(tmp_path / "best.pth", "lvs", weights("lvs"))
    assert cli.main(["evaluate", "--scenes", "--weights", str(path), "--out", str(tmp_path / "out")]) == 2
    assert f"expected weights that hear by the front end scenes, {path} by lvs" in capsys.readouterr().err
    data = tmp_path / "data"
    for folder in ("frames", "audio"):
        (data / folder).mkdir(parents=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)).save(data / "frames/a.png")
    soundfile.write(data / "audio/a.wav", np.random.default_rng(1).uniform(-1, 1, 4000), 16000)
    (data / "annotations.json").write_text('[{"file": "a", "class": "x", "bbox": [[0.1, 0.2, 0.6, 0.7]]}]')
    command = ["evaluate", "--data", str(data), "--weights", str(path), "--out", str(tmp_path / "out"), "--quiet"]
    assert cli.main([*command, "--negatives", ""]) == 0
    results = json.loads((tmp_path / "out/metrics.json").read_text())
    (note,) = (note for note in results["notes"] if "no map depends on" in note)
    assert results["layout"] == "lvs" and results["recipe"]["front_end"] == "lvs"
    unused = re.compile(r"_flow|fc\.|imgnet.conv1_a|audnet.conv1\.")
    unused = {key for key in storage.read_file(path)["model_state_dict"] if unused.search(key)}
    assert set(note.partition("depends on: ")[2].split(", ")) == unused and len(unused) == 8
