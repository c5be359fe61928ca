"""Downloads to frames and sounds: what is written, what is left out, and going on where a run was interrupted."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

pytest.importorskip("av", reason="mp4 files are read and written by PyAV")

from films import film
from ssl_fast import files
from ssl_fast.cli import main as cli
from ssl_fast.data import prepare as module
from ssl_fast.data.datasets import FolderSet
from ssl_fast.data.io.audio import decode_audio
from ssl_fast.data.io.media import MediaError
from ssl_fast.data.prepare import prepare
from ssl_fast.models.storage import read_file
from test_cli import fails
from test_video import greys, tone

IDS = [f"abcdefghij{i}_00003{i}" for i in range(4)]
NAMES = ["b/abcdefghij0_000030", "a/abcdefghij1_31000_41000", "abcdefghij2_000032", "a/c/abcdefghij3_000033"]


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Four clips of VGGSound in folders, of 2, 3, 4 and 5 s; one of them named as SSL-Align does."""
    root = tmp_path_factory.mktemp("films")
    for i, name in enumerate(NAMES):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        seconds = 2 + i
        film(root / f"{name}.mp4", greys(seconds * 5), fps=5, sound=tone(seconds, 44100).repeat(2, 1), rate=44100)
    return root


@pytest.fixture
def source(films, tmp_path):
    return Path(shutil.copytree(films, tmp_path / "source"))


@pytest.fixture(scope="module")
def made(films, tmp_path_factory):
    """What one process makes of `films`."""
    out = tmp_path_factory.mktemp("made") / "out"
    assert prepare(films, out, set_name="vggsound").ids == IDS
    return out


