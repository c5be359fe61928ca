"""The loss in a whole training step: arithmetic, parts, memory, and the command on the small nets."""

import argparse
import json
import math
import re
import sys
from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ssl_fast import losses, ops
from ssl_fast.benchmarks import environment
from ssl_fast.benchmarks import step as bench
from ssl_fast.cli import main as cli
from ssl_fast.training import recipes

CPU = "cpu", torch.float32


def small(method="ez_vsl", **changes):
    return recipes.recipe(method, "quickstart", **changes)


# ---- Arithmetic ----


def resnet18_flops(channels, height, width, last_stride):
    """Of the convolutions for one sample, forward and backward, by the table of the ResNet paper: each costs as much
    for its output as for either gradient, and the first has no gradient to its input."""

    def convolution(kernel, channels_in, channels_out):
        return 2 * kernel**2 * channels_in * channels_out * height * width

    height, width = math.ceil(height / 2), math.ceil(width / 2)
    total = 2 * convolution(7, channels, 64)
    height, width = math.ceil(height / 2), math.ceil(width / 2)  # the pooling
    for channels_in, channels_out, stride in ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, last_stride)):
        height, width = math.ceil(height / stride), math.ceil(width / stride)
        total += 3 * (convolution(3, channels_in, channels_out) + 3 * convolution(3, channels_out, channels_out))
        if channels_in != channels_out:
            total += 3 * convolution(1, channels_in, channels_out)
    return total


@pytest.mark.parametrize("method", ["ez_vsl", "ssl_align"])
def test_flops_of_the_nets(method):
    recipe = recipes.recipe(method, "published")
    (_, *image), (_, *spectrogram) = bench.input_shapes(recipe)
    stride = 2 if method == "ez_vsl" else 1
    one = resnet18_flops(3, *image, stride) + resnet18_flops(1, *spectrogram, stride)
    one += 3 * 2 * 512 * 512 * {"ez_vsl": 7 * 7 + 1, "ssl_align": 1 + 1}[method]  # heads of cells; projections
    assert bench.net_flops(recipe) == len(recipe.views) * one


@pytest.mark.parametrize("method", ["ez_vsl", "margin_nce", "ssl_align", "dense_av"])
def test_flops_of_the_losses_are_those_of_their_products(method):
    """In plain PyTorch, counted by torch; on maps of 2 x 3 cells and 5 tokens."""
    n, c, tokens = 6, 8, 5 if method == "dense_av" else 1
    views = 3 if method == "ssl_align" else 1
    features = [torch.randn(n, c, *size, requires_grad=True) for size in [(2, 3)] * views + [()] * views]
    if method == "ssl_align":
        call = partial(losses.ssl_align, features[:3], features[3:], pooling=ops.SoftThreshold())
    elif method == "dense_av":
        features[1] = torch.randn(n, c, tokens, requires_grad=True)
        call = partial(losses.dense_av, *features, tokens=ops.TokenMax(), heads=2)
    else:
        call = partial(getattr(losses, method), *features)
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(call(backend="reference"), features)
    assert counter.get_total_flops() == bench.loss_flops(n, 6, c, tokens, pairs=views**2)


def test_share_at_the_published_sizes():
    """EZ-VSL's 128 pairs of 7 x 7 cells and 512 channels; its nets are about 22 GFLOP a pair."""
    one = bench.flops(recipes.recipe("ez_vsl", "published"), 128)
    assert one["loss"] == 3 * 2 * 128 * 128 * 49 * 512
    assert one["loss"] / one["nets"] == pytest.approx(0.00086, rel=0.01)
    two = bench.flops(recipes.recipe("ez_vsl", "published"), 256)
    assert two["nets"] == 2 * one["nets"] and two["loss"] == 4 * one["loss"]
    recipe = recipes.recipe("dense_av", "published")  # tokens of 16 of the 671 columns of a spectrogram
    assert bench.flops(recipe, 2)["loss"] == 3 * 2 * 2 * 2 * 196 * 512 * math.ceil(671 / 16)


# ---- Parts ----


@pytest.mark.parametrize("method", bench.METHODS)
def test_parts_make_the_gradients_of_a_whole_step(method):
    """Of the loss to the features, and from there to the weights, against one backward pass from loss to weights."""
    step = bench.Step(small(method), 4, *CPU)
    state = {name: x.clone() for name, x in step.localizer.state_dict().items()}
    step.optimizer.step = lambda: None
    torch.manual_seed(1)
    step.whole("reference")
    expected = [p.grad.clone() for p in step.localizer.parameters()]
    step.localizer.load_state_dict(state)
    torch.manual_seed(1)  # of dropout
    jobs, gradients = bench.loss_jobs(step, "compiled", [])
    step.localizer.load_state_dict(state)
    torch.manual_seed(1)
    step.nets(gradients)
    for found, one in zip((p.grad for p in step.localizer.parameters()), expected, strict=True):
        torch.testing.assert_close(found, one, rtol=1e-3, atol=1e-5)
    values = [job()[0] for job in jobs.values()]
    torch.testing.assert_close(*values)


def test_sixteen_bits_reach_the_eager_loss(monkeypatch):
    seen = {}
    monkeypatch.setattr(bench, "multiplied_as_they_are", lambda x: False)
    step = bench.Step(small(), 4, "cpu", torch.bfloat16)
    step.loss.function = lambda visual, audio, backend, **_: seen.setdefault(backend, (visual.dtype, audio.dtype))
    for backend in ("auto", "reference"):
        step.loss_of(step.features(), backend)
    assert seen == {"auto": (torch.float32,) * 2, "reference": (torch.bfloat16,) * 2}


