"""The figures as torchmetrics: against those of the package on all samples, in batches and in two processes."""

import numpy as np
import pytest
import torch

pytest.importorskip("torchmetrics")

import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torchmetrics import MetricCollection

from ssl_fast.evaluation import detection, false_alarms, protocols
from ssl_fast.evaluation.metrics import upsample
from ssl_fast.evaluation.torchmetrics import AveragePrecision, ConsensusIoU, FalseAlarms, InteractiveIoU


def samples(n=23, size=28):
    generator = np.random.default_rng(0)
    truth = np.zeros((n, size, size), np.float32)
    for one in truth:
        y, x = generator.integers(0, size // 2, 2)
        one[y : y + size // 2, x : x + size // 2] = 1
    maps = generator.random((n, 7, 7), np.float32) * 0.3 + 0.7 * truth[:, 2::4, 2::4]
    return maps, truth, np.arange(n) // 2, generator.random(n) < 0.7


def update_all(made, maps, truth, images, sounding):
    made["ciou"].update(torch.from_numpy(maps), torch.from_numpy(truth))
    made["iiou"].update(torch.from_numpy(maps), truth, torch.from_numpy(images))
    made["pia"].update(maps, truth.shape[1:])
    made["ap"].update(maps, torch.from_numpy(truth) > 0, torch.from_numpy(sounding))


def metrics_():
    return {"ciou": ConsensusIoU(), "iiou": InteractiveIoU(), "pia": FalseAlarms(0.8), "ap": AveragePrecision()}


def computed(made):
    return {name: value.item() for one in made.values() for name, value in one.compute().items()}


def expected():
    maps, truth, images, sounding = samples()
    total = protocols.Accumulator("default")
    total.update(maps, truth, image_ids=images.tolist())
    row = total.compute()["figures"]["audio_visual"]["localization"]
    full = upsample(maps, truth.shape[1:])
    areas = [(one > 0.8).mean() for one in full]
    confidence = [np.sort(one.ravel())[-len(one.ravel()) // 4 :].mean() for one in full.astype(np.float64)]
    iou = total.columns["audio_visual"]["iou_adaptive"]
    return {
        "ciou": row["ciou_adaptive"],
        "auc": row["auc_adaptive"],
        "mean_iou": row["mean_iou_adaptive"],
        "iiou": row["iiou_adaptive"],
        "iauc": row["iauc_adaptive"],
        "pia": np.mean(areas),
        "auc_n": false_alarms.auc_n(np.array(areas)),
        "ap": detection.average_precision(np.array(confidence), iou, sounding),
        "max_f1": detection.max_f1(np.array(confidence), iou, sounding),
    }


def test_figures_of_batches_are_those_of_all_samples():
    made, all_samples = metrics_(), samples()
    for start in range(0, 23, 5):
        update_all(made, *(part[start : start + 5] for part in all_samples))
    assert computed(made) == pytest.approx(expected(), abs=1e-6)
    one = ConsensusIoU()
    first = one(*(torch.from_numpy(part[:5]) for part in all_samples[:2]))  # forward: the figure of the batch
    alone = ConsensusIoU()
    alone.update(*(part[:5] for part in all_samples[:2]))
    assert first == alone.compute()
    one.reset()
    with (
        pytest.warns(UserWarning, match="before the"),
        pytest.raises(ValueError, match="compute: expected at least one"),
    ):
        one.compute()


def _process(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    made, all_samples = metrics_(), samples()
    update_all(made, *(part[rank::2] for part in all_samples))  # the samples of an image in both processes
    torch.save(computed(made), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_have_the_figures_of_all_samples(tmp_path):
    multiprocessing.spawn(_process, (str(tmp_path),), nprocs=2)
    for rank in (0, 1):
        assert torch.load(tmp_path / f"{rank}.pt", weights_only=True) == pytest.approx(expected(), abs=1e-6)


def test_bad_arguments_are_named():
    maps, truth, images, _ = samples(4)
    with pytest.raises(ValueError, match=r"rule: expected one of \['adaptive', 'top50'\] .*, got 'universal'"):
        ConsensusIoU(rule="universal")
    assert 0 <= ConsensusIoU(rule="universal", threshold=0.8)(maps, truth)["ciou"] <= 1
    with pytest.raises(ValueError, match="image_ids: expected .4,. integers, got"):
        InteractiveIoU().update(maps, truth, images[:3])
    with pytest.raises(ValueError, match=r"image_ids: expected .4,. integers, got \(4,\) <U1"):
        InteractiveIoU().update(maps, truth, list("aabb"))
    for make in (FalseAlarms, lambda value: ConsensusIoU(rule="universal", threshold=value)):
        with pytest.raises(ValueError, match="threshold: expected a finite number, got nan"):
            make(float("nan"))
    with pytest.raises(ValueError, match="sounding: expected .4,. bool, got"):
        AveragePrecision().update(maps, truth, [True])
    maps[2, 0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        ConsensusIoU().update(maps, truth)


def test_metrics_of_other_settings_are_kept_apart_in_a_collection():
    maps, truth = torch.stack([torch.full((2, 7, 7), value) for value in (0.1, 0.5)]), torch.zeros(2, 14, 14)
    alarms = MetricCollection({"low": FalseAlarms(0.2), "high": FalseAlarms(0.9)})
    thresholds = {"low": 0.2, "high": 0.9}
    iou = MetricCollection({name: ConsensusIoU(rule="universal", threshold=x) for name, x in thresholds.items()})
    for one in maps:  # of the first batch all values are the same
        alarms.update(one, (14, 14))
        iou.update(one, truth)
    assert alarms.compute()["low_pia"] == 0.5 and alarms.compute()["high_pia"] == 0
    assert iou.compute()["low_mean_iou"] == 0.5 and iou.compute()["high_mean_iou"] == 1  # nothing where nothing is


def test_arguments_without_effect_and_unclear_labels_are_refused():
    with pytest.raises(ValueError, match="threshold: expected with a universal rule, got 0.3 with 'top50'"):
        ConsensusIoU(rule="top50", threshold=0.3)
    maps, truth, _, sounding = samples()
    with pytest.raises(ValueError, match=r"sounding: expected \(23,\) bool, got \(23,\) torch.float64"):
        AveragePrecision().update(maps, truth, sounding.astype(float))


def test_an_empty_batch_changes_nothing():
    made, every = metrics_(), samples()
    update_all(made, *(part[:0] for part in every))
    update_all(made, *every)
    assert computed(made) == pytest.approx(expected(), abs=1e-6)
