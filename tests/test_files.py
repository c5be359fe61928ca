"""Files that are written: whole or not at all, by one process, and never over what a command did not make."""

import argparse
import errno
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from ssl_fast import files
from ssl_fast.cli import main as cli
from ssl_fast.cli import quickstart, run_folder
from ssl_fast.models import LocalizerConfig, build, checkpoints, storage
from ssl_fast.training.loop import train
from ssl_fast.training.recipes import recipe
from test_cli import fails
from training_toys import ToySet

GONE = 1 << 22  # no process: above the greatest number of one


@pytest.fixture
def full_disk():
    """Files can have 4 kB: what the kernel says of a longer one comes the same way as of a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def tiny(**changes):
    model = LocalizerConfig.small("ez_vsl", width=2, dimension=4)
    return recipe("ez_vsl", **({"model": model, "batch_size": 20, "epochs": 2, "precision": "float32"} | changes))


def checkpoint(path):
    one = tiny(epochs=1)
    storage.save({"recipe": one.to_dict(), "localizer": build(one.model).state_dict()}, path)
    return path


# ---------------------------------------------------------------------------------------------------------------------
# Full disks, killed processes

WRITERS = {
    "checkpoint.pt": lambda path, found: storage.save({"localizer": found.localizer.state_dict()}, path),
    "mine.pt": lambda path, found: checkpoints.write(found, path, overwrite=True),
    "mine.safetensors": lambda path, found: checkpoints.write(found, path, overwrite=True),
    "map.npy": lambda path, _: files.save_array(path, np.ones((64, 64))),
    "metrics.json": lambda path, _: files.replace_file(path, "x" * 5000),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_named_and_leaves_what_was_there(name, tmp_path, full_disk):
    found, path = checkpoints.load(checkpoint(tmp_path / "found.pt")), tmp_path / name
    path.write_bytes(b"before")
    full_disk()
    with pytest.raises(OSError, match=f"File too large: '.*{name}'") as error:
        WRITERS[name](path, found)
    assert error.value.errno == errno.EFBIG and path.read_bytes() == b"before"
    assert sorted(os.listdir(tmp_path)) == sorted(["found.pt", name])


def test_a_full_disk_during_training_leaves_no_part_of_a_file(tmp_path, full_disk):
    full_disk()
    with pytest.raises(OSError, match="File too large: '.*checkpoint.pt'"):
        train(ToySet(), tiny(), out=tmp_path, progress=False)
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


@pytest.mark.slow
def test_a_full_disk_during_export(tmp_path, full_disk, capsys):
    full_disk()
    fails(capsys, ["export", checkpoints.EMBEDDED, tmp_path / "a.pt2"], "File too large", "a.pt2")
    assert os.listdir(tmp_path) == []


def test_errors_of_other_kinds_stay_as_they_are(tmp_path):
    with pytest.raises(KeyError), files.replacing(tmp_path / "a"):
        raise KeyError("x")
    with pytest.raises(FileNotFoundError, match="No such file or directory: '.*missing/a'"):
        files.replace_file(tmp_path / "missing" / "a", "")
    assert os.listdir(tmp_path) == []


def test_arrays_are_those_of_numpy(tmp_path):
    for array in (np.arange(6.0).reshape(2, 3).T, np.zeros((0, 4), np.float32), np.int64([1, 2])):
        files.save_array(tmp_path / "a.npy", array)
        again = np.load(tmp_path / "a.npy")
        assert again.dtype == array.dtype and np.array_equal(again, array)


def test_what_killed_processes_left_is_swept_and_nothing_else(tmp_path):
    keep = [f".run.json.{os.getpid()}", ".run.json.swp", f".other.{GONE}", "run.json", f".run.json.{GONE}.bak"]
    for name in (*keep, f".run.json.{GONE}", f".run.json.{GONE}.json"):
        (tmp_path / name).write_text("")
    files.sweep(tmp_path / "run.json")
    assert sorted(os.listdir(tmp_path)) == sorted(keep)


# ---------------------------------------------------------------------------------------------------------------------
# Locks


def test_one_process_at_a_time(tmp_path):
    file = tmp_path / "a.json"
    for claim in ({"folder": tmp_path / "run"}, {"paths": [file]}):
        with files.claimed("--out", **claim), pytest.raises(ValueError, match="^--out .*: another process is writing"):
            files.claimed("--out", **claim).__enter__()
        with files.claimed("--out", **claim):  # released
            pass
    assert os.listdir(tmp_path) == []


def test_a_killed_process_holds_no_lock_and_its_children_neither(tmp_path):
    script = f"""
        import os, signal, sys, time
        from pathlib import Path
        from ssl_fast import files
        running, started = os.pipe()
        with files.claimed("--out", folder=Path({str(tmp_path)!r})):
            if os.fork() == 0:
                os.write(started, b"1")
                time.sleep(60)
            os.read(running, 1)  # the child has closed what it is not to hold
            os.kill(os.getpid(), signal.SIGKILL)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.DEVNULL, start_new_session=True
    ) as process:
        process.wait(60)
        try:
            assert os.listdir(tmp_path) == [".lock"]
            with files.claimed("--out", folder=tmp_path):
                pass
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # the child


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", flock)
    told = r"no locks here \(No locks available\); let no other process write there"
    with pytest.warns(UserWarning, match=told), files.claimed("--out", folder=tmp_path):
        pass


