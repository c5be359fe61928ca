"""SSPL's predictive coding module against its steps, one by one, and in a localizer."""

import pytest
import torch
import torch.nn.functional as F

from ssl_fast import losses
from ssl_fast.models import LocalizerConfig, build
from ssl_fast.models.predictive_coding import PredictiveCoding

C, D = 3, 5


def module(cycles, seed=0):
    """In float64 and evaluation mode, no weight at its start, some rates below 0."""
    generator = torch.Generator().manual_seed(seed)
    one = PredictiveCoding(C, D, cycles).double().eval()
    for tensor in (*one.parameters(), *(b for n, b in one.named_buffers() if n.endswith("running_mean"))):
        tensor.data.normal_(generator=generator)
    return one


def unrolled(one, visual, audio):
    """One cycle after the first two passes, without a loop."""

    def norm(layer, x):
        weight, bias, mean, variance = (
            t[:, None, None] for t in (layer.weight, layer.bias, layer.running_mean, layer.running_var)
        )
        return (x - mean) / (variance + 1e-5).sqrt() * weight + bias

    def predict(k, x):
        return F.max_pool2d(F.conv2d(x, one.predict[k].weight, padding=1), 2)

    def correct(k, error, size):
        error = F.interpolate(error, size, mode="bilinear", align_corners=True)
        return one.up_rates[k].clamp_min(0) * F.conv2d(error, one.correct[k].weight, padding=0 if k == 0 else 1)

    def sound_error(x):
        predicted = F.gelu(F.conv2d(x, one.predict_audio.weight, one.predict_audio.bias)).mean((2, 3))
        return (audio - predicted)[:, :, None, None].expand(-1, -1, *x.shape[2:])

    def mix(k, x, y):
        rate = one.down_rates[k].clamp_min(0)
        return (1 - rate) * x + rate * y

    middle = F.gelu(norm(one.down_norms[0][1], predict(1, visual)))
    low = F.gelu(norm(one.down_norms[0][0], predict(0, middle)))
    up = one.up_norms[0]
    low_now = F.gelu(norm(up[0], low + correct(0, sound_error(low), low.shape[2:])))
    middle_now = F.gelu(norm(up[1], middle + correct(1, low_now - low, middle.shape[2:])))
    high = F.gelu(norm(up[2], visual + correct(2, middle_now - middle, visual.shape[2:])))

    high = F.gelu(mix(2, high, visual))
    of_middle = predict(1, high)
    middle = F.gelu(norm(one.down_norms[1][1], mix(1, middle_now, of_middle)))
    of_low = predict(0, middle)
    low = F.gelu(norm(one.down_norms[1][0], mix(0, low_now, of_low)))
    up = one.up_norms[1]
    low = F.gelu(norm(up[0], low + correct(0, sound_error(low), low.shape[2:])))
    middle = F.gelu(norm(up[1], middle + correct(1, low - of_low, middle.shape[2:])))
    high = F.gelu(norm(up[2], high + correct(2, middle - of_middle, high.shape[2:])))
    return F.conv2d(high, one.out.weight, one.out.bias)


@pytest.mark.parametrize("size", [(14, 14), (7, 9), (4, 4)])
def test_predictive_coding_is_its_steps(size):
    one, generator = module(1), torch.Generator().manual_seed(3)
    visual = torch.randn(2, C, *size, generator=generator, dtype=torch.float64)
    audio = torch.randn(2, D, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        got = one(visual, audio)
        assert got.shape == visual.shape
        torch.testing.assert_close(got, unrolled(one, visual, audio), rtol=1e-10, atol=1e-10)


def test_maps_go_through_predictive_coding():
    torch.manual_seed(0)
    localizer = build(LocalizerConfig.small("sspl", width=4, dimension=8, cycles=2)).eval()
    images, spectrograms = torch.randn(3, 3, 64, 64), torch.randn(3, 1, 64, 32)
    with torch.no_grad():
        visual, audio = localizer.visual_features(images)["visual"], localizer.audio_features(spectrograms)["audio"]
        aligned = localizer.predictive_coding(visual, audio / audio.norm(dim=1, keepdim=True))
        expected = F.cosine_similarity(aligned, audio[:, :, None, None])
        torch.testing.assert_close(localizer(images, spectrograms), expected, rtol=1e-4, atol=1e-5)


def test_every_parameter_of_predictive_coding_learns():
    torch.manual_seed(0)
    localizer = build(LocalizerConfig.small("sspl", width=4, dimension=8, cycles=1)).train()
    visual, audio = torch.randn(2, 6, 8, 7, 7), torch.randn(6, 8, requires_grad=True)
    losses.sspl([localizer.aligned(v, audio) for v in visual], audio, localizer.predictor).backward()
    for name, parameter in localizer.predictive_coding.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    assert audio.grad.abs().max() > 0


def test_bad_predictive_coding_is_named():
    with pytest.raises(ValueError, match="cycles: expected >= 0, got -1"):
        PredictiveCoding(C, D, -1)
    with pytest.raises(ValueError, match=r"visual: expected maps of 4 x 4 cells or more, got \(2, 3, 3, 4\)"):
        module(1)(torch.zeros(2, C, 3, 4).double(), torch.zeros(2, D).double())
    for method, cycles in (("lvs", 2), ("sspl", -1)):
        with pytest.raises(ValueError, match=f"cycles: expected >= 0, of sspl's .* alone, got {cycles} for {method}"):
            LocalizerConfig.small(method, cycles=cycles)
