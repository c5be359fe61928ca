"""Downloaded clips to the frames and sounds that training and evaluation read.

    from ssl_fast.data.prepare import prepare
    if __name__ == "__main__":  # as processes are started, which import the script
        print(prepare("VGGSound downloads", "VGGSound", set_name="vggsound", listed="vggsound.csv", workers=16))

A source is a video of any container in video.VIDEOS, or an image and a sound of the same name in the same folder, as in
the annotated release of SoundNet-Flickr (Senocak et al., CVPR 2018):

    Data/0/10000130166.jpg      what is made of it:     frames/10000130166.jpg
    Data/0/10000130166.wav                              audio/10000130166.wav
    ...                                                 manifest.jsonl
    Data/9/...                                          prepare.json

Videos give the frame in their middle (EZ-VSL's rule; see video.py), as jpg, and all of their sound, from their first
picture on. They do so where sound and pictures begin or end apart, too, as clips that ffmpeg has cut often do: without
them a test set would be another one. Sounds are mixed to mono, resampled, and written as wav of 16 bits, which programs
that never resample can read too. Frames keep their size; jpg files are copied byte for byte.

manifest.jsonl has a line for every source, sorted by path. Of a sample:

    id, sources ([{path, bytes, sha256}], paths from the folder of sources), seconds and sample_rate of the sound as it
    was found, width and height of the frame, frame and audio ({path, bytes, sha256}, paths from the folder written),
    and, of a video whose sound and pictures begin or end more than half a second apart, apart (when, in words)

and of a source that was left out: id (null where its name is none), sources ([{path}]), left_out (the reason in words)
and file (the one of its paths that it is about).
prepare.json has the options and, when all is done, what metrics.json too records of samples (the SHA-256 of the sorted
ids among it), how many were left out for which reason, how many have sound and pictures apart, and the versions of the
libraries on which bytes depend.
With the same versions and kind of CPU these are the same for any number of processes.

A run that was interrupted, or killed, goes on where it was: what the manifest names is trusted where all of its files
have the size it tells, everything else is made again. Files appear under their names only when complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import math
import multiprocessing
import os
import re
import signal
import typing
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path

import numpy as np
import torch

from ..files import claimed, naming, replace_file, replacing, sweep, sweep_folder
from ..progress import progress_bar
from ..reproducibility import fingerprint, samples_record, versions
from ..terminal import printable
from .datasets import IMAGES, SOUNDS, files_by_id
from .io.audio import RATES, decode_audio, to_mono
from .io.cache import decoder_versions
from .io.images import decode_image
from .io.media import MediaError
from .io.video import APART, VIDEOS, pyav
from .sample_lists import ID_FORMS, DataError, find_list, id_of_set, read_ids, read_json, short, some, wrong_id

MANIFEST, SUMMARY = "manifest.jsonl", "prepare.json"
FRAMES, AUDIO = "frames", "audio"
QUALITY = 95  # of jpg files: the highest that Pillow recommends
LONGEST_NAME = 230  # bytes; with suffixes and the number of a process file systems allow 255


@dataclass
class Prepared:
    """What is in the folder `out` after `prepare`: the ids of all samples, sorted; files of the sources that were left
    out, by reason; ids that are listed and not there; ids of samples whose sound and pictures begin or end apart."""

    out: str
    ids: list[str]
    left_out: dict[str, list[str]]
    missing: list[str] = field(default_factory=list)
    apart: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        found = f"{len(self.ids):,} samples, SHA-256 of their ids {samples_record(self)['sha256']}"
        lines = [f"{printable(self.out)}: {found}"]
        for reason, files in self.left_out.items():
            lines.append(f"  left out: {len(files):,} ({printable(reason)}): {printable(some(files))}")
        if self.missing:
            listed = len(self.ids) + len(self.missing)
            names = printable(some(self.missing))
            lines.append(f"  missing: {len(self.missing):,} of {listed:,} listed ids, all in {SUMMARY}: {names}")
        if self.apart:
            what = f"sound and pictures begin or end more than {APART:g} s apart"
            lines.append(f"  kept: {len(self.apart):,} ({what}, see {MANIFEST}): {printable(some(self.apart))}")
        return "\n".join(lines + [f"  note: {printable(note)}" for note in self.notes])


@dataclass(frozen=True)
class _Source:
    """A video, or an image and a sound, by paths from the folder of sources. id: None where the name is none.
    left_out: why it cannot become a sample, as far as that is known before it is read."""

    id: str | None
    files: tuple[str, ...]
    left_out: str = ""


@dataclass(frozen=True)
class _Settings:
    source: Path
    out: Path
    sample_rate: int
    min_seconds: float | None


def prepare(
    source: str | os.PathLike,
    out: str | os.PathLike,
    *,
    set_name: str | None = None,
    listed: str | os.PathLike | None = None,
    sample_rate: int = 16000,
    min_seconds: float | None = None,
    workers: int = 1,
    verify: bool = False,
    progress: bool = False,
) -> Prepared:
    """Write frames/ID.jpg and audio/ID.wav of all sources in a folder and the folders in it (see the module).

    set_name: "vggsound" or "flickr": ids are those of this set, by the names of files in any of its forms, whatever
    folder they are in. None: ids are paths without their suffix. listed: a list of ids (see find_list and read_ids, for
    vggsound also vggsound.csv): others are passed over. sample_rate: Hz of the sounds that are written. min_seconds:
    shorter sounds are left out. workers: processes. verify: compare the SHA-256 of what is there, sources too, not only
    sizes.

    Sources that cannot be used are left out; nothing else is. DataError where there are none, or two have the same id,
    ValueError where `out` was prepared with other options, holds other files, or is being written by another process,
    and for videos without PyAV, OSError where `out` cannot be written.
    """
    source, out = Path(source), Path(out)
    if set_name is not None and set_name not in ID_FORMS:
        raise ValueError(f"set: expected one of {', '.join(ID_FORMS)}, got {set_name!r}")
    if not RATES[0] <= sample_rate <= RATES[1]:
        raise ValueError(f"sample_rate: expected {RATES[0]} to {RATES[1]} Hz, got {sample_rate}")
    if min_seconds is not None and not 0 < min_seconds < math.inf:
        raise ValueError(f"min_seconds: expected a positive number, got {min_seconds}")
    if workers < 1:
        raise ValueError(f"workers: expected 1 or more, got {workers}")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: expected a folder to write to, got a file")
    path = None if listed is None else find_list(source, listed)
    ids = None if path is None else read_ids(path, set_name)
    options = {"set": set_name, "list": None, "sample_rate": sample_rate, "min_seconds": min_seconds}
    if path is not None and ids is not None:
        options["list"] = f"{path.name} ({len(ids)} ids, {fingerprint(ids)})"
    with claimed("OUT", folder=out):
        _claim_content(out, options)
        sources = _find(source, set_name, path, ids)
        if any(out.samefile(directory) for directory, _, _ in os.walk(source, followlinks=True)):
            raise ValueError(f"{out}: expected a folder to write to outside of {source}, which is read")
        if any(one.files[0].lower().endswith(VIDEOS) for one in sources):
            pyav()
        for file in (out / MANIFEST, out / SUMMARY):
            sweep(file)
        for folder in (out / FRAMES, out / AUDIO):
            sweep_folder(folder)
        replace_file(out / SUMMARY, json.dumps({"options": options}, indent=1) + "\n")
        entries, notes = _make(sources, _Settings(source, out, sample_rate, min_seconds), workers, verify, progress)
        made = sorted(entry["id"] for entry in entries if "left_out" not in entry)
        left_out = {}
        for entry in entries:
            if "left_out" in entry:
                reason = re.sub(r"(?<![\w.])\d[\d.,]*", "N", entry["left_out"])  # one for all lengths and times
                left_out.setdefault(reason, []).append(entry["file"])
        apart = sorted(entry["id"] for entry in entries if "apart" in entry)
        prepared = Prepared(str(out), made, left_out, sorted({*(ids or ())} - {*made}), apart, notes)
        summary = {
            "options": options,
            "samples": samples_record(prepared),
            "left_out": {reason: len(files) for reason, files in left_out.items()},
            "apart": len(apart),
            "versions": versions() | dict(decoder_versions()),
        }
        replace_file(out / SUMMARY, json.dumps(summary, indent=1) + "\n")
    return prepared


def _claim_content(out: Path, options: dict) -> None:
    """ValueError where the folder was prepared with other options, or holds files of other programs."""
    if not (out / SUMMARY).exists():
        if there := [name for name in (FRAMES, AUDIO, MANIFEST) if (out / name).exists()]:
            raise ValueError(f"{out}: holds {', '.join(there)}, which was not prepared here; choose another folder")
        return
    before = read_json(out / SUMMARY, "the options of an earlier run")
    before = before.get("options") if isinstance(before, dict) else None
    if not isinstance(before, dict):
        raise DataError(f"{out / SUMMARY}: expected the options of an earlier run, got none")
    for name, value in options.items():
        if before.get(name) != value:
            option = name.replace("_", "-")
            had, asked = (f"no --{option}" if one is None else f"--{option} {one}" for one in (before.get(name), value))
            raise ValueError(f"{out}: was prepared with {had}, not with {asked}; choose another folder")


def _find(root: Path, set_name: str | None, path: Path | None, ids: Sequence[str] | None) -> list[_Source]:
    """The sources in a folder, sorted by path; of those in the list `path` alone, if there is one. DataError where
    there are none, or two have the same id."""
    found: list[_Source] = []
    for name, paths in files_by_id(root, (*VIDEOS, *IMAGES, *SOUNDS)).items():
        files = sorted(str(path.relative_to(root)) for path in paths)
        kinds = (VIDEOS, IMAGES, SOUNDS)
        videos, images, sounds = ([file for file in files if file.lower().endswith(kind)] for kind in kinds)
        one, why = _id(name, set_name)
        if videos:  # beside which an image is often its preview, and a sound its track
            found += [_Source(one, (file,), why) for file in videos]
        elif images and sounds:
            found += [_Source(one, pair, why) for pair in itertools.product(images, sounds)]
        else:
            why = why or f"there is no {'image' if sounds else 'sound'} of its name beside it"
            found += [_Source(one, (file,), why) for file in files]
    if ids is not None:
        wanted = set(ids)
        found = [one for one in found if one.id in wanted]
    if not found:
        expected = "videos, or images and sounds of the same names" + (f", of ids in {path}" if path else "")
        raise DataError(f"{root}: expected {expected}, got none")
    found.sort(key=lambda one: one.files)
    first: dict[str | None, _Source] = {}
    twice = []
    for one in found:
        if not one.left_out and first.setdefault(one.id, one) is not one:
            other = next(file for file in one.files if file not in first[one.id].files)
            twice.append(f"{first[one.id].files[0]!r} and {other!r} are both {one.id!r}")
    if twice:
        more = f"; and {len(twice) - 5} more" if len(twice) > 5 else ""
        raise DataError(f"{root}: expected one source of each id, but {'; '.join(twice[:5])}{more}")
    return found


def _id(name: str, set_name: str | None) -> tuple[str | None, str]:
    """The id of files of a name (a path without suffix), and what is wrong with it."""
    last = name.rpartition("/")[2]
    if len(os.fsencode(last)) > LONGEST_NAME:
        return None, "its name is too long"
    if set_name is None:
        problem = wrong_id(name)
        return (None, f"its name is no id: {problem}") if problem else (name, "")
    one = id_of_set(last, set_name)
    return one, "" if one else f"its name is no id of {set_name}"


# ---------------------------------------------------------------------------------------------------------------------
# Manifest


def _read_manifest(path: Path) -> dict[str, dict]:
    """{id: line} of the samples in a manifest. A last line that a killed run has not completed does not count.
    DataError names any other line that is none."""
    known = {}
    *lines, _ = path.read_bytes().split(b"\n") if path.exists() else [b""]
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            if not isinstance(entry, dict):
                raise TypeError
            if "left_out" not in entry:
                one, made = entry["id"], (entry["frame"]["path"], entry["audio"]["path"])
                if not isinstance(one, str) or wrong_id(one) or made != _outputs(one) or not entry["sources"]:
                    raise ValueError
                files = [*entry["sources"], entry["frame"], entry["audio"]]
                kinds = {"path": str, "bytes": int, "sha256": str}
                if not all(isinstance(file[key], kind) for file in files for key, kind in kinds.items()):
                    raise TypeError
                known[one] = entry
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"{path}: line {number}: expected a line of a manifest, got {short(line)}") from error
    return known


def _left_out(one: str | None, files: Sequence[str], reason: str, file: str) -> dict:
    return {"id": one, "sources": [{"path": path} for path in files], "left_out": reason, "file": file}


def _line(entry: dict) -> bytes:
    return json.dumps(entry).encode() + b"\n"


def _write_manifest(path: Path, entries: dict[tuple[str, ...], dict]) -> None:
    with replacing(path) as file:
        file.writelines(_line(entry) for _, entry in sorted(entries.items()))


def _unchanged(entry: dict, settings: _Settings, *, verify: bool, sources: bool = True) -> bool:
    """Whether the files of a sample are there with the size, and with `verify` the SHA-256, that the manifest tells."""
    files = [(settings.out, entry["frame"]), (settings.out, entry["audio"])]
    files += [(settings.source, one) for one in entry["sources"]] if sources else []
    try:
        return all(
            (root / file["path"]).stat().st_size == file["bytes"]
            and (not verify or _sha256(root / file["path"]) == file["sha256"])
            for root, file in files
        )
    except OSError:
        return False


def _make(
    sources: list[_Source], settings: _Settings, workers: int, verify: bool, progress: bool
) -> tuple[list[dict], list[str]]:
    """Make all samples that are not there yet. The lines of the manifest, which is written, and notes."""
    manifest, notes = settings.out / MANIFEST, []
    known = _read_manifest(manifest)
    usable = {one.id for one in sources if not one.left_out}
    # sources may be deleted when their samples are made, for room
    gone = {
        one: entry
        for one, entry in known.items()
        if one not in usable and _unchanged(entry, settings, verify=verify, sources=False)
    }
    entries = {_paths(entry): entry for entry in gone.values()}
    for one in known.keys() - gone.keys() - {one.id for one in sources}:
        files = _paths(known[one])
        reason = "its source is gone, and what was made of it is gone or has changed"
        entries[files] = _left_out(one, files, reason, files[0])
    tasks: list[_Task] = []
    for one in sources:
        entry = known.get(one.id or "")
        if entry is None or _paths(entry) != one.files or not _unchanged(entry, settings, verify=False):
            tasks += [] if one.id in gone else [_Task(one, settings)]
            continue
        entries[one.files] = entry
        tasks += [_Task(one, settings, entry)] if verify else []
    _write_manifest(manifest, entries)
    again, total = [], len(sources)
    bar = progress_bar(total=total, initial=total - len(tasks), unit="source", desc="prepare", disable=not progress)
    with bar, contextlib.closing(_in_processes(tasks, workers)) as results:
        for task, entry in results:
            if entry is not None:
                entries[task.source.files] = entry
                with naming(manifest), open(manifest, "ab") as file:
                    file.write(_line(entry))
                again += [entry["id"]] if "left_out" not in entry and entry["id"] in known else []
            bar.update()
    _write_manifest(manifest, entries)
    ids = {entry["id"] for entry in entries.values() if "left_out" not in entry}
    for one in (known.keys() & usable) - ids:  # its source has changed, and is left out now
        for path in _outputs(one):
            (settings.out / path).unlink(missing_ok=True)
    if gone:
        notes.append(f"{len(gone):,} samples stay whose sources are not there any more: {some(sorted(gone))}")
    if again:
        notes.append(f"{len(again):,} samples made again, as their files or sources had changed: {some(sorted(again))}")
    if extra := _files_beside(settings.out, ids):
        notes.append(f"{len(extra):,} files that {MANIFEST} does not name: {some(extra)}")
    return [entry for _, entry in sorted(entries.items())], notes


def _paths(entry: dict) -> tuple[str, ...]:
    return tuple(file["path"] for file in entry["sources"])


def _outputs(one: str) -> tuple[str, str]:
    """Paths of the frame and the sound of an id."""
    return f"{FRAMES}/{one}.jpg", f"{AUDIO}/{one}.wav"


def _files_beside(out: Path, ids: set[str]) -> list[str]:
    """Paths of all files where samples are, but those of these samples."""
    there = {
        str(Path(directory, name).relative_to(out))
        for folder in (FRAMES, AUDIO)
        for directory, _, names in os.walk(out / folder)
        for name in names
        if not name.startswith(".")
    }
    return sorted(there.difference(*map(_outputs, ids)))


# ---------------------------------------------------------------------------------------------------------------------
# Samples, in processes of their own


@dataclass(frozen=True)
class _Task:
    """A source to make a sample of; entry: the line of the manifest of one that is there, to be verified first."""

    source: _Source
    settings: _Settings
    entry: dict | None = None

    def left_out(self, reason: str, file: str) -> dict:
        return _left_out(self.source.id, self.source.files, reason, file)

    def run(self) -> dict | None:
        """The line of the manifest; None where `entry` is right. OSError where a file cannot be written."""
        one, settings = self.source, self.settings
        if self.entry is not None and _unchanged(self.entry, settings, verify=True):
            return None
        if one.id is None or one.left_out:
            return self.left_out(one.left_out, one.files[0])
        paths = [settings.source / file for file in one.files]
        try:
            frame = decode_image(paths[0])
            picture = _jpg(paths[0], frame)
            apart: list[str] = []
            sound, rate = decode_audio(paths[-1], apart)
            seconds = len(sound) / rate
            if settings.min_seconds is not None and seconds < settings.min_seconds:
                limit = f"expected {settings.min_seconds:g} s of sound or more"
                raise MediaError(f"{paths[-1]}: {limit}, got {seconds:.2f} s")
            mono = to_mono(paths[-1], sound, rate, settings.sample_rate)
            sources = [_described(settings.source, file) for file in one.files]
        except MediaError as error:
            file, path = next(pair for pair in zip(one.files, paths) if str(error).startswith(f"{pair[1]}: "))
            return self.left_out(str(error).removeprefix(f"{path}: "), file)
        height, width = frame.shape[:2]
        jpg, wav = _outputs(one.id)
        return {
            "id": one.id,
            "sources": sources,
            "seconds": round(seconds, 3),
            "sample_rate": rate,
            "width": width,
            "height": height,
            "frame": _write(settings.out, jpg, picture),
            "audio": _write(settings.out, wav, _wav(mono, settings.sample_rate)),
            **({"apart": "; ".join(apart)} if apart else {}),
        }


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _described(root: Path, file: str) -> dict:
    path = root / file
    try:
        return {"path": file, "bytes": path.stat().st_size, "sha256": _sha256(path)}
    except OSError as error:
        raise MediaError(f"{path}: {error.strerror}") from error


def _jpg(path: Path, frame: np.ndarray) -> bytes:
    """A frame (H, W, 3) uint8 as jpg: the file that it comes from, where that is one. MediaError where none can be
    had, as of a frame of more pixels a side than libjpeg writes."""
    from PIL import Image

    file = io.BytesIO()
    try:
        if path.suffix.lower() in (".jpg", ".jpeg"):
            return path.read_bytes()
        Image.fromarray(frame).save(file, "JPEG", quality=QUALITY)
    except OSError as error:
        raise MediaError(f"{path}: no jpg of {frame.shape[1]} x {frame.shape[0]} pixels ({error})") from error
    return file.getvalue()


def _wav(mono: np.ndarray, sample_rate: int) -> bytes:
    """Samples in [-1, 1] as wav of 16 bits; those of such a wav come back as they were."""
    import soundfile

    file = io.BytesIO()
    values = np.rint(mono * 32768).clip(-32768, 32767).astype(np.int16)
    soundfile.write(file, values, sample_rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def _write(root: Path, file: str, data: bytes) -> dict:
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as opened:
        opened.write(data)
    return {"path": file, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _work(connection: Connection) -> None:
    """Run tasks that come through a connection, until its other end is closed, or gone with its process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the first ends this one
    torch.set_num_threads(1)  # sums of any other number of them may differ in the last bit
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            task: _Task = connection.recv()
            try:
                answer = task.run()
            except OSError as error:
                answer = error
            except (MemoryError, RuntimeError) as error:
                if isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" not in str(error):
                    raise
                answer = task.left_out("it takes more memory than there is", task.source.files[-1])
            connection.send(answer)


