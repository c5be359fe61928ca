"""The short programs under examples/, each on data made on the fly."""

import json
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from PIL import Image

from programs import EXAMPLES, example
from ssl_fast import losses
from ssl_fast.data.io.front_ends import FRONT_ENDS
from ssl_fast.inference.localize import LocalizationPipeline
from ssl_fast.models import LocalizerConfig, build, checkpoints
from training_toys import folder


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.\d+", text)]


def test_own_training_loop_learns_its_batch(capsys):
    example("own_training_loop").main(21)
    *steps, last = capsys.readouterr().out.splitlines()
    assert len(steps) == 3 and "maps (32, 7, 7)" in last
    assert numbers(last)[0] < 0.9 * numbers(steps[0])[0]


def test_loss_share_by_hand(capsys):
    """EZ-VSL's nets, counted by hand: an image's and a spectrogram's ResNet-18, and their heads."""
    example("loss_share").main()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[2:]]
    nets = 22.308e9
    by_case = {(name, batch): (float(share), float(maps)) for name, batch, _, share, maps in rows}
    assert {gflop for name, _, gflop, *_ in rows if name == "ez_vsl"} == {"22.3"}
    for batch in (128, 512):
        expected = 100 * 6 * batch * 49 * 512 / nets
        assert by_case["ez_vsl", str(batch)][0] == pytest.approx(expected, abs=0.01)
    share, maps = next(found for (name, batch), found in by_case.items() if "250 tokens" in name and batch == "256")
    assert share == pytest.approx(100 * 6 * 256 * 196 * 250 * 768 / nets, rel=1e-3)
    assert maps == pytest.approx(256**2 * 196 * 250 * 4 / 2**30, abs=0.01)


@pytest.mark.slow
def test_train_on_folder_writes_a_checkpoint(tmp_path, monkeypatch, capsys):
    folder(tmp_path / "data", 8)
    options = ["--epochs", "2", "--batch-size", "4"]
    monkeypatch.setattr(sys, "argv", ["train_on_folder.py", str(tmp_path / "data"), str(tmp_path / "run"), *options])
    example("train_on_folder").main()
    assert capsys.readouterr().out.startswith("4 steps")
    assert checkpoints.load(tmp_path / "run").recipe["learning_rate"] == 1e-3


def test_evaluate_maps_tells_right_from_wrong(tmp_path, capsys):
    """Of four maps one looks at the wrong half of its image."""
    truth = np.zeros((4, 224, 224), np.float32)
    truth[:, :112] = 1
    maps = np.broadcast_to(np.linspace(0.5, -0.5, 8, dtype=np.float32)[None, :, None], (4, 8, 8)).copy()
    maps[3] *= -1
    np.save(tmp_path / "maps.npy", maps)
    np.save(tmp_path / "truth.npy", truth)
    example("evaluate_maps").main(str(tmp_path / "maps.npy"), str(tmp_path / "truth.npy"))
    *published, own = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in published] == ["ez_vsl", "lvs", "ssl_tie", "default"]
    assert all(value == 0.75 for line in published for value in numbers(line))
    assert numbers(own) == [0.0]  # a fifth of the image is less than half of the half


def test_localize_image_draws_what_the_pipeline_finds(tmp_path, capsys):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (90, 120, 3), np.uint8)).save(tmp_path / "frame.png")
    soundfile.write(tmp_path / "clip.wav", rng.uniform(-0.5, 0.5, 24000), 16000)
    files = [str(tmp_path / name) for name in ("frame.png", "clip.wav", "out.png")]
    example("localize_image").main(*files)
    pipeline = LocalizationPipeline(checkpoints.load(checkpoints.EMBEDDED))
    answer = pipeline.localize(pipeline.read_image(files[0]), pipeline.read_sound(files[1]))
    assert numbers(capsys.readouterr().out)[0] == pytest.approx(answer.scores()["maximum"], abs=1e-3)
    assert np.array_equal(np.asarray(Image.open(files[2])), answer.sheet(alpha=0.4))


def test_rcgrad_is_grad_cam_of_pooled_features(monkeypatch):
    """Of a mean of W v the gradient is W' a / cells in every cell: each cell's map is the part of v . W' a above 0."""
    torch.manual_seed(1)
    module, localizer = example("rcgrad"), build(LocalizerConfig.small("ez_vsl", width=4, dimension=8)).eval()
    monkeypatch.setattr(module, "found", SimpleNamespace(localizer=localizer))
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    spectrograms = torch.randn(3, 1, 64, 32)
    with torch.no_grad():
        got = module.maps(images, spectrograms)
        features = localizer.visual_net(localizer.normalize_images(images))
        sounds = localizer.audio_features(localizer.normalize_spectrograms(spectrograms))["audio"]
        weight = sounds @ localizer.visual_heads["visual"].weight[:, :, 0, 0]
        cam = torch.einsum("nchw,nc->nhw", features, weight).relu().flatten(1)
    low, high = cam.amin(1, keepdim=True), cam.amax(1, keepdim=True)
    torch.testing.assert_close(got.flatten(1), (cam - low) / (high - low), rtol=1e-4, atol=1e-4)
    assert not localizer.visual_net._forward_hooks


