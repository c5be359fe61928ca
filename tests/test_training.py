import json
import math
import os
import re
import signal
import threading
import warnings
import zipfile

import pytest
import torch

from ssl_fast import losses
from ssl_fast.losses import LOSSES
from ssl_fast.models import LocalizerConfig, storage
from ssl_fast.ops import checks
from ssl_fast.reproducibility import derived_seed
from ssl_fast.training import loop as training
from ssl_fast.training import recipes
from ssl_fast.training.learner import Learner, TrainingError
from ssl_fast.training.loop import train
from ssl_fast.training.recipes import METHODS, recipe
from ssl_fast.training.sampler import StepSampler
from training_toys import ToySet, after_step, loaded


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny(method="ssl_align", **changes):
    """40 samples make 5 steps of 8 an epoch; 3 epochs."""
    model = LocalizerConfig.small(
        method, width=4, dimension=8, **({"projection": 8} if method in ("ssl_align", "sspl") else {})
    )
    common = {"model": model, "batch_size": 8, "epochs": 3, "warm_up_steps": 2, "nce_epochs": 0.9 * (method == "fnac")}
    return recipe(method, **(common | changes))


def first(samples, n=8, views=1):
    """The first n samples, as a step takes them: images (n, V, 3, S, S) and spectrograms (n, V, 1, F, T)."""
    return [x[:n, None].expand(-1, views, *x.shape[1:]) for x in (samples.images, samples.spectrograms)]


def run(one, **options):
    return train(ToySet(), one, progress=False, **options)


def weights(localizer):
    return {name: value.clone() for name, value in localizer.state_dict().items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different


def figures(history):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in history]


class Crash(Exception):
    pass


def crash_at(step):
    def on_step(learner, record):
        if record["step"] == step:
            raise Crash

    return after_step(on_step)


# ---------------------------------------------------------------------------------------------------------------------
# Seeds, order


