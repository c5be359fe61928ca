"""The CUDA kernels, compiled as C++ and run on the CPU: every op that has one, against the truth in numpy."""

import platform
import shutil
import subprocess
import sysconfig
import types
from importlib import util
from pathlib import Path

import pybind11
import pytest
import torch
from op_checks import DTYPES, LAYOUTS, OPS, SHAPES, Shape, assert_accurate, dtypes, evaluate, extra_for

from ssl_fast import ops
from ssl_fast.ops import checks

SOURCES = Path(__file__).parent.parent / "csrc"
EMULATED = ["mean", "masked-mean", "cosine-map"]
emulated_ops = pytest.mark.parametrize("name", EMULATED)

pytestmark = [
    pytest.mark.skipif(not SOURCES.exists(), reason="the sources are not here"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the emulation switches stacks of x86-64"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++"),
]


@pytest.fixture(scope="session")
def kernels(tmp_path_factory):
    """The module of emulated kernels."""
    path = tmp_path_factory.mktemp("emulation") / f"ssl_fast_emulation{sysconfig.get_config_var('EXT_SUFFIX')}"
    includes = [SOURCES / "emulation", pybind11.get_include(), sysconfig.get_paths()["include"]]
    units = [*sorted(SOURCES.glob("cuda/*.cu")), *sorted(SOURCES.glob("emulation/*.cpp"))]
    units.remove(SOURCES / "cuda" / "device.cu")  # asks the driver
    command = ["g++", "-shared", "-fPIC", "-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-DSSL_FAST_EMULATION",
               *(f"-I{path}" for path in includes), "-o", path, "-x", "c++", *units]  # fmt: skip
    built = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    spec = util.spec_from_file_location("ssl_fast_emulation", path)
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def emulated(kernels, monkeypatch):
    """From here on, ops on CPU tensors run the CUDA kernels."""
    calls = []

    def counted(name):
        return lambda *args, **kwargs: (calls.append(name), getattr(kernels, name)(*args, **kwargs))[1]

    monkeypatch.setattr(checks, "extension", types.SimpleNamespace(cosine=counted("cosine"), mean=counted("mean")))
    return calls


def features_of(name, shape, dtype, layout="contiguous"):
    op = OPS[name]
    return op, [LAYOUTS[layout](x) for x in op.features(shape, dtype)]


@emulated_ops
@dtypes(*DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_emulation_errs_at_most_twice_the_reference(name, dtype, shape, emulated):
    op, features = features_of(name, SHAPES[shape], dtype)
    extra = extra_for(SHAPES[shape])
    assert_accurate(op, features, extra)
    assert emulated


@emulated_ops
@dtypes(torch.float32, torch.float16)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_emulation_of_layouts(name, dtype, layout, emulated):
    shape = Shape(5, 5, 35, 5, 9)
    op, features = features_of(name, shape, dtype, layout)
    extra = extra_for(shape)
    assert_accurate(op, features, extra)


@emulated_ops
@pytest.mark.parametrize("wanted", [(0,), (1,)])
def test_emulation_of_single_gradients(name, wanted, emulated):
    shape = Shape(4, 4, 33, 3, 5)
    op, features = features_of(name, shape, torch.float32)
    extra = extra_for(shape)
    both, one = evaluate(op, features, extra), evaluate(op, features, extra, wanted=wanted)
    for i in wanted:
        assert torch.equal(one.gradients[i], both.gradients[i])


@emulated_ops
def test_emulation_of_zero_vectors_and_nan(name, emulated):
    shape = Shape(4, 4, 33, 3, 5)
    op, (visual, audio) = features_of(name, shape, torch.float32)
    extra = extra_for(shape)
    visual[0, :, 1, 2] = 0
    audio[2] = 0
    result = evaluate(op, [visual, audio], extra)
    assert all(x.isfinite().all() for x in result.tensors())
    assert (result.gradients[0][0, :, 1, 2] == 0).all() and (result.gradients[1][2] == 0).all()
    visual[1, 3, 0, 0] = float("nan")
    scores = evaluate(op, [visual, audio], extra).outputs[0]
    hit = scores.isnan().flatten(1).any(1)
    assert hit[1] == (name != "masked-mean" or extra.mask[1, 0, 0] >= 0) and not hit[[0, 2, 3]].any()


def test_emulation_of_empty_batches(emulated):
    visual, audio = torch.randn(0, 5, 2, 3), torch.randn(0, 5)
    assert ops.cosine_map(visual, audio).shape == (0, 2, 3)
    assert ops.pooled_similarity(visual, torch.randn(4, 5), ops.Mean()).shape == (0, 4)
    assert ops.pooled_similarity(torch.randn(4, 5, 2, 3), audio, ops.Mean()).shape == (4, 0)