def test_rcgrad_counts_pixels_above_three_quarters(tmp_path, monkeypatch, capsys):
    """Three of four maps are 1 where the object is; in the last it is .7, and the rest of the image 0."""
    folder(tmp_path, 4)
    boxes = [{"file": f"{i:02d}", "class": "a", "bbox": [[0, 0, 0.5, 1]]} for i in range(4)]
    (tmp_path / "annotations.json").write_text(json.dumps(boxes))
    module = example("rcgrad")
    values = torch.zeros(4, 8, 8)
    values[:, :, :4] = torch.tensor([1, 1, 1, 0.7])[:, None, None]
    monkeypatch.setattr(module, "maps", lambda images, spectrograms: values)
    module.main(str(tmp_path))
    assert numbers(capsys.readouterr().out)[-1] == 0.75


@pytest.mark.filterwarnings("ignore:At least one mel filterbank")  # Kaldi's lowest bands are as narrow
def test_imagebind_hears_what_kaldi_computes():
    """Of white noise within the spread of two estimates of its power, in each band."""
    waveform = torch.randn(1, 48000, generator=torch.Generator().manual_seed(0)) / 10
    got = example("imagebind_maps").log_mel(FRONT_ENDS["ssl_align"].spectrogram(waveform)[:, None])[0, 0]
    how = {"htk_compat": True, "sample_frequency": 16000, "window_type": "hanning", "num_mel_bins": 128, "dither": 0.0}
    expected = torchaudio.compliance.kaldi.fbank(waveform, frame_length=25, frame_shift=10, **how).T
    assert got.shape == (128, 299) and expected.shape == (128, 298)
    assert (got.mean(1) - expected.mean(1)).abs().max() < 0.25
    assert (got.mean() - expected.mean()).abs() < 0.15


@pytest.mark.filterwarnings("ignore:At least one mel filterbank")
def test_imagebind_maps_are_cosines_of_patches(monkeypatch):
    """A net with ImageBind's parts: image k is of one colour but for a patch with the colour of its sound."""
    module, net = example("imagebind_maps"), ImageBindParts()
    monkeypatch.setattr(module, "model", lambda: net)
    images = torch.zeros(2, 3, 224, 224, dtype=torch.uint8)
    images[0, 1], images[1, 1] = 255, 255
    images[0, :, 14:28, 28:42] = torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None]
    images[1, :, 210:, :14] = torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None]
    maps = module.maps(images, torch.rand(2, 1, 257, 299) / 10 - 1)
    assert maps.shape == (2, 16, 16) and net.heard == [(2, 1, 128, 204)] * 2
    assert [divmod(int(k), 16) for k in maps.flatten(1).argmax(1)] == [(1, 2), (15, 0)]
    assert maps.amax((1, 2)).tolist() == pytest.approx([1, 1]) and maps[0, 0, 0] < 0.5


class ImageBindParts(torch.nn.Module):
    """Modules of imagebind.models.imagebind_model that a map needs: patches are their mean colour, all sounds red."""

    def __init__(self):
        super().__init__()
        self.heard = []
        norm = torch.nn.LayerNorm(3, eps=1e-6)
        self.modality_heads = {"vision": torch.nn.Sequential(norm, torch.nn.Identity(), torch.nn.Identity())}
        self.modality_preprocessors = {"vision": self.patches}
        self.modality_trunks = {"vision": lambda tokens: torch.cat([tokens.mean(1, keepdim=True), tokens], 1)}

    def patches(self, vision):
        colours = torch.nn.functional.avg_pool2d(vision, 14).flatten(2).transpose(1, 2)
        return {"trunk": {"tokens": colours}, "head": {}}

    def forward(self, inputs):
        self.heard.append(tuple(inputs["audio"].shape))
        red = torch.tensor([255.0, 0, 0])[:, None, None] / 255
        mean, std = torch.tensor([0.4815, 0.4578, 0.4082]), torch.tensor([0.2686, 0.2613, 0.2758])
        vector = self.modality_heads["vision"][0]((red[:, 0, 0] - mean) / std)
        return {"audio": 20 * vector.expand(len(inputs["audio"]), 3)}


@pytest.mark.slow
def test_distributed_loss_is_that_of_one_process():
    program = EXAMPLES / "distributed_loss.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    loss, alone, gradient = numbers(run.stdout)
    torch.manual_seed(0)
    nets = example("distributed_loss").Nets()
    expected = losses.lvs(*nets(torch.rand(16, 3, 112, 112), torch.randn(16, 40)), backend="reference")
    expected.backward()
    assert loss == pytest.approx(expected.item(), abs=2e-5) and alone == pytest.approx(expected.item(), abs=2e-5)
    assert gradient == pytest.approx(nets.see.weight.grad.norm().item(), rel=1e-3)
