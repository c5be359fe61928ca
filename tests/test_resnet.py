"""Residual nets against functional computations, key lists and symmetry."""

import json
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ssl_fast.models import ResNet18, SmallResNet

GOLDEN = Path(os.environ.get("SSL_FAST_GOLDEN", Path(__file__).resolve().parents[1] / "../shared/golden")).resolve()
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden folder {GOLDEN}")


def torchvision_layout(in_channels):
    """Names and shapes of torchvision's resnet18 without fc, from its construction rule."""

    def norm(name, width):
        keys = {f"{name}.{key}": [width] for key in ("weight", "bias", "running_mean", "running_var")}
        return keys | {f"{name}.num_batches_tracked": []}

    layout = {"conv1.weight": [64, in_channels, 7, 7]} | norm("bn1", 64)
    width_in = 64
    for layer, width in enumerate((64, 128, 256, 512), 1):
        for block in (0, 1):
            name = f"layer{layer}.{block}"
            layout |= {f"{name}.conv1.weight": [width, width_in, 3, 3]} | norm(f"{name}.bn1", width)
            layout |= {f"{name}.conv2.weight": [width, width, 3, 3]} | norm(f"{name}.bn2", width)
            if width_in != width:
                layout |= {f"{name}.downsample.0.weight": [width, width_in, 1, 1]} | norm(f"{name}.downsample.1", width)
            width_in = width
    return layout


def layout_of(net):
    return {key: list(value.shape) for key, value in net.state_dict().items()}


@pytest.mark.parametrize("in_channels, stride", [(3, 32), (1, 32), (3, 16)])
def test_resnet18_has_torchvisions_keys_and_shapes(in_channels, stride):
    layout = layout_of(ResNet18(in_channels, stride))
    assert layout == torchvision_layout(in_channels) and len(layout) == 120
    assert list(layout) == list(torchvision_layout(in_channels))


@needs_golden
@pytest.mark.parametrize("name", ["ezvsl", "slavc", "slavc_momentum", "fnac", "lvs", "sslalign", "ssltie"])
@pytest.mark.parametrize("prefix, in_channels", [("imgnet.", 3), ("audnet.", 1)])
def test_resnet18_keys_are_in_golden_checkpoints(name, prefix, in_channels):
    published = json.loads((GOLDEN / "checkpoint_keys.json").read_text())[name]
    keys = {key.removeprefix(prefix): shape for key, shape in published.items() if key.startswith(prefix)}
    if name in ("lvs", "sslalign", "ssltie"):  # one first convolution for each modality, and a classifier
        first = keys["conv1_a.weight" if in_channels == 1 else "conv1.weight"]
        unused = ("conv1_a.weight", "conv1_flow.weight", "fc.weight", "fc.bias")
        keys = {key: shape for key, shape in keys.items() if key not in unused} | {"conv1.weight": first}
    assert keys == layout_of(ResNet18(in_channels))


def randomize(net):
    """Weights and statistics with no special values, so that no term drops out of a comparison."""
    generator = torch.Generator().manual_seed(0)
    for key, value in net.state_dict().items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator, dtype=value.dtype)
            if value.dim() == 4:
                value.copy_(noise * (2 / value[0].numel()) ** 0.5)
            else:
                value.copy_(noise.mul(0.2).exp() if key.endswith(("var", "weight")) else noise * 0.1)
    return net


def functional_resnet18(state, x, last_stride, training=False):
    """Straight from the paper's table: 7x7/2, 3x3/2 maximum, then 2 blocks for each of 4 widths."""

    def norm(x, name):
        mean, var = (None, None) if training else (state[f"{name}.running_mean"], state[f"{name}.running_var"])
        return F.batch_norm(x, mean, var, state[f"{name}.weight"], state[f"{name}.bias"], training=training)

    x = norm(F.conv2d(x, state["conv1.weight"], stride=2, padding=3), "bn1").clamp_min(0)
    x = F.max_pool2d(x, 3, stride=2, padding=1)
    for layer, stride in ((1, 1), (2, 2), (3, 2), (4, last_stride)):
        for block in (0, 1):
            name, step = f"layer{layer}.{block}", stride if block == 0 else 1
            y = norm(F.conv2d(x, state[f"{name}.conv1.weight"], stride=step, padding=1), f"{name}.bn1").clamp_min(0)
            y = norm(F.conv2d(y, state[f"{name}.conv2.weight"], padding=1), f"{name}.bn2")
            if f"{name}.downsample.0.weight" in state:
                x = norm(F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=step), f"{name}.downsample.1")
            x = (y + x).clamp_min(0)
    return x


