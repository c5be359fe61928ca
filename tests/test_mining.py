"""`ssl-fast mine`: features of nets against the nets themselves, called directly, and what is asked for wrongly."""

import re

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from ssl_fast.cli import main as cli
from ssl_fast.data.datasets import FolderSet
from ssl_fast.data.io.audio import MediaError
from ssl_fast.data.neighbors import Neighbors
from ssl_fast.models import LocalizerConfig, build, storage
from ssl_fast.models.resnet import ResNet18
from ssl_fast.training.recipes import recipe

COUNT = 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Seven clips: frames of any size, sounds of half a second; listed.txt has six of them, backwards."""
    root, rng = tmp_path_factory.mktemp("media"), np.random.default_rng(0)
    for kind in ("frames", "audio"):
        (root / kind).mkdir()
    for i in range(COUNT):
        Image.fromarray(rng.integers(0, 256, (30 + i, 40, 3), np.uint8)).save(root / "frames" / f"clip {i}.png")
        soundfile.write(root / "audio" / f"clip {i}.wav", rng.uniform(-0.5, 0.5, 8000), 16000)
    (root / "listed.txt").write_text("".join(f"clip {i}\n" for i in range(5, -1, -1)))
    return root


def checkpoint(folder, method):
    """A run's folder with fresh weights; the localizer."""
    torch.manual_seed(3)
    model = LocalizerConfig.small(method, width=4, dimension=8, projection=None)
    localizer = build(model).eval()
    for layer in localizer.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):  # not the identity
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 2)
    folder.mkdir()
    settings = recipe(method, model=model, image_size=48).to_dict()
    storage.save({"recipe": settings, "localizer": localizer.state_dict()}, folder / "checkpoint.pt")
    return localizer


def mine(*argv):
    return cli.main(["mine", "--quiet", "--threads", "1", *map(str, argv)])


def fails(capsys, argv, *words):
    capsys.readouterr()
    assert mine(*argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("ssl-fast mine: ") and err.count("\n") == 1 and all(word in err for word in words), err


def nearest(features, k):
    rows = features.astype(np.float64)
    cosines = [
        [-2 if i == j else a @ b / np.sqrt((a @ a) * (b @ b)) for j, b in enumerate(rows)] for i, a in enumerate(rows)
    ]
    return np.argsort(-np.array(cosines), 1, kind="stable")[:, :k]


@pytest.mark.parametrize("method, space", [("ez_vsl", ""), ("slavc", "_avc"), ("dense_av", "")])
def test_features_of_a_checkpoint(folder, tmp_path, method, space):
    localizer = checkpoint(tmp_path / "run", method)
    samples = FolderSet(folder, front_end=recipe(method).front_end, size=48, split="listed")
    direct = {"visual": [], "audio": []}
    with torch.no_grad():
        for i in range(6):  # one at a time
            image = localizer.normalize_images(samples[i]["image"][None])
            cells = localizer.visual_features(image)["visual" + space]
            assert cells.shape[2:] == (3, 3)
            direct["visual"].append(cells.flatten(2).sum(2)[0] / 9)
            sound = localizer.normalize_spectrograms(samples[i]["spectrogram"][None])
            vectors = localizer.audio_features(sound)["audio" + space][0]
            direct["audio"].append(vectors if method != "dense_av" else sum(vectors.unbind(1)) / vectors.shape[1])
    for modality, weights in (("visual", tmp_path / "run"), ("audio", tmp_path / "run" / "checkpoint.pt")):
        kept, out = tmp_path / f"{modality}-features.npy", tmp_path / f"{modality}.npy"
        argv = ("--weights", weights, "--data", folder, "--split", "listed", "--modality", modality, "--k", 3)
        assert mine(*argv, "--features-out", kept, "--out", out) == 0
        features, expected = np.load(kept), torch.stack(direct[modality]).numpy()
        assert features.dtype == np.float32
        np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(Neighbors(out, samples).ids, nearest(features, 3))
        again = tmp_path / f"{modality}-again.npy"
        assert mine(*argv, "--workers", 1, "--out", again) == 0
        assert out.read_bytes() == again.read_bytes()


def test_features_of_imagenets_resnet(folder, tmp_path, capsys):
    torch.manual_seed(0)
    net, weights = ResNet18().eval(), tmp_path / "resnet18.pth"
    torch.save(net.state_dict() | {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}, weights)
    argv = ["--weights", weights, "--data", folder, "--k", 2, "--modality"]
    kept = tmp_path / "features.npy"
    assert mine(*argv, "visual", "--out", tmp_path / "out.npy", "--features-out", kept) == 0
    samples = FolderSet(folder, front_end="ssl_align", size=224)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images = torch.stack([samples[i]["image"] for i in range(COUNT)])
    with torch.no_grad():
        expected = net((images / 255 - mean[:, None, None]) / std[:, None, None]).mean(3).mean(2)
    np.testing.assert_allclose(np.load(kept), expected, rtol=1e-4, atol=1e-5)
    found = Neighbors(tmp_path / "out.npy", samples)
    np.testing.assert_array_equal(found.ids, nearest(np.load(kept), 2))
    assert found.modality == "visual"
    fails(capsys, [*argv, "audio", "--out", tmp_path / "a.npy"], "--modality audio: expected a ", str(weights))
    fails(capsys, [*argv, "visual", "--out", tmp_path / "b.npy", "--features-out", kept], f"{kept}: exists")
    torch.save({"conv1.weight": torch.zeros(1)}, weights)
    fails(capsys, [*argv, "visual", "--out", tmp_path / "b.npy"], f"{weights}: expected the weights of torchvision's")


def test_one_modality_reads_its_own_files(folder):
    samples = FolderSet(folder, front_end="ssl_align", size=48)
    whole = samples[2]
    for kind, spared, read in (("frames", "spectrogram", "image"), ("audio", "image", "spectrogram")):
        path = next((folder / kind).glob("clip 2.*"))
        content = path.read_bytes()
        assert torch.equal(getattr(samples, read)(2), whole[read])
        path.write_bytes(b"broken")
        try:
            assert torch.equal(getattr(samples, spared)(2), whole[spared])
            with pytest.raises(MediaError, match=re.escape(str(path))):
                getattr(samples, read)(2)
        finally:
            path.write_bytes(content)


def test_features_of_any_net(folder, tmp_path, capsys):
    features = np.random.default_rng(1).standard_normal((6, 5)).astype(np.float16)
    np.save(tmp_path / "features.npy", features)
    argv = ["--features", tmp_path / "features.npy", "--k", 2, "--out"]
    assert mine(*argv, tmp_path / "rows.npy") == 0
    assert f"{tmp_path / 'rows.npy'}: the 2 nearest neighbours of 6 samples" in capsys.readouterr().out
    assert mine(*argv, tmp_path / "ids.npy", "--list", folder / "listed.txt") == 0
    for name in ("rows", "ids"):
        np.testing.assert_array_equal(np.load(tmp_path / f"{name}.npy"), nearest(features, 2))
    samples = FolderSet(folder, front_end="ssl_align", size=48, split="listed")
    assert Neighbors(tmp_path / "ids.npy", samples).k == 2
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'rows.npy'}: belongs to ids ")):
        Neighbors(tmp_path / "rows.npy", samples)
    fails(capsys, [*argv, tmp_path / "rows.npy", "--list", folder / "listed.txt"], "rows.npy: belongs to ids ")


