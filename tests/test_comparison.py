"""Results compared on their common samples: against loops over samples, and closed forms."""

import json
import re

import numpy as np
import pytest

from ssl_fast.cli.main import main
from ssl_fast.evaluation import comparison
from ssl_fast.evaluation.results import Results


def rows(images=40, seed=0, drop=(), **changes):
    """Columns of a set of two sounds an image, one only of the last."""
    generator = np.random.default_rng(seed)
    n = 2 * images - 1
    columns = {
        "id": [f"-{k}" for k in range(n)],  # a spreadsheet would take it for a formula
        "image_id": [f"image {k // 2}" for k in range(n)],
        "category": ["bell"] * n,
        "iou_adaptive": [0.5 - 1e-9, *generator.random(n - 1)],  # of a large frame
        "iou_test_threshold": generator.random(n).tolist(),
        "iou_adaptive_mask": [float("nan") if k % 5 == 0 else value for k, value in enumerate(generator.random(n))],
        "pia_noise": generator.random(n).round(3).tolist(),
        "pointing": (generator.random(n) < 0.6).tolist(),
    }
    columns |= changes
    kept = [k for k in range(n) if k not in drop]
    return {name: [values[k] for k in kept] for name, values in columns.items()}


def written(folder, **sets):
    folder.mkdir()
    Results(samples=sets).write_csv(folder / "per_sample.csv")
    return folder


def test_figures_of_the_common_samples_are_those_of_a_loop(tmp_path):
    first, second = rows(drop=(3, 4)), rows(seed=1, drop=(4, 7))
    second = {name: values[::-1] for name, values in second.items()}  # in another order
    folders = [written(tmp_path / "a", duo=first), written(tmp_path / "b", duo=second, trio=rows())]
    found = comparison.compare({str(path): comparison.read(path) for path in folders}, resamples=10)
    assert list(found) == ["duo"]
    one = found["duo"]
    assert one["fell_away"] == {str(folders[0]): ["-7"], str(folders[1]): ["-3"]} and one["n"] == 76
    for path, columns in zip(folders, (first, second)):
        iou, images, point, noise = {}, {}, [], []
        for k, name in enumerate(columns["id"]):
            if name in ("-3", "-7"):
                continue
            iou[name] = columns["iou_adaptive"][k]
            images.setdefault(columns["image_id"][k], []).append(name)
            point.append(columns["pointing"][k])
            noise.append(columns["pia_noise"][k])
        figures = one["figures"][str(path)]
        whole = [all(iou[name] >= 0.5 for name in names) for names in images.values()]
        curve = [np.mean([value >= t for value in iou.values()]) for t in np.linspace(0, 1, 21)]
        assert figures["ciou_adaptive"] == pytest.approx(np.mean([value >= 0.5 for value in iou.values()]), abs=1e-12)
        assert figures["iiou_adaptive"] == pytest.approx(np.mean(whole), abs=1e-12)
        assert figures["auc_adaptive"] == pytest.approx((sum(curve) - (curve[0] + curve[-1]) / 2) / 20, abs=1e-12)
        assert figures["pointing"] == pytest.approx(np.mean(point)) and one["images"] == len(images)
        assert figures["pia_noise"] == pytest.approx(np.mean(noise))
        assert not any("test_threshold" in name for name in figures)
        masks = [v for n, v in zip(columns["id"], columns["iou_adaptive_mask"]) if n not in ("-3", "-7") and v == v]
        assert figures["mean_iou_adaptive_mask"] == pytest.approx(np.mean(masks), abs=1e-12)


def test_intervals_are_those_of_samples_drawn_again_image_by_image(tmp_path):
    tables = [comparison.read(written(tmp_path / name, duo=rows(12, seed)))["duo"] for seed, name in enumerate("ab")]
    first, second = comparison.common(tables)
    found = comparison.differences(first, second, resamples=200, seed=5)
    assert found.keys() == comparison.figures(first).keys()
    by_image = {}
    for k, image in enumerate(first.image_ids):
        by_image.setdefault(image, []).append(k)
    groups, generator = list(by_image.values()), np.random.default_rng(5)
    slow = {name: [] for name in found}
    for weights in generator.multinomial(12, np.full(12, 1 / 12), size=200):
        drawn = []
        for one in (first, second):
            rows_, images, copies = [], [], 0
            for group, times in zip(groups, weights):
                for _ in range(times):
                    rows_ += group
                    images += [str(copies)] * len(group)
                    copies += 1
            columns = {name: values[rows_] for name, values in one.columns.items()}
            drawn.append(comparison.figures(comparison.SampleTable(images, images, columns)))
        for name in slow:
            slow[name].append(drawn[1][name] - drawn[0][name])
    for name, values in slow.items():
        assert found[name][1:] == pytest.approx(np.percentile(values, (2.5, 97.5)), abs=1e-12)
        before, after = (comparison.figures(one)[name] for one in (first, second))
        assert found[name].value == after - before


