"""The options for a GPU: a test asked to run on CUDA fails where it cannot; what comes behind a lost context can be
run. Which tests run when nothing is asked for."""

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest

@pytest.mark.cuda
@pytest.mark.skipif(True, reason="no device")
def test_marked(): pass

@pytest.mark.cuda
def test_skips_itself(): pytest.skip("none here")

def test_unmarked(): pytest.skip("anything else")

@pytest.mark.cuda
def test_runs(): pass
"""


# skipped before it runs: an error in pytest's words
OUTCOMES = {"": "1 passed, 3 skipped", "--require-cuda": "1 failed, 1 passed, 1 skipped, 1 error"}


@pytest.fixture
def run(tmp_path):
    def run(tests, *options):
        (tmp_path / "conftest.py").write_text(Path(__file__).with_name("conftest.py").read_text())
        (tmp_path / "test_some.py").write_text(tests)
        command = [sys.executable, "-m", "pytest", "--strict-markers", *options]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    return run


@pytest.mark.parametrize("option", OUTCOMES)
def test_require_cuda(run, option):
    done = run(TESTS, *option.split())
    assert OUTCOMES[option] in done.stdout, done.stdout + done.stderr
    assert done.returncode == (1 if option else 0)
    if option:
        assert "must run, but it was not able to" in done.stdout and "none here" in done.stdout


LOST = """
import pytest
import torch
pytestmark = pytest.mark.cuda

def test_fails(): assert False

@pytest.mark.parametrize("bad", [False, True])
def test_breaks(bad, monkeypatch):
    torch.lost = bad
    assert not bad

def test_behind(): assert not torch.lost
"""
TORCH = """
lost = False

class cuda:
    is_available = lambda: True
    def synchronize():
        if lost: raise RuntimeError("CUDA error: an illegal memory access was encountered")
"""


def test_tests_behind_one_that_loses_the_context(run, tmp_path):
    (tmp_path / "torch.py").write_text(TORCH)
    done = run(LOST, "--require-cuda")
    assert "CUDA is lost to this process after test_some.py::test_breaks[True]" in done.stdout, (
        done.stdout + done.stderr
    )
    assert "2 failed, 1 passed" in done.stdout
    done = run(LOST, "--require-cuda", "--behind", "test_some.py::test_breaks[True]")
    assert "1 passed" in done.stdout and "failed" not in done.stdout
    done = run(LOST, "--behind", "test_other.py::test_x")
    assert (
        done.returncode == 4
        and "--behind: expected one of the collected tests, got test_other.py::test_x" in done.stderr
    )


TWO = """
import pytest

@pytest.mark.cuda(devices=2)
def test_of_two(): pytest.skip("fewer than two")
"""


@pytest.mark.parametrize("devices, outcome", [(0, "1 failed"), (1, "1 skipped"), (2, "1 failed")])
def test_a_test_of_two_devices_may_be_skipped_where_there_is_one(devices, outcome, run, tmp_path):
    (tmp_path / "torch.py").write_text(f"{TORCH}    device_count = lambda: {devices}\n")
    assert outcome in run(TWO, "--require-cuda").stdout


LONG = """
import pytest

@pytest.mark.grid
@pytest.mark.parametrize("a", "xyz")
@pytest.mark.parametrize("b, c", [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_grid(a, b, c): pass

@pytest.mark.slow
def test_slow(): pass

def test_quick(): pass
"""


def names(done):
    return {line.split("::")[1] for line in done.stdout.splitlines() if "::" in line}


@pytest.mark.parametrize("option", ["--all", "-m=sweep or slow or not (sweep or slow)"])
def test_which_tests_run(run, option):
    some, every = names(run(LONG, "--collect-only", "-q")), names(run(LONG, "--collect-only", "-q", option))
    assert {"test_quick", "test_slow"} <= every and len(every) == 14
    grid = [name[10:-1].split("-") for name in some - {"test_quick"}]
    assert "test_quick" in some and len(grid) == 3 and "test_slow" not in some
    assert [set(values) for values in zip(*grid, strict=True)] == [{*"12"}, {*"12"}, {*"xyz"}]
    assert names(run(LONG, "--collect-only", "-q", "-m", "sweep")) == every - some - {"test_slow"}


def test_a_slow_test_that_failed_is_run_again(run):
    tests = LONG.replace("def test_slow(): pass", "def test_slow(): assert False")
    assert "1 failed" in run(tests, "--all", "-p", "cacheprovider").stdout
    assert "1 failed" in run(tests, "--lf", "-p", "cacheprovider").stdout


def test_a_test_that_is_named_runs(run):
    assert "1 passed" in run(LONG, "test_some.py::test_slow").stdout
