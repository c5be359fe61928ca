"""Localizers: counts and maps of the published layouts, dropout places, momentum in closed form, retrieval."""

import json
import math
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F

from ssl_fast import losses
from ssl_fast.models import METHODS, LocalizerConfig, Momentum, build


def small(method, **changes):
    torch.manual_seed(0)
    return build(LocalizerConfig.small(method, width=4, dimension=8, **changes))


def inputs(count=4, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, 64, 64, generator=generator, dtype=dtype)
    return images, torch.randn(count, 1, 64, 32, generator=generator, dtype=dtype)


def parameters(module):
    return sum(p.numel() for p in module.parameters())


# ---------------------------------------------------------------------------------------------------------------------
# Published layouts


# the first layer for optical flow and the classifier of both nets, and each net's first layer for the other modality
UNUSED = 2 * (64 * 6 * 49 + 1000 * 512 + 1000) + 64 * 49 + 64 * 3 * 49


@pytest.mark.parametrize(
    "method, count",
    [
        ("ez_vsl", 22_872_064),
        ("margin_nce", 22_872_064),
        ("fnac", 22_872_064),
        ("lvs", 23_422_928 - UNUSED),
        ("ssl_tie", 23_422_928 - UNUSED),
        ("slavc", 46_794_752 // 2),
    ],
)
def test_parameter_counts_are_the_published(method, count):
    assert parameters(build(LocalizerConfig.published(method))) == count


def test_published_initialisation_of_heads():
    torch.manual_seed(0)
    localizer = build(LocalizerConfig.published("ez_vsl"))
    conv, linear = localizer.visual_heads["visual"].weight.detach(), localizer.audio_heads["audio"].weight.detach()
    assert float(conv.std()) == pytest.approx(math.sqrt(2 / 512), rel=0.01)
    assert float(linear.std()) == pytest.approx(0.01, rel=0.01)


# ---------------------------------------------------------------------------------------------------------------------
# Features, maps, retrieval


@pytest.mark.parametrize("method", [method for method in METHODS if method != "dense_av"])
def test_maps_are_cosines_of_features(method):
    localizer = small(method, **({"projection": None} if method == "ssl_align" else {})).eval()
    images, spectrograms = inputs()
    with torch.no_grad():
        visual, audio = localizer.visual_features(images), localizer.audio_features(spectrograms)
        maps = localizer(images, spectrograms)
    spaces = ("_loc", "_avc") if method == "slavc" else ("",)
    assert visual.keys() | audio.keys() == {kind + space for kind in ("visual", "audio") for space in spaces}
    cosines = [F.cosine_similarity(visual[f"visual{s}"], audio[f"audio{s}"][:, :, None, None]) for s in spaces]
    torch.testing.assert_close(maps, sum(cosines) / len(cosines))
    assert maps.shape == (4, 4, 4) and maps.abs().max() <= 1 and maps.std() > 1e-3


def test_audio_features_are_the_maximum_over_time_and_frequency():
    localizer = small("ez_vsl", head_bias=True).eval()
    _, spectrograms = inputs()
    with torch.no_grad():
        cells = localizer.audio_net(spectrograms)
        strongest = torch.stack([cells[:, k].flatten(1).sort().values[:, -1] for k in range(cells.shape[1])], 1)
        expected = strongest @ localizer.audio_heads["audio"].weight.t() + localizer.audio_heads["audio"].bias
        torch.testing.assert_close(localizer.audio_features(spectrograms)["audio"], expected)


def test_projections_see_unnormalised_averages():
    localizer = small("ssl_align", projection=6).eval()
    images, spectrograms = inputs()
    with torch.no_grad():
        cells = localizer.visual_net(images)
        expected = torch.stack([cells[:, :, r, c] for r in range(4) for c in range(4)]).mean(0)
        expected = expected @ localizer.project_visual.weight.t()
        torch.testing.assert_close(localizer.visual_features(images)["visual_projected"], expected)
        assert localizer.audio_features(spectrograms)["audio_projected"].shape == (4, 6)


@pytest.mark.grid
@pytest.mark.parametrize("similarity", ["auto", "projected", "mean", "max", "pooled"])
@pytest.mark.parametrize("method", METHODS)
def test_retrieval_in_chunks_equals_loops(method, similarity):
    localizer = small(method).eval()
    (images, _), (_, spectrograms) = inputs(5), inputs(3, seed=1)
    with torch.no_grad():
        visual, audio = localizer.visual_features(images), localizer.audio_features(spectrograms)
    if similarity == "projected" and method != "ssl_align":
        with pytest.raises(
            ValueError, match=f"expected a localizer with projections for 'projected', {method} has none"
        ):
            localizer.retrieval(visual, audio, similarity=similarity)
        return
    scores = localizer.retrieval(visual, audio, chunk=2, similarity=similarity)
    torch.testing.assert_close(scores, localizer.retrieval(visual, audio, similarity=similarity))
    expected = torch.empty(5, 3)
    for n in range(5):
        for m in range(3):
            one, other = {k: v[n : n + 1] for k, v in visual.items()}, {k: v[m : m + 1] for k, v in audio.items()}
            map = localizer.maps(one, other)
            expected[n, m] = map.mean() if similarity == "mean" else map.max()
            if method == "dense_av" and similarity in ("auto", "max"):
                expected[n, m] = products(one, other).amax((2, 3)).mean()
            if similarity == "projected" or (similarity == "auto" and method == "ssl_align"):
                expected[n, m] = F.cosine_similarity(one["visual_projected"], other["audio_projected"])
            if similarity == "pooled" and method == "dense_av":
                averages = {"visual": one["visual"].mean((2, 3), keepdim=True)}
                expected[n, m] = products(averages, other).mean()
            elif similarity == "pooled":
                expected[n, m] = sum(
                    F.cosine_similarity(one[f"visual{space}"].mean((2, 3)), other[f"audio{space}"])
                    for space in localizer.spaces
                ).item() / len(localizer.spaces)
    torch.testing.assert_close(scores, expected)


def products(visual, audio, heads=2):
    """(B, T, h, w) float64: the largest of the parts of the cosine, cell by cell and token by token."""
    v, a = visual["visual"].double(), audio["audio"].double()
    v, a = v / v.norm(dim=1, keepdim=True), a / a.norm(dim=1, keepdim=True)
    v, a = v.unflatten(1, (heads, -1)), a.unflatten(1, (heads, -1))
    return torch.einsum("bkchw,bkct->bkthw", v, a).amax(1)


def test_maps_of_tokens_are_the_largest_parts_of_cosines():
    localizer = small("dense_av").eval()
    images, spectrograms = inputs()
    spectrograms = torch.cat([spectrograms, spectrograms.flip(0)], 3)
    with torch.no_grad():
        visual, audio = localizer.visual_features(images), localizer.audio_features(spectrograms)
        maps = localizer.token_maps(visual, audio)
        whole = localizer(images, spectrograms)
    assert audio["audio"].shape == (4, 8, 16) and maps.dtype == torch.float32
    torch.testing.assert_close(maps.double(), products(visual, audio), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(whole.double(), products(visual, audio).mean(1), rtol=1e-5, atol=1e-6)
    assert maps.std(1).min() > 1e-3


def test_tokens_hear_the_strongest_frequency_of_their_time():
    localizer = small("dense_av", head_bias=True).eval()
    _, spectrograms = inputs()
    head = localizer.audio_heads["audio"]
    with torch.no_grad():
        cells = localizer.audio_net(spectrograms)
        found = localizer.audio_features(spectrograms)["audio"]
        for t in range(cells.shape[3]):
            strongest = cells[..., t].sort(2).values[:, :, -1]
            torch.testing.assert_close(found[..., t], strongest @ head.weight.t() + head.bias)


@pytest.mark.parametrize("backbone, frames", [("small", 96), ("small", 133), ("resnet18_stride16", 640)])
def test_times_of_tokens_are_those_that_they_hear(backbone, frames):
    """The frames that a token inside the clip has a gradient with respect to lie around its time; and a click is heard
    by tokens around it."""
    localizer = build(LocalizerConfig.small("dense_av", width=4, dimension=8, backbone=backbone)).eval()
    spectrograms = torch.randn(1, 1, 32, frames, generator=torch.Generator().manual_seed(0), requires_grad=True)
    cells = localizer.audio_net(spectrograms)
    times = localizer.token_times(frames)
    assert times.dtype == "float64" and times.shape == (cells.shape[3],)
    middle = len(times) // 2
    (gradient,) = torch.autograd.grad(cells[..., middle].square().sum(), spectrograms)
    heard = gradient.abs().sum((0, 1, 2)).nonzero().flatten().tolist()
    assert heard[0] > 0 and heard[-1] < frames - 1  # else the clip ends before the receptive field
    assert backbone != "small" or heard[-1] - heard[0] == 39
    assert times[middle] == pytest.approx(((heard[0] + heard[-1]) / 2 + 0.5) / frames, abs=1.0001 / frames)


def test_frames_belong_to_the_token_whose_time_is_nearest():
    for backbone in ("small", "resnet18_stride16"):
        localizer = build(LocalizerConfig.small("dense_av", width=4, dimension=8, backbone=backbone))
        for frames in (32, 33, 45, 160):
            times = torch.from_numpy(localizer.token_times(frames)) * frames - 0.5
            step = 4 if backbone == "small" else 16
            for frame in range(frames):
                all_but = torch.arange(frames)[None] != frame
                distance = (times - frame).abs()
                got = localizer.tokens_of_frames(all_but)[0]
                assert (~got).sum() <= 1
                if (~got).any():
                    assert distance[~got].item() == distance.min()
                else:  # at the end, where no token's window reaches
                    assert distance.min() >= step / 2


def test_localizers_without_tokens_say_so():
    localizer = small("lvs")
    assert not localizer.has_tokens and small("dense_av").has_tokens
    for call in (
        lambda: localizer.token_maps({}, {}),
        lambda: localizer.token_times(33),
        lambda: localizer.tokens_of_frames(torch.ones(1, 33, dtype=torch.bool)),
    ):
        with pytest.raises(ValueError, match=r"method: expected a localizer with audio tokens \(dense_av\), got lvs"):
            call()
    with pytest.raises(ValueError, match="frames: expected as many as make a token, got 1"):
        small("dense_av").token_times(1)


def test_unknown_similarity():
    with pytest.raises(ValueError, match="similarity: expected one of .*, got 'cosine'"):
        small("lvs").retrieval({}, {}, similarity="cosine")


def test_retrieval_of_slavc_takes_zero_vectors_as_cosine_zero():
    localizer = small("slavc")
    visual = {"visual_loc": torch.zeros(1, 2, 1, 1), "visual_avc": torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)}
    audio = {"audio_loc": torch.ones(1, 2), "audio_avc": torch.tensor([[5.0, 0.0]])}
    assert float(localizer.retrieval(visual, audio)) == pytest.approx(0.3)
    assert float(localizer.maps(visual, audio)) == pytest.approx(0.3)


def test_normalisation_uses_the_constants_of_the_config():
    localizer = build(LocalizerConfig.published("ez_vsl", spectrogram_mean=-1.0, spectrogram_std=0.5))
    images = torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 1, 1, 3).expand(1, 3, 2, 3)
    out = localizer.normalize_images(images)
    for channel, (mean, std) in enumerate(zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))):
        expected = [(x / 255 - mean) / std for x in (0, 128, 255)]
        assert out[0, channel, 1].tolist() == pytest.approx(expected, rel=1e-5)
    spectrograms = torch.tensor([-2.0, 0.0]).view(2, 1, 1, 1)
    assert localizer.normalize_spectrograms(spectrograms).flatten().tolist() == [-2.0, 2.0]
    assert localizer.double().normalize_images(images).dtype == torch.float64  # the nets' dtype