def contents(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def lines(out):
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_frames_and_sounds(films, made):
    """The grey shown in the middle, a tone whose swelling tells the time, and what the manifest tells of them."""
    entries = {entry["id"]: entry for entry in lines(made)}
    for i, (one, name) in enumerate(zip(IDS, NAMES)):
        frame, sound, seconds = made / f"frames/{one}.jpg", made / f"audio/{one}.wav", 2 + i
        image = Image.open(frame)
        assert (image.format, image.size) == ("JPEG", (64, 48))
        np.testing.assert_allclose(np.asarray(image), greys(seconds * 5)[seconds * 5 // 2], atol=4)
        info = soundfile.info(sound)
        assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
        expected = tone(seconds, 16000)[:, 0]
        np.testing.assert_allclose(soundfile.read(sound)[0][500:-500], expected[500:-500], atol=0.01)
        path = f"{name}.mp4"
        assert entries[one] == {
            "id": one,
            "sources": [{"path": path, "bytes": (films / path).stat().st_size, "sha256": sha256(films / path)}],
            "seconds": seconds,
            "sample_rate": 44100,
            "width": 64,
            "height": 48,
            "frame": {"path": f"frames/{one}.jpg", "bytes": frame.stat().st_size, "sha256": sha256(frame)},
            "audio": {"path": f"audio/{one}.wav", "bytes": sound.stat().st_size, "sha256": sha256(sound)},
        }
    paths = [entry["sources"][0]["path"] for entry in lines(made)]
    assert len(paths) == 4 and paths == sorted(paths)
    digest = hashlib.sha256("\n".join(IDS).encode()).hexdigest()
    summary = json.loads((made / "prepare.json").read_text())
    assert summary["samples"] == {"used": 4, "listed": 4, "missing": [], "sha256": digest}
    assert set(contents(made)) == {
        *("manifest.jsonl", "prepare.json"),
        *(f"frames/{one}.jpg" for one in IDS),
        *(f"audio/{one}.wav" for one in IDS),
    }


def test_bytes_do_not_depend_on_the_number_of_processes(films, made, tmp_path):
    prepare(films, tmp_path / "out", set_name="vggsound", workers=3)
    assert contents(tmp_path / "out") == contents(made)


def test_the_annotated_release_of_flickr(tmp_path, capsys):
    """Images and sounds in Data/0 to 9, as Senocak et al. published them, to a set that evaluation reads."""
    numbers, rng = ["10000130166", "10000130167", "3908875350"], np.random.default_rng(0)
    release, out = tmp_path / "release", tmp_path / "out"
    (release / "Annotations").mkdir(parents=True)
    for k, one in enumerate(numbers):
        (release / f"Data/{k}").mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (256, 256, 3), np.uint8)).save(release / f"Data/{k}/{one}.jpg")
        box = "".join(f"<s>{value}</s>" for value in ("label", 10, 20, 130, 255))
        (release / f"Annotations/{one}.xml").write_text(f"<r><one><bbox>{box}</bbox></one></r>")
    exact = rng.integers(-32768, 32768, 16000).astype(np.int16)
    soundfile.write(release / f"Data/0/{numbers[0]}.wav", exact, 16000)
    soundfile.write(release / f"Data/1/{numbers[1]}.wav", tone(2, 22050).repeat(2, 1), 22050)
    (release / "Data/2" / f"{numbers[2]}.jpg").rename(release / "Data/1" / f"{numbers[2]}.jpg")
    soundfile.write(release / f"Data/2/{numbers[2]}.wav", exact, 16000)

    argv = ["data", "prepare", str(release), str(out), "--set", "flickr", "--workers", "1", "--quiet"]
    assert cli.main(argv) == 1 and cli.main([*argv, "--on-missing", "list"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[:3] == told[3:] and told[0].startswith(f"{out}: 2 samples, SHA-256 of their ids ")
    assert told[1:3] == [
        f"  left out: 1 (there is no sound of its name beside it): 'Data/1/{numbers[2]}.jpg'",
        f"  left out: 1 (there is no image of its name beside it): 'Data/2/{numbers[2]}.wav'",
    ]
    for k in range(2):
        copy = (out / f"frames/{numbers[k]}.jpg").read_bytes()
        assert copy == (release / f"Data/{k}/{numbers[k]}.jpg").read_bytes()
    assert np.array_equal(soundfile.read(out / f"audio/{numbers[0]}.wav", dtype="int16")[0], exact)
    found = soundfile.read(out / f"audio/{numbers[1]}.wav")[0]
    np.testing.assert_allclose(found[50:-50], tone(2, 16000)[50:-50, 0], atol=1e-3)
    which = ["--set", "flickr", "--annotations", str(release / "Annotations"), "--quiet"]
    assert cli.main(["data", "check", str(out), *which, "--on-missing", "list"]) == 0
    assert "2 samples complete" in capsys.readouterr().out


def test_prepared_clips_are_trained_on(tmp_path, capsys):
    rng = np.random.default_rng(0)
    (tmp_path / "clips/dogs").mkdir(parents=True)
    for k in range(4):
        pictures = list(rng.integers(0, 256, (5, 48, 64, 3), np.uint8))
        film(tmp_path / f"clips/dogs/clip {k}.mp4", pictures, fps=5, sound=tone(1, 16000, 300 + 99 * k))
    out = str(tmp_path / "out")
    assert cli.main(["data", "prepare", str(tmp_path / "clips"), out, "--workers", "1", "--quiet"]) == 0
    assert cli.main(["data", "check", out, "--quiet"]) == 0
    told = capsys.readouterr().out
    assert "4 samples complete, 0 files missing, 0 broken" in told and "suspect" not in told
    argv = ["train", "--data", out, "--out", str(tmp_path / "run"), "--method", "ez_vsl", "--epochs", "1"]
    assert cli.main([*argv, "--batch-size", "4", "--image-size", "32", "--threads", "1", "--quiet"]) == 0
    trained = read_file(tmp_path / "run/checkpoint.pt")
    assert trained["step"] == 1
    assert trained["files"] == json.loads((tmp_path / "out/prepare.json").read_text())["samples"]


# ---------------------------------------------------------------------------------------------------------------------
# What is left out


def test_left_out(source, tmp_path):
    sound = tone(2, 16000)
    film(source / "abcdefghij4_000000.mp4", greys(10), fps=5)
    film(source / "abcdefghij5_000000.mp4", None, sound=sound)
    (source / "abcdefghij6_000000.mkv").write_bytes(b"no video")
    (source / "abcdefghij7_000000.mp4").touch()
    for k, part in ((8, 0.5), (9, 0.6)):
        data = (source / f"{NAMES[3]}.mp4").read_bytes()
        (source / f"abcdefghij{k}_000000.mp4").write_bytes(data[: int(part * len(data))])
    film(source / "my clip.mp4", greys(10), fps=5, sound=sound)
    os.symlink("nowhere", source / "abcdefghi10_000000.mp4")
    (source / f"{'x' * 240}.mp4").touch()
    for name in ("abcdefghi11_000000", IDS[2]):  # the second is the preview of a video
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(source / f"{name}.jpg")
    Image.new("L", (65501, 1)).save(source / "abcdefghi13_000000.png")
    soundfile.write(source / "abcdefghi13_000000.wav", tone(3, 16000), 16000)
    (source / "notes.txt").touch()
    (source / ".abcdefghi12_000000.mp4").touch()
    found = prepare(source, tmp_path / "out", set_name="vggsound", min_seconds=2.5)
    assert found.ids == IDS[1:]
    reasons = {file: reason for reason, files in found.left_out.items() for file in files}
    cut = "truncated, its head tells of N bytes, the file has N"
    assert reasons == {
        "b/abcdefghij0_000030.mp4": "expected N s of sound or more, got N s",
        "abcdefghij4_000000.mp4": "expected pictures and sound, got no audio stream",
        "abcdefghij5_000000.mp4": "expected pictures and sound, got no video stream",
        "abcdefghij6_000000.mkv": "cannot be read as video (Invalid data found when processing input)",
        "abcdefghij7_000000.mp4": "empty file (N bytes)",
        "abcdefghij8_000000.mp4": cut,
        "abcdefghij9_000000.mp4": cut,
        "my clip.mp4": "its name is no id of vggsound",
        "abcdefghi10_000000.mp4": "no such file",
        f"{'x' * 240}.mp4": "its name is too long",
        "abcdefghi11_000000.jpg": "there is no sound of its name beside it",
        "abcdefghi13_000000.png": "no jpg of N x N pixels (broken data stream when writing image file)",
    }
    entries = {entry["file"]: entry for entry in lines(tmp_path / "out") if "left_out" in entry}
    assert entries.keys() == reasons.keys() and entries["my clip.mp4"]["id"] is None
    assert entries["b/abcdefghij0_000030.mp4"] == {
        "id": IDS[0],
        "sources": [{"path": "b/abcdefghij0_000030.mp4"}],
        "left_out": "expected 2.5 s of sound or more, got 2.00 s",
        "file": "b/abcdefghij0_000030.mp4",
    }
    summary = json.loads((tmp_path / "out/prepare.json").read_text())
    assert sum(summary["left_out"].values()) == len(reasons) and summary["left_out"][cut] == 2


def test_sound_and_pictures_apart(tmp_path, capsys):
    """Such a video is kept, with the middle of its pictures and all of its sound from its first picture on. One that is
    cut is not, nor one without a head, where nothing else would tell; what needs both together refuses it."""
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    short, long = tone(2, 16000), tone(4, 16000)
    film(source / "a.mp4", greys(20), fps=5, sound=short)
    film(source / "b.mkv", greys(10), fps=5, sound=long)
    film(source / "c.mp4", greys(15), stamps=[1 + k / 5 for k in range(15)], fps=5, sound=long)
    film(source / "d.mp4", greys(20), fps=5, sound=long)
    film(source / "e.ts", greys(100), sound=short)
    film(source / "g.ts", greys(100), sound=long)
    data = film(tmp_path / "cut.mp4", greys(20), fps=5, sound=short, options={"movflags": "+faststart"}).read_bytes()
    (source / "f.mp4").write_bytes(data[: len(data) * 9 // 10])
    argv = ["data", "prepare", str(source), str(out), "--workers", "1", "--quiet"]
    for _ in range(2):
        assert cli.main(argv) == 1
        told = capsys.readouterr().out
        assert "  kept: 3 (sound and pictures begin or end more than 0.5 s apart, see manifest.jsonl): 'a', 'b'" in told
        assert json.loads((out / "prepare.json").read_text())["apart"] == 3
    entries = {entry["id"]: entry for entry in lines(out)}
    assert [entries[one].get("apart") for one in "abcdg"] == [
        "sound ends at 2.00 s, pictures at 4.00 s",
        "sound ends at 4.03 s, pictures at 2.00 s",  # mkv, as ts, knows of no padding of the last frame
        "sound begins at 0.00 s, pictures at 1.00 s",
        None,
        None,
    ]
    assert "end together" in entries["e"]["left_out"] and entries["f"]["left_out"].startswith("truncated")
    for one, shown, sound in (
        ("a", greys(20)[10], short),
        ("b", greys(10)[5], long),
        ("c", greys(15)[7], long[16000:]),
        ("g", greys(100)[50], long),
    ):
        np.testing.assert_allclose(np.asarray(Image.open(out / f"frames/{one}.jpg")), shown, atol=4)
        found = soundfile.read(out / f"audio/{one}.wav")[0]
        assert abs(len(found) - len(sound)) <= (1024 if one in "bg" else 0)
        np.testing.assert_allclose(found[500 : len(sound) - 500], sound[500:-500, 0], atol=0.02)
    with pytest.raises(MediaError, match=r"a.mp4: expected sound and pictures that end together"):
        decode_audio(source / "a.mp4")


def test_a_list(films, tmp_path, capsys):
    """vggsound.csv, one of whose clips has vanished, and one more is broken."""
    rows = [f'{one[:11]},{int(one[12:])},"dog, barking",train' for one in (IDS[3], "gone_567890_000007", IDS[0])]
    (tmp_path / "vggsound.csv").write_text("\n".join(rows))
    out, argv = tmp_path / "out", ["data", "prepare", str(films), str(tmp_path / "out"), "--set", "vggsound", "--quiet"]
    assert cli.main([*argv, "--list", str(tmp_path / "vggsound.csv"), "--workers", "1"]) == 1
    assert "  missing: 1 of 3 listed ids, all in prepare.json: 'gone_567890_000007'" in capsys.readouterr().out
    assert {entry["id"] for entry in lines(out)} == {IDS[0], IDS[3]}
    samples = json.loads((out / "prepare.json").read_text())["samples"]
    assert (samples["used"], samples["listed"], samples["missing"]) == (2, 3, ["gone_567890_000007"])
    fails(
        capsys, argv, f"{out}: was prepared with --list vggsound.csv (3 ids, ", ", not with no --list; choose another"
    )
    (tmp_path / "other.txt").write_text("gone_567890_000007\n")
    argv[3] = str(tmp_path / "none")
    fails(capsys, [*argv, "--list", tmp_path / "other.txt"], f"of ids in {tmp_path}/other.txt, got none")
    assert not (tmp_path / "none").exists()
    (tmp_path / "vggsound.csv").write_text(f"{rows[0]}\nabcdefghij1,x,dog,train\n")
    wrong = "vggsound.csv: line 2: expected an id as YTID,SECONDS (two cells, as in vggsound.csv), the form of line 1"
    fails(capsys, [*argv, "--list", tmp_path / "vggsound.csv"], wrong, "got 'abcdefghij1,x'")


def test_a_process_that_is_killed(tmp_path):
    """Its source is left out, as one that takes too much memory is, and the others are done."""
    sources = [module._Source(one, (f"{one}.mp4",)) for one in "abcdef"]
    tasks = [
        {"a": Large, "b": Deadly, "c": Larger}.get(one.id, Harmless)(
            one, module._Settings(tmp_path, tmp_path, 16000, None)
        )
        for one in sources
    ]
    found = {task.source.id: entry for task, entry in module._in_processes(tasks, 2)}
    assert {one: found[one] for one in "def"} == {one: {"id": one} for one in "def"}
    assert found["a"]["left_out"] == found["c"]["left_out"] == "it takes more memory than there is"
    assert found["b"]["left_out"] == "the process that read it was ended by SIGKILL" and found["b"]["file"] == "b.mp4"


class Deadly(module._Task):
    def run(self):
        os.kill(os.getpid(), signal.SIGKILL)


class Large(module._Task):
    def run(self):
        np.empty(1 << 50)


class Larger(module._Task):
    def run(self):
        torch.empty(1 << 50)


class Harmless(module._Task):
    def run(self):
        return {"id": self.source.id}


# ---------------------------------------------------------------------------------------------------------------------
# What is there already


def test_going_on(films, made, tmp_path):
    """After a run that was killed while it wrote: what the manifest names stays, all else is made, the same as at
    once."""
    out = Path(shutil.copytree(made, tmp_path / "out"))
    manifest, expected = out / "manifest.jsonl", contents(made)
    kept, other, *_ = lines(out)
    manifest.write_text(json.dumps(kept) + "\n" + json.dumps(other)[:100])
    (out / "prepare.json").write_text(json.dumps({"options": json.loads(expected["prepare.json"])["options"]}))
    (out / other["audio"]["path"]).write_bytes(b"RIFF")
    for left in ("frames/.x.jpg.4194305.jpg", "audio/.y.wav.4194305.wav", ".manifest.jsonl.4194305.jsonl"):
        (out / left).touch()
    times = {entry["id"]: (out / entry["frame"]["path"]).stat().st_mtime_ns for entry in lines(made)}
    assert prepare(films, out, set_name="vggsound").notes == []
    assert contents(out) == expected
    unchanged = {one for one in IDS if (out / f"frames/{one}.jpg").stat().st_mtime_ns == times[one]}
    assert unchanged == {kept["id"]}


def test_changed_files_are_made_again(films, made, tmp_path):
    out = Path(shutil.copytree(made, tmp_path / "out"))
    frame, sound = out / f"frames/{IDS[1]}.jpg", out / f"audio/{IDS[2]}.wav"
    frame.write_bytes(frame.read_bytes() + b"\0")
    data = bytearray(sound.read_bytes())
    data[1000] ^= 1
    sound.write_bytes(data)
    (out / "frames/mine.jpg").touch()
    mine = "1 files that manifest.jsonl does not name: 'frames/mine.jpg'"
    again = "1 samples made again, as their files or sources had changed: "
    assert prepare(films, out, set_name="vggsound").notes == [again + repr(IDS[1]), mine]
    assert sound.read_bytes() == data
    assert prepare(films, out, set_name="vggsound", verify=True).notes == [again + repr(IDS[2]), mine]
    (out / "frames/mine.jpg").unlink()
    assert contents(out) == contents(made)


def test_sources_that_change(source, made, tmp_path):
    """One is deleted, and its sample stays; one breaks, and its sample goes; one is new."""
    out = Path(shutil.copytree(made, tmp_path / "out"))
    (source / f"{NAMES[0]}.mp4").unlink()
    (source / f"{NAMES[1]}.mp4").write_bytes(b"broken")
    shutil.copy(source / f"{NAMES[2]}.mp4", source / "a/abcdefghij9_000000.mp4")
    found = prepare(source, out, set_name="vggsound", verify=True)
    assert found.ids == [IDS[0], IDS[2], IDS[3], "abcdefghij9_000000"]
    assert found.notes == [f"1 samples stay whose sources are not there any more: '{IDS[0]}'"]
    assert list(found.left_out.values()) == [[f"{NAMES[1]}.mp4"]]
    assert {path.stem for path in out.rglob("*.jpg")} == {path.stem for path in out.rglob("*.wav")} == {*found.ids}
    assert FolderSet(out, front_end="ez_vsl", size=32).ids == found.ids
    (out / f"audio/{IDS[0]}.wav").unlink()  # whose source is not there either
    found = prepare(source, out, set_name="vggsound")
    lost = "its source is gone, and what was made of it is gone or has changed"
    assert found.ids == [IDS[2], IDS[3], "abcdefghij9_000000"] and found.left_out[lost] == [f"{NAMES[0]}.mp4"]
    assert found.notes == [f"1 files that manifest.jsonl does not name: 'frames/{IDS[0]}.jpg'"]


def test_refused(source, made, tmp_path, capsys):
    out, argv = made, ["data", "prepare", source, made, "--set", "vggsound", "--workers", "1"]
    before = contents(out)
    had = f"{out}: was prepared with"
    fails(capsys, argv[:4], f"{had} --set vggsound, not with no --set; choose another folder")
    fails(capsys, [*argv, "--sample-rate", "8000"], f"{had} --sample-rate 16000, not with --sample-rate 8000")
    fails(capsys, [*argv, "--min-seconds", "1"], f"{had} no --min-seconds, not with --min-seconds 1.0")
    with files.claimed("OUT", folder=out):
        fails(capsys, argv, f"OUT {out}: another process is writing there")
    shutil.copytree(out, tmp_path / "damaged")
    with open(tmp_path / "damaged/manifest.jsonl", "a") as file:
        file.write('{"id": 7}\n')
    argv[3] = tmp_path / "damaged"
    fails(capsys, argv, f"{argv[3]}/manifest.jsonl: line 5: expected a line of a manifest, got b'{{\"id\": 7}}'")
    entry = lines(out)[0]
    for wrong in ("left_out", entry | {"id": 7}, entry | {"id": "another"}, entry | {"sources": []}):
        (tmp_path / "damaged/manifest.jsonl").write_text(json.dumps(wrong) + "\n")
        fails(capsys, argv, f"{argv[3]}/manifest.jsonl: line 1: expected a line of a manifest")
    (tmp_path / "damaged/prepare.json").unlink()
    fails(capsys, argv, f"{argv[3]}: holds frames, audio, manifest.jsonl, which was not prepared here")
    argv[3] = source / "inside"
    fails(capsys, argv, f"{argv[3]}: expected a folder to write to outside of {source}, which is read")
    (tmp_path / "elsewhere").mkdir()
    os.symlink("../elsewhere", source / "link")
    argv[3] = tmp_path / "elsewhere/out"
    fails(capsys, argv, f"{argv[3]}: expected a folder to write to outside of {source}, which is read")
    (source / "link").unlink()
    os.symlink(".", source / "a/loop")
    argv[3] = tmp_path / "new"
    fails(capsys, argv, f"{source}/a/loop: expected a link that leads elsewhere, got one to {source}/a, which it is in")
    (source / "a/loop").unlink()
    with pytest.raises(ValueError, match="min_seconds: expected a positive number, got nan"):
        prepare(source, argv[3], min_seconds=float("nan"))
    fails(capsys, [*argv, "--sample-rate", "100"], "sample_rate: expected 1000 to 768000 Hz, got 100")
    shutil.copy(source / f"{NAMES[0]}.mp4", source / "abcdefghij0_30000_40000.webm")
    fails(
        capsys,
        argv,
        f"{source}: expected one source of each id, but 'abcdefghij0_30000_40000.webm' and 'b/{IDS[0]}.mp4'",
    )
    fails(capsys, [*argv[:2], source / "nothing", *argv[3:]], f"{source}/nothing: expected a folder, got nothing there")
    (source / "empty").mkdir()
    fails(
        capsys, [*argv[:2], source / "empty", *argv[3:]], "expected videos, or images and sounds of the same names, got"
    )
    assert not argv[3].exists() and contents(out) == before


def test_what_cannot_be_written_ends_the_run(films, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/prepare.json").write_text(
        '{"options": {"set": "vggsound", "list": null, "sample_rate": 16000, "min_seconds": null}}'
    )
    (tmp_path / "out/frames").write_text("a file where a folder should be")
    with pytest.raises(OSError, match=f"{tmp_path}/out/frames"):
        prepare(films, tmp_path / "out", set_name="vggsound")


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_interrupted(films, tmp_path, ending):
    """Killed, or by Ctrl-C, which all processes of a terminal get: none of them stays, and the same command goes on."""
    source, out, expected = (tmp_path / name for name in ("source", "out", "expected"))
    source.mkdir()
    for k in range(60):
        shutil.copy(films / f"{NAMES[3]}.mp4", source / f"{k}.mp4")
    prepare(source, expected)
    argv = [sys.executable, "-m", "ssl_fast", "data", "prepare", source, out, "--workers", "2", "--quiet"]
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # which a shell's background jobs ignore
    run = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=heed)
    while not (out / "manifest.jsonl").exists() or (out / "manifest.jsonl").read_bytes().count(b"\n") < 5:
        assert run.poll() is None
        time.sleep(0.01)
    if ending == signal.SIGINT:
        os.killpg(run.pid, ending)
    else:
        run.kill()
    _, told = run.communicate(timeout=60)
    assert run.returncode == (130 if ending == signal.SIGINT else -ending)
    assert told == ("\nssl-fast data: interrupted\n" if ending == signal.SIGINT else "")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and running(run.pid):
        time.sleep(0.1)
    assert not running(run.pid) and 5 <= (out / "manifest.jsonl").read_bytes().count(b"\n") < 60
    assert prepare(source, out, workers=2).notes == []
    assert contents(out) == contents(expected)


def running(session):
    """Processes of a session that are there."""
    found = subprocess.run(["ps", "-o", "pid=", "-s", str(session)], capture_output=True, text=True)
    return found.stdout.split()