@pytest.mark.parametrize("in_channels, stride, size, cells", [(3, 32, (64, 96), (2, 3)), (1, 16, (65, 50), (5, 4))])
@pytest.mark.parametrize("training", [False, True])
def test_resnet18_equals_functional_computation(in_channels, stride, size, cells, training):
    net = randomize(ResNet18(in_channels, stride).double()).train(training)
    x = torch.randn(2, in_channels, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = functional_resnet18(net.state_dict(), x, 2 if stride == 32 else 1, training)
    out = net(x.to(memory_format=torch.channels_last))
    assert out.shape == (2, 512, *cells)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)


def test_initialisation_is_the_fields():
    torch.manual_seed(0)
    net = ResNet18()
    conv, bn = net.layer4[1].conv2.weight, torch.cat([net.layer4[b].bn1.weight for b in (0, 1)])
    assert float(conv.detach().std()) == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)
    first = net.conv1.weight.detach()  # over fan-out: 64 filters of 49 taps, not 3 channels
    assert float(first.std()) == pytest.approx((2 / (64 * 49)) ** 0.5, rel=0.03)
    assert float(bn.detach().std()) == pytest.approx(0.02, rel=0.15)
    assert float(bn.detach().mean()) == pytest.approx(1, abs=0.01)
    assert not net.layer1[0].bn2.bias.any()


def test_load_torchvision_leaves_out_the_classifier_only():
    source = randomize(ResNet18())
    state = source.state_dict() | {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    net = ResNet18(stride=16)
    assert net.load_torchvision(state) == ["fc.weight", "fc.bias"]
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in net.state_dict().items())
    assert net.load_torchvision(source.state_dict()) == []
    with pytest.raises(RuntimeError, match="layer5"):
        net.load_torchvision(state | {"layer5.weight": torch.zeros(1)})
    with pytest.raises(RuntimeError, match="layer2.0.conv1.weight"):
        net.load_torchvision({key: value for key, value in state.items() if key != "layer2.0.conv1.weight"})
    with pytest.raises(RuntimeError, match="conv1.weight"):
        ResNet18(in_channels=1).load_torchvision(state)


# ---------------------------------------------------------------------------------------------------------------------
# The narrow net


def test_small_resnet_sizes():
    image = SmallResNet(3)
    assert image.channels == 128 and image(torch.zeros(2, 3, 112, 112)).shape == (2, 128, 7, 7)
    assert image(torch.zeros(2, 3, 224, 160)).shape == (2, 128, 14, 10)
    assert image(torch.zeros(2, 3, 114, 98)).shape == (2, 128, 8, 7)  # rounded up: no pixel is dropped
    assert SmallResNet(1, (1, 2, 2, 2))(torch.zeros(2, 1, 128, 32)).shape == (2, 128, 4, 1)
    assert SmallResNet(3, width=8)(torch.zeros(2, 3, 112, 112)).shape == (2, 64, 7, 7)
    widths = [value.shape[0] for key, value in image.state_dict().items() if key.endswith("conv2.weight")]
    assert widths == [16, 32, 64, 128]


