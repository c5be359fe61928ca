"""Training with negative sounds: which are drawn, and that the loss gets their features."""

import math

import numpy as np
import pytest
import torch

from ssl_fast.data.negatives import Negatives, noise
from ssl_fast.losses import LOSSES, ExtraNegatives
from ssl_fast.training import negatives
from ssl_fast.training.learner import Learner
from ssl_fast.training.negatives import NegativeSounds
from ssl_fast.training.recipes import Recipe
from ssl_fast.training.sampler import StepSampler
from test_training import Crash, assert_same, crash_at, figures, first, one_thread, run, tiny, weights  # noqa: F401
from training_toys import ToySet

SOUNDS = {"silence": 1, "noise": 3, "offscreen": 4}
METHODS = [method for method in LOSSES if method != "sspl"]


def drawn(samples, one, steps=6, gather=False, processes=1, seed=5):
    """Of each process and step: the samples of its batch, and the keys of its negative sounds."""
    found = []
    for rank in range(processes):
        sounds = NegativeSounds(samples, one, seed, gather=gather, rank=rank, processes=processes)
        order = StepSampler(
            len(samples), 8, steps, seed, parts=one.accumulation, rank=rank, processes=processes, negatives=sounds
        )
        found.append([(batch[: 8 // processes], batch[8 // processes :]) for batch in order])
    return found


def test_off_screen_sounds_are_of_images_that_are_not_in_the_batch():
    samples = ToySet()
    samples.image_ids = [f"image {i // 2}" for i in range(40)]  # each has two sounds
    everything = set()
    for batch, keys in drawn(samples, tiny("ez_vsl", negatives=SOUNDS))[0]:
        sources = [key.source for key in keys if key.kind == "offscreen"]
        assert len(set(sources)) == 4 and not {i // 2 for i in sources} & {i // 2 for i, _ in batch}
        everything |= set(sources)
    assert len(everything) > 12
    with pytest.raises(ValueError, match="expected 25 samples or more .* of 40 samples a batch of 8 may leave 24"):
        NegativeSounds(samples, tiny("ez_vsl", negatives={"offscreen": 25}), 0, gather=False)
    NegativeSounds(samples, tiny("ez_vsl", negatives={"offscreen": 24}), 0, gather=False)


def test_silence_and_noise_are_those_of_evaluation():
    samples, keys = ToySet(), [keys for _, keys in drawn(ToySet(), tiny("ez_vsl", negatives=SOUNDS))[0]]
    noises = [negatives.waveform(samples, key) for step in keys for key in step if key.kind == "noise"]
    assert len(noises) == 18 and len({one.tobytes() for one in noises}) == 18
    stored = np.stack(noises)
    assert np.abs(stored).max() == 1 and np.mean(np.abs(stored) < 1) == pytest.approx(math.erf(0.5**0.5), abs=0.02)
    np.testing.assert_array_equal(noise(samples.front_end, 3, 5), Negatives(samples, "noise", seed=3)[5])
    keys_of_noise = [key for key in keys[0] if key.kind == "noise"]
    np.testing.assert_array_equal(noises[0], noise(samples.front_end, keys_of_noise[0].seed))
    silence = negatives.waveform(samples, keys[0][0])
    assert (
        keys[0][0].kind == "silence" and not silence.any() and silence.shape == Negatives(samples, "silence")[0].shape
    )
    source = next(key for key in keys[0] if key.kind == "offscreen")
    np.testing.assert_array_equal(negatives.waveform(samples, source), samples.waveform(source.source))


@pytest.mark.parametrize("gather", [True, False])
def test_processes_share_the_sounds_that_one_process_draws(gather):
    """Joined: of each part of the batch each process has some of them. Alone: each process is a part of its own."""
    one = tiny("ez_vsl", negatives=SOUNDS, accumulation=2)
    alone = drawn(ToySet(), one)[0]
    several = drawn(ToySet(), one if gather else tiny("ez_vsl", negatives=SOUNDS), gather=gather, processes=2)
    for (_, whole), (_, left), (_, right) in zip(alone, *several, strict=True):
        if gather:
            assert left[:4] + right[:4] + left[4:] + right[4:] == whole
        else:
            assert left + right == whole


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_of_a_step_gets_their_features(method):
    """Against the loss of features that are computed here, the others' and theirs by passes of their own."""
    views = 2 if method in ("ssl_align", "hard_positives") else 1
    changes = {
        "ssl_align": {"views": ("original", "augmented")},
        "slavc": {"momentum_decay": 0.5},
        "dense_av": {"masks": "none", "loss": {"scale": 5.0, "negative_pressure": 0.0}},
    }
    one = tiny(
        method,
        **changes.get(method, {}),
        augmentation="none",
        precision="float32",
        negatives=SOUNDS,
        negatives_weight=3.0,
    )
    learner, samples = Learner(one, front_end=ToySet.front_end), ToySet()
    net = learner.localizer.eval()
    sounds = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (8, 414)).astype(np.float32))
    sounds[0] = 0
    images, heard = first(samples, views=views)
    slow = None
    if learner.momentum is not None:
        slow = learner.momentum.localizer.eval()
        for parameter in slow.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
        learner.momentum.update = lambda online: None
    with torch.no_grad():
        got = learner.batch_loss(images, heard, 1.0, torch.Generator().manual_seed(3), negatives=sounds).item()
        without = learner.batch_loss(images, heard, 1.0, torch.Generator().manual_seed(3)).item()

        def features(localizer):
            spectrograms = localizer.normalize_spectrograms(ToySet.front_end.spectrogram(sounds)[:, None])
            own = localizer.normalize_spectrograms(samples.spectrograms[:8])
            visual = localizer.visual_features(localizer.normalize_images(samples.images[:8]))
            return visual | localizer.audio_features(own), localizer.audio_features(spectrograms)

        (own, extra), loss = features(net), learner.loss
        v, a = own.get("visual"), own.get("audio")
        kept = {"extra_negatives": ExtraNegatives(extra["audio"], weight=3.0)} if "audio" in extra else {}
        if method == "ssl_align":
            kept = {"extra_negatives": ExtraNegatives((extra["audio"], extra["audio_projected"]), weight=3.0)}
            projected = [[own[f"{name}_projected"]] * 2 for name in ("visual", "audio")]
            expected = loss([v] * 2, [a] * 2, projected_visuals=projected[0], projected_audios=projected[1], **kept)
        elif method == "slavc":
            names = ("visual_loc", "visual_avc", "audio_loc", "audio_avc")
            theirs, further = features(slow)
            parts = [one[name] for one in (extra, further) for name in names[2:]]
            expected = loss(
                *(own[name] for name in names),
                momentum=[theirs[name] for name in names],
                extra_negatives=ExtraNegatives(parts, weight=3.0),
            )
        elif method == "ssl_tie":
            from ssl_fast.data.transforms import TRANSFORMS

            transform = TRANSFORMS[one.transform](8, torch.Generator().manual_seed(3))
            moved = net.visual_features(transform(net.normalize_images(samples.images[:8])))["visual"]
            expected = loss(v, a, moved, transform, **kept)
        elif method == "hard_positives":
            expected = loss(v, a, v, a, **kept)
        elif method == "dense_av":
            expected = loss(v, a, silent=torch.zeros(len(a), a.shape[2], dtype=torch.bool), **kept)
        else:
            expected = loss(v, a, **kept)
    assert got == pytest.approx(expected.item(), rel=1e-5)
    assert got > without + 0.05


def test_a_step_adds_their_exponentials_to_the_rows_of_ez_vsl():
    """The loss of a step and its formula in float64."""
    one = tiny("ez_vsl", augmentation="none", precision="float32", negatives={"noise": 2}, negatives_weight=2.5)
    learner, samples = Learner(one, front_end=ToySet.front_end), ToySet()
    net = learner.localizer.eval()
    sounds = torch.rand(2, 414, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        got = learner.batch_loss(*first(samples), 1.0, torch.Generator(), negatives=sounds).item()
        v = net.visual_features(net.normalize_images(samples.images[:8]))["visual"].double()
        every = torch.cat([samples.spectrograms[:8], ToySet.front_end.spectrogram(sounds)[:, None]])
        a = net.audio_features(net.normalize_spectrograms(every))["audio"].double()
        v, a = v / v.norm(dim=1, keepdim=True), a / a.norm(dim=1, keepdim=True)
        e = (torch.einsum("nchw,mc->nmhw", v, a).amax((2, 3)) / one.loss["tau"]).exp()
        own = e[:, :8]
        rows = -(own.diagonal() / (own.sum(1) + 2.5 * e[:, 8:].sum(1))).log().mean()
        columns = -(own.diagonal() / own.sum(0)).log().mean()
    assert got == pytest.approx((rows + columns).item(), rel=1e-5)


@pytest.mark.parametrize("method", ["ez_vsl", "ssl_align", "slavc", "dense_av"])
def test_chance_counts_them_as_samples(method):
    one = tiny(method, negatives=SOUNDS, negatives_weight=0.5)  # 8 sounds that count 4 times, beside 8 samples
    expected = {
        "ez_vsl": math.log(12) + math.log(8),
        "ssl_align": math.log(12) + math.log(8),  # symmetric: half of each, twice
        "slavc": (math.log(8 + 4) + math.log(8)) / 2,
        "dense_av": (math.log(12) + math.log(8)) / 2,
    }
    assert Learner(one).chance() == pytest.approx(expected[method], rel=1e-5)


def test_resumed_equals_an_uninterrupted_run(tmp_path):
    one = tiny("ez_vsl", negatives=SOUNDS, accumulation=2)
    whole = run(one, seed=4)
    with pytest.raises(Crash):
        run(one, seed=4, out=tmp_path, checkpoint_every=1e-9, callbacks=[crash_at(6)])
    resumed = run(one, seed=4, out=tmp_path, resume=True, workers=1)
    assert_same(weights(resumed.localizer), weights(whole.localizer))
    assert figures(resumed.history) == figures(whole.history)
    assert figures(run(tiny("ez_vsl", accumulation=2), seed=4).history) != figures(whole.history)
    with pytest.raises(ValueError, match="belongs to a run with negatives=.*'noise': 3.*, asked to go on with"):
        run(tiny("ez_vsl", negatives={"noise": 3}, accumulation=2), seed=4, out=tmp_path, resume=True)


def test_runs_from_before_there_were_negatives_go_on(tmp_path):
    from ssl_fast.models import storage

    one = tiny("ez_vsl")
    with pytest.raises(Crash):
        run(one, out=tmp_path, checkpoint_every=1e-9, callbacks=[crash_at(6)])
    state = storage.load(tmp_path / storage.LAST)
    for name in ("negatives", "negatives_weight"):
        del state["recipe"][name]
    storage.save(state, tmp_path / storage.LAST)
    assert Recipe.from_dict(state["recipe"]) == one
    assert_same(weights(run(one, out=tmp_path, resume=True).localizer), weights(run(one).localizer))


def test_recipes_read_and_check_them():
    assert negatives.read("silence, noise=4,offscreen=8") == {"silence": 1, "noise": 4, "offscreen": 8}
    one = tiny("ez_vsl", negatives={"offscreen": 2, "silence": 1}, negatives_weight=2.0)
    assert Recipe.from_dict(one.to_dict()) == one and list(one.negatives) == ["silence", "offscreen"]
    for text in ("silence,silence", "noise=", "noise=-1", "noise=x", ""):
        with pytest.raises(ValueError, match="negatives: expected some of silence, noise, offscreen, each once"):
            negatives.read(text)
    for changes, message in (
        ({"negatives": {"hum": 1}}, "expected some of silence, noise, offscreen, got 'hum'"),
        ({"negatives": {"noise": 0}}, "noise: expected a number of sounds >= 1, got 0"),
        ({"negatives": {"noise": 1}, "negatives_weight": 0.0}, "negatives_weight: expected a number > 0, got 0.0"),
        ({"negatives_weight": 2.0}, "negatives_weight: expected with negatives, got 2.0"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny("ez_vsl", **changes)
    with pytest.raises(ValueError, match="negatives: sspl has no negatives, got noise"):
        tiny("sspl", negatives={"noise": 1})


def test_a_step_needs_as_many_as_the_recipe_says():
    learner, samples = Learner(tiny("ez_vsl", negatives=SOUNDS), front_end=ToySet.front_end), ToySet()
    with pytest.raises(ValueError, match="expected 8 waveforms for silence=1, noise=3, offscreen=4, got 0"):
        learner.step(0, *first(samples), 0.5, samples.ids[:8])