def test_order_is_a_permutation_per_epoch_and_the_same_from_any_step_on():
    whole = list(StepSampler(21, 4, 15, seed=3))
    assert len(whole) == 15
    keys = [[key for batch in whole[k : k + 5] for key in batch] for k in (0, 5, 10)]
    assert [[epoch for _, epoch in part] for part in keys] == [[0] * 20, [1] * 20, [2] * 20]
    epochs = [[index for index, _ in part] for part in keys]
    assert all(len(set(epoch)) == 20 and set(epoch) <= set(range(21)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    for first in (0, 4, 5, 7, 15):
        later = StepSampler(21, 4, 15, seed=3, first=first)
        assert list(later) == whole[first:] and len(later) == 15 - first
    assert list(StepSampler(21, 4, 15, seed=4)) != whole


def test_seeds_differ_by_every_part_of_their_key():
    keys = [(seed, purpose, number) for seed in range(4) for purpose in range(4) for number in range(4)]
    assert len({derived_seed(*key) for key in keys}) == len(keys)
    assert derived_seed(3, 2, 9) == derived_seed(3, 2, 9)


def test_global_generator_is_left_alone():
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    run(tiny(epochs=1))
    assert torch.equal(torch.rand(3), expected)


# ---------------------------------------------------------------------------------------------------------------------
# Losses in a step

CHANCE = {  # -log of 1 / B (LVS: one more negative), once for each cross-entropy that the method sums
    "ssl_align": 2 * math.log(8),
    "margin_nce": math.log(1 + 7 * math.exp(-0.2 / 0.07)),
    "lvs": math.log(9),
    "ez_vsl": 2 * math.log(8),
    "slavc": math.log(8),
    "fnac": 2 * math.log(8),
    "ssl_tie": math.log(9),
    "hard_positives": math.log(8),
    "sspl": -1.0,
    "dense_av": math.log(8),
}


@pytest.mark.parametrize("method", LOSSES)
def test_chance_is_the_loss_of_a_collapsed_net(method):
    assert Learner(tiny(method)).chance() == pytest.approx(CHANCE[method], rel=1e-5)


def test_chance_counts_views_and_momentum_terms():
    two = tiny("ssl_align", views=("original", "augmented"))
    assert Learner(two).chance() == pytest.approx(4 * CHANCE["ssl_align"], rel=1e-5)
    assert Learner(tiny("slavc", momentum_decay=0.9)).chance() == pytest.approx(2 * CHANCE["slavc"], rel=1e-5)


@pytest.mark.parametrize("method, pooling, tau", [("margin_nce", "soft_threshold", 0.07), ("ez_vsl", "max", 0.07)])
def test_warm_up_blends_scores(method, pooling, tau):
    """At progress .2 of a warm-up from .1 to .3, scores are half mean and half the method's pooling."""
    learner, samples = Learner(tiny(method, augmentation="none", precision="float32")), ToySet()
    images, sounds = samples.images[:8], samples.spectrograms[:8]
    with torch.no_grad():
        got = learner.batch_loss(*first(samples), 0.2, torch.Generator())
        v = learner.localizer.visual_features(learner.localizer.normalize_images(images))["visual"].double()
        a = learner.localizer.audio_features(learner.localizer.normalize_spectrograms(sounds))["audio"].double()
        cosine = torch.einsum(
            "nchw,mc->nmhw", v / v.norm(dim=1, keepdim=True), a / a.norm(dim=1, keepdim=True)
        ).flatten(2)
        weight = torch.sigmoid((cosine - 0.65) / 0.03)
        own = (weight * cosine).sum(2) / weight.sum(2) if pooling == "soft_threshold" else cosine.amax(2)
        scores = 0.5 * cosine.mean(2) + 0.5 * own
        if method == "margin_nce":
            scores = scores + 0.2 * torch.eye(8)  # margin -.2
        z = scores / tau
        rows, columns = (torch.logsumexp(z, dim).sub(z.diagonal()).mean() for dim in (1, 0))
    expected = (rows + columns) / (2 if method == "margin_nce" else 1)
    assert got.item() == pytest.approx(expected.item(), rel=1e-4)


def test_l1_terms_of_fnac_wait():
    learner, samples = Learner(tiny("fnac", nce_epochs=1.5, augmentation="none", precision="float32")), ToySet()
    learner.localizer.eval()
    early, late = (learner.batch_loss(*first(samples), p, torch.Generator()).item() for p in (0.49, 0.5))
    plain = Learner(tiny("ez_vsl", augmentation="none", precision="float32"))
    plain.localizer.load_state_dict(learner.localizer.state_dict())
    plain.localizer.eval()
    assert early == pytest.approx(plain.batch_loss(*first(samples), 0.49, torch.Generator()).item(), rel=1e-6)
    assert late > early * 1.01


@pytest.mark.parametrize("method", ["hard_positives", "sspl"])
def test_second_views_are_similar_samples_and_images_without_a_sound(method):
    """The second view is another sample: hard_positives takes its image and sound, sspl its image under the first's
    sound."""
    learner, samples = Learner(tiny(method, augmentation="none", precision="float32")), ToySet()
    net = learner.localizer.eval()
    own, other = range(8), [(i + 3) % 8 for i in range(8)]
    images, sounds = (torch.stack([x[own], x[other]], 1) for x in (samples.images, samples.spectrograms))
    with torch.no_grad():
        got = learner.batch_loss(images, sounds, 1.0, torch.Generator())
        (v, a), (w, b) = (
            (
                net.visual_features(net.normalize_images(samples.images[k]))["visual"],
                net.audio_features(net.normalize_spectrograms(samples.spectrograms[k]))["audio"],
            )
            for k in (own, other)
        )
        if method == "hard_positives":
            expected = losses.hard_positives(v, a, w, b, symmetric=True)
        else:
            expected = losses.sspl([v, w], a, net.predictor)
    assert got.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", LOSSES)
def test_every_method_learns_the_toys(method):
    changes = {"slavc": {"momentum_decay": 0.5}, "fnac": {"loss": {"tau": 0.07, "weights": (6.0, 6.0, 6.0)}}}.get(
        method, {}
    )
    epochs = 20 if method in ("slavc", "sspl") else 12
    done, samples = run(tiny(method, epochs=epochs, augmentation="none", precision="float32", **changes)), ToySet()
    history = [record["loss"] for record in done.history]
    assert len(history) == 5 * epochs and not done.shortened and not done.localizer.training
    last = history[-len(history) // 20 :]
    assert done.final_loss == pytest.approx(sum(last) / len(last))
    if method == "sspl":  # without negatives it does not tell sounds apart
        assert sum(last) / len(last) < sum(history[:5]) / 5 - 0.1
        return
    localizer = done.localizer
    with torch.no_grad():
        visual = localizer.visual_features(localizer.normalize_images(samples.images))
        audio = localizer.audio_features(localizer.normalize_spectrograms(samples.spectrograms))
        answer = localizer.retrieval(visual, audio).argmax(1)
    right = (answer % 4 == torch.arange(40) % 4).float().mean().item()
    assert right >= 0.6  # chance: .25


def test_views_of_ssl_align_are_drawn_anew():
    """Two views: four pairs; were both views one draw, the loss would be four times that of one view."""
    samples = ToySet()
    losses = {}
    for views in (1, 2):
        learner = Learner(tiny(views=("augmented",) * views, precision="float32"))
        learner.localizer.eval()  # batch norm of the running statistics: rows do not see each other
        generator = torch.Generator().manual_seed(5)
        losses[views] = learner.batch_loss(*first(samples, views=views), 1.0, generator).item()
    assert losses[2] != pytest.approx(4 * losses[1], rel=1e-4) and losses[2] == pytest.approx(4 * losses[1], rel=0.2)


def test_silent_tokens_of_dense_av_are_left_out_and_held_down():
    """Frames without a sound: of the third clip all, of the fourth those of its second token (of three)."""
    loss = {"scale": 5.0, "silence": 0.5, "total_variation": 0.3, "head_specialization": 0.2, "negative_pressure": 0.0}
    one = tiny("dense_av", augmentation="none", masks="none", precision="float32", loss=loss)
    learner, samples = Learner(one), ToySet()
    net, silence = learner.localizer.eval(), learner.front_end.silence
    samples.spectrograms[2] = silence
    samples.spectrograms[3, :, :, 4:8] = silence + 0.01  # .8 dB above it; one cell above 1 dB is heard
    samples.spectrograms[4, :, :, 4:8] = silence
    samples.spectrograms[4, :, 7, 5] = silence + 0.03
    silent = torch.zeros(8, 3, dtype=torch.bool)
    silent[2], silent[3, 1] = True, True
    with torch.no_grad():
        got = learner.batch_loss(*first(samples), 1.0, torch.Generator())
        visual = net.visual_features(net.normalize_images(samples.images[:8]))["visual"]
        audio = net.audio_features(net.normalize_spectrograms(samples.spectrograms[:8]))["audio"]
        v, a = (x.double() / x.double().norm(dim=1, keepdim=True) for x in (visual, audio))
        alpha = torch.einsum("nkcyx,mkct->nmktyx", v.unflatten(1, (2, -1)), a.unflatten(1, (2, -1))).flatten(4)
        kept = (~silent).double()
        z = 5 * (alpha.amax((2, 4)) * kept).sum(2) / kept.sum(1).clamp_min(1)
        own = alpha[range(8), range(8)]  # pair, head, token, cell
        contrast = sum((torch.logsumexp(z, dim) - z.diagonal()).mean() for dim in (0, 1)) / 2
        quiet = own.abs().mean((1, 3))[silent].mean()
        steps, heads = own.diff(dim=2).square().mean(), (own[:, 0] * own[:, 1]).abs().mean()
    assert got.item() == pytest.approx((contrast + 0.5 * quiet + 0.3 * steps + 0.2 * heads).item(), rel=1e-5)


def test_the_learned_scale_is_trained_saved_and_needed(tmp_path):
    one = tiny("dense_av", epochs=1)
    scales = []
    run(one, out=tmp_path, callbacks=[after_step(lambda learner, _: scales.append(learner.loss.log_scale.item()))])
    start = math.log(one.loss["scale"])
    assert abs(scales[0] - start) == pytest.approx(one.learning_rate_at(0, 0.0), rel=1e-3)  # Adam's first step
    assert len(set(scales)) == 5
    state = storage.load(tmp_path / "checkpoint.pt")
    assert state["loss"]["log_scale"].item() == scales[-1]
    learner = Learner(one)
    learner.load(state)
    assert learner.loss.log_scale.item() == scales[-1]
    del state["loss"]
    with pytest.raises(ValueError, match="^loss: 1 weights do not fit: log_scale: missing"):
        learner.load(state)
    run(tiny("ez_vsl", epochs=1), out=tmp_path / "other")
    state = storage.load(tmp_path / "other" / "checkpoint.pt")
    del state["loss"]  # checkpoints from before it was stored; a loss without parameters needs none
    Learner(tiny("ez_vsl", epochs=1)).load(state)


# ---------------------------------------------------------------------------------------------------------------------
# Resume

RESUMED = {
    "ssl_align": {},
    "lvs": {"precision": "bfloat16"},
    "margin_nce": {"precision": "float16"},
    # dropout and momentum nets: what a step draws, and what only the checkpoint can carry over
    "slavc": {"momentum_decay": 0.9, "model": LocalizerConfig.small("slavc", width=4, dimension=8, visual_dropout=0.5)},
    "ssl_tie": {"augmentation": "crop"},
    "dense_av": {"masks": "silence"},  # cells that a regulariser draws, and a parameter of the loss
}


@pytest.mark.grid
@pytest.mark.parametrize("method", RESUMED)
def test_resume_equals_an_uninterrupted_run(method, tmp_path):
    one = tiny(method, **RESUMED[method])
    whole = run(one, seed=5)
    for crash in (3, 11):  # the last checkpoints are those of steps 3 and 11
        with pytest.raises(Crash):
            run(one, seed=5, out=tmp_path, resume=crash > 3, checkpoint_every=1e-9, callbacks=[crash_at(crash)])
        assert storage.load(tmp_path / "checkpoint.pt")["step"] == crash
    resumed = run(one, seed=5, out=tmp_path, resume=True)
    assert_same(weights(resumed.localizer), weights(whole.localizer))
    assert figures(resumed.history) == figures(whole.history)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == resumed.history and [line["step"] for line in lines] == list(range(15))


def test_runs_from_before_a_field_of_the_model_go_on(tmp_path):
    one = tiny("ez_vsl", epochs=1)
    with pytest.raises(Crash):
        run(one, out=tmp_path, checkpoint_every=1e-9, callbacks=[crash_at(3)])
    state = storage.load(tmp_path / "checkpoint.pt")
    for name in ("heads", "cycles"):
        del state["recipe"]["model"][name]
    storage.save(state, tmp_path / "checkpoint.pt")
    assert_same(weights(run(one, out=tmp_path, resume=True).localizer), weights(run(one).localizer))


def test_seeds_and_repeats():
    one = tiny(epochs=1)
    assert_same(weights(run(one, seed=1).localizer), weights(run(one, seed=1).localizer))
    assert not torch.equal(
        run(one, seed=1).localizer.visual_net.conv1.weight, run(one, seed=2).localizer.visual_net.conv1.weight
    )


def test_loader_processes_change_nothing():
    one = tiny(epochs=1)
    assert_same(weights(run(one, workers=2).localizer), weights(run(one).localizer))


def test_gradient_of_a_batch_in_parts_is_the_mean_of_theirs():
    samples = ToySet()
    images, spectrograms = first(samples)
    learner, other = (Learner(tiny(accumulation=2, precision="float32"), seed=3) for _ in range(2))
    record = learner.step(4, images, spectrograms, 1.0, samples.ids[:8])
    other.localizer.train()
    torch.manual_seed(derived_seed(3, 2, 4))
    generator = torch.Generator().manual_seed(derived_seed(3, 3, 4))
    losses = [other.batch_loss(images[k : k + 4], spectrograms[k : k + 4], 1.0, generator) for k in (0, 4)]
    (sum(losses) / 2).backward()
    assert record["loss"] == pytest.approx(sum(losses).item() / 2, rel=1e-6)
    assert all(
        torch.allclose(a.grad, b.grad, rtol=1e-4, atol=1e-7) for a, b in zip(learner.parameters, other.parameters)
    )
    assert learner.chance() == pytest.approx(2 * math.log(4), rel=1e-4)  # s_L and s_A


@pytest.mark.parametrize("parts", [3, 8])
def test_a_batch_is_cut_into_equal_parts_with_negatives(parts):
    with pytest.raises(ValueError, match=f"accumulation: expected to cut the batch of 8 .* got {parts}"):
        tiny(accumulation=parts)


@pytest.mark.slow
def test_compiled_nets_start_as_the_others():
    """One step; after it the nets of a few neurons drift apart from rounding."""
    one = tiny("ez_vsl", epochs=1, precision="float32")
    plain, compiled = (train(ToySet(8), one, compile=x, progress=False) for x in (False, True))
    assert compiled.localizer.state_dict().keys() == plain.localizer.state_dict().keys()
    for name in ("loss", "gradient_norm"):
        assert compiled.history[0][name] == pytest.approx(plain.history[0][name], rel=1e-4)


def test_finished_run_resumes_to_itself(tmp_path):
    first = run(tiny(epochs=1), out=tmp_path)
    again = run(tiny(epochs=1), out=tmp_path, resume=True)
    assert_same(weights(again.localizer), weights(first.localizer))
    assert again.history == first.history and again.seconds == first.seconds


def test_resume_refuses_another_run(tmp_path):
    run(tiny(epochs=1), out=tmp_path)
    with pytest.raises(ValueError, match="belongs to a run with seed=0, asked to go on with seed=1"):
        run(tiny(epochs=1), out=tmp_path, resume=True, seed=1)
    with pytest.raises(ValueError, match="belongs to a run with epochs=1, asked to go on with epochs=2"):
        run(tiny(epochs=2), out=tmp_path, resume=True)
    with pytest.raises(ValueError, match="belongs to a run with samples=40, asked to go on with samples=48"):
        train(ToySet(48), tiny(epochs=1), out=tmp_path, resume=True, progress=False)
    other = ToySet()
    other.ids = [f"other-{i}" for i in range(40)]
    with pytest.raises(ValueError, match="belongs to a run with data="):
        train(other, tiny(epochs=1), out=tmp_path, resume=True, progress=False)


@pytest.mark.slow
def test_budget_shortens_a_run_with_all_its_schedules(monkeypatch, capsys):
    clock = iter(x * 0.5 for x in range(10_000))
    monkeypatch.setattr(training.time, "monotonic", lambda: next(clock))
    done = run(tiny(epochs=100), minutes=20 / 60)  # each step takes half a second: 40 of 500 steps
    assert capsys.readouterr().out == (
        "at this speed 40 of 500 steps fit into 0.333333 minutes; --minutes 5 would train it fully\n"
    )
    assert done.shortened and done.steps == 40 and done.planned_steps == 500 and done.seconds == pytest.approx(20)
    rates = [record["learning_rate"] for record in done.history]
    assert rates[-1] < 0.02 * max(rates)
    weight = [record["mean_weight"] for record in done.history]
    assert weight[0] == 1 and weight[-1] == 0


def test_a_run_that_goes_on_after_its_schedules_have_ended_says_so(tmp_path, monkeypatch):
    clock = iter(x * 0.5 for x in range(10_000))
    monkeypatch.setattr(training.time, "monotonic", lambda: next(clock))
    one = tiny(epochs=6)  # 30 steps, of which the budget allows 20
    short = run(one, out=tmp_path, minutes=10 / 60)
    assert short.shortened and short.steps == 20 and short.notes == []
    assert run(one, out=tmp_path, minutes=10 / 60, resume=True).notes == []
    whole = run(one, out=tmp_path, resume=True)
    assert whole.steps == 30 and not whole.shortened
    assert len(whole.notes) == 1 and "had ended this run and its schedules after 20 of 30 steps" in whole.notes[0]
    assert run(one, out=tmp_path, resume=True).notes == []


@pytest.mark.slow
def test_budget_counts_the_time_before_a_resume(tmp_path, monkeypatch):
    clock = iter(x * 0.5 for x in range(10_000))
    monkeypatch.setattr(training.time, "monotonic", lambda: next(clock))
    one = tiny(epochs=100)
    with pytest.raises(Crash):
        run(one, out=tmp_path, minutes=20 / 60, checkpoint_every=1e-9, callbacks=[crash_at(30)])
    done = run(one, out=tmp_path, minutes=20 / 60, resume=True)
    assert 20 <= done.seconds <= 21


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints


def test_checkpoint_opens_without_pickled_code_and_carries_the_run(tmp_path):
    done = run(tiny("slavc", epochs=1, momentum_decay=0.9), out=tmp_path, seed=4)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert (state["format"], state["step"], state["seed"], state["samples"]) == (storage.FORMAT, 5, 4, 40)
    assert state["versions"]["torch"] == torch.__version__
    assert recipes.Recipe.from_dict(state["recipe"]) == done.recipe
    assert state["history"] == done.history and state["momentum"] is not None
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]  # no temporary files are left
    localizer, again = loaded(tmp_path)
    assert not localizer.training and again["step"] == 5
    assert_same(weights(localizer), weights(done.localizer))


@pytest.mark.parametrize("damage", ["truncated", "a bit"])
def test_damaged_checkpoint_is_named_and_the_one_before_it_used(damage, tmp_path):
    one = tiny()
    with pytest.raises(Crash):
        run(one, out=tmp_path, checkpoint_every=1e-9, callbacks=[crash_at(7)])
    path = tmp_path / "checkpoint.pt"
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda one: one.file_size)
    content[largest.header_offset + largest.file_size // 2] ^= 64
    path.write_bytes(content[:5000] if damage == "truncated" else content)
    with pytest.raises(storage.CheckpointError, match=re.escape(f"{path}: truncated, damaged or not a checkpoint")):
        loaded(path)
    with pytest.warns(UserWarning, match=re.escape(f"{path}: truncated") + ".*" + re.escape("checkpoint.previous.pt")):
        resumed = run(one, out=tmp_path, resume=True)
    assert len((tmp_path / "checkpoint.damaged.pt").read_bytes()) == (5000 if damage == "truncated" else len(content))
    assert_same(weights(resumed.localizer), weights(run(one).localizer))


def test_both_checkpoints_damaged_is_an_error(tmp_path):
    with pytest.raises(Crash):
        run(tiny(), out=tmp_path, checkpoint_every=1e-9, callbacks=[crash_at(7)])
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(storage.CheckpointError, match="checkpoint.previous.pt: truncated, damaged"):
        run(tiny(), out=tmp_path, resume=True)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", bytes(range(256)) * 40, b"RIFFR\0"])
def test_strange_files_are_named(content, tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(storage.CheckpointError, match=re.escape(str(path))):
        storage.load(path)


def test_foreign_checkpoints_are_named(tmp_path):
    torch.save({"model": {}}, tmp_path / "other.pt")
    with pytest.raises(storage.CheckpointError, match="other.pt: expected a checkpoint of this project, .*, got "):
        storage.load(tmp_path / "other.pt")
    with pytest.raises(storage.CheckpointError, match="absent.pt: no such file"):
        storage.load(tmp_path / "absent.pt")
    state = {"recipe": tiny("lvs").to_dict(), "localizer": {"strange": torch.zeros(1)}}
    storage.save({}, tmp_path / "bare.pt")
    with pytest.raises(storage.CheckpointError, match="bare.pt: does not give the localizer it describes"):
        loaded(tmp_path / "bare.pt")
    storage.save(state, tmp_path / "wrong.pt")
    with pytest.raises(storage.CheckpointError, match="wrong.pt: does not give the localizer it describes"):
        loaded(tmp_path / "wrong.pt")


def test_failed_write_leaves_the_checkpoint(tmp_path):
    path = tmp_path / "checkpoint.pt"
    storage.save({"step": 1}, path)
    with pytest.raises(Exception, match="pickle|local object"):
        storage.save({"step": 2, "bad": lambda: None}, path)
    assert storage.load(path)["step"] == 1 and os.listdir(tmp_path) == ["checkpoint.pt"]


# ---------------------------------------------------------------------------------------------------------------------
# Trouble


def test_non_finite_input_stops_with_the_ids_of_the_batch(tmp_path):
    samples = ToySet()
    samples.spectrograms[17, 0, 3, 3] = math.nan
    with pytest.raises(TrainingError) as error:
        train(samples, tiny(), out=tmp_path, progress=False)
    step, ids = re.fullmatch(r"step (\d+): the loss is nan for the samples (.*)", str(error.value)).groups()
    order = [index for index, _ in list(StepSampler(40, 8, 15, seed=0))[int(step)]]
    assert 17 in order and ids.split(", ") == [f"toy-{i:03d}" for i in order]


def test_non_finite_gradient_stops_before_it_is_applied(monkeypatch):
    learner, samples = Learner(tiny()), ToySet()
    before = weights(learner.localizer)
    parameter = learner.parameters[0]
    parameter.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(TrainingError, match="step 3: the norm of the gradient is (inf|nan) for the samples a, b"):
        learner.step(3, *first(samples), 0.5, ["a", "b"])
    after = weights(learner.localizer)
    assert all(torch.equal(before[name], after[name]) for name, _ in learner.localizer.named_parameters())


@pytest.mark.parametrize("method", METHODS)
def test_losses_of_bfloat16_features_are_those_of_the_same_numbers_in_float32(method, monkeypatch):
    learner = Learner(tiny(method, precision="bfloat16"))
    batch, generator = first(ToySet(), views=len(learner.recipe.views)), torch.Generator()
    features = learner._features

    def loss(dtype):
        def converted(*inputs):
            return {name: x.bfloat16().to(dtype) for name, x in features(*inputs).items()}

        monkeypatch.setattr(learner, "_features", converted)
        return learner.batch_loss(*batch, 1.0, generator.manual_seed(1))

    of_bfloat16, of_float32 = loss(torch.bfloat16), loss(torch.float32)
    assert of_bfloat16.dtype == of_float32.dtype == torch.float32
    rounding = 2e-3 if method == "dense_av" else 1e-4  # its unit vectors of all heads are rounded to the dtype
    assert of_bfloat16.item() == pytest.approx(of_float32.item(), rel=rounding)


def test_float16_leaves_out_steps_whose_gradient_overflows():
    learner, exact = (Learner(tiny(precision=name)) for name in ("float16", "float32"))
    batch = first(ToySet())
    learner.scaler.load_state_dict(learner.scaler.state_dict() | {"scale": 256.0})
    records = [learner.step(0, *batch, 0.5, ["a", "b"]), exact.step(0, *batch, 0.5, ["a", "b"])]
    assert records[0]["gradient_norm"] == pytest.approx(records[1]["gradient_norm"], rel=0.05)
    before = weights(learner.localizer)
    hook = learner.parameters[0].register_hook(lambda gradient: gradient * math.inf)
    for number in (1, 2):
        record = learner.step(number, *batch, 0.5, ["a", "b"])
        assert "gradient_norm" not in record and record["loss_scale"] == 256 / number
    names = [name for name, _ in learner.localizer.named_parameters()]
    assert all(torch.equal(before[name], weights(learner.localizer)[name]) for name in names)
    hook.remove()
    learner.step(3, *batch, 0.5, ["a", "b"])
    assert not any(torch.equal(before[name], weights(learner.localizer)[name]) for name in names)
    learner.scaler.update(1.0)
    learner.parameters[0].register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(TrainingError, match="step 4: the norm of the gradient is (inf|nan) for the samples a, b"):
        learner.step(4, *batch, 0.5, ["a", "b"])


def test_signal_after_the_last_step_is_not_lost(monkeypatch):
    batches = iter(torch.utils.data.DataLoader([]))

    class Loader:
        def __init__(self, *args, **options):
            pass

        def __iter__(self):
            os.kill(os.getpid(), signal.SIGINT)
            return batches

    monkeypatch.setattr(torch.utils.data, "DataLoader", Loader)
    with pytest.raises(training.Interrupted):
        run(tiny(epochs=1))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.usefixtures("heeded_hangup")
def test_signal_leaves_a_checkpoint_and_resume_goes_on(number, tmp_path):
    one = tiny("lvs")
    handler = signal.getsignal(number)

    def interrupt(learner, record):
        if record["step"] == 6:
            os.kill(os.getpid(), number)

    with pytest.raises(training.Interrupted) as stop:
        run(one, out=tmp_path, callbacks=[after_step(interrupt)])
    assert isinstance(stop.value, KeyboardInterrupt) and stop.value.signal == number
    assert stop.value.step == 7 and stop.value.checkpoint == tmp_path / "checkpoint.pt"
    assert signal.getsignal(number) is handler
    resumed = run(one, out=tmp_path, resume=True)
    assert_same(weights(resumed.localizer), weights(run(one).localizer))


def test_training_works_outside_the_main_thread():
    result = []
    thread = threading.Thread(target=lambda: result.append(run(tiny(epochs=1))))
    thread.start()
    thread.join()
    assert result[0].steps == 5


def test_bad_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match="minutes: expected > 0, got 0"):
        run(tiny(), minutes=0)
    with pytest.raises(ValueError, match="batch_size: expected at most the 40 samples of the set, got 64"):
        run(tiny(batch_size=64), out=tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_no_warnings_in_a_step():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "ssl_fast: all ops run plain")  # where there is no compiled module
        run(tiny(epochs=1))


@pytest.mark.skipif(checks.extension is None, reason="no compiled module")
@pytest.mark.parametrize("which", ["reference", "avx2", "avx512_bf16", "amx"])
def test_features_keep_their_16_bits_where_kernels_multiply_them(which, use_set, set_extension):
    if which == "reference":
        set_extension(None)
    elif which in checks.extension.instruction_sets():
        use_set(which)
    else:
        pytest.skip("not on this processor")
    learner, seen = Learner(tiny("ez_vsl", precision="bfloat16")), []
    learner.loss.register_forward_pre_hook(lambda _, features: seen.extend(x.dtype for x in features))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of plain PyTorch
        learner.step(0, *first(ToySet()), 0.5, ["a"] * 8)
    assert seen == [torch.bfloat16 if which in ("avx512_bf16", "amx") else torch.float32] * 2
