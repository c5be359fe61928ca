"""Views of a sample: checked by hand where nothing is drawn, by search where something is."""

import math

import numpy as np
import pytest
import torch

from ssl_fast import losses
from ssl_fast.data.io.images import load_image
from ssl_fast.data.transforms import TRANSFORMS
from ssl_fast.models import LocalizerConfig
from ssl_fast.training.learner import Learner
from ssl_fast.training.loop import train
from ssl_fast.training.recipes import recipe
from ssl_fast.training.sampler import StepSampler
from ssl_fast.training.views import Themselves, Views
from training_toys import HEARD, Nearest, ToySet, after_step, folder

ALL = ("original", "augmented", "conceptual")


def tiny(**changes):
    model = LocalizerConfig.small("ssl_align", width=4, dimension=8, projection=8)
    published = {"augmentation": "simclr", "time_shift": (0.1, 0.5), "views": ALL, "image_size": 32}
    return recipe("ssl_align", **{"model": model, "batch_size": 4, "epochs": 2} | published | changes)


@pytest.fixture
def files(tmp_path):
    return folder(tmp_path / "data")


def test_original_and_conceptual_views_are_the_samples_and_their_neighbours(files):
    near = Nearest(files), Nearest(files, reach=5)
    views = Views(files, tiny(), seed=2, neighbors=near)
    assert len(views) == 12
    pairs = set()
    for epoch in range(8):
        got = views[3, epoch]
        assert got["index"] == 3 and got["image"].shape == (3, 3, 32, 32) and got["sound"].shape == (3, 4000)
        assert got["image"].dtype == torch.uint8 and got["sound"].dtype == torch.float32
        seen, heard = (one.drawn.pop() for one in near)
        assert not any(one.drawn for one in near)  # one draw a step
        for k, (image, sound) in {0: (3, 3), 2: (seen, heard)}.items():
            assert torch.equal(got["image"][k], load_image(files.root / "frames" / f"{image:02d}.png", 32))
            np.testing.assert_array_equal(got["sound"][k], files.waveform(sound))
        pairs.add((seen, heard))
    assert len(pairs) > 3


def test_augmented_sounds_are_heard_up_to_half_a_second_off(files):
    views, clip = Views(files, tiny(views=("augmented",))), files.clip(5)
    shifts = []
    for epoch in range(300):
        sound = views[5, epoch]["sound"][0].numpy()
        (start,) = np.flatnonzero((clip[:-2] == sound[0]) & (clip[1:-1] == sound[1]) & (clip[2:] == sound[2]))
        np.testing.assert_array_equal(clip[start : start + 4000], sound)
        shifts.append((start - 10000) / 16000)  # .25 s in the middle of 1.5 s begin at 10,000
    size = np.abs(shifts)
    assert 0.1 <= size.min() < 0.11 and 0.49 < size.max() <= 0.5 and size.mean() == pytest.approx(0.3, abs=0.02)
    assert 120 < (np.array(shifts) > 0).sum() < 180


def test_augmented_images_are_cut_out_of_the_frame(files):
    """A crop of a ramp that rises from left to right rises in every row or, flipped, falls."""
    ramp = np.broadcast_to(np.linspace(0, 255, 96)[:, None].astype(np.uint8), (64, 96, 3))
    files.frame = lambda index: np.ascontiguousarray(ramp)
    views = Views(files, tiny(views=("augmented", "augmented"), time_shift=None))
    lefts, rights, flips = [], [], 0
    for epoch in range(150):
        for image in views[0, epoch]["image"].float():
            row = image[1, 16]
            assert (image - row).abs().max() <= 1  # all rows and channels alike
            rising = bool(row[-1] > row[0])
            flips += not rising
            lefts.append(row.min().item() / 255), rights.append(row.max().item() / 255)
            assert (row.diff() >= 0).all() if rising else (row.diff() <= 0).all()
    assert 110 < flips < 190 and min(lefts) < 0.05 and max(rights) > 0.95 and max(lefts) > 0.4 and min(rights) < 0.6


