"""The benchmark of the loader at small size: what it times is the published loop, and the package's own samples."""

import json

import numpy as np
import soundfile
import torch
from PIL import Image

from programs import example
from ssl_fast.data.io.images import load_image


def test_the_loop_takes_the_published_steps(tmp_path):
    """Of a wide frame with a ramp across the crop's place and flip can be read; of silence and a constant the floor."""
    bench = example("bench_loader")
    for kind in ("frames", "audio"):
        (tmp_path / kind).mkdir()
    ramp = np.broadcast_to(np.linspace(0, 255, 480).astype(np.uint8)[None, :, None], (246, 480, 3))
    Image.fromarray(ramp.copy()).save(tmp_path / "frames/0.jpg", quality=100)
    sound = np.full(10 * 16000, 0.5)
    sound[56000:104000] = 0
    soundfile.write(tmp_path / "audio/0.wav", sound, 16000)
    loop, starts, flipped = bench.PublishedLoop(tmp_path, 1), [], []
    np.random.seed(0)
    for _ in range(20):
        image = loop.image(0)
        assert image.shape == (3, 224, 224) and image.dtype == torch.float32
        levels = (image * torch.tensor(bench.STD)[:, None, None] + torch.tensor(bench.MEAN)[:, None, None]) * 255
        across = levels.mean((0, 1)).numpy()
        flipped.append(across[0] > across[-1])
        starts.append(min(across) * 479 / 255)
        expected = np.linspace(min(across), min(across) + 223 * 255 / 479, 224)
        np.testing.assert_allclose(np.sort(across), expected, atol=1.5)
    assert 3 < sum(flipped) < 17 and min(starts) < 60 and max(starts) > 190  # of 0 to 256
    spectrogram = loop.spectrogram(0)
    assert spectrogram.shape == (1, 257, 200) and spectrogram.dtype == torch.float64
    np.testing.assert_allclose(spectrogram, np.log(1e-7) / 12, rtol=1e-9)


def test_small_run(tmp_path, capsys):
    bench = example("bench_loader")
    bench.make_files(tmp_path, 3)
    rows = bench.candidates(tmp_path, 3)
    for name, (found, collate) in rows.items():
        images, spectrograms = collate([found[i] for i in range(3)])
        assert images.shape == (3, 3, 224, 224) and spectrograms.shape == (3, 1, 257, 200)
        if name != "published loop":  # uint8 made float once, in the batch
            expected = load_image(tmp_path / "frames/1.jpg", 224).numpy().transpose(1, 2, 0) / 255
            expected = ((expected - bench.MEAN) / bench.STD).transpose(2, 0, 1)
            tolerance = 1.01 / 255 / min(bench.STD) if "torch" in name else 1e-5
            np.testing.assert_allclose(images[1], expected, atol=tolerance)
            np.testing.assert_allclose(spectrograms[1], rows["published loop"][0].spectrogram(1), rtol=1e-5)
    bench.main(["--items", "4", "--batch", "2", "--rounds", "1", "--workers", "1", "--json", str(tmp_path / "b.json")])
    record = json.loads((tmp_path / "b.json").read_text())
    names = [row["name"] for row in record["one_process"]]
    assert names == list(rows) == [row["name"] for row in record["processes"]["rows"]]
    assert record["one_process"][0]["cpu_x"] == record["processes"]["rows"][0]["wall_x"] == 1
    assert all(row["cpu_ms"] > 0 for row in record["one_process"]) and record["processes"]["workers"] == 1
    assert "| files in the cache, torch |" in capsys.readouterr().out


def test_ratios_are_medians_of_rounds(monkeypatch):
    bench = example("bench_loader")
    times = {"published loop": ((10.0, 4.0, 12.0), (6.0, 6.0, 6.0)), "own": ((1.0, 2.0, 4.0), (1.0, 2.0, 3.0))}
    monkeypatch.setattr(bench, "time_rounds", lambda *_: times)
    row = bench.in_one_process({}, 2, 3)[1]
    assert row == {"name": "own", "wall_ms": 1000, "wall_x": 3, "cpu_ms": 1000, "cpu_x": 3}
