"""Agreement with the numbers that the published programs return (see the README of the golden folder)."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_fast import losses
from ssl_fast.data import front_ends
from ssl_fast.ops import checks

FOLDER = Path(os.environ.get("SSL_FAST_GOLDEN", Path(__file__).resolve().parents[1] / "../shared/golden")).resolve()
FILES = sorted(FOLDER.glob("losses_*.npz"))


def fnac_term(name):
    return lambda v1, a1, **options: losses.fnac(v1, a1, return_terms=True, **options)[1][name]


def slavc(v1, v2, a1, a2, v1m, v2m, a1m, a2m, **options):
    return losses.slavc(v2, v1, a2, a1, momentum=(v2m, v1m, a2m, a1m), **options)


def margin_nce(margin):
    return lambda v1, a1, **options: losses.margin_nce(v1, a1, margin=float(margin), **options)


def lvs(tri, hard):
    return lambda v1, a1, **options: losses.lvs(v1, a1, tri_map=bool(tri), hard_negative=bool(hard), **options)


CASES = {
    "ezvsl": losses.ez_vsl,
    "ezvsl_tau007": lambda v1, a1, **options: losses.ez_vsl(v1, a1, tau=0.07, **options),
    "slavc_released": slavc,
    **{f"fnac_{name}": fnac_term(name) for name in ("nce", "fns1", "tns", "fns2")},
    **{f"marginnce_m{margin}": margin_nce(margin) for margin in ("-0.2", "+0.0", "+0.2")},
    **{f"lvs_tri{tri}_neg{hard}": lvs(tri, hard) for tri in (0, 1) for hard in (0, 1)},
}

# backend, dtype, relative tolerance of the loss, norm-wise tolerance of each gradient
BACKENDS = {"reference": (torch.float64, 1e-9, 1e-9), "compiled": (torch.float32, 2e-5, 2e-4)}


def error(value, truth):
    return float(np.linalg.norm(np.asarray(value, np.float64) - truth) / np.linalg.norm(truth))


@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no golden folder {FOLDER}")
def test_golden_losses_are_there():
    assert FILES, f"{FOLDER} holds no losses_*.npz"


@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no golden folder {FOLDER}")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_golden_losses(file, backend):
    """Every case that the file records; a recorded case that is unknown here fails."""
    if backend == "compiled" and checks.extension is None:
        pytest.skip(f"the compiled module is absent: {checks.extension_error}")
    dtype, loss_tolerance, gradient_tolerance = BACKENDS[backend]
    golden = np.load(file)
    names = [key.removesuffix(".loss") for key in golden.files if key.endswith(".loss")]
    assert names and set(names) <= CASES.keys()
    for name in names:
        order = ("v1", "v2", "a1", "a2") if name == "slavc_released" else ("v1", "a1")
        inputs = [torch.from_numpy(golden[key]).to(dtype).requires_grad_() for key in order]
        momentum = {key: torch.from_numpy(golden[key]).to(dtype) for key in ("v1m", "v2m", "a1m", "a2m")}
        loss = CASES[name](*inputs, **(momentum if name == "slavc_released" else {}), backend=backend)
        assert loss.dtype == dtype
        assert error(loss.detach(), golden[f"{name}.loss"]) < loss_tolerance, name
        gradients = torch.autograd.grad(loss, inputs)
        for k, gradient in enumerate(gradients):
            assert error(gradient, golden[f"{name}.grad{k}"]) < gradient_tolerance, (name, order[k])


@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no golden folder {FOLDER}")
def test_golden_audio():
    """Every file and pipeline that is recorded; an unknown pipeline fails."""
    golden = json.loads((FOLDER / "audio.json").read_text())
    recorded = [key.removesuffix(".shape").split(".") for key in golden if key.endswith(".shape")]
    assert {pipeline for _, pipeline in recorded} == {"ezvsl", "fnac", "sslalign", "sslalign_ezvsl", "lvs"}
    for file, pipeline in recorded:
        got = front_ends.run(front_ends.PUBLISHED[pipeline], FOLDER / "wav" / f"{file}.wav").double().numpy()
        key = f"{file}.{pipeline}"
        assert list(got.shape) == golden[f"{key}.shape"], key
        values = {"sum": got.sum(), "abs2": (got**2).sum(), "every997": got.ravel()[::997]}
        for name, value in values.items():
            np.testing.assert_allclose(value, golden[f"{key}.{name}"], rtol=1e-5, err_msg=f"{key}.{name}")