def test_intervals_of_many_independent_images_are_those_of_the_normal_law():
    generator, n = np.random.default_rng(0), 2000
    names = [str(k) for k in range(n)]
    first, second = (
        comparison.SampleTable(names, names, {"pia_noise": generator.normal(mean, 1, n)}) for mean in (0, 0.2)
    )
    found = comparison.differences(first, second, resamples=4000)["pia_noise"]
    gap = second.columns["pia_noise"] - first.columns["pia_noise"]
    error = 1.96 * gap.std() / n**0.5
    assert found.value == pytest.approx(gap.mean())
    assert (found.low, found.high) == pytest.approx((gap.mean() - error, gap.mean() + error), abs=0.1 * error)
    shifted = comparison.SampleTable(names, names, {"pia_noise": first.columns["pia_noise"] + 0.5})
    assert comparison.differences(first, shifted, resamples=20)["pia_noise"] == pytest.approx((0.5, 0.5, 0.5))


def test_the_command_prints_and_writes_the_same_figures(tmp_path, capsys):
    folders = [written(tmp_path / "a", duo=rows(drop=(3,))), written(tmp_path / "b", duo=rows(seed=1))]
    paths = [str(path) for path in folders]
    assert main(["compare", *paths, "--out", str(tmp_path / "c.json"), "--resamples", "50"]) == 0
    shown, stored = capsys.readouterr().out, json.loads((tmp_path / "c.json").read_text())["sets"]["duo"]
    assert "duo: 78 samples of 40 images" in shown and f"[2] {paths[1]}, without 1 more samples" in shown
    assert stored["fell_away"] == {paths[0]: [], paths[1]: ["-3"]}
    line = next(line for line in shown.splitlines() if line.startswith("iiou_adaptive "))
    change = stored["differences"][paths[1]]["iiou_adaptive"]
    values = [stored["figures"][path]["iiou_adaptive"] for path in paths] + [change["value"], change["low"]]
    for value, digits in zip(values, ("{:.3f}", "{:.3f}", "{:+.3f}", "[{:+.3f}")):
        assert digits.format(value) in line
    assert change["value"] == pytest.approx(values[1] - values[0])
    assert main(["compare", *paths, "--out", str(tmp_path / "c.json")]) == 2 and "--force" in capsys.readouterr().err
    before = (folders[0] / "per_sample.csv").read_bytes()
    assert main(["compare", *paths, "--out", str(folders[0] / "per_sample.csv"), "--force"]) == 2
    assert (folders[0] / "per_sample.csv").read_bytes() == before


def test_cells_that_are_empty_in_one_result_count_in_none(tmp_path):
    nan = float("nan")
    first, second = (
        {"id": list("abc"), "image_id": list("abc"), "iou_adaptive": x} for x in ([1, 0, nan], [nan, 0.6, 1])
    )
    folders = [written(tmp_path / "a", duo=first), written(tmp_path / "b", duo=second)]
    found = comparison.compare({str(path): comparison.read(path) for path in folders}, resamples=10)["duo"]
    assert [one["mean_iou_adaptive"] for one in found["figures"].values()] == [0, 0.6]  # of b alone


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "per_sample.csv: expected the per_sample.csv of an evaluation, got no such file"),
        ("id,set\n", r"per_sample.csv: expected the columns set, id, image_id"),
        ("set,id,image_id,pia\n", "per_sample.csv: expected samples, got none"),
        ("set,id,image_id,pia\nduo,a,a\n", "per_sample.csv, line 2: expected 4 cells, got 3"),
        ("set,id,image_id,pia\nduo,a,a,x\n", "per_sample.csv, line 2: expected a number in column pia, got 'x'"),
        ("set,id,image_id,pia\nduo,a,a,inf\n", "per_sample.csv, line 2: expected a number in column pia, got 'inf'"),
        (
            "set,id,image_id,pia\nduo,a,a,1\nduo,a,a,1\n",
            "per_sample.csv, line 3: expected each sample .* got 'a' twice",
        ),
        ('set,id,image_id,pia\nduo,"a,a,1\n', "per_sample.csv: expected comma-separated values"),
        ("set,id,image_id,pia_x\ntrio,-1,image 0,1\n", "expected a set that all results have: .* has duo; .* has trio"),
        ("set,id,image_id,pia_noise\nduo,z,z,1\n", "set duo: expected samples that all results have, got none"),
        ("set,id,image_id,iou_x\nduo,-1,image 0,.4\n", "set duo: expected a column in which all results have values"),
        (
            "set,id,image_id,pia_noise\nduo,-1,image 0,1.5\n",
            "line 2: expected a number from 0 to 1 in column pia_noise",
        ),
        (
            "set,id,image_id,iou_adaptive_mask\nduo,-0,image 0,.4\n",
            "set duo: expected a column in which all results have",
        ),
        ("set,id,image_id,iou_test_threshold\nduo,-1,image 0,.4\n", "set duo: expected figures that do not depend on"),
        (
            "set,id,image_id,pia_noise\nduo,-1,image 9,1\n",
            "set duo: sample '-1': expected one image in all results, got 'image 0' and 'image 9'",
        ),
    ],
)
def test_what_is_wrong_with_a_result_is_named(content, message, tmp_path, capsys):
    good = written(tmp_path / "good", duo=rows())
    (tmp_path / "bad").mkdir()
    if content is not None:
        (tmp_path / "bad" / "per_sample.csv").write_text(content)
    assert main(["compare", str(good), str(tmp_path / "bad")]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert re.search(message, error), error


def test_one_result_is_no_comparison(tmp_path, capsys):
    good = str(written(tmp_path / "good", duo=rows()))
    assert main(["compare", good]) == 2 and "RESULT: expected two or more" in capsys.readouterr().err
    assert main(["compare", good, good]) == 2 and "expected each once" in capsys.readouterr().err