def test_shares_are_of_the_medians_of_nets_and_loss(monkeypatch):
    """A scripted clock, in seconds: the nets' time varies by more than a loss takes."""
    scripted = {"nets": [10, 20, 12], bench.KERNELS: [1, 1, 1], bench.EAGER: [2, 5, 4]}
    samples = {name: (tuple(wall), tuple(3 * x for x in wall)) for name, wall in scripted.items()}
    monkeypatch.setattr(bench, "time_rounds", lambda jobs, *_: {name: samples[name] for name in jobs})
    monkeypatch.setattr(
        bench, "in_fresh_process", lambda function, *arguments: {"auto": 5, "reference": 7}[arguments[3]]
    )
    options = argparse.Namespace(
        device="cpu", clock="wall", backend="compiled", compile_modes=[], rounds=3, least_seconds=0
    )
    fast, eager = bench.measure(small(), 4, torch.float32, options)[0]
    assert (fast["loss"], eager["loss"]) == (bench.KERNELS, bench.EAGER)
    assert fast["share"] == pytest.approx(1 / 13) and eager["share"] == pytest.approx(4 / 16)
    assert fast["loss_speedup"] == 4 and eager["loss_speedup"] == 1
    assert fast["step_speedup"] == pytest.approx(16 / 13) and eager["step_speedup"] == 1
    assert (fast["nets_ms"], fast["loss_ms"], fast["nets_cpu_ms"], eager["loss_cpu_ms"]) == (12000, 1000, 36000, 12000)
    if sys.platform.startswith("linux"):
        assert (fast["peak_bytes"], eager["peak_bytes"]) == (5, 7)


# ---- Memory ----


@pytest.mark.parametrize("limit", [1, 2, 3, 63, 64, 65, 1000, 4095])
@pytest.mark.parametrize("first", [2, 64])
def test_the_largest_batch_is_found_to_a_thirty_second(limit, first):
    tried = []
    found = bench.largest(lambda batch: tried.append(batch) or batch <= limit, first)
    if limit < 2:
        assert found is None
    else:
        assert limit - max(1, limit // 16) < found <= limit
    assert len(tried) < 20 and len(set(tried)) == len(tried)


def test_a_batch_that_does_not_fit_is_none_that_fits(monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    made = []

    class Fake:
        def __init__(self, recipe, batch, device, dtype):
            self.batch = batch

        def whole(self, backend):
            made.append((self.batch, backend))
            if self.batch > 8:
                raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(bench, "Step", Fake)
    fits = partial(bench._fits_cuda, small(), torch.float32, "auto")
    assert fits(8) and not fits(9)
    assert made == [(8, "auto")] * 2 + [(9, "auto")]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")
def test_peak_grows_with_the_activations():
    """The first convolution of the small nets alone leaves 16 channels of 56 x 56 cells an image."""
    one, two = (
        bench.in_fresh_process(bench._peak_here, small(), batch, torch.float32, "reference", 1, None)
        for batch in (32, 64)
    )
    assert two - one >= 32 * 16 * 56 * 56 * 4


# ---- Command ----


def test_rows_of_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(environment, "copy_gbytes_per_s", lambda *_: 1.0)
    file = tmp_path / "step.json"
    argv = ["bench", "--step", "--recipe", "quickstart", "--method", "ez_vsl", "--batch", "4", "--rounds", "2"]
    assert cli.main([*argv, "--threads", "1", "--no-compile", "--quiet", "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    rows, recipe = result["rows"], small()
    losses_timed = [bench.KERNELS, bench.EAGER] if result["header"]["backend"] == "compiled" else [bench.EAGER]
    assert [(row["batch"], row["loss"]) for row in rows] == [(4, loss) for loss in losses_timed]
    assert [one["method"] for one in result["header"]["recipes"]] == ["ez_vsl"] and result["failures"] == []
    for row in rows:
        counted = bench.flops(recipe, row["batch"])
        assert (row["net_flops"], row["loss_flops"]) == (counted["nets"], counted["loss"])
        assert 0 < row["share"] < 1 and row["load"] >= 0 and row["nets_cpu_ms"] > 0
        assert 0.5 * math.log(row["batch"]) < row["value"] < 20  # two cross-entropies of nets that know nothing
    captured = capsys.readouterr()
    assert captured.err == ""
    caption, _, titles, *lines = captured.out.splitlines()
    assert "1 threads of" in caption and "wall time" in caption
    assert len(lines) == len(rows) and len({len(line) for line in [titles, *lines]}) == 1


def test_what_does_not_fit_is_told_and_the_rest_is_timed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(environment, "copy_gbytes_per_s", lambda *_: 1.0)
    real = bench.Step

    def build(recipe, batch, device, dtype):
        if batch > 4:
            raise torch.OutOfMemoryError("out of memory: tried to allocate 1 TiB")
        return real(recipe, batch, device, dtype)

    monkeypatch.setattr(bench, "Step", build)
    monkeypatch.setattr(bench, "in_fresh_process", lambda *_: None)
    file = tmp_path / "step.json"
    argv = ["bench", "--step", "--recipe", "quickstart", "--batch", "8,4", "--rounds", "1", "--threads", "1"]
    assert cli.main([*argv, "--no-compile", "--markdown", "--json", str(file)]) == 1
    result, captured = json.loads(file.read_text()), capsys.readouterr()
    assert result["failures"] == ["ez_vsl float32 batch 8: out of memory: tried to allocate 1 TiB"]
    assert result["failures"][0] in captured.err and {row["batch"] for row in result["rows"]} == {4}
    table = [line for line in captured.out.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(result["rows"]) and len({line.count("|") for line in table}) == 1
    assert re.match(r"\| ez_vsl \| 4 \| float32 \|", table[2])
