"""Training by two gloo processes against one process with the same batches."""

import datetime
import json
import os
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
import torch.distributed as dist
from PIL import Image
from torch import nn

from loss_loops import flip
from ssl_fast import models
from ssl_fast.data import transforms as augmentation
from ssl_fast.evaluation.evaluate import success_rate
from ssl_fast.losses import LOSSES
from ssl_fast.models import LocalizerConfig, storage
from ssl_fast.training import learner
from ssl_fast.training import loop as training
from ssl_fast.training.recipes import Recipe, recipe
from ssl_fast.training.resume import resume_state
from ssl_fast.training.sampler import StepSampler
from ssl_fast.training.validation import best_record
from training_toys import Others, ToySet, after_step, loaded

PROCESSES = 2


def tiny(method, **changes):
    """40 samples make 5 steps of 8 an epoch; 2 epochs. No autocast, and nothing drawn in a step."""
    model = LocalizerConfig.small(
        method, width=4, dimension=8, **({"projection": 8} if method in ("ssl_align", "sspl") else {})
    )
    common = {
        "model": model,
        "batch_size": 8,
        "epochs": 2,
        "warm_up_steps": 2,
        "precision": "float32",
        "augmentation": "none",
        "nce_epochs": 0.6 * (method == "fnac"),
    }
    return recipe(method, **(common | changes))


def without_batch_norm(net):
    for name, layer in net.named_children():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            setattr(net, name, nn.GroupNorm(1, layer.num_features))
        else:
            without_batch_norm(layer)


def exact(config):
    """A localizer that can be compared: batch norm would tell the shards of a batch apart, which is not the loss's
    doing, so each sample is normalised alone; and in float64, as Adam makes much of the rounding of small gradients."""
    localizer = models.build(config)
    without_batch_norm(localizer)
    normalize = localizer.normalize_spectrograms
    localizer.normalize_spectrograms = lambda spectrograms: normalize(spectrograms).double()
    return localizer.double()


NEGATIVES = {"silence": 1, "noise": 2, "offscreen": 2}
GATHERED = {method: {} for method in LOSSES} | {
    "margin_nce": {"negatives": NEGATIVES, "negatives_weight": 3.0},
    "hard_positives": {"negatives": {"silence": 1}},  # none for the first process
    "slavc": {"momentum_decay": 0.5, "loss": {"negatives": "both"}, "negatives": NEGATIVES},
    "fnac": {"loss": {"tau": 0.07, "weights": (6.0, 6.0, 6.0)}},
    "ssl_align": {"views": ("original", "augmented")},
    "lvs": {"accumulation": 2, "negatives": {"noise": 3}},
    "dense_av": {"masks": "none", "loss": {"negative_pressure": 0.0}},
}
# what a step draws, statistics of batch norm, and what only the checkpoint can carry over
RESUMED = tiny(
    "slavc",
    momentum_decay=0.9,
    augmentation="shift",
    negatives=NEGATIVES,
    model=LocalizerConfig.small("slavc", width=4, dimension=8, visual_dropout=0.5),
)


class Broken(ToySet):
    def __init__(self):
        super().__init__()
        index, _ = next(iter(StepSampler(40, 8, 10, seed=0)))[0]
        self.spectrograms[index] = float("nan")


class Crash(Exception):
    pass


def summary(run):
    history = [{key: value for key, value in record.items() if key != "seconds"} for record in run.history]
    return {"weights": run.localizer.state_dict(), "history": history, "chance": run.chance}


def run(one, build=models.build, **options):
    """`train` on the toys."""
    learner.build, draw, build_loss = build, augmentation.TRANSFORMS["single_shrink"], Recipe.build_loss
    if build is exact:  # each process draws its own transforms of ssl_tie
        augmentation.TRANSFORMS["single_shrink"] = lambda batch, generator: flip
        Recipe.build_loss = lambda self: build_loss(self).double()
    try:
        return training.train(ToySet(), one, progress=False, **options)
    finally:
        learner.build, augmentation.TRANSFORMS["single_shrink"], Recipe.build_loss = models.build, draw, build_loss


# ---------------------------------------------------------------------------------------------------------------------
# What runs in the processes


def crash(_, record):
    if record["step"] == 3:
        raise Crash


def stop_one(_, record):
    """The second process gets a signal in step 4, and the first never."""
    if record["step"] == 4 and dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGTERM)


