"""Backbones from outside the package: nets of timm, and modules of other packages."""

import json
import sys

import pytest
import soundfile
import torch
import torch.nn.functional as F
from PIL import Image

from external_nets import Ears, Eyes
from ssl_fast.cli import main as cli
from ssl_fast.data import scenes
from ssl_fast.data.io.front_ends import FRONT_ENDS
from ssl_fast.models import LocalizerConfig, build, checkpoints, storage
from ssl_fast.models.backbones import build_external, probe
from ssl_fast.training import Learner, recipe, train
from test_cli import fails
from training_toys import ToySet, after_step, folder

SHAPE = FRONT_ENDS["scenes"].shape


def external(method="ez_vsl", **changes):
    changes = {"backbone": "external_nets:Eyes", "audio_backbone": "external_nets:Ears"} | changes
    return recipe(method, **changes)


def run(*argv):
    assert cli.main([str(x) for x in argv]) == 0


# ---------------------------------------------------------------------------------------------------------------------
# Modules of other packages


def test_a_backbone_is_given_what_it_wants():
    torch.manual_seed(1)
    localizer = build(external().model).eval()
    images = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)
    spectrograms = torch.rand(2, 1, *SHAPE) - 1
    eyes, ears = Eyes().eval(), Ears().eval()
    eyes.load_state_dict(localizer.visual_net.state_dict())
    ears.load_state_dict(localizer.audio_net.state_dict())
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)
    visual = F.conv2d(eyes((images / 255 - mean) / std), localizer.visual_heads["visual"].weight)
    audio = ears((spectrograms + 0.5) / 0.25).max(2).values @ localizer.audio_heads["audio"].weight.T
    maps = localizer(localizer.normalize_images(images), localizer.normalize_spectrograms(spectrograms))
    torch.testing.assert_close(maps, F.cosine_similarity(visual, audio[:, :, None, None]), atol=1e-5, rtol=1e-5)
    assert external().image_size == 48 and external(image_size=64).image_size == 64


@pytest.mark.parametrize("method", ["ez_vsl", "slavc", "ssl_align", "sspl", "lvs"])
def test_methods_train_on_nets_of_different_channels(method):
    """Of a published recipe too, whose lvs has no heads of its own."""
    for name in ("quickstart", "published"):
        views = {"ssl_align": 3, "sspl": 2}.get(method, 1)
        changes = {"views": ("original",) * views, "image_size": 48}
        one = external(method, name=name, audio_backbone="external_nets:one_vector", batch_size=4, **changes)
        learner = Learner(one, front_end=FRONT_ENDS["scenes"])
        before = {key: x.clone() for key, x in learner.localizer.state_dict().items()}
        samples = ToySet(4, size=48)
        images = samples.images[:, None].expand(-1, views, -1, -1, -1)
        sounds = samples.spectrograms[:, None].expand(-1, views, -1, -1, -1)
        learner.step(0, images, sounds, 0.5, samples.ids)
        after = learner.localizer.state_dict()
        for key in ("visual_net.conv.weight", "audio_net.2.weight"):
            assert not torch.equal(before[key], after[key])


def test_frozen_nets_stay_as_they_are(tmp_path):
    changes = {"batch_size": 8, "epochs": 1}
    state = {}
    for name, frozen in (("frozen", ("visual",)), ("trained", ())):
        one = external(audio_backbone="small", frozen=frozen, image_size=32, **changes)
        start = Learner(one, 3).localizer.state_dict()
        found = train(ToySet(16), one, seed=3, out=tmp_path / name, progress=False)
        assert found.steps == 2
        state[name] = (start, storage.load(tmp_path / name / storage.LAST)["localizer"])
    net = [key for key in state["frozen"][0] if key.startswith("visual_net.")]
    assert len(net) > 6 and all(torch.equal(*(one[key] for one in state["frozen"])) for key in net)
    for key in ("visual_heads.visual.weight", "audio_net.conv1.weight"):
        assert not torch.equal(*(one[key] for one in state["frozen"]))
    for key in ("visual_net.conv.weight", "visual_net.norm.running_mean"):
        assert not torch.equal(*(one[key] for one in state["trained"]))
    loaded = checkpoints.load(tmp_path / "frozen", allowed=["external_nets:Eyes"]).localizer.train()
    assert not loaded.visual_net.training and loaded.audio_net.training
    assert not any(p.requires_grad for p in loaded.visual_net.parameters())


