"""The compiled module checks once more what ssl_fast.ops hands over: a swapped or short buffer is an error."""

import subprocess
import sys

import pytest
import torch

from op_checks import needs_compiled
from ssl_fast.ops import checks
from ssl_fast.ops.kernels import buffer
from ssl_fast.ops.poolings import KERNEL_POOLINGS

pytestmark = needs_compiled
N, M, C, P = 3, 5, 8, 6
SIZES = {"visual": N * C * P, "audio": M * C, "inverse_norm": N * P, "scores": N * M, "residual": N * M}
SIZES |= {"grad_scores": N * M, "grad_visual": N * C * P, "grad_audio": M * C}
FEATURES = ("visual", "audio", "inverse_norm", "cached_alphas", "grad_visual", "grad_audio")


def backward(parameters=(0.4, 0.1), **changes):
    """One backward pass with good buffers but for `changes` (None: no buffer)."""
    compiled = checks.extension
    tensors = {name: torch.ones(size) for name, size in SIZES.items()} | {"cached_alphas": torch.empty(0)}
    buffers = {name: buffer(tensor) for name, tensor in (tensors | changes).items()}
    compiled.similarity_backward(
        compiled.Shape(dtype=compiled.DType.float32, channels_last=False, images=N, audios=M, channels=C, cells=P),
        compiled.Features(**{name: buffers.pop(name) for name in FEATURES}),
        pooling=compiled.Pooling.soft_threshold,
        parameters=list(parameters),
        cached_images=0,
        positives=None,
        positive_map=None,
        grad_map=None,
        threads=1,
        **buffers,
    )
    return tensors


def test_good_buffers_are_taken():
    assert backward(grad_visual=None)["grad_audio"].isfinite().all()


@pytest.mark.parametrize("name", SIZES)
def test_a_short_buffer_is_an_error(name):
    bytes_ = 4 * SIZES[name]
    with pytest.raises(ValueError, match=f"^{name}: expected {bytes_} bytes, got {bytes_ - 4}$"):
        backward(**{name: torch.ones(SIZES[name] - 1)})


@pytest.mark.parametrize("name", [name for name in SIZES if name not in ("grad_visual", "grad_audio")])
def test_a_missing_buffer_is_an_error(name):
    with pytest.raises(ValueError, match=f"^{name}: expected {4 * SIZES[name]} bytes, got null$"):
        backward(**{name: None})


def test_swapped_features_are_an_error():
    with pytest.raises(ValueError, match="^visual: expected 576 bytes, got 160$"):
        backward(visual=torch.ones(M * C), audio=torch.ones(N * C * P))


@pytest.mark.parametrize("parameters", [(), (0.4,), (0.4, 0.1, 1.0)])
def test_another_number_of_parameters_is_an_error(parameters):
    with pytest.raises(ValueError, match=f"^parameters: expected 2, got {len(parameters)}$"):
        backward(parameters)


def row_loss(pooling="soft_threshold", background=(0.4, 0.1), **changes):
    """One pass with good buffers but for `changes`; the tensors."""
    compiled = checks.extension
    tensors = {name: torch.ones(size) for name, size in SIZES.items()} | {"cached_alphas": torch.empty(0)}
    tensors |= {name: torch.empty(N * P) for name in ("positive_map", "grad_map")}
    tensors |= {"positives": torch.arange(N), "loss": torch.empty(())}
    buffers = {name: buffer(tensor) for name, tensor in (tensors | changes).items()}
    compiled.similarity_row_loss(
        shape(),
        compiled.Features(**{name: buffers.pop(name) for name in FEATURES}),
        pooling=getattr(compiled.Pooling, pooling),
        parameters=[] if pooling == "max" else [0.4, 0.1],
        tau=0.1,
        margin=0.0,
        background=background,
        threads=1,
        **buffers,
    )
    return tensors


def test_buffers_of_a_row_loss():
    """Equal cosines: each of the others, and the background, is as good as the positive."""
    assert row_loss()["loss"].item() == pytest.approx(torch.log(torch.tensor(M + 1.0)).item())
    assert row_loss(background=None)["loss"].item() == pytest.approx(torch.log(torch.tensor(float(M))).item())
    for name in ("loss", "scores", "grad_scores", "positive_map", "grad_map"):
        with pytest.raises(ValueError, match=f"^({name}|maps|grad_maps): expected .* bytes, got null$"):
            row_loss(**{name: None})
    with pytest.raises(ValueError, match="^positives: expected with background, got null$"):
        row_loss(positives=None)
    with pytest.raises(ValueError, match=r"^positives: expected columns in \[0, 5\), got 0..5$"):
        row_loss(positives=torch.tensor([0, 5, 1]))
    with pytest.raises(ValueError, match="^pooling: expected one with a gradient of every cell$"):
        row_loss("max")


def shape(**sizes):
    given = {"images": N, "audios": M, "channels": C, "cells": P} | sizes
    return checks.extension.Shape(dtype=checks.extension.DType.float32, channels_last=False, **given)


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"images": -1}, "negative size"),
        ({"images": 2**61}, "sizes whose product is too large"),
        ({"audios": 2**62}, "sizes whose product is too large"),
        ({"channels": 0}, "expected channels and cells"),
        ({"cells": 0}, "expected channels and cells"),
    ],
)
def test_impossible_sizes_are_an_error(sizes, message):
    with pytest.raises(ValueError, match=f"^shape: {message}$"):
        shape(**sizes)


def test_a_module_of_other_sources_is_not_used():
    """As after an update of the sources alone."""
    code = "import ssl_fast._C as c; c.interface = 0; from ssl_fast.ops import checks; print(checks.extension_error)"
    done = subprocess.run([sys.executable, "-c", f"import torch; {code}"], capture_output=True, text=True, timeout=120)
    assert done.stdout == "it was built from other sources than these\n", done.stderr


def test_numbers_are_no_enums():
    compiled = checks.extension
    with pytest.raises(TypeError, match="incompatible constructor arguments"):
        compiled.Shape(dtype=0, channels_last=False, images=N, audios=M, channels=C, cells=P)


def test_poolings_of_python_are_those_of_the_kernels():
    python = {kind: (len(pooling().parameters), pooling.sparse) for kind, pooling in KERNEL_POOLINGS.items()}
    assert python == checks.extension.poolings and python.keys() == checks.extension.Pooling.__members__.keys()