def message(function, *arguments, **options):
    try:
        function(*arguments, **options)
    except (ValueError, learner.TrainingError, training.Interrupted) as error:
        return str(error)


def outcomes(folder):
    found = {method: summary(run(tiny(method, **changes), exact, gather=True)) for method, changes in GATHERED.items()}
    found["local"] = summary(run(tiny("ez_vsl", negatives=NEGATIVES), exact))
    for samples in (8, 27):  # one batch: none for the first process; three, and samples that fill none
        found["validated", samples] = summary(run(tiny("ez_vsl"), exact, gather=True, validation=Others(samples)))
    found["normed"] = summary(run(tiny("ez_vsl"), validation=Others(16), out=folder / "normed"))
    for samples in (1, 15):
        out = folder / f"successful{samples}"
        found["successful", samples] = summary(run(tiny("ez_vsl"), validation=Others(samples, True), out=out))
    found["whole"] = summary(run(RESUMED, seed=5))
    try:
        run(RESUMED, seed=5, out=folder / "part", checkpoint_every=1e-9, callbacks=[after_step(crash)])
    except Crash:
        dist.barrier()
    found["alone"] = message(resume_state, folder / "part", {"processes": None})
    found["resumed"] = summary(run(RESUMED, seed=5, out=folder / "part", resume=True))
    there = folder / ("part" if dist.get_rank() == 0 else "elsewhere")
    found["elsewhere"] = message(run, RESUMED, seed=5, out=there, resume=True)
    found["broken"] = message(training.train, Broken(), tiny("ez_vsl"), progress=False)
    found["stopped"] = message(run, tiny("ez_vsl"), out=folder / "stopped", callbacks=[after_step(stop_one)])
    found["no shards"] = message(run, tiny("ez_vsl", batch_size=7))
    found["no parts"] = message(run, tiny("ez_vsl", accumulation=4))
    found["norm"] = message(run, tiny("ez_vsl"), sync_batch_norm=True)
    found["seeds"] = message(run, tiny("ez_vsl"), seed=7 + dist.get_rank())
    other = ToySet()
    other.ids = [f"{dist.get_rank()}-{i}" for i in range(40)]
    found["other data"] = message(training.train, other, tiny("ez_vsl"), progress=False)
    other = ToySet()
    other.content = lambda: f"files of {dist.get_rank()}"
    found["other content"] = message(training.train, other, tiny("ez_vsl"), progress=False)
    few = Others(40 if dist.get_rank() == 0 else 4)
    found["one fails"] = message(run, tiny("ez_vsl"), validation=few)
    return found


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=PROCESSES,
        timeout=datetime.timedelta(seconds=60),
    )
    torch.save(outcomes(folder), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """The folder of the runs, and the outcomes of each process."""
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(work, (folder,), PROCESSES)
    return folder, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


# ---------------------------------------------------------------------------------------------------------------------
# Runs


def assert_close(got, expected):
    for ours, theirs in zip(got["history"], expected["history"], strict=True):
        assert ours.keys() == theirs.keys()
        assert list(ours.values()) == pytest.approx(list(theirs.values()), rel=1e-9)
    assert got["chance"] == expected["chance"]
    difference = sum((got["weights"][name] - value).square().sum() for name, value in expected["weights"].items())
    size = sum(value.square().sum() for value in expected["weights"].values())
    assert (difference / size).sqrt() <= 1e-9


def assert_same(got, expected):
    assert got["history"] == expected["history"]
    assert all(torch.equal(got["weights"][name], value) for name, value in expected["weights"].items())


@pytest.mark.slow
@pytest.mark.parametrize("method", GATHERED)
def test_distributed_training_with_gathered_negatives_is_that_of_one_process(method, processes):
    expected = summary(run(tiny(method, **GATHERED[method]), exact))
    for one in processes[1]:
        assert_close(one[method], expected)


@pytest.mark.slow
def test_distributed_training_with_local_negatives_is_that_of_a_batch_in_parts(processes):
    expected = summary(run(tiny("ez_vsl", negatives=NEGATIVES, accumulation=PROCESSES), exact))
    for one in processes[1]:
        assert_close(one["local"], expected)


@pytest.mark.slow
@pytest.mark.parametrize("samples", [8, 27])
def test_distributed_validation_loss_is_that_of_one_process(samples, processes):
    expected = summary(run(tiny("ez_vsl"), exact, validation=Others(samples)))
    assert sum("validation_loss" in record for record in expected["history"]) == 2
    for one in processes[1]:
        assert_close(one["validated", samples], expected)


def test_distributed_validation_is_of_the_net_that_is_kept(processes):
    """Statistics of batch norm and all: those of the first process."""
    folder, found = processes
    alone, others = learner.Learner(tiny("ez_vsl")), Others(16)
    alone.load(storage.load(folder / "normed" / "best.pt"))
    batches = zip(others.images[:, None].split(8), others.spectrograms[:, None].split(8))
    best = best_record(found[0]["normed"]["history"])["validation_loss"]
    assert best == pytest.approx(sum(alone.validation_losses(batches)) / 2, rel=1e-6)
    assert found[0]["normed"]["history"] == found[1]["normed"]["history"]


@pytest.mark.parametrize("samples", [1, 15])
def test_distributed_success_rate_counts_every_sample_once(samples, processes):
    folder, found = processes
    localizer, state = loaded(folder / f"successful{samples}")
    for one in found:
        best = best_record(one["successful", samples]["history"])
        assert best["step"] + 1 == state["step"]
        assert best["validation_success"] == success_rate(localizer, Others(samples, True))


def test_distributed_training_resumed_equals_an_uninterrupted_run(processes):
    folder, found = processes
    for one in found:
        assert_same(one["resumed"], one["whole"])
        assert one["whole"]["history"] == found[0]["whole"]["history"]
    lines = [json.loads(line) for line in (folder / "part" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(10))
    assert "belongs to a run with processes={'number': 2, 'gather': False" in found[0]["alone"]


def test_distributed_training_stops_together(processes):
    folder, found = processes
    assert [one["stopped"] for one in found] == ["stopped after step 5"] * PROCESSES
    assert storage.load(folder / "stopped" / "checkpoint.pt")["step"] == 5


def test_distributed_training_resumes_from_one_checkpoint(processes):
    for one, step in zip(processes[1], (10, 0)):
        expected = f"expected the checkpoint that the other processes have, got one of step {step}"
        assert one["elsewhere"].endswith(expected)


def test_distributed_training_names_the_samples_of_all_processes(processes):
    """A broken sample of one of them breaks the gradient of both."""
    keys = next(iter(StepSampler(40, 8, 10, seed=0)))
    expected = ", ".join(Broken().ids[index] for index, _ in keys)
    for one in processes[1]:
        assert one["broken"] == f"step 0: the loss is nan for the samples {expected}"


ERRORS = {
    "no shards": "batch_size: expected equal shares of 2 or more for 2 processes, got 7",
    "no parts": "batch_size: expected equal shares of 2 or more for 2 processes, got 8 in 4 parts",
    "norm": "sync_batch_norm: expected a CUDA device, where torch.nn.SyncBatchNorm works, got cpu",
}


@pytest.mark.parametrize("name", ERRORS)
def test_distributed_training_error_on_every_process(name, processes):
    assert [one[name] for one in processes[1]] == [ERRORS[name]] * PROCESSES


def test_distributed_processes_of_several_runs_do_not_train(processes):
    """Every process says what differs; where one of them cannot train, the other says which."""
    seeds = "expected the same run on all processes: process 0 has seed=7; process 1 has seed=8"
    few = "validation: expected 8 samples or more, got 4"
    first, second = processes[1]
    assert first["seeds"] == second["seeds"] == seeds
    assert first["other data"] == second["other data"] and "process 1 has data=" in first["other data"]
    assert "process 1 has content=['files of 1', None]" in first["other content"] == second["other content"]
    assert (first["one fails"], second["one fails"]) == (f"process 1: {few}", few)


@pytest.mark.parametrize("option", ["gather", "sync_batch_norm"])
def test_distributed_options_need_several_processes(option):
    with pytest.raises(ValueError, match=f"{option}: expected several processes, as torchrun .*, got one"):
        run(tiny("ez_vsl"), **{option: True})


@pytest.mark.parametrize("parts", [1, 2])
def test_distributed_batches_are_cut_into_shards(parts):
    """Each process takes its shard of every part of the batch of one process, in order."""
    whole = StepSampler(21, 8, 4, seed=3)
    shards = [StepSampler(21, 8, 4, seed=3, parts=parts, rank=rank, processes=2) for rank in (0, 1)]
    for batch, first, second in zip(whole, *shards, strict=True):
        size = 4 // parts
        for part in range(parts):
            both = first[part * size : (part + 1) * size] + second[part * size : (part + 1) * size]
            assert both == batch[2 * part * size : 2 * (part + 1) * size]


# ---------------------------------------------------------------------------------------------------------------------
# Command line


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """12 images as PNG, each with a sound."""
    root = tmp_path_factory.mktemp("media")
    rng = np.random.default_rng(0)
    for name in ("frames", "audio"):
        (root / name).mkdir()
    for i in range(12):
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)).save(root / "frames" / f"clip{i}.png")
        soundfile.write(root / "audio" / f"clip{i}.wav", rng.uniform(-0.5, 0.5, 16000).astype(np.float32), 16000)
    return root