def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    one = external("slavc", image_size=32, audio_backbone="small", frozen=("visual",), batch_size=8, epochs=2)

    def kill(learner, record):
        if record["step"] == 2:
            raise InterruptedError

    train(ToySet(16), one, out=tmp_path / "whole", progress=False)
    with pytest.raises(InterruptedError):
        train(
            ToySet(16), one, out=tmp_path / "parts", progress=False, checkpoint_every=1e-9, callbacks=[after_step(kill)]
        )
    assert storage.load(tmp_path / "parts" / storage.LAST)["step"] == 2
    train(ToySet(16), one, out=tmp_path / "parts", progress=False, resume=True)
    whole, parts = (storage.load(tmp_path / name / storage.LAST) for name in ("whole", "parts"))
    assert whole["step"] == parts["step"] == 4 and "visual_net.conv.weight" in whole["localizer"]
    for key, value in whole["localizer"].items():
        assert torch.equal(value, parts["localizer"][key])


def test_written_and_read(tmp_path):
    """Values that are not in the file come from the module, those of bool and of half precision from the file."""
    one = external()
    localizer = build(one.model)
    localizer.visual_net.seen.logical_not_()
    path = tmp_path / "one.pt"
    storage.save({"localizer": localizer.state_dict(), "recipe": one.to_dict()}, path, keep=False)
    with pytest.raises(storage.CheckpointError, match="SSL_FAST_BACKBONES=external_nets:Eyes"):
        checkpoints.load(path, allowed=["external_nets:Ears"])
    generator = torch.random.get_rng_state()
    found = checkpoints.load(path, allowed=one.model.backbones)
    assert torch.equal(generator, torch.random.get_rng_state())
    for suffix in (".pt", ".safetensors"):
        checkpoints.write(found, tmp_path / f"again{suffix}", half=True)
        again = checkpoints.load(tmp_path / f"again{suffix}", allowed=one.model.backbones)
        assert again.recipe["model"]["audio_backbone"] == "external_nets:Ears"
        net = again.localizer.visual_net
        assert torch.equal(net.scale, torch.arange(1.0, 7.0))
        assert net.seen.tolist() == [False] * 5 + [True]
        torch.testing.assert_close(net.conv.weight, localizer.visual_net.conv.weight, atol=1e-3, rtol=1e-3)
    state = storage.load(path)
    del state["localizer"]["visual_net.conv.bias"]
    storage.save(state, path, keep=False)
    with pytest.raises(storage.CheckpointError, match=r"visual_net\.conv\.bias: missing"):
        checkpoints.load(path, allowed=one.model.backbones)