def test_a_checkpoint_carries_the_normalisation():
    source = small("lvs", image_mean=(0.1, 0.2, 0.3), spectrogram_std=0.7)
    target = small("lvs")
    target.load_state_dict(source.state_dict())
    images = torch.randint(0, 256, (1, 3, 4, 4), dtype=torch.uint8)
    assert torch.equal(target.normalize_images(images), source.normalize_images(images))
    state = {key: value for key, value in source.state_dict().items() if key != "visual_heads.visual.weight"}
    with pytest.raises(RuntimeError, match="visual_heads.visual.weight"):
        target.load_state_dict(state)


# ---------------------------------------------------------------------------------------------------------------------
# Dropout and gradients


def test_dropout_is_element_wise_and_shared_by_both_heads_of_slavc():
    localizer = small("slavc", visual_dropout=0.9).train()
    seen = []
    for head in localizer.visual_heads.values():
        head.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    images, _ = inputs(8)
    localizer.visual_features(images)
    assert torch.equal(seen[0], seen[1])
    rate = float((seen[0] == 0).float().mean())
    assert 0.85 < rate < 0.99  # 0.9 and what ReLU had set to 0
    per_channel = (seen[0] != 0).flatten(2).any(2).float().mean()
    assert per_channel > 0.5  # whole channels are not dropped: 16 cells leave 1 - .9^16 = .81 of those with signal
    with torch.no_grad():
        clean = localizer.eval().visual_net(images)
        localizer.visual_features(images)
    torch.testing.assert_close(seen[2], clean)


