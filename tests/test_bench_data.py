"""Rates of the way into training: what is counted, and the command on a small folder."""

import json

import pytest

from ssl_fast.benchmarks import data as bench_data
from ssl_fast.cli import main as cli
from test_datasets import put
from test_training_sets import VGGSOUND, fill, write_list

STAGES = ["image", "sound", "sample", "loader", "spectrogram", "augmentation", "step"]
SMALL = ["--recipe", "quickstart", "--method", "ez_vsl", "--rounds", "2", "--threads", "1"]


def test_rates_are_samples_over_the_median_round(tmp_path, monkeypatch, capsys):
    """A scripted clock: three rounds of 1, 4 and 2 s."""
    for i in range(6):
        put(tmp_path, f"{i}")
    clock = {"cpu": iter([1.0, 4.0, 2.0])}

    class Watch:
        def __init__(self, device):
            pass

        def __call__(self, job):
            job()
            return next(clock["cpu"]), None

    def rounds(jobs, stopwatch, count, least):
        for job in jobs.values():
            job()
        return dict.fromkeys(jobs, ((1.0, 4.0, 2.0), (2.0, 5.0, 3.0)))

    monkeypatch.setattr(bench_data, "Stopwatch", Watch)
    monkeypatch.setattr(bench_data, "time_rounds", rounds)
    argv = ["bench", "--data", str(tmp_path), *SMALL, "--rounds", "3", "--batch", "4", "--workers", "2", "--json"]
    assert cli.main([*argv, str(tmp_path / "b.json")]) == 0
    record = json.loads((tmp_path / "b.json").read_text())
    rates = {row["stage"]: row["samples_per_s"] for row in record["rows"]}
    chunk = bench_data.CHUNK / 2
    assert list(rates) == STAGES
    assert rates == dict.fromkeys(STAGES[:3], chunk) | {"loader": 2 * 4 / 2} | dict.fromkeys(STAGES[4:], 4 / 2)
    cpu = {row["stage"]: row["cpu_ms_per_sample"] for row in record["rows"]}
    in_loader = {"loader": None}  # which is other processes
    assert cpu == dict.fromkeys(STAGES[:3], 3000 / bench_data.CHUNK) | in_loader | dict.fromkeys(STAGES[4:], 3000 / 4)
    assert all(row["load"] >= 0 and "instruction_set" in row for row in record["rows"])
    head = record["header"]
    assert (head["samples"], head["workers"], head["cache"], head["recipe"]["batch_size"]) == (6, 2, False, 4)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line and line.split()[0] in STAGES] == STAGES


def test_training_sets_and_the_cache(tmp_path, capsys):
    root = fill(tmp_path / "data")
    split = write_list(tmp_path / "all.txt", VGGSOUND)
    argv = [
        "bench",
        "--data",
        str(root),
        "--set",
        "vggsound",
        "--split",
        str(split),
        *SMALL,
        "--batch",
        "2",
        "--workers",
        "0",
        "--cache",
        str(tmp_path / "cache"),
        "--markdown",
    ]
    assert cli.main(argv) == 0
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [line.split()[1] for line in table[2:]] == STAGES and {line.count("|") for line in table} == {4}
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 6


@pytest.mark.parametrize(
    "options, message",
    [
        (["--batch", "7"], "batch_size: expected at most the 6 samples of the set, got 7"),
        (["--batch", "2,4"], r"--workers, --batch: expected one number >= 0, got 2 and [2, 4]"),
        (["--batch", "2", "--workers", "-1"], "--workers, --batch: expected one number >= 0, got -1 and [2]"),
        (["--batch", "2", "--layout", "fnac"], "--layout: expected with --set"),
        (["--batch", "2", "--set", "vggsound"], "--set vggsound: expected its list of ids, --split"),
        (["--batch", "2", "--method", "none"], "method: expected one of"),
        (["--batch", "2", "--maps", "7", "--no-compile"], "--maps, --no-compile: expected without --data"),
    ],
)
def test_what_cannot_be_timed(tmp_path, capsys, options, message):
    for i in range(6):
        put(tmp_path, f"{i}")
    assert cli.main(["bench", "--data", str(tmp_path), *SMALL, *options]) == 2
    assert message in capsys.readouterr().err


def test_a_broken_file_is_named(tmp_path, capsys):
    for i in range(4):
        put(tmp_path, f"{i}")
    (tmp_path / "audio/2.wav").write_text("no sound")
    assert cli.main(["bench", "--data", str(tmp_path), *SMALL, "--batch", "4", "--workers", "0"]) == 2
    assert "audio/2.wav: cannot be read as audio" in capsys.readouterr().err