def _in_processes(tasks: Sequence[_Task], workers: int) -> Generator[tuple[_Task, dict | None], None, None]:
    """(task, what its run gives), in the order in which so many processes come to an end of them.

    Where a process is killed, as by a decoder that crashes or by a system without memory, its source is left out, and
    another process takes its place.
    """
    context, waiting = multiprocessing.get_context("forkserver"), iter(tasks)
    context.set_forkserver_preload([__name__, "torchaudio.functional"])
    busy: dict[Connection, tuple[typing.Any, _Task]] = {}  # {of a process: (the process, what it is at)}

    def start():
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        give(ours, process)

    def give(connection: Connection, process):
        task = next(waiting, None)
        if task is None:
            connection.close()
            process.join()
            return
        busy[connection] = process, task
        with contextlib.suppress(ConnectionError):  # it is dead, as recv will tell
            connection.send(task)

    try:
        for _ in range(min(workers, len(tasks))):
            start()
        while busy:
            for connection in typing.cast(list[Connection], wait(list(busy))):
                process, task = busy.pop(connection)
                try:
                    answer = connection.recv()
                except (EOFError, ConnectionError):
                    connection.close()
                    process.join()
                    if process.exitcode >= 0:
                        raise RuntimeError(f"{task.source.files[0]}: its process failed, as stderr tells") from None
                    ended = signal.Signals(-process.exitcode).name
                    answer = task.left_out(f"the process that read it was ended by {ended}", task.source.files[0])
                    start()
                else:
                    give(connection, process)
                if isinstance(answer, OSError):
                    raise answer
                yield task, answer
    finally:
        for connection in busy:
            connection.close()
        for process, _ in busy.values():
            process.join()
