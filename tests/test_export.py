"""Exported programs give the localizer's maps in a process that cannot import the package."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from ssl_fast.cli import main as cli
from ssl_fast.data.io import front_ends
from ssl_fast.data.scenes import dataset as scenes
from ssl_fast.inference.localize import LocalizationPipeline
from ssl_fast.models import LocalizerConfig, build, checkpoints

# Runs in a process of its own, where `import ssl_fast` fails.
READER = """
import sys
sys.modules["ssl_fast"] = None
import numpy as np, torch
about = {"about.json": ""}
program = torch.export.load(sys.argv[1], extra_files=about)
given = np.load(sys.argv[2])
maps = program.module()(torch.from_numpy(given["images"]), torch.from_numpy(given["waveforms"]))
np.savez(sys.argv[3], maps=maps.detach().numpy(), about=about["about.json"])
"""


def run_alone(program, images, waveforms, folder):
    np.savez(folder / "in.npz", images=images, waveforms=waveforms)
    command = [sys.executable, "-c", READER, str(program), str(folder / "in.npz"), str(folder / "out.npz")]
    subprocess.run(command, check=True, cwd=folder)
    out = np.load(folder / "out.npz")
    return out["maps"], json.loads(str(out["about"]))


@pytest.mark.slow
def test_the_embedded_localizer_runs_without_the_package(tmp_path):
    front_ends._tukey.cache_clear()  # what is cached while tracing must not be used afterwards, nor in the program
    assert cli.main(["export", str(checkpoints.EMBEDDED), str(tmp_path / "a.pt2")]) == 0
    pipeline = LocalizationPipeline(checkpoints.load(checkpoints.EMBEDDED))
    made = [scenes.scene(scenes.Settings(), "duo", k) for k in range(3)]
    waveforms = np.stack([one.waveforms[0].astype(np.float32) / 32768 for one in made])
    images = np.stack([one.image.transpose(2, 0, 1) for one in made])
    maps, about = run_alone(tmp_path / "a.pt2", images, waveforms, tmp_path)
    for one, waveform, got in zip(made, waveforms, maps):
        np.testing.assert_allclose(got, pipeline.localize(one.image, waveform).audio_visual, rtol=0, atol=1e-4)
    assert about == {
        "method": "ssl_align",
        "image_size": 112,
        "fit": "squash",
        "resampler": "pillow",
        "sample_rate": 16000,
        "samples": 16000,
        "channels": "mean",
        "threshold": pipeline.threshold,
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "method, front_end", [("slavc", "slavc"), ("ssl_tie", "ssl_tie"), ("lvs", "lvs"), ("dense_av", "lvs")]
)
def test_published_nets_and_front_ends(method, front_end, tmp_path):
    torch.manual_seed(2)
    config = LocalizerConfig.published(method)
    recipe = {"method": method, "front_end": front_end, "image_size": 64, "model": vars(config).copy()}
    found = checkpoints.Checkpoint(tmp_path, build(config).eval(), recipe, "ssl_fast")
    from ssl_fast.inference.export import export

    front_ends._filters.cache_clear()
    export(found, tmp_path / "a.pt2")
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (2, 3, 64, 64), np.uint8)
    waveforms = draw.uniform(-1, 1, (2, found.front_end.samples)).astype(np.float32)
    maps, _ = run_alone(tmp_path / "a.pt2", images, waveforms, tmp_path)
    with torch.no_grad():
        spectrograms = found.front_end.spectrogram(torch.from_numpy(waveforms))[:, None]
        net = found.localizer
        expected = net(net.normalize_images(torch.from_numpy(images)), net.normalize_spectrograms(spectrograms))
    np.testing.assert_allclose(maps, expected, rtol=0, atol=1e-4)


def test_other_names_and_files_that_exist_are_refused(tmp_path, capsys):
    (tmp_path / "a.pt2").write_bytes(b"kept")
    for name, said in (("a.pt2", "a.pt2: exists already"), ("a.onnx", r"a.onnx: expected the suffix .pt2")):
        assert cli.main(["export", str(checkpoints.EMBEDDED), str(tmp_path / name)]) == 2
        assert said in capsys.readouterr().err
    assert (tmp_path / "a.pt2").read_bytes() == b"kept" and not (tmp_path / "a.onnx").exists()