def test_audio_dropout_stands_before_the_linear_head():
    localizer = small("fnac", audio_dropout=0.5).train()
    seen = []
    localizer.audio_heads["audio"].register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    localizer.audio_features(inputs(16)[1])
    kept = float((seen[0] != 0).float().mean())
    assert 0.2 < kept < 0.6
    assert not any(module.p for module in small("ez_vsl").modules() if isinstance(module, torch.nn.Dropout))


@pytest.mark.parametrize("method", METHODS)
def test_every_parameter_learns(method):
    localizer = small(method).train()
    images, spectrograms = inputs(6)
    f = localizer.visual_features(images) | localizer.audio_features(spectrograms)
    if method == "ssl_align":
        projected = {"projected_visuals": [f["visual_projected"]], "projected_audios": [f["audio_projected"]]}
        loss = losses.ssl_align([f["visual"]], [f["audio"]], **projected)
    elif method == "slavc":
        copies = Momentum(localizer)(localizer, images, spectrograms)
        names = ("visual_loc", "visual_avc", "audio_loc", "audio_avc")
        loss = losses.slavc(*(f[n] for n in names), momentum=[copies[n] for n in names])
    elif method == "ssl_tie":
        flipped = localizer.visual_features(images.flip(3))["visual"]
        loss = losses.ssl_tie(f["visual"], f["audio"], flipped, lambda maps: maps.flip(3))
    elif method == "hard_positives":
        loss = losses.hard_positives(f["visual"], f["audio"], f["visual"].flip(0), f["audio"].flip(0))
    elif method == "sspl":
        flipped = localizer.visual_features(images.flip(3))["visual"]
        loss = losses.sspl([f["visual"], flipped], f["audio"], localizer.predictor)
    else:
        loss = losses.LOSSES[method]()(f["visual"], f["audio"])
    loss.backward()
    assert loss.isfinite()
    for name, parameter in localizer.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_the_draw_is_torchs_generators():
    one, same, other = small("slavc"), small("slavc"), build(LocalizerConfig.small("slavc", width=4, dimension=8))
    assert all(torch.equal(x, y) for x, y in zip(one.parameters(), same.parameters()))
    assert not all(torch.equal(x, y) for x, y in zip(one.parameters(), other.parameters()))


