"""Universal thresholds of predictors, and where they come from: validation samples, the tested samples themselves,
another evaluation, or the user."""

import json
import math
import numbers
import os
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..models.published import MOMENTUM
from ..reproducibility import fingerprint
from .false_alarms import UniversalThreshold

if typing.TYPE_CHECKING:
    from ..data.datasets import SampleSet

OWN = "test_threshold"


def threshold_name(name: str, own: bool) -> str:
    """Name of a column or figure that depends on the universal threshold. own: the threshold was chosen on the very
    samples that are tested; then `test_threshold` stands in place of "universal", or at the end."""
    if not own:
        return name
    return name.replace("universal", OWN) if "universal" in name else f"{name}_{OWN}"


class Thresholds(typing.NamedTuple):
    """Thresholds of another evaluation. values: {predictor: its threshold, in cosines}. origin: how they were chosen,
    as `origin` gives it, and of which model."""

    values: dict[str, UniversalThreshold]
    origin: dict


def origin(name: str, sample_set: "SampleSet", kinds: Sequence[str], seeds: Sequence[int]) -> dict:
    """Record of the samples whose maxima a threshold is a quartile of."""
    return {
        "set": name,
        "n": len(sample_set),
        "negatives": list(kinds),
        "seeds": list(seeds),
        "fingerprint": fingerprint(sorted(sample_set.ids)),
    }


def given(threshold: float) -> Thresholds:
    """The model's threshold as a number; baselines then have none. ValueError for NaN and infinity."""
    if isinstance(threshold, bool) or not isinstance(threshold, numbers.Real):
        raise TypeError(f"threshold: expected a number or Thresholds, got {type(threshold).__name__}")
    if not math.isfinite(threshold):
        raise ValueError(f"threshold: expected a finite number, got {threshold}")
    return Thresholds({"model": UniversalThreshold(float(threshold), {})}, {})


def read(path: str | os.PathLike) -> Thresholds:
    """The thresholds that another evaluation chose or used. path: its metrics.json or the folder of it.

    ValueError where the file holds none, or those of several sets of its own.
    """
    file = Path(path, "metrics.json") if Path(path).is_dir() else Path(path)
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        record = results["universal_threshold"]
        by_set = {name: by for name, by in record["by_set"].items() if by}
        values = {
            name: {
                predictor: UniversalThreshold(float(one["value"]), dict(one["third_quartiles"]))
                for predictor, one in by.items()
            }
            for name, by in by_set.items()
        }
        found = {name: dict(record.get("origins", {}).get(name, {"set": name})) for name in by_set}
        keys = ("weights", "weights_sha256", "layout", "reading", "model")
        model = {key: results[key] for key in keys if key in results}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{file}: expected the results of an evaluation, got {error!r}") from error
    if len(values) != 1:
        names = ", ".join(map(repr, values)) or "none"
        raise ValueError(f"{file}: expected universal thresholds of one set, got those of {names}")
    [(name, by)] = values.items()
    if not all(math.isfinite(one.value) for one in by.values()) or "model" not in by:
        raise ValueError(f"{file}: expected a finite universal threshold of the model, got {by}")
    return Thresholds(by, found[name] | model | {"file": str(file)})


def check_model(origin: Mapping, about: Mapping) -> str | None:
    """A note where thresholds are not known to be of the model that `about` (fields of metrics.json) describes, or are
    of other readings of its samples. ValueError where they are of other weights."""
    theirs, ours = origin.get("weights_sha256"), about.get("weights_sha256")
    if theirs and ours:
        if theirs != ours:
            raise ValueError(
                f"{origin['file']}: expected thresholds of {about['weights']} (SHA-256 {ours[:12]}...), "
                f"got those of {origin.get('weights')} ({theirs[:12]}...)"
            )
        one, other = ("momentum" if which.get("layout") == MOMENTUM else "online" for which in (origin, about))
        if one != other:
            raise ValueError(
                f"{origin['file']}: expected thresholds of the {other} nets of {about['weights']}, got {one}"
            )
    same = theirs and ours  # else of a function or a folder of maps, by its name
    if same or (origin.get("model") is not None and origin.get("model") == about.get("model")):
        one, other = (which.get("reading") or {} for which in (origin, about))
        changed = [f"{key} {one[key]}, here {other[key]}" for key in one if key in other and one[key] != other[key]]
        return f"{origin['file']}: its universal thresholds are of {'; '.join(changed)}" if changed else None
    one, other = (which.get("weights") or which.get("model") or "an unknown model" for which in (origin, about))
    return (
        f"{origin['file']}: its universal thresholds are of {one}; whether this is the model of {other} is not recorded"
    )


def described(record: Mapping, name: str) -> str:
    """Words on the origin of the thresholds of a tested set. record: `universal_threshold` of the results."""
    chosen_on = record["chosen_on"]
    if chosen_on == "given":
        return "given"
    from_set = record["origins"][name if chosen_on == "test" else chosen_on]
    samples = f"{from_set['n']:,} samples under {', '.join(from_set['negatives'])}" if "n" in from_set else ""
    if chosen_on == "test":
        return f"chosen on its own {samples}"
    samples = ", ".join(filter(None, (from_set.get("set", "data that are not recorded"), samples)))
    where = f" (of {from_set['file']})" if "file" in from_set else ""
    return f"chosen on {samples}{where}"
