import os

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch loads: threads must not spin on a shared machine


def pytest_addoption(parser):
    parser.addoption("--require-cuda", action="store_true", help="tests marked `cuda` fail where they would be skipped")


def pytest_configure(config):
    config.addinivalue_line("markers", "cuda: needs a CUDA device; skipped without one, or fails with --require-cuda")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.skipped and item.config.getoption("--require-cuda") and item.get_closest_marker("cuda"):
        report.outcome = "failed"
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.longrepr = f"--require-cuda: this test must run, but it was not able to: {reason}"


@pytest.fixture
def set_threads():
    """torch.set_num_threads for one test."""
    import torch

    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def viewer():
    """The embedded localizer, with all that an answer takes."""
    from ssl_fast.inference.localize import Viewer
    from ssl_fast.models import checkpoints

    return Viewer(checkpoints.load(checkpoints.EMBEDDED))
