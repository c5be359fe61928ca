"""Validation while training: the best epoch, by success or by loss, kept and found again."""

import pytest

from ssl_fast.evaluation import evaluate
from ssl_fast.training.learner import Learner
from ssl_fast.training.validation import best_record
from test_training import Crash, assert_same, crash_at, figures, first, one_thread, run, tiny, weights  # noqa: F401
from training_toys import Others, ToySet, loaded


def test_the_epoch_with_the_best_loss_is_kept(tmp_path):
    done = run(tiny(learning_rate=0.05, epochs=4), out=tmp_path, validation=Others(), seed=1)
    losses = {record["step"]: record["validation_loss"] for record in done.history if "validation_loss" in record}
    assert list(losses) == [4, 9, 14, 19]
    best = min(losses, key=losses.get)
    localizer, state = loaded(tmp_path)
    assert state["step"] == best + 1
    assert_same(weights(localizer), weights(loaded(tmp_path / "best.pt")[0]))
    # its loss, once more from the file
    learner = Learner(tiny(learning_rate=0.05, epochs=4), seed=1)
    learner.load(state)
    others = Others()
    batches = [[x[k : k + 8] for x in first(others, 16)] for k in (0, 8)]
    assert sum(learner.validation_losses(batches)) / 2 == losses[best]


def test_validation_by_success_is_what_evaluation_finds(tmp_path):
    others = Others(boxes=True)
    done = run(tiny(epochs=1), out=tmp_path, validation=others)
    results = evaluate(loaded(tmp_path)[0], {"val": others}, negatives=[])
    assert done.history[-1]["validation_success"] == results["sets"]["val"]["model"]["ciou_adaptive"]


@pytest.mark.parametrize("scores, best", [([0.2, 0.5, 0.5, 0.4], 1), ([0.0], 0)])
def test_of_equally_good_epochs_the_first_is_the_best(scores, best):
    history = [{"step": 5 * k, "validation_success": score} for k, score in enumerate(scores)]
    assert best_record([*history, {"step": 99}]) is history[best]
    assert best_record([{"step": 99}]) is None


@pytest.mark.slow
def test_resume_goes_on_with_the_same_best_epoch(tmp_path):
    one, options = tiny(learning_rate=0.05), {"validation": Others(), "seed": 2}
    whole = run(one, out=tmp_path / "whole", **options)
    with pytest.raises(Crash):
        run(one, out=tmp_path / "part", checkpoint_every=1e-9, callbacks=[crash_at(11)], **options)
    resumed = run(one, out=tmp_path / "part", resume=True, **options)
    assert figures(resumed.history) == figures(whole.history)
    a, b = (loaded(tmp_path / folder / "best.pt") for folder in ("whole", "part"))
    assert a[1]["step"] == b[1]["step"]
    assert_same(weights(a[0]), weights(b[0]))
    with pytest.raises(ValueError, match="belongs to a run with validation="):
        run(one, out=tmp_path / "part", resume=True, seed=2)


def test_validation_samples_are_not_trained_on():
    with pytest.raises(ValueError, match="samples that are not trained on, 40 of 40 are: toy-000, toy-001, toy-002"):
        run(tiny(), validation=ToySet())
    with pytest.raises(ValueError, match="validation: expected 8 samples or more, got 4"):
        run(tiny(), validation=Others(4))
