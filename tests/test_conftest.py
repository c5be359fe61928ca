"""The option --require-cuda: a test asked to run on CUDA fails where it cannot."""

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


@pytest.mark.parametrize("option", OUTCOMES)
def test_require_cuda(tmp_path, option):
    (tmp_path / "conftest.py").write_text(Path(__file__).with_name("conftest.py").read_text())
    (tmp_path / "test_some.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "--strict-markers", "-p", "no:cacheprovider", *option.split(), "."]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert OUTCOMES[option] in run.stdout, run.stdout + run.stderr
    assert run.returncode == (1 if option else 0)
    if option:
        assert "must run, but it was not able to" in run.stdout and "none here" in run.stdout