# ---------------------------------------------------------------------------------------------------------------------
# Momentum


def perturbed(localizer, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in localizer.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    return localizer


@pytest.mark.parametrize("decay", [0.0, 0.9, 1.0])
def test_momentum_in_closed_form(decay):
    """Towards a constant theta: theta_m after k steps is theta + decay^k (theta_0 - theta)."""
    online = small("slavc").double()
    start = [p.detach().clone() for p in online.parameters()]
    momentum = Momentum(online, decay)
    perturbed(online)
    for _ in range(5):
        momentum.update(online)
    for slow, first, target in zip(momentum.localizer.parameters(), start, online.parameters(), strict=True):
        torch.testing.assert_close(slow, target + decay**5 * (first - target), rtol=1e-12, atol=1e-12)
        assert not slow.requires_grad


def test_momentum_updates_before_its_features_and_only_in_train_mode():
    online = small("slavc")
    images, spectrograms = inputs()
    momentum = Momentum(online, decay=0.0)
    online(images, spectrograms).sum().backward()
    perturbed(online)
    before = [p.clone() for p in momentum.localizer.parameters()]
    momentum.eval()(online, images, spectrograms)
    assert all(torch.equal(x, y) for x, y in zip(before, momentum.localizer.parameters()))
    features = momentum.train()(online, images, spectrograms)
    with torch.no_grad():
        expected = online.visual_features(images) | online.audio_features(spectrograms)
    assert features.keys() == expected.keys()
    for name, value in features.items():  # decay 0: equal to the online nets of this very step
        torch.testing.assert_close(value, expected[name])
        assert not value.requires_grad
    assert all(p.grad is None for p in momentum.parameters())


def test_momentum_keeps_its_own_batch_norm_statistics():
    online = small("slavc").train()
    momentum = Momentum(online, decay=0.5)
    images, spectrograms = inputs()
    mean = "visual_net.bn1.running_mean"
    momentum(online, images, spectrograms)
    assert not online.state_dict()[mean].any()  # not touched
    with torch.no_grad():
        batch = momentum.localizer.visual_net.conv1(images).mean((0, 2, 3))
    torch.testing.assert_close(momentum.localizer.state_dict()[mean], 0.1 * batch)


def test_momentum_with_averaged_buffers():
    online = small("slavc").train()
    momentum = Momentum(online, decay=0.75, ema_buffers=True)
    images, spectrograms = inputs()
    online(images, spectrograms)
    momentum(online, images, spectrograms)
    state, fast = momentum.localizer.state_dict(), online.state_dict()
    for name in ("visual_net.bn1", "audio_net.layer4.bn2"):
        torch.testing.assert_close(state[f"{name}.running_mean"], 0.25 * fast[f"{name}.running_mean"])
        torch.testing.assert_close(state[f"{name}.running_var"], 0.75 + 0.25 * fast[f"{name}.running_var"])


def test_momentum_state_round_trip(tmp_path):
    online = perturbed(small("slavc"))
    momentum = Momentum(online, decay=0.9)
    momentum(online, *inputs())
    torch.save(momentum.state_dict(), tmp_path / "momentum.pt")
    other = Momentum(small("slavc"), decay=0.9)
    other.load_state_dict(torch.load(tmp_path / "momentum.pt", weights_only=True))
    for net in (momentum, other):
        net.eval()
    for name, value in momentum(online, *inputs()).items():
        assert torch.equal(other(online, *inputs())[name], value)
    assert not any(key.startswith("online") for key in momentum.state_dict())


# ---------------------------------------------------------------------------------------------------------------------
# Configuration and errors


@pytest.mark.parametrize("method", METHODS)
def test_config_round_trips_through_json(method):
    for config in (LocalizerConfig.published(method), LocalizerConfig.small(method, image_mean=(0.1, 0.2, 0.3))):
        assert LocalizerConfig(**json.loads(json.dumps(asdict(config)))) == config


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"method": "ezvsl"}, "method: expected one of ssl_align, .*got 'ezvsl'"),
        ({"backbone": "resnet50"}, "backbone: expected one of resnet18, .*got 'resnet50'"),
        ({"method": "slavc", "dimension": None}, "dimension: slavc needs heads"),
        ({"method": "lvs", "projection": 16}, "projection: only ssl_align and sspl have projections, got 16 for lvs"),
        (
            {"method": "sspl", "projection": None},
            "projection: sspl needs the head whose projections it compares, got N",
        ),
        ({"visual_dropout": 1.0}, r"visual_dropout: expected within \[0, 1\), got 1.0"),
        ({"image_std": (0.2, 0.0, 0.2)}, "expected standard deviations > 0"),
        ({"image_mean": (0.5,)}, "image_mean: expected three values"),
        ({"dimension": 0}, "dimension: expected >= 1, got 0"),
        ({"heads": 2.0, "method": "dense_av"}, "heads: expected an integer, got 2.0"),
        ({"width": None}, "width: expected an integer, got None"),
        ({"heads": 0, "method": "dense_av"}, "heads: expected >= 1, and 1 for .*, got 0 for dense_av"),
        ({"heads": 2, "method": "lvs"}, "heads: expected >= 1, and 1 for methods other than dense_av, got 2 for lvs"),
        ({"heads": 3, "method": "dense_av"}, "heads: expected a divisor of the dimension 128, got 3"),
        (
            {"heads": 3, "method": "dense_av", "dimension": None},
            "heads: expected a divisor of the dimension 128, got 3",
        ),
    ],
)
def test_bad_configurations_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        LocalizerConfig(**changes)


def test_bad_inputs_are_named():
    localizer = small("lvs")
    images, spectrograms = inputs()
    with pytest.raises(ValueError, match=r"images: expected uint8 \(B, 3, H, W\), got torch.float32 \(4, 3, 64, 64\)"):
        localizer.normalize_images(images)
    with pytest.raises(ValueError, match=r"spectrograms: expected float .*, got torch.float32 \(4, 64, 32\)"):
        localizer.normalize_spectrograms(spectrograms[:, 0])
    with pytest.raises(TypeError, match="images: expected the float output of normalize_images, got torch.uint8"):
        localizer.visual_features(images.to(torch.uint8))
    with pytest.raises(ValueError, match="decay: expected within"):
        Momentum(localizer, decay=1.5)
    with pytest.raises(ValueError, match="at least one image"):
        localizer.retrieval({"visual": torch.zeros(0, 8, 4, 4)}, {"audio": torch.zeros(2, 8)})