def test_code_that_a_file_names_is_only_run_where_it_is_allowed(tmp_path, monkeypatch, capsys):
    """The user trains, and goes on in a new process by naming the module again; others have to allow it."""
    folder(tmp_path / "data", 8)
    (tmp_path / "my_nets.py").write_text("from external_nets import Eyes\nopen('imported', 'a').close()\n")
    monkeypatch.chdir(tmp_path)

    def forget():  # as a new process
        sys.modules.pop("my_nets", None)
        (tmp_path / "imported").unlink(missing_ok=True)

    small = ["--batch-size", 4, "--epochs", 1, "--quiet"]
    run("train", "--data", "data", "--out", "run", "--backbone", "my_nets:Eyes", "--minutes", "1e-9", *small)
    sound, picture = "data/audio/00.wav", "data/frames/00.png"
    commands = [
        ["localize", picture, sound, "--weights", "run", "--out", "map.png", "--quiet"],
        ["convert", "run", "copy.pt"],
        ["train", "--resume", "--data", "data", "--out", "run", "--minutes", "1", "--quiet"],
    ]
    for command in commands:
        forget()
        fails(capsys, command, "backbone my_nets:Eyes: code that is only run where you allow it")
        assert not (tmp_path / "imported").exists()
    forget()
    run(*commands[-1], "--backbone", "my_nets:Eyes")
    assert storage.load("run/checkpoint.pt")["step"] == 2
    monkeypatch.setenv("SSL_FAST_BACKBONES", "another:net,my_nets:Eyes")
    for command in commands[:2]:
        run(*command)
    assert (tmp_path / "map.npy").exists()
    copied, ran = (checkpoints.load(name).localizer.state_dict() for name in ("copy.pt", "run"))
    assert all(torch.equal(copied[key], ran[key]) for key in ran)
    forget()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"backbone": "external_nets:of_another_shape"}, r"expected \(B, 9, h, w\), got \(2, 6, 6, 6\)"),
        ({"backbone": "external_nets:one_vector"}, r"backbone external_nets:one_vector, of inputs \(2, 3, 112, 112\)"),
        ({"audio_backbone": "external_nets:Eyes"}, r"backbone external_nets:Eyes, of inputs \(2, 1, 128, 33\)"),
        ({"backbone": "external_nets:unequal_cells"}, "an image size that its 6 x 6 cells divide, got 50"),
        (
            {"backbone": "external_nets:without_channels"},
            "a torch module with `channels`.* got Conv2d with channels None",
        ),
        ({"backbone": "external_nets:infinite"}, "weights that a checkpoint can hold: 1 weights do not fit: mask: not"),
        ({"backbone": "external_nets:failing"}, "backbone external_nets:failing: KeyError: 'no weights here'"),
        ({"backbone": "external_nets:absent"}, "backbone external_nets:absent: expected MODULE:NAME of a function"),
        ({"backbone": "no_such_package:net"}, "backbone no_such_package:net: expected MODULE:NAME of a function"),
        ({"backbone": "resnet99"}, "backbone: expected one of resnet18, .*, timm:NAME or MODULE:NAME, got 'resnet99'"),
        ({"frozen": ("eyes",)}, "frozen: expected some of visual or audio"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        one = external(**{"audio_backbone": "small"} | options)
        probe(build(one.model), one.image_size, SHAPE)


def test_tokens_over_time_need_their_times():
    with pytest.raises(ValueError, match="external_nets:Ears: expected a module with `columns`"):
        build(external("dense_av").model)
    Ears.columns = lambda self, width: (width, 0.0, 1)
    try:
        localizer = build(external("dense_av").model)
        assert localizer.token_times(33)[0] == 0.5 / 33 and localizer.token_times(33)[-1] == 32.5 / 33
        frames = torch.zeros(1, 33, dtype=torch.bool)
        frames[0, 4] = True
        assert torch.equal(localizer.tokens_of_frames(frames), frames)
        assert localizer.audio_features(torch.zeros(2, 1, *SHAPE))["audio"].shape == (2, 128, 33)
    finally:
        del Ears.columns


def test_bad_options_before_anything_is_written(tmp_path, capsys):
    folder(tmp_path / "data", 8)
    argv = ["train", "--data", tmp_path / "data", "--out", tmp_path / "run", "--batch-size", 4]
    fails(capsys, [*argv, "--freeze", "visual"], "--freeze visual: expected with --init, or small keeps its random")
    fails(capsys, [*argv, "--freeze", "eyes"], "frozen: expected some of visual or audio")
    fails(capsys, [*argv, "--backbone", "external_nets:of_another_shape"], "expected (B, 9, h, w)")
    torch.save({"conv.weight": torch.zeros(6, 3, 8, 8)}, tmp_path / "part.pth")
    options = ["--backbone", "external_nets:Eyes", "--init", tmp_path / "part.pth"]
    fails(capsys, [*argv, *options], "part.pth: expected the weights of the backbone", "conv.bias: missing")
    assert not (tmp_path / "run").exists()


def test_without_timm_the_error_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        ValueError, match="backbone timm:test_vit: needs timm, which cannot be imported .*: pip install"
    ):
        recipe("ez_vsl", backbone="timm:test_vit")
    (tmp_path / "timm.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.delitem(sys.modules, "timm")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"which cannot be imported \(RuntimeError: operator torchvision::nms"):
        recipe("ez_vsl", backbone="timm:test_vit")


# ---------------------------------------------------------------------------------------------------------------------
# timm


@pytest.fixture
def timm():
    return pytest.importorskip("timm")


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "swin_tiny_patch4_window7_224"])
def test_maps_of_nets_of_timm(name, timm):
    """As timm itself brings the last layer into the shape (B, C, h, w)."""
    torch.manual_seed(0)
    net = build_external(f"timm:{name}", 3).eval()
    images = torch.randn(2, 3, *net.net.pretrained_cfg["input_size"][1:])
    how = {"indices": 1, "norm": True, "output_fmt": "NCHW", "intermediates_only": True}
    with torch.no_grad():
        torch.testing.assert_close(net(images), net.net.forward_intermediates(images, **how)[-1])


def test_a_transformer_of_timm_takes_other_sizes(timm):
    """Tokens of a wide image are in rows of the right length; a spectrogram is filled up to whole patches."""
    torch.manual_seed(0)
    net = build_external("timm:test_vit", 3).eval()
    images = torch.randn(1, 3, 64, 96)
    how = {"indices": 1, "norm": True, "output_fmt": "NCHW", "intermediates_only": True}
    with torch.no_grad():
        torch.testing.assert_close(net(images), net.net.forward_intermediates(images, **how)[-1])
        ears = build_external("timm:test_vit", 1).eval()
        sound = torch.randn(1, 1, 30, 50)
        padded = F.pad(sound, (0, 14, 0, 2))  # to 32 x 64, of patches of 16
        torch.testing.assert_close(ears(sound), ears(padded))
        assert ears(sound).shape == (1, 64, 8)