def test_draws_depend_on_seed_epoch_and_index_alone(files):
    def view(key, seed=0):
        return Views(files, tiny(), seed, (Nearest(files), Nearest(files)))[key]

    def same(a, b):
        return all(torch.equal(a[name][1], b[name][1]) for name in ("image", "sound"))

    views = Views(files, tiny(), 0, (Nearest(files), Nearest(files)))
    for key in ((2, 1), (7, 0), (2, 0), (2, 1)):
        assert same(views[key], view(key))
    assert not same(view((2, 0)), view((2, 1))) and not same(view((2, 0)), view((2, 0), seed=1))
    assert torch.equal(view((2, 0))["image"][0], view((2, 1))["image"][0])


def test_loader_processes_give_the_same_views(files):
    def load(workers):
        views = Views(files, tiny(), 4, (Nearest(files), Nearest(files)))
        sampler = StepSampler(12, 4, 6, seed=4)
        return list(torch.utils.data.DataLoader(views, batch_sampler=sampler, num_workers=workers))

    for a, b in zip(load(0), load(2), strict=True):
        assert all(torch.equal(a[name], b[name]) for name in ("image", "sound", "index"))


def test_views_of_arrays():
    toys = ToySet()
    near = Nearest(toys), Nearest(toys)
    for augmentation in ("shift", "ez_vsl"):
        got = Views(toys, tiny(augmentation=augmentation, time_shift=None), neighbors=near)[9, 0]
        seen, heard = (one.drawn[-1] for one in near)
        assert got["sound"].shape == (3, 1, 32, 12)
        for k, (image, sound) in enumerate(((9, 9), (9, 9), (seen, heard))):
            assert torch.equal(got["sound"][k], toys.spectrograms[sound])
            same = torch.equal(got["image"][k], toys.images[image])
            assert same == (k != 1 or augmentation == "shift")  # squares are augmented in batches


def test_bad_combinations_are_named(files):
    near = Nearest(files), Nearest(files)
    with pytest.raises(
        ValueError,
        match="neighbors: expected those of images and of sounds with the views original, "
        "augmented, conceptual, got none",
    ):
        Views(files, tiny())
    with pytest.raises(ValueError, match="neighbors: expected none with the views augmented, got some"):
        Views(files, tiny(views=("augmented",)), neighbors=near)
    with pytest.raises(ValueError, match="time_shift: expected a set that has the whole clips, got ToySet"):
        Views(ToySet(), tiny(), neighbors=near)
    for pair in ((near[0], Nearest(ToySet())), (Nearest(ToySet()), near[1])):
        with pytest.raises(ValueError, match="neighbours of another set"):
            Views(files, tiny(), neighbors=pair)


class Queue:
    """Neighbours of which the next sample is always the nearest in the queue."""

    def check(self, sample_set):
        pass

    def draw_from_queue(self, index, generator, size):
        assert size == 4000
        return (index + 1) % 12


def mixing(**changes):
    model = LocalizerConfig.small("ssl_tie", width=4)
    fields = {"augmentation": "moco_v2", "audio_mix": "ssl_tie", "image_size": 32, "batch_size": 4, "epochs": 2}
    return recipe("ssl_tie", model=model, **fields | changes)


def test_sounds_are_mixed_more_often_and_more_strongly_in_each_epoch(files):
    views, waves = Views(files, mixing(), neighbors=(Themselves(), Queue())), [files.waveform(i) for i in range(12)]
    assert all(np.array_equal(views[i, 0]["sound"][0], waves[i]) for i in range(12))
    for epoch, share in ((1, 0.11), (50, 0.6), (95, 1.0)):
        mixed = 0
        for i in range(12):
            expected = (1 - epoch / 100) * waves[i] + epoch / 100 * waves[(i + 1) % 12]
            for seed in range(10):
                one = Views(files, mixing(), seed, (Themselves(), Queue()))[i, epoch]["sound"][0].numpy()
                if not np.array_equal(one, waves[i]):
                    np.testing.assert_allclose(one, expected, atol=1e-6)
                    mixed += 1
        assert mixed / 120 == pytest.approx(share, abs=0.12)


