"""The package's figures as `torchmetrics.Metric` (extra `torchmetrics`): state by sample, joined over processes.

    from ssl_fast.evaluation.torchmetrics import ConsensusIoU
    metric = ConsensusIoU()                                # as a child of a LightningModule, or alone
    metric.update(maps, boxes)                             # maps (B, h, w), ground truth (B, H, W)
    metric.compute()                                       # {"ciou": ..., "auc": ..., "mean_iou": ...}

State is one number of each sample, not a map, so that `compute` is exact over all batches and processes. Like every
metric of torchmetrics they count what a DistributedSampler repeats to fill its last batch.
"""

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from . import detection, false_alarms, metrics
from .protocols import Protocol, protocol_of, score
from .thresholds import given


class _PerSample(Metric):
    """Keeps lists of one value of each sample, float64, or int64 of labels. settings: whatever the values depend on."""

    full_state_update = False
    higher_is_better = True

    def __init__(self, names: Sequence[str], settings: tuple, **kwargs):
        super().__init__(**kwargs)
        # MetricCollection goes on with only one of the metrics whose states have the same names and, after the first
        # batch, the same values: names differ by the settings
        self._suffix = f"_{zlib.crc32(repr(settings).encode()):08x}"
        for name in names:
            self.add_state(name + self._suffix, default=[], dist_reduce_fx="cat")

    def _keep(self, **values: np.ndarray | Tensor) -> None:
        for name, value in values.items():
            value = torch.as_tensor(value).detach().to(self.device)
            getattr(self, name + self._suffix).append(value if name == "image_ids" else value.double())

    def _all(self, name: str) -> np.ndarray:
        """All values of a state, which is a list before processes are joined and a tensor after."""
        state = getattr(self, name + self._suffix)
        if isinstance(state, list) and not state:
            raise ValueError("compute: expected at least one sample, got none")
        return (torch.cat(state) if isinstance(state, list) else state).cpu().numpy()

    def _figures(self, **values: float) -> dict[str, Tensor]:
        return {name: torch.tensor(value, dtype=torch.float64, device=self.device) for name, value in values.items()}


class _OfRule(_PerSample):
    """By one rule of a protocol. rule: "adaptive", "top50", or "universal" with `threshold`, in the map's units."""

    def __init__(
        self,
        names: Sequence[str],
        protocol: str | Protocol = "default",
        rule: str = "adaptive",
        threshold: float | None = None,
        **kwargs,
    ):
        found = protocol_of(protocol)
        super().__init__(names, (found, rule, threshold), **kwargs)
        self.protocol, self.rule, self.threshold = found, rule, threshold
        rules = [one.name for one in self.protocol.rules if threshold is not None or not one.universal]
        if rule not in rules:
            raise ValueError(f"rule: expected one of {rules} (universal: with a threshold), got {rule!r}")
        if threshold is not None:
            given(threshold)
        if threshold is not None and not any(one.name == rule and one.universal for one in found.rules):
            raise ValueError(f"threshold: expected with a universal rule, got {threshold} with {rule!r}")

    def _columns(self, maps, ground_truth, negatives: Mapping = {}) -> dict[str, np.ndarray]:
        maps, truth, *others = map(_array, (maps, ground_truth, *negatives.values()))
        found = score(self.protocol, maps, truth, negatives=dict(zip(negatives, others)), threshold=self.threshold)
        return found["audio_visual"]


def _array(x) -> np.ndarray:
    return x.detach().cpu().float().numpy() if isinstance(x, Tensor) else np.asarray(x)


class ConsensusIoU(_OfRule):
    """cIoU and AUC: success rate at an IoU of .5, area under it over 21 thresholds, and mean IoU (`metrics.auc`).

    update(maps (B, h, w), ground_truth (B, H, W) weights in [0, 1] or bool). compute: dict of float64 scalars "ciou",
    "auc", "mean_iou". ValueError for a map with a NaN, for shapes that do not match, and without a sample.
    """

    def __init__(self, protocol: str | Protocol = "default", rule: str = "adaptive", threshold=None, **kwargs):
        super().__init__(["iou"], protocol, rule, threshold, **kwargs)

    def update(self, maps, ground_truth) -> None:
        self._keep(iou=self._columns(maps, ground_truth)[f"iou_{self.rule}"])

    def compute(self) -> dict[str, Tensor]:
        iou = self._all("iou")
        return self._figures(ciou=metrics.success_rate(iou), auc=metrics.auc(iou), mean_iou=float(iou.mean()))