def test_small_resnet_equals_functional_computation():
    net = randomize(SmallResNet(3, (1, 2, 2, 1), width=4).double()).eval()
    state = net.state_dict()
    x = torch.randn(2, 3, 40, 56, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def norm(x, name):
        scale = state[f"{name}.weight"] / (state[f"{name}.running_var"] + 1e-5).sqrt()
        shift = state[f"{name}.bias"] - state[f"{name}.running_mean"] * scale
        return x * scale[:, None, None] + shift[:, None, None]

    y = norm(F.conv2d(x, state["conv1.weight"], stride=2, padding=2), "bn1").clamp_min(0)
    y = y.unfold(2, 2, 2).unfold(3, 2, 2).amax((-2, -1))
    for layer, stride in ((1, 1), (2, 2), (3, 2), (4, 1)):
        name = f"layer{layer}"
        if stride == 2:  # windows that hang over the edge average what they hold
            odd = [-n % 2 for n in y.shape[2:]]
            padded, count = (F.pad(t, (0, odd[1], 0, odd[0])) for t in (y, torch.ones_like(y)))
            y, count = (t.unfold(2, 2, 2).unfold(3, 2, 2).sum((-2, -1)) for t in (padded, count))
            y = y / count
        z = norm(F.conv2d(y, state[f"{name}.conv1.weight"], padding=1), f"{name}.bn1").clamp_min(0)
        z = norm(F.conv2d(z, state[f"{name}.conv2.weight"], padding=1), f"{name}.bn2")
        if f"{name}.downsample.0.weight" in state:
            y = norm(F.conv2d(y, state[f"{name}.downsample.0.weight"]), f"{name}.downsample.1")
        y = (y + z).clamp_min(0)
    torch.testing.assert_close(net(x), y, rtol=1e-9, atol=1e-9)


def mirror_weights(net):
    for value in net.state_dict().values():
        if value.dim() == 4:
            value.copy_(value + value.flip(2) + value.flip(3) + value.flip(2, 3))
    return net


@pytest.mark.parametrize("axis", [2, 3])
def test_small_resnet_with_mirrored_weights_commutes_with_flips(axis):
    """True exactly if every grid is centred on the one before it."""
    x = torch.randn(1, 3, 112, 112, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    centred = mirror_weights(randomize(SmallResNet(3).double())).eval()
    torch.testing.assert_close(centred(x.flip(axis)), centred(x).flip(axis), rtol=1e-9, atol=1e-9)
    shifted = mirror_weights(randomize(ResNet18(3).double())).eval()
    y = shifted(F.pad(x, (56, 56, 56, 56)))
    assert (shifted(F.pad(x, (56, 56, 56, 56)).flip(axis)) - y.flip(axis)).norm() > 0.05 * y.norm()


def receptive_centre(net, size, row, column, monkeypatch):
    """Centre of mass, in pixels, of the gradient of one cell; weights are flat and the net is linear."""
    with torch.no_grad():
        for key, value in net.state_dict().items():
            if value.dim() == 4:
                value.fill_(1 / value[0].numel())
            elif key.endswith(("bias", "running_mean")):
                value.zero_()
            else:
                value.fill_(1)
    monkeypatch.setattr(
        F,
        "max_pool2d",
        lambda x, kernel, stride, padding=0, ceil_mode=False: F.avg_pool2d(x, kernel, stride, padding, ceil_mode),
    )
    x = torch.ones(1, net.in_channels, size, size, dtype=torch.float64, requires_grad=True)
    net.double().eval()(x)[0, :, row, column].sum().backward()
    mass = x.grad[0].sum(0)
    assert (mass >= 0).all()
    assert not mass[0].any() and not mass[-1].any() and not mass[:, 0].any() and not mass[:, -1].any()  # interior
    pixels = torch.arange(size, dtype=torch.float64)
    return float((mass.sum(1) @ pixels) / mass.sum()), float((mass.sum(0) @ pixels) / mass.sum())


@pytest.mark.parametrize("row, column", [(14, 14), (12, 17)])
def test_small_resnet_features_are_centred_on_their_cells(row, column, monkeypatch):
    centre = receptive_centre(SmallResNet(3), 448, row, column, monkeypatch)
    expected = (16 * row + 7.5, 16 * column + 7.5)
    assert centre == pytest.approx(expected, abs=1e-6)


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match=r"expected input \(B, 3, height, width\), got \(2, 1, 64, 64\)"):
        ResNet18()(torch.zeros(2, 1, 64, 64))
    with pytest.raises(ValueError, match=r"expected input \(B, 1, height, width\), got \(1, 64, 64\)"):
        SmallResNet(1)(torch.zeros(1, 64, 64))
    with pytest.raises(ValueError, match="stride: expected 16 or 32, got 8"):
        ResNet18(stride=8)
    with pytest.raises(ValueError, match=r"strides: expected four of 1 or 2, got \(1, 2, 4, 1\)"):
        SmallResNet(3, (1, 2, 4, 1))
