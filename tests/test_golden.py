"""Agreement with the numbers that the published programs return (see the README of the golden folder)."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_fast import losses
from ssl_fast.data.io.front_ends import FRONT_ENDS, file_spectrogram
from ssl_fast.evaluation import protocols
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
    """Norm of the error, relative to the norm of the truth; absolute where the truth is 0."""
    difference, size = np.linalg.norm(np.asarray(value, np.float64) - truth), np.linalg.norm(truth)
    return float(difference / size if size else difference)


def test_error_of_a_truth_of_zero_is_a_number():
    zeros = np.zeros((2, 3))
    assert error(zeros, zeros) == 0 and error(zeros + 0.5, zeros) == pytest.approx(0.5 * 6**0.5)
    assert not error(zeros * np.nan, zeros) < 1


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


# ------------------------------------------------------------------------------------------------ evaluators

EVALUATORS = sorted(FOLDER.glob("eval_*.npz"))
SHORT = {"av": "audio_visual", "obj": "prior", "av_obj": "mixed"}
KINDS = ("silence", "noise", "offscreen")


def pasted(boxes, weight):
    truth = np.zeros((len(boxes), 224, 224), np.float32)
    for image, own in zip(truth, boxes):
        for x0, y0, x1, y1 in own:
            image[y0:y1, x0:x1] += weight
    return truth.clip(0, 1)


def evaluated(protocol, heat, truth, **options):
    """(figures, columns) of each predictor, by an accumulator fed in two batches."""
    total = protocols.Accumulator(protocol, threshold=options.pop("threshold", None))
    for part in (slice(0, 7), slice(7, None)):
        own = {name: values[part] for name, values in options.items() if name != "negatives"}
        negatives = {kind: values[part] for kind, values in options.get("negatives", {}).items()}
        total.update(heat[part], truth[part], negatives=negatives, **own)
    return total.compute()["figures"], total.columns


def localization(found, columns, rule="top50"):
    table = found["localization"]
    return {
        "cIoU": table[f"ciou_{rule}"],
        "AUC": table[f"auc_{rule}"],
        "mean": table[f"mean_iou_{rule}"],
        "per_sample": columns[f"iou_{rule}"],
    }


def one_map(protocol, flickr=False):
    def case(golden, record):
        truth = pasted(record["boxes"], 0.5 if flickr else 1)
        figures, columns = evaluated(protocol, golden["heat"], truth)
        found = localization(figures["audio_visual"], columns["audio_visual"])
        return {key: found[key] for key in ("cIoU", "AUC", "per_sample")}

    return case


def three_maps(protocol, flickr=False):
    def case(golden, record):
        truth = pasted(record["boxes"], 0.5 if flickr else 1)
        figures, columns = evaluated(protocol, golden["heat"], truth, prior=golden["obj"])
        return {short: localization(figures[name], columns[name]) for short, name in SHORT.items()}

    return case


def extended(protocol, rule):
    def case(golden, record):
        sounding = golden["n_boxes"] > 0
        truth = pasted(record["boxes"], 1) * sounding[:, None, None].astype(np.float32)
        figures, columns = evaluated(protocol, golden["heat"], truth, prior=golden["obj"], sounding=sounding)
        out = {}
        for short, name in SHORT.items():
            found = figures[name]["detection"][rule]
            assert found["n"] == len(sounding) and found["n_sounding"] == sounding.sum()
            out[short] = {
                "precision_at_50": found["precision_at_50"],
                "ap_at_50": found["ap_published"],
                "f1_at_50": found["f1_at_half_published"],
                "maxF1": 100 * found["max_f1_published"],
                "LocAcc": found["loc_acc"],
                "ciou": columns[name][f"iou_{rule}"],
                "conf": columns[name]["confidence"],
            }
        return out

    return case


def ssl_align(protocol):
    def case(golden, record):
        ids = [protocols.published_image_id(name) for name in record["names"]]
        figures, columns = evaluated(
            protocol, golden["heat"], pasted(record["boxes"], 1), prior=golden["obj"], image_ids=ids
        )
        model, mixed = (figures[name]["localization"] for name in ("audio_visual", "mixed"))
        out = {
            "mIoU_per_sample": model["mean_iou_top50"],
            "per_sample": columns["audio_visual"]["iou_top50"],
            "per_sample_adap": columns["audio_visual"]["iou_adaptive"],
        }
        for suffix, rule in (("", "top50"), ("_adap", "adaptive")):
            out |= {
                f"cIoU{suffix}": model[f"ciou_{rule}"],
                f"AUC{suffix}": model[f"auc_{rule}"],
                f"IIoU{suffix}": model[f"iiou_{rule}"],
                f"IAUC{suffix}": model[f"iauc_{rule}"],
                f"cIoU{suffix}_ogl": mixed[f"ciou_{rule}"],
                f"AUC{suffix}_ogl": mixed[f"auc_{rule}"],
            }
        return out

    return case


def avsbench(rule):
    def case(golden, record):
        figures, _ = evaluated("avsbench", golden["heat"], pasted(record["boxes"], 1))
        found = figures["audio_visual"]["segmentation"][rule]
        return {"mIoU": found["miou_published"], "F": found["f_score_published"]}

    return case


def universal(golden, record):
    return protocols.run(
        "vssl_eval", golden["heat"], pasted(record["boxes"], 1), negatives={kind: golden[kind] for kind in KINDS}
    )["universal_threshold"]["value"]


def vssl_eval(protocol):
    def case(golden, record):
        figures, _ = evaluated(
            protocol,
            golden["heat"],
            pasted(record["boxes"], 1),
            threshold=universal(golden, record),
            negatives={kind: golden[kind] for kind in KINDS},
        )
        found = figures["audio_visual"]["false_alarms"]
        out = {
            "cIoU_U": found["mean_iou"],
            "AUC_U": found["auc"],
            "IoU_neg_neg": found["overlap_negatives"],
            "F_LOC": found["f_loc"],
            "F_AUC": found["f_auc"],
        }
        for kind in KINDS:
            out |= {
                f"pIA_{kind}": found[f"pia_{kind}"],
                f"AUC_N_{kind}": found[f"auc_n_{kind}"],
                f"IoU_pos_{kind}": found[f"overlap_{kind}"],
            }
        return out

    return case


RECORDED = {
    "lvs_vggss": one_map("lvs"),
    "lvs_flickr": one_map("ssl_tie", flickr=True),
    "ezvsl_vggss": three_maps("ez_vsl"),
    "ezvsl_flickr": three_maps("fnac", flickr=True),
    "ezvsl_train_val": one_map("ez_vsl_validation"),
    "fnac_validate2": three_maps("fnac_second_pass"),
    "slavc_extended_rel1": extended("slavc_extended", "top50"),
    "slavc_extended_rel0": extended("slavc_extended_absolute", "at_half"),
    "sslalign_lvs_vggss": ssl_align("ssl_align_vggss"),
    "sslalign_lvs_other": ssl_align("ssl_align"),
    "sslalign_validate": ssl_align("ssl_align"),
    "avs_top50": avsbench("top50"),
    "avs_adaptive": avsbench("adaptive"),
    "universal_threshold": universal,
    "vssl_eval_cv": vssl_eval("vssl_eval"),
    "vssl_eval_torch": vssl_eval("vssl_eval_corners"),
}
PERCENT = ("avs_top50", "avs_adaptive", "vssl_eval_cv", "vssl_eval_torch")  # the others are fractions


@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no golden folder {FOLDER}")
def test_golden_evaluators_are_there():
    assert EVALUATORS, f"{FOLDER} holds no eval_*.npz"


@pytest.mark.parametrize("file", EVALUATORS, ids=lambda file: file.stem)
def test_golden_evaluators(file):
    """Every figure that the file records, to 1e-6; a recorded one that is unknown here fails."""
    golden, record = np.load(file), json.loads(file.with_suffix(".json").read_text())
    assert record["results"] and set(record["results"]) <= RECORDED.keys()
    for name, expected in record["results"].items():
        compare(RECORDED[name](golden, record), expected, 100 if name in PERCENT else 1, name)


def compare(found, expected, scale, name):
    if isinstance(expected, dict):
        assert expected.keys() <= found.keys(), name
        for key, value in expected.items():
            compare(found[key], value, scale, f"{name} {key}")
    else:
        np.testing.assert_allclose(found, np.asarray(expected) / scale, rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no golden folder {FOLDER}")
def test_golden_audio():
    """Every file and pipeline that is recorded; an unknown pipeline fails."""
    golden = json.loads((FOLDER / "audio.json").read_text())
    recorded = [key.removesuffix(".shape").split(".") for key in golden if key.endswith(".shape")]
    assert {pipeline for _, pipeline in recorded} == {"ezvsl", "fnac", "sslalign", "sslalign_ezvsl", "lvs"}
    for file, pipeline in recorded:
        got = file_spectrogram(FRONT_ENDS[f"published/{pipeline}"], FOLDER / "wav" / f"{file}.wav").double().numpy()
        key = f"{file}.{pipeline}"
        assert list(got.shape) == golden[f"{key}.shape"], key
        values = {"sum": got.sum(), "abs2": (got**2).sum(), "every997": got.ravel()[::997]}
        for name, value in values.items():
            np.testing.assert_allclose(value, golden[f"{key}.{name}"], rtol=1e-5, err_msg=f"{key}.{name}")