@pytest.mark.parametrize(
    "argv",
    [
        ["quickstart", "--out", "out"],
        ["evaluate", "--scenes", "--weights", "weights.pt", "--out", "out"],
        ["convert", "weights.pt", "out/a.pt"],
        ["export", "weights.pt", "out/a.pt"],
        ["localize", "a.png", "a.wav", "-o", "out/a.png"],
        ["mine", "--features", "a.npy", "--out", "out/a.npy"],
        ["bench", "--quick", "--json", "out/a.json"],
    ],
    ids=lambda argv: argv[0],
)
def test_every_command_that_writes_asks_for_the_lock(argv, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    target = Path(argv[-1])
    own = {"folder": target} if target == Path("out") else {"paths": [target]}
    with files.claimed("", **own):
        fails(capsys, argv, str(target), "another process is writing there")
    assert os.listdir("out") == []


# ---------------------------------------------------------------------------------------------------------------------
# Nothing is replaced that a command did not make


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, with weights and files of somebody else."""
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path / "weights.pt")
    for name in ("photo.jpg", "film.mp4", "s.wav", "x.npy", "annotations.json", "taken.json"):
        (tmp_path / name).write_text(name)
    return tmp_path


REPLACED = {
    "image": (["localize", "photo.jpg", "s.wav", "-o", "photo.jpg"], "--out photo.jpg: this command reads it"),
    "link": (["localize", "photo.jpg", "s.wav", "-o", "./link.jpg"], "--out link.jpg: this command reads it"),
    "film": (["localize", "film.mp4", "-o", "film.mp4"], "--out film.mp4: this command reads it"),
    "weights": (["convert", "weights.pt", "weights.pt"], "TO weights.pt: this command reads it"),
    "features": (["mine", "--features", "x.npy", "--out", "x.npy"], "--out x.npy: this command reads it"),
}


@pytest.mark.parametrize("force", [[], ["--force"]], ids=["", "force"])
@pytest.mark.parametrize("case", REPLACED)
def test_what_a_command_reads_is_never_replaced(case, force, here, capsys):
    os.link("photo.jpg", "link.jpg")
    argv, said = REPLACED[case]
    before = {name: Path(name).read_bytes() for name in os.listdir()}
    fails(capsys, [*argv, *force], said)
    assert {name: Path(name).read_bytes() for name in os.listdir()} == before


THERE = {
    "picture": (["localize", "photo.jpg", "s.wav", "-o", "x.png"], "--out x.npy: exists already"),
    "convert": (["convert", "weights.pt", "x.npy"], "TO x.npy: exists already"),
    "export": (["export", "weights.pt", "taken.json"], "TO taken.json: exists already"),
    "mine": (["mine", "--features", "x.npy", "--out", "annotations.npy"], "its annotations.json exists already"),
    "bench": (["bench", "--quick", "--json", "taken.json"], "--json taken.json: exists already"),
    "evaluate": (
        ["evaluate", "--scenes", "--weights", "weights.pt", "--out", "held"],
        "held: holds report.html already",
    ),
    "train": (["train", "--data", "data", "--out", "run"], "--out run: holds another run (best.pt)"),
    "quickstart": (["quickstart", "--out", "run"], "--out run: holds another run (best.pt)"),
}


@pytest.mark.parametrize("case", THERE)
def test_what_is_there_is_kept_without_force(case, here, capsys):
    for name in ("held/report.html", "run/best.pt"):
        Path(name).parent.mkdir()
        Path(name).write_text(name)
    argv, said = THERE[case]
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    fails(capsys, argv, said, "--force")
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


def test_force_replaces_a_run_and_nothing_else(tmp_path):
    for name in ("best.pt", "checkpoint.pt", "metrics.json", "notes.txt", f".checkpoint.pt.{GONE}"):
        (tmp_path / name).write_text("")
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "run.json").write_text("")
    args = cli.parser().parse_args(["quickstart", "--out", str(tmp_path), "--force", "--threads", "1"])
    with run_folder.held(run_folder.open_run(args, tmp_path, quickstart.add_arguments), quickstart.add_arguments):
        assert sorted(os.listdir(tmp_path)) == [".lock", "config.toml", "notes.txt", "run.json"]


def test_force_replaces_a_file(here, capsys):
    assert cli.main(["convert", "weights.pt", "x.npy", "--force"]) == 0
    assert storage.read_file(Path("x.npy"))["format"] == storage.FORMAT
    assert not list(here.glob("*previous*"))


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.usefixtures("heeded_hangup")
def test_a_command_that_is_ended_removes_what_it_has_not_completed(number, code, tmp_path, monkeypatch, capsys):
    def write(found, path, half, overwrite):
        with files.replacing(path) as file:
            assert os.path.exists(file.name)
            signal.raise_signal(number)

    monkeypatch.setattr(checkpoints, "write", write)
    assert cli.main(["convert", str(checkpoints.EMBEDDED), str(tmp_path / "a.pt")]) == code
    assert os.listdir(tmp_path) == [] and capsys.readouterr().err == "\nssl-fast convert: interrupted\n"
    assert signal.getsignal(number) is signal.SIG_DFL


# ---------------------------------------------------------------------------------------------------------------------
# run.json

ARGUMENTS = {"method": "lvs", "seed": 3, "epochs": 2, "compile": True, "precision": "float32", "scenes": None}


def opened(folder, **changes):
    run = {"command": "quickstart", "arguments": ARGUMENTS, "minutes": 4.0, "threads": 2} | changes
    (folder / "run.json").write_text(json.dumps(run))
    parser = argparse.ArgumentParser()
    quickstart.add_arguments(parser)
    args = parser.parse_args(["--resume", "--out", str(folder)])
    args.command = "quickstart"
    return run_folder.open_run(args, folder, quickstart.add_arguments)


def test_arguments_of_a_run_come_back(tmp_path):
    found = vars(opened(tmp_path))
    assert {key: found[key] for key in ARGUMENTS} == ARGUMENTS
    assert (found["minutes"], found["threads"], found["batch_size"]) == (4.0, 2, None)


HOSTILE = [
    {"arguments": ARGUMENTS | {key: value}} for key in ("method", "seed") for value in (None, 1.5, [1], {}, True)
]
HOSTILE += [{"arguments": ARGUMENTS | change} for change in ({"epochs": "2"}, {"epochs": 0}, {"precision": "float8"})]
HOSTILE += [{"arguments": ARGUMENTS | change} for change in ({"compile": 1}, {"compile": "yes"}, {"colour": 1})]
HOSTILE += [{"arguments": {key: ARGUMENTS[key] for key in ARGUMENTS if key != name}} for name in ("method", "seed")]
HOSTILE += [{"arguments": ARGUMENTS | {"loss": value}} for value in ([["tau=1"]], [None], [1.5], "tau=1")]
HOSTILE += [{"arguments": value} for value in (None, [], "x", 3)]
HOSTILE += [{"minutes": value} for value in (-1.0, "4", [4], float("nan"))] + [{"threads": value} for value in (0, 1.5)]
HOSTILE += [{"command": value} for value in (None, 3, [], "train")]
HOSTILE += [{"id": 3}, {"log": "wandb"}, {"log": ["paper"]}]


@pytest.mark.parametrize("change", HOSTILE, ids=str)
def test_a_run_json_that_no_run_has_written(change, tmp_path):
    with pytest.raises(ValueError, match=r"run.json: (\w+: expected a value|expected the arg|belongs)"):
        opened(tmp_path, **change)


@pytest.mark.parametrize("content", [b"[" * 100_000, b"[]", b"3", b"\xff", b"{", b"{}"], ids=range(6))
def test_a_run_json_of_something_else(content, tmp_path, capsys):
    (tmp_path / "run.json").write_bytes(content)
    fails(capsys, ["quickstart", "--resume", "--out", tmp_path], "run.json: expected the arguments of a run")
    assert (tmp_path / "run.json").read_bytes() == content


# ---------------------------------------------------------------------------------------------------------------------
# Surroundings: streams, home, backends, the current folder


def test_ctrl_c_while_modules_are_imported(monkeypatch, capsys):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", interrupted)
    assert cli.main(["doctor"]) == 130
    assert capsys.readouterr().err == "\nssl-fast: interrupted\n"


@pytest.mark.parametrize("kind", ["closed", "unread"])
def test_stderr_that_nobody_reads(kind, monkeypatch, tmp_path, capsys):
    end, other = os.pipe()
    os.close(end)
    monkeypatch.setattr(sys, "stderr", None if kind == "closed" else open(other, "w"))  # noqa: SIM115
    assert cli.main(["convert", str(tmp_path / "none.pt"), str(tmp_path / "a.pt")]) == 2
    assert capsys.readouterr().out == ""
    monkeypatch.undo()


def test_without_a_home_the_cache_asks_for_a_folder(monkeypatch, tmp_path, capsys):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("SSL_FAST_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", home)
    fails(capsys, ["quickstart", "--out", tmp_path / "run", "--quiet"], "set SSL_FAST_CACHE to a folder", code=1)


@pytest.mark.slow
def test_backend_of_a_notebook():
    script = "import os; from ssl_fast.evaluation import pictures; import numpy; pictures.colours(numpy.zeros(2)); "
    script += "pictures.overlap_bars({'a': .5}); print(os.environ['MPLBACKEND'])"
    name = "module://no_such_package.backend"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"MPLBACKEND": name},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout.strip()) == (0, name), done.stderr


def test_modules_in_the_current_folder_are_not_run(monkeypatch, tmp_path):
    from ssl_fast.data.scenes import dataset as scenes

    monkeypatch.chdir(tmp_path)
    for name in ("json", "struct", "signal"):
        Path(f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    scenes.load("train", scenes.Settings(train=2), cache=tmp_path / "cache", workers=2, progress=False)
    assert not (tmp_path / "ran").exists()
