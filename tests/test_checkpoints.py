"""Checkpoints as localizers: what is written is what is read, in all formats, and what is said of others."""

import json
import re
import struct
import warnings

import pytest
import torch

from ssl_fast.cli import main as cli
from ssl_fast.models import LocalizerConfig, ResNet18, build, checkpoints, storage
from ssl_fast.training import Learner, recipes
from ssl_fast.training.loop import train
from training_toys import ToySet

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
    checkpoints.write(slow, tmp_path / "slow.pt")
    assert checkpoints.load(tmp_path / "slow.pt", "slavc_momentum").layout == "slavc_momentum"
    assert slow.threshold is None and (online.layout, slow.layout) == ("ssl_fast", "slavc_momentum")
    storage.save({"recipe": learner.recipe.to_dict(), **learner.state(), "momentum": None}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="checkpoint.pt has no momentum nets, which 'slavc_momentum' asks for"):
        checkpoints.load(tmp_path, "slavc_momentum")


# ---------------------------------------------------------------------------------------------------------------------
# Damage, and content that is not what is expected


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_flipped_bit_is_found_or_harmless(suffix, run, tmp_path):
    path = tmp_path / f"whole{suffix}"
    checkpoints.write(checkpoints.load(run), path)
    content, read = path.read_bytes(), {".pt": storage.read_file, ".safetensors": checkpoints._read_safetensors}[suffix]
    good, found = read(path), 0
    places = range(0, len(content), len(content) // 150)
    for place in places:
        path.write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
        try:
            assert same(read(path), good)  # padding, dates
        except storage.CheckpointError:
            found += 1
    assert found > 0.5 * len(places)


def test_files_of_torch_without_checksums_are_read(run, tmp_path):
    state = storage.read_file(run / "checkpoint.pt")
    before = torch.serialization.get_crc32_options()
    try:
        torch.serialization.set_crc32_options(False)
        torch.save(state, tmp_path / "bare.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    assert same(storage.read_file(tmp_path / "bare.pt"), state)


def test_torchscript_is_refused_without_advice_to_run_it(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "program.pt")
    with warnings.catch_warnings(), pytest.raises(storage.CheckpointError, match="a TorchScript program") as error:
        warnings.simplefilter("error")
        storage.read_file(tmp_path / "program.pt")
    assert "weights_only" not in str(error.value)


def first_weight(state, make):
    name = next(name for name in state["localizer"] if name.endswith("conv1.weight"))
    return state | {"localizer": state["localizer"] | {name: make(state["localizer"][name])}}


WEIGHTS = {
    "nan": (lambda x: torch.full_like(x, torch.nan), "conv1.weight: not finite"),
    "overflow": (lambda x: torch.full_like(x, 1e300, dtype=torch.float64), "conv1.weight: not finite"),
    "complex": (lambda x: x.to(torch.complex64), "expected torch.float32, got torch.complex64"),
    "whole numbers": (lambda x: x.to(torch.int64), "expected torch.float32, got torch.int64"),
    "sparse": (lambda x: x.to_sparse(), "expected a dense tensor with values, got torch.sparse_coo"),
    "meta": (lambda x: x.to("meta"), "expected a dense tensor with values, got torch.strided on the device meta"),
    "shape": (lambda x: x[:1], "expected (4, 3, 6, 6), got (1, 3, 6, 6)"),
    "list": (lambda x: x.tolist(), "expected a tensor, got list"),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_convert_refuses_what_are_no_weights(case, run, tmp_path, capsys):
    make, said = WEIGHTS[case]
    storage.save(first_weight(storage.load(run / "checkpoint.pt"), make), tmp_path / "odd.pt")
    assert cli.main(["convert", str(tmp_path / "odd.pt"), str(tmp_path / "out.pt")]) == 2
    *warnings, error = capsys.readouterr().err.splitlines()  # torch 2.11 warns of sparse tensors, in one line
    assert "odd.pt: does not give the localizer" in error and said in error and len(warnings) <= (case == "sparse")
    assert not (tmp_path / "out.pt").exists()


def test_half_does_not_overflow(run, tmp_path):
    found = checkpoints.load(run)
    with torch.no_grad():
        found.localizer.visual_net.bn1.running_var[0] = 1e6
    with pytest.raises(ValueError, match="weights that float16 cannot hold: visual_net.bn1.running_var"):
        checkpoints.write(found, tmp_path / "half.pt", half=True)


@pytest.mark.parametrize("wrap", ["plain", "ddp", "compiled", "part compiled", "lightning", "nested", "old"])
def test_known_wrappers_of_torchvision_weights(wrap, tmp_path):
    torch.manual_seed(1)
    net = ResNet18()
    state = {**net.state_dict(), "fc.weight": torch.zeros(2, 512), "fc.bias": torch.zeros(2)}
    prefix = {"ddp": "module.", "compiled": "_orig_mod.module.", "lightning": "model."}.get(wrap, "")
    state = {prefix + key: value for key, value in state.items()}
    if wrap == "part compiled":
        state = {key.replace("layer1.", "layer1._orig_mod."): value for key, value in state.items()}
    if wrap == "old":  # of torch 0.4 and older
        state = {key: value for key, value in state.items() if "num_batches" not in key}
    if wrap in ("lightning", "nested"):
        state = {"epoch": 3, "state_dict": state} if wrap == "lightning" else {"model": {"state_dict": state, "lr": 1}}
    torch.save(state, tmp_path / "resnet18.pth")
    with torch.device("meta"):
        loaded = ResNet18()
    assert storage.load_torchvision(loaded, tmp_path / "resnet18.pth") == ["fc.weight", "fc.bias"]
    assert same(dict(loaded.state_dict()), dict(net.state_dict()))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Recipe and state of a run of 2 steps."""
    torch.manual_seed(0)
    small = LocalizerConfig.small("slavc", width=2, dimension=4)
    recipe = recipes.recipe("slavc", model=small, momentum_decay=0.9, batch_size=20, epochs=1, precision="float32")
    folder = tmp_path_factory.mktemp("stopped")
    train(ToySet(), recipe, out=folder, progress=False)
    return recipe, storage.read_file(folder / "checkpoint.pt")


def replaced(value, path, make):
    """`value` with make(what is there) at `path`; nothing there where that is None."""
    if not path:
        return make(value)
    changed = value.copy()
    changed[path[0]] = replaced(value[path[0]], path[1:], make)
    return changed


def endless(_):
    nested = []
    nested.append(nested)
    return nested


MOMENT = ("optimizer", "state", 0)
STATES = {
    "other shape": ((*MOMENT, "exp_avg"), lambda x: x.flatten()[:5], "parameter 0: 1 weights do not fit: exp_avg"),
    "no tensor": ((*MOMENT, "exp_avg_sq"), lambda x: 1.0, "exp_avg_sq: expected a tensor, got float"),
    "negative": ((*MOMENT, "exp_avg_sq"), lambda x: x - 1, "parameter 0: expected at most 2 steps, and squares >= 0"),
    "other type": ((*MOMENT, "exp_avg"), lambda x: x.double(), "expected torch.float32, got torch.float64"),
    "later": ((*MOMENT, "step"), lambda x: x + 7, "parameter 0: expected at most 2 steps, and squares >= 0, got 9"),
    "another parameter": (("optimizer", "state"), lambda x: {**x, 10**6: x[0]}, "optimizer: expected the state of"),
    "no optimizer": (("optimizer",), lambda x: None, "optimizer: expected the state of"),
    "no momentum": (("momentum",), lambda x: None, "momentum: expected that of slavc"),
    "nan": (("localizer", "visual_net.conv1.weight"), lambda x: x * torch.nan, "visual_net.conv1.weight: not finite"),
    "variance": (("localizer", "visual_net.bn1.running_var"), lambda x: -x, "visual_net.bn1.running_var: negative"),
    "half": (("localizer", "visual_net.conv1.weight"), lambda x: x.half(), "expected torch.float32, got torch.float16"),
    "beyond": (("step",), lambda x: 3, "got other values in: history"),
    "true": (("step",), lambda x: True, "got other values in: step"),
    "not begun": (("seconds",), lambda x: -1.0, "got other values in: seconds"),
    "never": (("seconds",), lambda x: torch.inf, "got other values in: seconds"),
    "plan": (("planned_steps",), lambda x: 5, "belongs to a run with planned_steps=5"),
    "record": (("history", 1, "loss"), lambda x: "low", "got other values in: history"),
    "endless": (("versions",), endless, "nested too deeply"),
    "tensor": (("data",), lambda x: torch.ones(2), "got other values in: data"),
    "recipe": (("recipe",), lambda x: [], "got other values in: recipe"),
    "bare recipe": (("recipe",), lambda x: {}, "belongs to a run with"),
    "large": (("seed",), lambda x: 10**400, "numbers too large"),
}


@pytest.mark.parametrize("case", STATES)
def test_resume_refuses_what_no_run_writes(case, stopped, tmp_path):
    recipe, state = stopped
    path, make, said = STATES[case]
    torch.save(replaced(state, path, make), tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=f"checkpoint.pt: .*{re.escape(said)}"):
        train(ToySet(), recipe, out=tmp_path, resume=True, progress=False)


@pytest.mark.parametrize("name", ["localizer", "history", "seed"])
def test_resume_refuses_a_state_with_something_missing(name, stopped, tmp_path):
    recipe, state = stopped
    torch.save({key: value for key, value in state.items() if key != name}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=f"checkpoint.pt: expected the state of a run, got none of its {name}"):
        train(ToySet(), recipe, out=tmp_path, resume=True, progress=False)


def test_moments_of_other_strides_are_used_as_they_should_be(stopped, tmp_path):
    """Fused Adam reads them by the strides of the parameter."""
    recipe, state = stopped
    learner, other, samples = Learner(recipe, 0), Learner(recipe, 0), ToySet()
    learner.load(state)
    moments = state["optimizer"]["state"]
    turned = {
        index: {key: x.contiguous() if x.dim() < 4 else x.mT.contiguous().mT for key, x in moment.items()}
        for index, moment in moments.items()
    }
    assert any(turned[i]["exp_avg"].stride() != moments[i]["exp_avg"].stride() for i in moments)
    other.load(state | {"optimizer": state["optimizer"] | {"state": turned}})
    for one in (learner, other):
        one.step(2, samples.images[:20, None], samples.spectrograms[:20, None], 1.0, samples.ids[:20])
    assert same(dict(learner.localizer.state_dict()), dict(other.localizer.state_dict()))


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": {}},
        {"recipe": {"model": {}}},
        {"front_end": []},
        {"front_end": "nothing"},
        {"image_size": 0},
        {"image_size": "112"},
        {"method": "lvs"},
        {"model": {"width": 10**30}},
        {"model": {"width": "4"}},
        {"model": None},
        {"model": {"image_mean": 3}},
        {"model": {"backbone": 3}},
        {"model": {"audio_backbone": "timm:"}},
        {"model": {"frozen": 3}},
    ],
    ids=str,
)
def test_recipes_that_no_localizer_has(change, run, tmp_path):
    state = storage.load(run / "checkpoint.pt")
    recipe = state["recipe"]
    if isinstance(change.get("model"), dict):
        change = {"model": recipe["model"] | change["model"]}
    storage.save(state | {"recipe": change.get("recipe", recipe | change)}, tmp_path / "odd.pt")
    with pytest.raises(storage.CheckpointError, match="odd.pt: does not give the localizer it describes"):
        checkpoints.load(tmp_path / "odd.pt")


@pytest.mark.parametrize("content", ["[" * 100_000, '{"weights_sha256": 1}', "[]", "\udcff"])
def test_results_that_no_evaluation_writes(content, run):
    assert_no_results(run, content)


def test_a_threshold_of_400_digits(run):
    by_set = {"validation": {"model": {"value": 10**400}}}
    threshold = {"chosen_on": "validation", "by_set": by_set}
    digest = storage.digest(run / "checkpoint.pt")
    assert_no_results(run, json.dumps({"weights_sha256": digest, "universal_threshold": threshold}))


def assert_no_results(run, content):
    (run / "metrics.json").write_text(content, errors="surrogateescape")
    with pytest.raises(storage.CheckpointError, match="metrics.json: expected the results of the run"):
        checkpoints.load(run)