def torchrun(*argv, program=("-m", "ssl_fast")):
    """Exit code, stderr and stdout of the command line under torchrun."""
    argv = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(PROCESSES),
        *map(str, program + argv),
    ]
    environment = os.environ | {"OMP_WAIT_POLICY": "passive", "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            out, err = process.communicate(timeout=200)
            return process.returncode, err, out
        except subprocess.TimeoutExpired:
            process.terminate()  # it ends its processes, which outlive it where it is killed
            raise


CRASH = """
import os, signal, sys
first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
from ssl_fast.cli import main as cli
from ssl_fast.training import learner
step = learner.Learner.step
def killer(self, number, *rest):
    if number == 4 and self.rank == 1 and first:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, number, *rest)
learner.Learner.step = killer
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_distributed_command_line(media, tmp_path):
    """A run; and another one, killed in its middle and resumed, which ends in the same bits."""
    options = ["--data", media, "--method", "ez_vsl", "--batch-size", 4, "--epochs", 2, "--gather", "--quiet"]
    whole, part = tmp_path / "whole", tmp_path / "part"
    code, err, out = torchrun("train", "--out", whole, *options)
    assert code == 0, err
    assert out.count("trained ez_vsl for 6 steps") == 1  # the first process alone speaks
    localizer, state = loaded(whole)
    assert state["processes"] == {"number": 2, "gather": True, "sync_batch_norm": False} and state["step"] == 6
    script = tmp_path / "crash.py"
    script.write_text(CRASH)
    code, err, _ = torchrun("train", "--out", part, *options, "--checkpoint-every", 1e-6, program=(script,))
    assert code != 0 and storage.load(part / "checkpoint.pt")["step"] in (3, 4), err
    code, err, _ = torchrun("train", "--out", part, "--resume", "--data", media, "--quiet")
    assert code == 0, err
    resumed, state = loaded(part)
    assert state["step"] == 6
    assert all(torch.equal(resumed.state_dict()[name], value) for name, value in localizer.state_dict().items())


@pytest.mark.slow
def test_distributed_restarts_go_on_with_the_run(media, tmp_path):
    """torchrun --max-restarts: the same command again; but not with a run that was there before."""
    script, out = tmp_path / "crash.py", tmp_path / "run"
    script.write_text(CRASH)
    options = ["--data", media, "--method", "ez_vsl", "--batch-size", 4, "--epochs", 2, "--quiet", "--out", out]
    options += ["--checkpoint-every", 1e-6]
    code, err, _ = torchrun("train", *options, program=("--max-restarts", 1, script))
    assert code == 0 and storage.load(out / "checkpoint.pt")["step"] == 6, err
    assert "Traceback" not in err.partition("restart")[2]
    code, err, _ = torchrun("train", *options, program=("--max-restarts", 1, script))
    assert code != 0 and err.count("holds another run (run.json, config.toml, checkpoint.pt") == 2 * PROCESSES, err


@pytest.mark.slow
def test_distributed_folder_that_one_process_lacks(media, tmp_path):
    """No process waits for it, also where nobody ends the others: here they are of different launchers."""
    options = ["--batch-size", "4", "--epochs", "1", "--quiet"]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    environment |= {"LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "two"}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path)}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "ssl_fast", "train", "--data", data, "--out", tmp_path / "run", *options],
            env=environment | {"RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, data in enumerate((media, tmp_path / "nothing"))
    ]
    said = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [2, 2], said
    assert "process 1: " in said[0] and all(f"{tmp_path / 'nothing'}: expected a folder" in text for text in said)


@pytest.mark.slow
def test_distributed_command_line_is_for_training_alone(tmp_path):
    code, err, _ = torchrun("quickstart", "--out", tmp_path / "run")
    assert code != 0 and not (tmp_path / "run").exists()
    assert "ssl-fast quickstart: expected one process, got 2 from torchrun; only train takes several" in err
