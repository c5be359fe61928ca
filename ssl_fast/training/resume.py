"""Resuming a run: its fingerprint, and the checkpoint that must have the same."""

import hashlib
import json
import os
import typing
from pathlib import Path

import torch

from .. import distributed
from ..data.sample_lists import short
from ..models import storage
from ..reproducibility import fingerprint, samples_record
from .recipes import Recipe

if typing.TYPE_CHECKING:
    from ..data.datasets import SampleSet
    from .views import Neighbors


def run_fingerprint(
    sample_set: "SampleSet",
    recipe: Recipe,
    seed: int,
    validation: "SampleSet | None",
    compile: bool,
    init: str | os.PathLike | None,
    neighbors: "tuple[Neighbors, Neighbors] | None",
    gather: bool,
    sync_batch_norm: bool,
) -> dict:
    """Fingerprint of a run, compared on resume: all that decides its weights. Of the file `init` a hash, of `neighbors`
    the hash of some."""
    weights = None if init is None else storage.digest(Path(init))[:16]
    drawn, generator = range(min(len(sample_set), 1000)), torch.Generator().manual_seed(0)
    near = None if neighbors is None else [one.draw(index, generator) for one in neighbors for index in drawn]
    processes = distributed.rank_and_world_size()[1]
    several = {"number": processes, "gather": gather, "sync_batch_norm": sync_batch_norm}
    return {
        "seed": seed,
        "recipe": recipe.to_dict(),
        "files": samples_record(sample_set),
        "samples": len(sample_set),
        "data": fingerprint(sample_set),
        "validation": None if validation is None else fingerprint(validation),
        "compile": compile,
        "init": weights,
        "processes": None if processes == 1 else several,
        "neighbors": None if near is None else hashlib.sha256(str(near).encode()).hexdigest()[:16],
    }


def resume_state(out: str | os.PathLike, expected: dict) -> dict | None:
    """State of the checkpoint in `out` (or of the one before it, with a warning); None where there is none yet.

    ValueError where it belongs to a run of another fingerprint than `expected`, see `run_fingerprint`.
    """
    path = Path(out) / storage.LAST
    if not path.exists() and not storage.previous(path).exists():
        return None
    state = storage.load(path, fall_back=True)
    for name, value in expected.items():
        if name == "recipe":  # compare as JSON does, where a tuple is a list
            changed = sorted(k for k in value if json.dumps(value[k]) != json.dumps(state[name].get(k)))
            if changed:
                got = ", ".join(f"{k}={state[name].get(k)!r}" for k in changed)
                asked = ", ".join(f"{k}={value[k]!r}" for k in changed)
                raise ValueError(f"{path}: belongs to a run with {got}, asked to go on with {asked}")
        elif name == "files":  # of runs before there was this record nothing is known
            before = state.get(name)
            if isinstance(before, dict) and before.get("missing") != value["missing"]:
                raise ValueError(
                    f"{path}: belongs to a run whose missing samples are {short(before.get('missing'))}, "
                    f"asked to go on where they are {short(value['missing'])}"
                )
        elif state.get(name) != value:
            raise ValueError(
                f"{path}: belongs to a run with {name}={state.get(name)!r}, asked to go on with {name}={value!r}"
            )
    return state