def test_bad_mixing_is_named(files):
    with pytest.raises(ValueError, match="neighbors: expected those of sounds with the views augmented, mixed sounds,"):
        Views(files, mixing())
    with pytest.raises(ValueError, match="audio_mix: expected a set that has the whole clips, got ToySet"):
        Views(ToySet(), mixing(), neighbors=(Themselves(), Queue()))
    with pytest.raises(ValueError, match="audio_mix: expected with an augmentation among ez_vsl, .* got 'shift'"):
        mixing(augmentation="shift")
    with pytest.raises(ValueError, match="transform: only ssl_tie has one, got released for ez_vsl"):
        recipe("ez_vsl", transform="released")


@pytest.mark.parametrize("transform", ["single_shrink", "released"])
def test_a_run_with_each_transform(files, transform):
    """The equivariance term by hand: the images' transform through the net, the maps' transform of its maps."""
    one = mixing(audio_mix="none", transform=transform, precision="float32", image_size=112)
    learner = Learner(one, front_end=HEARD)
    learner.localizer.eval()
    batch = [Views(files, one)[i, 0] for i in range(4)]
    images, sounds = (torch.stack([sample[name] for sample in batch]) for name in ("image", "sound"))
    shapes = set()
    for seed in range(6):
        got = learner.batch_loss(images, sounds, 1.0, torch.Generator().manual_seed(seed)).item()
        draw = torch.Generator().manual_seed(seed)
        seen, heard = learner.net_inputs(images, sounds, draw)
        transform_ = TRANSFORMS[transform](4, draw)
        with torch.no_grad():
            audio = learner.localizer.audio_features(heard)["audio"]
            first, second = (learner.localizer.visual_features(x)["visual"] for x in (seen, transform_(seen)))
            shapes.add(second.shape[-1])
            maps = [torch.cosine_similarity(x, audio[:, :, None, None], dim=1)[:, None] for x in (first, second)]
            apart = (maps[1] - transform_(maps[0])).square().mean().item()
            contrast = sum(losses.lvs(x, audio, **one.loss).item() for x in (first, second)) / 2
        assert got == pytest.approx(contrast + apart, rel=1e-4)
    assert shapes == ({7} if transform == "single_shrink" else {7, 4})


# ---------------------------------------------------------------------------------------------------------------------
# What the learner makes of them