@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_of_timm_is_loaded_strictly(name, suffix, timm, tmp_path):
    """For sounds too, where a spectrogram is as three equal channels."""
    torch.manual_seed(0)
    whole = timm.create_model(name, num_classes=10).eval()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": {f"module.{key}": x for key, x in whole.state_dict().items()}}, path)
    else:
        pytest.importorskip("safetensors.torch").save_file(whole.state_dict(), path)
    images, sounds = torch.randn(2, 3, 160, 160), torch.randn(2, 1, 160, 160)
    head = whole.pretrained_cfg["classifier"]
    for channels, given, seen in ((3, images, images), (1, sounds, sounds.expand(-1, 3, -1, -1))):
        net = build_external(f"timm:{name}", channels).eval()
        assert sorted(checkpoints.load_backbone(net, path)) == [f"{head}.bias", f"{head}.weight"]
        with torch.no_grad():
            expected = whole.forward_features(seen)
            expected = expected[:, 1:].transpose(1, 2) if expected.dim() == 3 else expected.flatten(2)
            torch.testing.assert_close(net(given).flatten(2), expected, atol=1e-4, rtol=1e-4)
    torch.save(whole.state_dict() | {"more": torch.ones(1)}, tmp_path / "more.pth")
    with pytest.raises(storage.CheckpointError, match=r"more\.pth: expected the weights of the backbone: .*more"):
        checkpoints.load_backbone(net, tmp_path / "more.pth")


@pytest.mark.parametrize("name", ["nothing_like_it", "hf-hub:timm/test_vit", "local-dir:/tmp", "test_vit.no_such_tag"])
def test_names_that_timm_does_not_have(name, timm):
    with pytest.raises(ValueError, match="timm:"):
        recipe("ez_vsl", backbone=f"timm:{name}")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_nets_of_timm_on_the_scenes(name, timm, tmp_path):
    """From weights in a file, frozen or not, to results, a map and a program, without naming the net again."""
    torch.manual_seed(0)
    given = scenes.load("train", scenes.Settings(train=24), progress=False)
    for kind in ("frames", "audio"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    for i in range(24):
        Image.fromarray(given[i]["image"].permute(1, 2, 0).numpy()).save(tmp_path / "data/frames" / f"{i}.png")
        soundfile.write(tmp_path / "data/audio" / f"{i}.wav", given.waveform(i), 16000)
    whole = timm.create_model(name, num_classes=10)
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    options = ["--backbone", f"timm:{name}", "--init", tmp_path / "weights.pth", "--freeze", "visual"]
    small = ["--batch-size", 8, "--epochs", 1, "--method", "ez_vsl", "--quiet"]
    run("train", "--data", tmp_path / "data", "--out", tmp_path / "run", *options, *small)
    found = checkpoints.load(tmp_path / "run")
    kept = found.localizer.visual_net.net.state_dict()
    assert kept and all(torch.equal(x, whole.state_dict()[key]) for key, x in kept.items())
    assert found.image_size == 160 and found.localizer.config.image_mean == (0.5, 0.5, 0.5)
    argv = ["--scenes", "--test-scenes", 4, "--out", tmp_path / "results", "--quiet"]
    run("evaluate", "--weights", tmp_path / "run", *argv)
    results = json.loads((tmp_path / "results" / "metrics.json").read_text())
    assert results["sets"]["single"]["n"] == 4 and results["recipe"]["model"]["backbone"] == f"timm:{name}"
    run("export", tmp_path / "run", tmp_path / "net.pt2")
    image, wave = torch.randint(0, 256, (3, 3, 160, 160), dtype=torch.uint8), torch.rand(3, 16000) - 0.5
    program = torch.export.load(tmp_path / "net.pt2").module()
    with torch.no_grad():
        torch.testing.assert_close(program(image, wave), found.maps(image, wave), atol=1e-5, rtol=1e-4)
    both = ["--backbone", f"timm:{name}", "--audio-backbone", f"timm:{name}", "--scenes", 24, "--test-scenes", 4]
    run("quickstart", "--out", tmp_path / "both", *both, *small)
    first = checkpoints.load(tmp_path / "both").localizer
    assert LocalizerConfig(**first.config.__dict__).backbones == (f"timm:{name}", f"timm:{name}")
