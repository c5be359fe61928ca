"""Resuming a run: its fingerprint, and the checkpoint that must have the same."""

import hashlib
import json
import os
import typing
from dataclasses import MISSING, fields
from pathlib import Path

import torch

from .. import distributed
from ..data.sample_lists import some
from ..models import LocalizerConfig, storage
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
    starts: tuple[str | os.PathLike | None, str | os.PathLike | None],
    neighbors: "tuple[Neighbors, Neighbors] | None",
    gather: bool,
    sync_batch_norm: bool,
) -> dict:
    """Fingerprint of a run, compared on resume: all that decides its weights. `starts`: files of weights
    that the image net and the audio net start from, of which hashes are kept, as of some `neighbors`."""
    visual, audio = (None if path is None else storage.digest(Path(path))[:16] for path in starts)
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
        "init": visual if audio is None else f"{visual}, audio {audio}",
        "processes": None if processes == 1 else several,
        "neighbors": None if near is None else hashlib.sha256(str(near).encode()).hexdigest()[:16],
    }


def _defaults(kind: type) -> dict:
    plain = {f.name: f.default for f in fields(kind) if f.default is not MISSING}
    return plain | {f.name: f.default_factory() for f in fields(kind) if f.default_factory is not MISSING}


def resume_state(out: str | os.PathLike, expected: dict) -> dict | None:
    """State of the checkpoint in `out` (or of the one before it, with a warning); None where there is none yet.

    ValueError where it belongs to a run of another fingerprint than `expected`, see `run_fingerprint`.
    """
    path = Path(out) / storage.LAST
    if not path.exists() and not storage.previous(path).exists():
        return None
    state = storage.load(path, fall_back=True)
    needed = ("localizer", "optimizer", "momentum", "step", "planned_steps", "seconds", "history", *expected)
    if missing := [name for name in needed if name not in state]:
        raise ValueError(f"{path}: expected the state of a run, got none of its {', '.join(missing)}")
    for name, value in expected.items():
        if name == "recipe":  # compare as JSON does, where a tuple is a list
            # of fields that are younger than the run, the defaults
            before = _defaults(Recipe) | state[name]
            if isinstance(before.get("model"), dict):
                before["model"] = _defaults(LocalizerConfig) | before["model"]
            changed = sorted(k for k in value if json.dumps(value[k]) != json.dumps(before.get(k)))
            if changed:
                got = ", ".join(f"{k}={before.get(k)!r}" for k in changed)
                asked = ", ".join(f"{k}={value[k]!r}" for k in changed)
                raise ValueError(f"{path}: belongs to a run with {got}, asked to go on with {asked}")
        elif name == "files":  # of runs before there was this record nothing is known
            before = state.get(name)
            if isinstance(before, dict) and before.get("missing") != value["missing"]:
                was, now = ({*map(str, record.get("missing") or ())} for record in (before, value))
                raise ValueError(
                    f"{path}: belongs to a run with {len(was)} missing samples, asked to go on where {len(now)} are; "
                    f"they differ in {some(sorted(was ^ now))}"
                )
        elif state[name] != value:
            raise ValueError(
                f"{path}: belongs to a run with {name}={state[name]!r:.200}, asked to go on with {name}={value!r}"
            )
    if state["step"] > state["planned_steps"]:
        raise ValueError(f"{path}: expected at most {state['planned_steps']} steps, got one after {state['step']}")
    return state