def test_waveforms_become_the_spectrograms_of_the_front_end(files):
    one = tiny(views=("original",), time_shift=None, precision="float32")
    learner = Learner(one, front_end=HEARD)
    learner.localizer.eval()
    batch = [Views(files, one)[i, 0] for i in range(6)]
    images, sounds = (torch.stack([sample[name] for sample in batch]) for name in ("image", "sound"))
    plain = torch.stack([files[i]["spectrogram"] for i in range(6)])[:, None]
    losses = [learner.batch_loss(images, x, 1.0, torch.Generator()).item() for x in (sounds, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_nine_pairs_by_definition(files):
    """-log softmax of s_L and of s_A, summed over all pairs of views, from features of one view at a time."""
    one = tiny(precision="float32", masks="none")
    learner = Learner(one, front_end=HEARD)
    learner.localizer.eval()
    views = Views(files, one, neighbors=(Nearest(files), Nearest(files)))
    batch = [views[i, 0] for i in range(5)]
    images, sounds = (torch.stack([sample[name] for sample in batch]) for name in ("image", "sound"))
    got = learner.batch_loss(images, sounds, 1.0, torch.Generator().manual_seed(8)).item()
    generator = torch.Generator().manual_seed(8)
    policy, net = one.policy, learner.localizer
    expected = 0.0
    with torch.no_grad():
        seen, heard = [], []
        for k, kind in enumerate(ALL):
            view = policy.colours(images[:, k], generator) if kind == "augmented" else images[:, k]
            seen.append(net.visual_features(net.normalize_images(view)))
            spectrograms = torch.stack([HEARD.spectrogram(wave) for wave in sounds[:, k]])[:, None]
            heard.append(net.audio_features(net.normalize_spectrograms(spectrograms)))

        def unit(x):
            return x / x.norm(dim=1, keepdim=True)

        for v in seen:
            for a in heard:
                cosine = torch.einsum("nchw,mc->nmhw", unit(v["visual"]), unit(a["audio"])).flatten(2)
                weight = torch.sigmoid((cosine - 0.65) / 0.03)
                pooled = (weight * cosine).sum(2) / weight.sum(2)
                for score in (pooled, unit(v["visual_projected"]) @ unit(a["audio_projected"]).T):
                    for z in (score / 0.07, score.T / 0.07):  # both directions, averaged
                        expected += (z.logsumexp(1) - z.diagonal()).mean().item() / 2
    assert got == pytest.approx(expected, rel=1e-5)


def test_masks_and_colours_are_for_augmented_views_only():
    toys = ToySet()
    learner = Learner(tiny(augmentation="moco_v1", time_shift=None, masks="fnac"))
    images, sounds = toys.images[:8], toys.spectrograms[:8]
    plain = learner.localizer.normalize_images(images), learner.localizer.normalize_spectrograms(sounds)
    for kind in ALL:
        got = learner._view(kind, images, sounds, torch.Generator().manual_seed(1))
        assert [torch.equal(a, b) for a, b in zip(got, plain)] == [kind != "augmented"] * 2
        zero = (0 - learner.localizer.spectrogram_mean) / learner.localizer.spectrogram_std
        assert (got[1] == zero).any() == (kind == "augmented")


def test_views_that_are_missing_are_told():
    toys = ToySet()
    with pytest.raises(ValueError, match=r"views: expected 3 of each sample, \(B, 3, ...\), got images \(8, 1, "):
        Learner(tiny()).batch_loss(toys.images[:8, None], toys.spectrograms[:8, None], 1.0, torch.Generator())


# ---------------------------------------------------------------------------------------------------------------------
# Whole runs


def figures(run):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in run.history]


def test_resume_of_three_views_equals_an_uninterrupted_run(files, tmp_path):
    """Crops, shifts and neighbours are drawn as if nothing had happened, by however many processes."""

    class Crash(Exception):
        pass

    def crash(learner, record):
        if record["step"] == 3:
            raise Crash

    def go(reach=3, **options):
        near = Nearest(files), Nearest(files, reach)
        return train(files, tiny(masks="fnac"), seed=5, progress=False, neighbors=near, **options)

    whole = go()
    with pytest.raises(Crash):
        go(out=tmp_path / "run", checkpoint_every=1e-9, callbacks=[after_step(crash)], workers=2)
    resumed = go(out=tmp_path / "run", resume=True)
    assert whole.steps == 6 and whole.chance == pytest.approx(9 * 2 * math.log(4), rel=1e-5)  # s_L and s_A
    a, b = (one.localizer.state_dict() for one in (whole, resumed))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert figures(resumed) == figures(whole)
    with pytest.raises(ValueError, match="a run with neighbors='[0-9a-f]{16}', asked to go on with neighbors="):
        go(reach=4, out=tmp_path / "run", resume=True)


def test_in_validation_samples_are_their_own_neighbours(files, tmp_path):
    """Without augmentation the conceptual view is then the original once more: four times the loss of one."""
    others = folder(tmp_path / "others")
    others.ids = [f"other {name}" for name in others.ids]
    near, still = (Nearest(files), Nearest(files)), {"augmentation": "none", "time_shift": None, "precision": "float32"}
    options = {"neighbors": near, "validation": others, "progress": False}
    pair = train(files, tiny(views=("original", "conceptual"), **still), **options)
    learner = Learner(tiny(views=("original",), **still))
    learner.localizer.load_state_dict(pair.localizer.state_dict())
    samples = [others[i] for i in range(12)]
    images, sounds = (torch.stack([sample[name] for sample in samples])[:, None] for name in ("image", "spectrogram"))
    expected = 4 * sum(learner.validation_losses(zip(images.split(4), sounds.split(4)))) / 3
    assert pair.history[-1]["validation_loss"] == pytest.approx(expected, rel=1e-5)