class InteractiveIoU(_OfRule):
    """IIoU and IAUC: an image counts if each of its sounds is localised (`metrics.interactive`).

    update(maps (B, h, w), ground_truth (B, H, W), image_ids (B,) int64), the same number for the samples of an image,
    in whatever batch and process they are. compute: "iiou", "iauc".
    """

    def __init__(self, protocol: str | Protocol = "default", rule: str = "adaptive", threshold=None, **kwargs):
        super().__init__(["iou", "image_ids"], protocol, rule, threshold, **kwargs)

    def update(self, maps, ground_truth, image_ids) -> None:
        iou = self._columns(maps, ground_truth)[f"iou_{self.rule}"]
        ids = np.asarray(image_ids.cpu() if isinstance(image_ids, Tensor) else image_ids)
        if ids.shape != (len(iou),) or ids.dtype.kind not in "iu":
            raise ValueError(f"image_ids: expected ({len(iou)},) integers, got {ids.shape} {ids.dtype}")
        self._keep(iou=iou, image_ids=ids.astype(np.int64))

    def compute(self) -> dict[str, Tensor]:
        found = metrics.interactive(self._all("iou"), self._all("image_ids").tolist())
        return self._figures(iiou=found.iiou, iauc=found.iauc)


class FalseAlarms(_PerSample):
    """pIA and AUC_N: share of the image above the universal threshold under a sound of nothing in it
    (`false_alarms.pia`, `false_alarms.auc_n`).

    threshold: in the map's units. update(maps (B, h, w), size): maps under one kind of negative; size (H, W): of the
    images, to which maps are up-sampled. compute: "pia", lower is better, and "auc_n".
    """

    higher_is_better = False

    def __init__(self, threshold: float, **kwargs):
        given(threshold)
        super().__init__(["area"], (threshold,), **kwargs)
        self.threshold = threshold

    def update(self, maps, size: tuple[int, int]) -> None:
        self._keep(area=false_alarms.pia(metrics.upsample(_array(maps), size), self.threshold))

    def compute(self) -> dict[str, Tensor]:
        area = self._all("area")
        return self._figures(pia=float(area.mean()), auc_n=false_alarms.auc_n(area))


class AveragePrecision(_OfRule):
    """AP and maximal F1 of detection, over samples of which some show no source (`detection.average_precision`).

    update(maps (B, h, w), ground_truth (B, H, W), sounding (B,) bool): whether the source is visible. A sample's
    confidence is the mean of the highest quarter of its up-sampled map. compute: "ap", "max_f1".
    """

    def __init__(self, protocol: str | Protocol = "default", rule: str = "adaptive", threshold=None, **kwargs):
        super().__init__(["iou", "confidence", "sounding"], protocol, rule, threshold, **kwargs)

    def update(self, maps, ground_truth, sounding) -> None:
        full = metrics.upsample(_array(maps), tuple(_array(ground_truth).shape[1:]))
        sounding = torch.as_tensor(sounding)
        if sounding.shape != (len(full),) or sounding.dtype != torch.bool:
            raise ValueError(f"sounding: expected ({len(full)},) bool, got {tuple(sounding.shape)} {sounding.dtype}")
        iou = self._columns(maps, ground_truth)[f"iou_{self.rule}"]
        self._keep(iou=iou, confidence=detection.confidence(full), sounding=sounding)

    def compute(self) -> dict[str, Tensor]:
        samples = [self._all(name) for name in ("confidence", "iou", "sounding")]
        return self._figures(ap=detection.average_precision(*samples), max_f1=detection.max_f1(*samples))
