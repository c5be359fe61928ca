"""The command line: quickstart, resume, options, exit codes."""

import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch

from ssl_fast.cli import main as cli
from ssl_fast.data.scenes import dataset as scenes
from ssl_fast.evaluation import metrics
from ssl_fast.models import storage
from training_toys import loaded

FLAT = """
    method seed train_seconds single_ciou_adaptive duo_ciou_adaptive iiou_adaptive interactive_pointing
    retrieval_a2i_r1 retrieval_i2a_r1 pia_silence pia_noise pia_offscreen baseline_objectness_iiou_adaptive
""".split()
TINY = ["--scenes", "48", "--test-scenes", "6", "--batch-size", "8", "--threads", "1", "--quiet"]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_FAST_CACHE", str(tmp_path_factory.mktemp("cache")))
        threads = torch.get_num_threads()
        yield
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A complete tiny quickstart: its folder."""
    out = tmp_path_factory.mktemp("runs") / "quick"
    assert cli.main(["quickstart", "--out", str(out), "--epochs", "2", "--seed", "3", *TINY]) == 0
    return out


def fails(capsys, argv, *words, code=2):
    """The command ends with `code` and one line on stderr, that holds all `words`."""
    capsys.readouterr()
    assert cli.main([str(x) for x in argv]) == code
    err = capsys.readouterr().err
    assert "Traceback" not in err and err.count("\n") == 1, err
    for word in words:
        assert word in err


def test_quickstart_writes_everything(quick):
    assert {p.name for p in quick.iterdir()} >= {
        "run.json",
        "checkpoint.pt",
        "metrics.jsonl",
        "metrics.json",
        "per_sample.csv",
        "report.html",
    }
    results = json.loads((quick / "metrics.json").read_text())
    assert not set(FLAT) - results.keys()
    assert (
        results["method"] == "ssl_align"
        and results["seed"] == 3
        and results["steps"] == 12
        and not results["shortened"]
    )
    assert all(0 <= results[key] <= 1 for key in FLAT[3:]) and results["train_seconds"] > 0
    assert list(results["seconds"]) == ["scenes", "training", "evaluation"]
    assert 0 < sum(results["step_seconds"].values()) < results["seconds"]["training"]
    assert json.loads((quick / "run.json").read_text())["minutes"] is None
    assert results["threads"] == 1 and results["precision"] in ("float32", "bfloat16")
    assert results["recipe"]["epochs"] == 2 and results["recipe"]["batch_size"] == 8
    assert set(results["data"]) == {"single", "duo", "trio"} and len(results["weights_sha256"]) == 64
    with open(quick / "per_sample.csv") as file:
        rows = list(csv.DictReader(file))
    assert [sum(row["set"] == name for row in rows) for name in ("single", "duo", "trio")] == [6, 12, 18]
    hits = [float(row["iou_adaptive"]) >= 0.5 for row in rows if row["set"] == "duo"]
    assert sum(hits) / 12 == pytest.approx(results["duo_ciou_adaptive"])
    steps = [json.loads(line)["step"] for line in (quick / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(12))
    page = (quick / "report.html").read_text()
    assert "ssl_align" in page and "seed 3" in page and page.count("data:image/jpeg") > 4
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)  # self-contained


def test_summary_and_path_are_printed(tmp_path, capsys):
    assert cli.main(["quickstart", "--out", str(tmp_path / "run"), "--method", "lvs", "--epochs", "1", *TINY]) == 0
    out = capsys.readouterr().out
    results = json.loads((tmp_path / "run" / "metrics.json").read_text())
    row = next(line for line in out.splitlines() if line.startswith("duo: lvs")).split()
    assert row[2] == f"{results['duo_ciou_adaptive']:.3f}" and row[-1] == f"{results['interactive_pointing']:.3f}"
    assert re.search(r"trained lvs for 6 steps in \d+ s; loss \d+\.\d{3}, of a collapsed net 2\.197", out)  # log 9
    assert f"retrieval on single, by class: sound to image R@1 {results['retrieval_a2i_r1']:.3f}" in out
    assert re.search(
        r"^time: scenes [\d.]+ s, training [\d.]+ s, evaluation [\d.]+ s, report [\d.]+ s$", out, re.MULTILINE
    )
    assert "shortened" not in out and 'role="alert"' not in (tmp_path / "run" / "report.html").read_text()
    assert f"report: {tmp_path / 'run' / 'report.html'}" in out


def test_quickstart_of_audio_tokens(tmp_path):
    """Its evaluation is of the mean of the maps of all tokens, made here from the features of the written weights."""
    out = tmp_path / "run"
    assert cli.main(["quickstart", "--out", str(out), "--method", "dense_av", "--epochs", "1", *TINY]) == 0
    results = json.loads((out / "metrics.json").read_text())
    assert results["method"] == "dense_av" and results["chance"] == pytest.approx(math.log(8))
    net, state = loaded(out)
    assert net.has_tokens and state["recipe"]["model"]["heads"] == 2
    duo = scenes.load("duo", scenes.Settings(train=48, val=6, single=6, duo=6, trio=6), progress=False)
    images = torch.stack([duo[i]["image"] for i in range(12)])
    with torch.no_grad():
        v = net.visual_features(net.normalize_images(images))["visual"].double()
        a = net.audio_features(net.normalize_spectrograms(duo.spectrograms))["audio"].double()
    v, a = (x / x.norm(dim=1, keepdim=True) for x in (v, a))
    parts = torch.einsum("nkcyx,nkct->nktyx", v.unflatten(1, (2, -1)), a.unflatten(1, (2, -1)))
    maps = metrics.upsample(parts.amax(1).mean(1).float().numpy(), (112, 112))
    truth = np.stack([duo.ground_truth(i) for i in range(12)])
    expected = metrics.consensus_iou(metrics.adaptive(maps, truth), truth)
    with open(out / "per_sample.csv") as file:
        found = [float(row["iou_adaptive"]) for row in csv.DictReader(file) if row["set"] == "duo"]
    assert found == pytest.approx(expected.tolist(), abs=1e-3)  # a pixel on the edge, by float32


def test_evaluate_of_a_run_gives_its_figures(quick, tmp_path, capsys):
    again = tmp_path / "again"
    argv = [
        "evaluate",
        "--scenes",
        "--test-scenes",
        "6",
        "--weights",
        str(quick),
        "--out",
        str(again),
        "--threads",
        "1",
        "--quiet",
    ]
    assert cli.main(argv) == 0
    before, after = (json.loads((out / "metrics.json").read_text()) for out in (quick, again))
    assert {key: after[key] for key in FLAT} == {key: before[key] for key in FLAT}
    assert after["weights_sha256"] == before["weights_sha256"]
    fails(capsys, argv, "--out", "holds metrics.json, per_sample.csv, report.html already", "--force")


def test_folder_of_another_run_is_left_alone(quick, capsys):
    before = (quick / "checkpoint.pt").read_bytes()
    fails(capsys, ["quickstart", "--out", quick, *TINY], "holds another run", "--resume", str(quick))
    assert (quick / "checkpoint.pt").read_bytes() == before


def start(out, *more):
    environment = os.environ | {"OMP_WAIT_POLICY": "passive"}
    argv = [sys.executable, "-m", "ssl_fast", "quickstart", "--out", str(out), "--epochs", "40", *TINY, *more]
    return subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_and_resume_goes_on(tmp_path, quick, capsys):
    out = tmp_path / "run"
    process = start(out)
    deadline = time.monotonic() + 90
    history = out / "metrics.jsonl"
    while (
        not (history.exists() and history.read_text().count("\n") >= 3)
        and process.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    step = storage.load(out / "checkpoint.pt")["step"]
    assert (
        3 <= step < 240
        and f"interrupted after step {step}; go on with: ssl-fast quickstart --resume --out {out}" in stderr
    )
    assert "Traceback" not in stderr and not (out / "metrics.json").exists()
    # the rest of 240 steps would take long: the budget ends the run at once, which evaluates what there is
    assert (
        cli.main(["quickstart", "--resume", "--out", str(out), "--minutes", "1e-6", "--quiet", "--threads", "1"]) == 0
    )
    results = json.loads((out / "metrics.json").read_text())
    assert results["steps"] == step and results["shortened"] and results["method"] == "ssl_align"
    told = f"shortened run: --minutes ended the training after {step} of 240 steps"
    assert told in capsys.readouterr().out and told in (out / "report.html").read_text()
    again = [
        "evaluate",
        "--scenes",
        "--test-scenes",
        "6",
        "--weights",
        str(out),
        "--out",
        str(tmp_path / "again"),
        "--quiet",
    ]
    assert cli.main(again) == 0 and told in capsys.readouterr().out


@pytest.mark.slow
def test_killed_and_resumed_quickstart_equals_an_uninterrupted_one(tmp_path, quick):
    """A run like that in `quick`, killed before step 5, ends in the same weights and figures."""
    out = tmp_path / "run"
    crash = tmp_path / "crash.py"
    crash.write_text(
        "import os, signal, sys\n"
        "from ssl_fast.cli import main as cli\n"
        "from ssl_fast.training import learner\n"
        "step = learner.Learner.step\n"
        "def killer(self, number, *rest):\n"
        "    if number == 5:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(self, number, *rest)\n"
        "learner.Learner.step = killer\n"
        "cli.main(sys.argv[1:])\n"
    )
    argv = ["quickstart", "--out", str(out), "--epochs", "2", "--seed", "3", "--checkpoint-every", "1e-6", *TINY]
    done = subprocess.run(
        [sys.executable, str(crash), *argv],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert storage.load(out / "checkpoint.pt")["step"] == 5
    assert cli.main(["quickstart", "--resume", "--out", str(out), "--threads", "1", "--quiet"]) == 0
    ours, theirs = (loaded(folder)[0].state_dict() for folder in (out, quick))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    ours, theirs = (json.loads((folder / "metrics.json").read_text()) for folder in (out, quick))
    assert {k: v for k, v in ours.items() if k in FLAT and k != "train_seconds"} == {
        k: v for k, v in theirs.items() if k in FLAT and k != "train_seconds"
    }
    assert ours["sets"] == theirs["sets"]


def test_resume_names_options_that_contradict_the_run(quick, tmp_path, capsys):
    resume = ["quickstart", "--resume", "--out", quick, "--quiet"]
    fails(capsys, [*resume, "--seed", "4"], "--seed 4: the run in", "has --seed 3")
    fails(capsys, [*resume, "--method", "lvs"], "--method lvs: the run in", "has --method ssl_align")
    fails(capsys, [*resume, "--scenes", "64"], "--scenes 64", "has --scenes 48")
    fails(
        capsys,
        ["quickstart", "--resume", "--out", tmp_path / "none"],
        "--resume: expected a run in",
        "found no run.json",
    )
    fails(capsys, ["train", "--resume", "--out", quick, "--data", tmp_path], "belongs to ssl-fast quickstart")
    (tmp_path / "run.json").write_text("{")
    fails(capsys, ["quickstart", "--resume", "--out", tmp_path], "run.json: expected the arguments of a run")


@pytest.mark.parametrize(
    "argv, words",
    [
        (
            ["--method", "foo"],
            [
                "method: expected one of ssl_align, margin_nce, lvs, ez_vsl, slavc, ",
                "hard_positives, sspl, dense_av, got 'foo'",
            ],
        ),
        (["--scenes", "16"], ["batch_size: expected at most the 16 samples of the set, got 32"]),
        (["--device", "tpu"], ["--device: expected cpu or cuda, got 'tpu'"]),
    ],
)
def test_bad_quickstarts_say_so_before_anything_is_made(argv, words, tmp_path, capsys):
    fails(capsys, ["quickstart", "--out", tmp_path / "run", *argv], *words)
    assert not (tmp_path / "run").exists()


def test_out_that_is_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    fails(capsys, ["quickstart", "--out", tmp_path / "file"], "--out", "expected a folder, got a file")


@pytest.mark.parametrize(
    "argv, words",
    [
        (["quickstart", "--minutes", "-1"], "--minutes: expected a positive number, got '-1'"),
        (["quickstart", "--seed", "x"], "--seed: expected an integer >= 0, got 'x'"),
        (["quickstart", "--epochs", "0"], "--epochs: expected a positive integer, got '0'"),
        (["evaluate", "--weights", "x", "--out", "y"], "one of the arguments --data --scenes is required"),
        (["train", "--out", "y"], "the following arguments are required: --data"),
        (["paint"], "invalid choice: 'paint'"),
        (["doctor", "--colour"], "unrecognized arguments: --colour"),
        ([], "the following arguments are required: COMMAND"),
        (["bench", "--batch", "0"], "--batch"),
    ],
)
def test_bad_options_are_named(argv, words, capsys):
    assert cli.main(argv) == 2
    assert words in capsys.readouterr().err


def test_help_of_every_command(capsys):
    for command in ("quickstart", "train", "evaluate", "data", "bench", "doctor"):
        assert cli.main([command, "--help"]) == 0
        assert f"usage: ssl-fast {command}" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------------------
# Weights


def test_bad_weights_are_named(quick, tmp_path, capsys):
    def evaluate(weights):
        return ["evaluate", "--scenes", "--weights", weights, "--out", tmp_path / "results"]

    fails(capsys, evaluate(tmp_path / "none.pt"), str(tmp_path / "none.pt"), "no such file")
    short = tmp_path / "short.pt"
    short.write_bytes((quick / "checkpoint.pt").read_bytes()[:3000])
    fails(capsys, evaluate(short), str(short), "truncated, damaged or not a checkpoint")
    (tmp_path / "empty").mkdir()
    fails(capsys, evaluate(tmp_path / "empty"), "checkpoint.pt: no such file")
    assert not (tmp_path / "results").exists()


def test_module_runs_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "ssl_fast", "quickstart", "--method", "foo"], capture_output=True, text=True, timeout=60
    )
    assert (
        done.returncode == 2
        and done.stderr.startswith("ssl-fast quickstart: method: expected one of")
        and not done.stdout
    )


@pytest.mark.parametrize(
    "command, unbuffered",
    [("--help", ""), ("doctor", "1")],  # found by the flush at the end, and in the middle of a report
)
def test_nobody_reads_stdout(command, unbuffered):
    end, stdout = os.pipe()
    os.close(end)
    done = subprocess.run(
        [sys.executable, "-m", "ssl_fast", command],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
    )
    os.close(stdout)
    assert (done.returncode, done.stderr) == (141, "")


def test_help_needs_no_heavy_module():
    code = """
        import argparse, sys
        from ssl_fast.cli import main as cli
        commands = next(a for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
        for command in ([], ["data", "check"], *([name] for name in commands)):
            assert cli.main([*command, "--help"]) == 0
        heavy = {"torch", "numpy", "matplotlib", "PIL", "faiss", "soundfile", "torchaudio", "tqdm"}
        heavy.add("importlib.metadata")
        sys.exit(", ".join(heavy & sys.modules.keys()) or None)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    for usage in ("[-h]", "train [-h]", "evaluate [-h]", "data check [-h]", "demo [-h]", "bench [-h]", "doctor [-h]"):
        assert f"usage: ssl-fast {usage}" in done.stdout
