import os
import signal
import sys

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch loads: threads must not spin on a shared machine
for cache in ("FX_GRAPH", "AUTOGRAD"):  # of compiled graphs, which does not see that an op has changed
    os.environ.setdefault(f"TORCHINDUCTOR_{cache}_CACHE", "0")


def pytest_addoption(parser):
    parser.addoption("--require-cuda", action="store_true", help="tests marked `cuda` fail where they would be skipped")
    parser.addoption("--behind", metavar="TEST", help="only what was collected behind this test")
    parser.addoption("--all", action="store_true", help="run the tests marked `slow` or `sweep` too")


def pytest_configure(config):
    for marker in (
        "cuda(devices=1): needs so many CUDA devices; skipped without them, or with --require-cuda fails, unless there "
        "are some, but too few",
        "slow: takes seconds: trains, starts processes, a browser; only run with --all, -m, --lf, or by its name "
        "(FILE::TEST)",
        "grid: of all combinations of the test's parameters, a few that have each value at least once always run; the "
        "others are marked `sweep`",
        "sweep: a combination of parameters that is only run with --all, -m, --lf, or by its name (FILE::TEST)",
    ):
        config.addinivalue_line("markers", marker)


def diagonal(cases: list[dict]) -> list[int]:
    """Indices of a few of the cases ({parameter: value}) in which each value of each parameter occurs: one after the
    other the case with the most values that have not yet occurred, the first of equals."""
    values = [{(name, repr(value)) for name, value in case.items()} for case in cases]
    missing, chosen = set().union(*values), []
    while missing:
        chosen.append(max(range(len(cases)), key=lambda i: len(values[i] & missing)))
        missing -= values[chosen[-1]]
    return chosen


def mark_sweeps(items) -> None:
    grids = {}
    for item in items:
        if item.get_closest_marker("grid"):
            grids.setdefault((item.path, item.cls, item.originalname), []).append(item)
    for grid in grids.values():
        chosen = set(diagonal([item.callspec.params for item in grid]))
        for i, item in enumerate(grid):
            if i not in chosen:
                item.add_marker("sweep")


@pytest.hookimpl(tryfirst=True)  # before -m looks at markers
def pytest_collection_modifyitems(config, items):
    mark_sweeps(items)
    asked = config.getoption("--all") or config.option.markexpr or config.getoption("--lf", False)
    if not (asked or any("::" in name for name in config.args)):
        long = {item for item in items if item.get_closest_marker("slow") or item.get_closest_marker("sweep")}
        config.hook.pytest_deselected(items=list(long))
        items[:] = [item for item in items if item not in long]
    if last := config.getoption("--behind"):
        names = [item.nodeid for item in items]
        if last not in names:
            raise pytest.UsageError(f"--behind: expected one of the collected tests, got {last}")
        del items[: names.index(last) + 1]


def cuda_is_lost() -> bool:
    """Whether an error on the GPU has left a context in which every further call fails."""
    import torch

    try:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def too_few_devices(marker) -> bool:
    """Whether there are CUDA devices, but fewer than the test with this marker needs."""
    import torch

    needed = marker.kwargs.get("devices", 1)
    return needed > 1 and 0 < torch.cuda.device_count() < needed


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    marker = item.get_closest_marker("cuda")
    if marker is None or not item.config.getoption("--require-cuda"):
        return
    if report.failed and cuda_is_lost():
        item.session.shouldstop = f"CUDA is lost to this process after {item.nodeid}"
    if report.skipped and not too_few_devices(marker):
        report.outcome = "failed"
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.longrepr = f"--require-cuda: this test must run, but it was not able to: {reason}"


@pytest.fixture(autouse=True)
def small_calls_use_all_threads():
    kernels = sys.modules.get("ssl_fast.ops.kernels")
    if kernels is None:  # not to load torch for tests that do without
        yield
        return
    before, kernels.SERIAL_FLOPS = kernels.SERIAL_FLOPS, 0
    yield
    kernels.SERIAL_FLOPS = before


@pytest.fixture
def set_threads():
    """torch.set_num_threads for one test."""
    import torch

    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(params=["reference", "compiled"])
def backend(request):
    """Each backend of the ops that there is."""
    from ssl_fast.ops import checks

    if request.param == "compiled" and checks.extension is None:
        pytest.skip(f"no compiled module: {checks.extension_error}")
    return request.param


@pytest.fixture
def use_set():
    """`use_instruction_set` of the compiled module, for one test."""
    from ssl_fast.ops import checks

    before = checks.extension.instruction_set()
    yield checks.extension.use_instruction_set
    checks.extension.use_instruction_set(before)


@pytest.fixture
def set_extension(monkeypatch):
    """Puts another compiled module in place (None: none), as in a new process: no device was probed, nothing was warned
    of."""
    from ssl_fast.ops import checks

    def forget():
        checks._warn_once.cache_clear()
        checks._load_errors.clear()

    def load(extension):
        forget()
        monkeypatch.setattr(checks, "extension", extension)

    forget()
    yield load
    forget()


@pytest.fixture
def heeded_hangup():
    """SIGHUP acts, also where the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="session")
def pipeline():
    """The embedded localizer, with all that an answer takes."""
    from ssl_fast.inference.localize import LocalizationPipeline
    from ssl_fast.models import checkpoints

    return LocalizationPipeline(checkpoints.load(checkpoints.EMBEDDED))


@pytest.fixture(scope="session")
def token_pipeline():
    """A localizer with audio tokens, not trained, with all that an answer takes."""
    import torch

    from ssl_fast.inference.localize import LocalizationPipeline
    from ssl_fast.models import LocalizerConfig, build, checkpoints
    from ssl_fast.training.recipes import recipe

    torch.manual_seed(0)
    made = build(LocalizerConfig.small("dense_av", width=4, dimension=8)).eval()
    found = checkpoints.Checkpoint(
        checkpoints.EMBEDDED, made, recipe("dense_av").to_dict(), "ssl_fast", threshold=0.2, token_threshold=0.06
    )
    return LocalizationPipeline(found)
