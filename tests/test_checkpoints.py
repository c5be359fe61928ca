"""Checkpoints as localizers: what is written is what is read, in all formats, and what is said of others."""

import json
import struct

import pytest
import torch

from ssl_fast.cli import main as cli
from ssl_fast.models import LocalizerConfig, build, checkpoints, storage
from ssl_fast.training import Learner, recipes

FORMATS = (".pt", ".safetensors")


@pytest.fixture
def run(tmp_path):
    """The folder of a run, with a threshold chosen on validation samples."""
    torch.manual_seed(3)
    recipe = recipes.recipe("ssl_align", model=LocalizerConfig.small("ssl_align", width=4, dimension=8, projection=6))
    localizer = build(recipe.model)
    folder = tmp_path / "run"
    folder.mkdir()
    storage.save(
        {"recipe": recipe.to_dict(), "localizer": localizer.state_dict(), "seed": 3, "step": 70},
        folder / "checkpoint.pt",
    )
    results = {
        "weights_sha256": storage.digest(folder / "checkpoint.pt"),
        "universal_threshold": {"chosen_on": "validation", "by_set": {"validation": {"model": {"value": 0.25}}}},
    }
    (folder / "metrics.json").write_text(json.dumps(results))
    return folder


def inputs():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, 112, 112, generator=generator), torch.randn(2, 1, 128, 60, generator=generator)


def map_of(found):
    with torch.no_grad():
        return found.localizer(*inputs())


@pytest.mark.parametrize("suffix", FORMATS)
def test_what_is_written_is_read(suffix, run, tmp_path, capsys):
    found = checkpoints.load(run)
    assert checkpoints.load(run / "checkpoint.pt").threshold == found.threshold
    assert (found.path, found.layout, found.unused) == (run / "checkpoint.pt", "ssl_fast", [])
    assert (found.front_end.name, found.image_size, found.threshold, found.state["step"]) == ("scenes", 112, 0.25, 70)
    out = tmp_path / f"small{suffix}"
    assert cli.main(["convert", str(run), str(out)]) == 0 and "ssl_align, layout ssl_fast" in capsys.readouterr().out
    again = checkpoints.load(out)
    assert torch.equal(map_of(again), map_of(found)) and not again.localizer.training
    assert (again.front_end, again.image_size, again.threshold) == (found.front_end, 112, 0.25)
    assert again.recipe["method"] == "ssl_align" and "step" not in again.state
    assert cli.main(["convert", str(run), str(out)]) == 2
    assert f"{out}: exists already" in capsys.readouterr().err


def test_half_is_half_the_size_and_float32_again(run, tmp_path):
    for name, half in (("whole", False), ("half", True)):
        checkpoints.write(checkpoints.load(run), tmp_path / f"{name}.safetensors", half)
    whole, half = (checkpoints.load(tmp_path / f"{name}.safetensors") for name in ("whole", "half"))
    assert {x.dtype for x in half.localizer.state_dict().values()} <= {torch.float32, torch.int64}
    torch.testing.assert_close(map_of(half), map_of(whole), rtol=0, atol=2e-3)
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("half", "whole")]
    assert sizes[0] < 0.7 * sizes[1]


def test_a_threshold_of_other_weights_or_of_test_samples_does_not_count(run):
    results = json.loads((run / "metrics.json").read_text())
    for change in ({"weights_sha256": "0" * 64}, {"universal_threshold": {"chosen_on": "test"}}):
        (run / "metrics.json").write_text(json.dumps(results | change))
        assert checkpoints.load(run).threshold is None
    (run / "metrics.json").write_text("{}")
    with pytest.raises(storage.CheckpointError, match="metrics.json: expected the results of the run"):
        checkpoints.load(run)


def test_best_epoch_of_a_run_comes_first(run):
    (run / "best.pt").write_bytes((run / "checkpoint.pt").read_bytes())
    assert checkpoints.load(run).path == run / "best.pt"


def test_damaged_and_strange_safetensors_are_named(run, tmp_path):
    checkpoints.write(checkpoints.load(run), tmp_path / "whole.safetensors")
    content = (tmp_path / "whole.safetensors").read_bytes()
    header = json.dumps({"__metadata__": {"ssl_fast": "{"}}).encode()
    for damaged in (
        content[:-100],
        b"",
        b"{}",
        struct.pack("<Q", 1 << 40) + content[8:],
        struct.pack("<Q", len(header)) + header,
    ):
        (tmp_path / "part.safetensors").write_bytes(damaged)
        with pytest.raises(storage.CheckpointError, match="part.safetensors: truncated, damaged or not of safetensors"):
            checkpoints.load(tmp_path / "part.safetensors")
    with pytest.raises(storage.CheckpointError, match="absent.safetensors: no such file"):
        checkpoints.load(tmp_path / "absent.safetensors")
    with pytest.raises(ValueError, match="whole.safetensors is no published checkpoint"):
        checkpoints.load(tmp_path / "whole.safetensors", "lvs")


def test_without_safetensors_the_error_says_so(run, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "safetensors.torch", None)
    with pytest.raises(ValueError, match="a.safetensors: such files need safetensors, .*: pip install safetensors"):
        checkpoints.write(checkpoints.load(run), tmp_path / "a.safetensors")


def test_momentum_nets_of_a_run(tmp_path):
    """Those that the learner averaged, and not the online nets; a run without them says so."""
    small = LocalizerConfig.small("slavc", width=4, dimension=8)
    learner = Learner(recipes.recipe("slavc", model=small, momentum_decay=0.9), seed=0)
    assert learner.momentum is not None
    with torch.no_grad():
        for parameter in learner.localizer.parameters():
            parameter.add_(torch.randn_like(parameter))
    learner.momentum.update(learner.localizer)
    storage.save({"recipe": learner.recipe.to_dict(), **learner.state()}, tmp_path / "checkpoint.pt")
    online, slow = checkpoints.load(tmp_path), checkpoints.load(tmp_path, "slavc_momentum")
    images, sounds = inputs()
    with torch.no_grad():
        maps = slow.localizer(images, sounds)
        assert torch.equal(maps, learner.momentum.localizer.eval()(images, sounds))
        assert not torch.allclose(maps, online.localizer(images, sounds))
    assert slow.threshold is None
    storage.save({"recipe": learner.recipe.to_dict(), **learner.state(), "momentum": None}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="checkpoint.pt has no momentum nets, which 'slavc_momentum' asks for"):
        checkpoints.load(tmp_path, "slavc_momentum")