def test_what_does_not_fit_is_named(folder, tmp_path, capsys):
    (tmp_path / "text.npy").write_text("1 2 3")
    np.save(tmp_path / "rank1.npy", np.ones(5))
    np.save(tmp_path / "rank0.npy", np.ones(()))
    np.save(tmp_path / "good.npy", np.eye(5) + 1)
    (tmp_path / "short.txt").write_text("a\nb\n")
    out = ["--out", tmp_path / "out.npy"]
    fails(capsys, ["--features", tmp_path / "none.npy", *out], str(tmp_path / "none.npy"), "No such file")
    fails(capsys, ["--features", tmp_path / "text.npy", *out], f"{tmp_path / 'text.npy'}: expected a complete .npy")
    fails(capsys, ["--features", tmp_path / "rank1.npy", *out], "features: expected (N, C)", "got (5,) float64")
    fails(capsys, ["--features", tmp_path / "rank0.npy", *out], "features: expected (N, C)", "got () float64")
    good = ["--features", tmp_path / "good.npy", *out]
    fails(capsys, good, "k: expected 1 to 4, as there are 5 samples, got 1000")
    fails(capsys, [*good, "--k", 2, "--list", tmp_path / "short.txt"], "ids: expected 5 different ones", "got 2")
    fails(capsys, [*good, "--k", 2, "--data", folder], "--data: expected with --weights")
    fails(capsys, [*good, "--set", "vggsound", "--workers", 2], "--set, --workers: expected with --weights")
    fails(capsys, [*good, "--k", 2, "--device", "tpu"], "--device: expected cpu or cuda, got 'tpu'")
    fails(capsys, ["--weights", tmp_path, *out], "--weights: expected with --data and --modality")
    checkpoint(tmp_path / "run", "lvs")
    run = ["--weights", tmp_path / "run", "--data", folder, "--modality", "audio"]
    fails(capsys, [*run, *out], "k: expected 1 to 6, as there are 7 samples, got 1000")
    fails(capsys, [*run, "--k", 2, "--out", tmp_path / "out.bin"], "out.bin: expected a name that ends in .npy")
    fails(capsys, [*run, "--k", 2, *out, "--split", "none"], "none.txt")
    assert not (tmp_path / "out.npy").exists()
