"""The benchmark of the evaluator at small size: what it times computes what it says."""

import json

import numpy as np

from op_checks import needs_compiled
from programs import example
from ssl_fast.evaluation import protocols


def test_the_loop_takes_the_published_steps():
    bench, rng = example("bench_evaluator"), np.random.default_rng(0)
    maps, truth = bench.draw_maps(rng, 6), bench.paint(bench.draw_boxes(rng, 6))
    total = protocols.Accumulator("ez_vsl_validation")  # bicubic, value at the middle, >=
    total.update(maps, truth)
    np.testing.assert_allclose(
        bench.published_loop(maps, truth.astype(float), "bicubic"),
        total.columns["audio_visual"]["iou_top50"],
        atol=1e-12,
    )


@needs_compiled
def test_the_whole_protocol_is_paper_004(tmp_path, capsys):
    bench = example("bench_evaluator")
    bench.main(
        [
            "--images",
            "5",
            "--draws",
            "2",
            "--batch",
            "2",
            "--maps",
            "3",
            "--rounds",
            "1",
            "--json",
            str(tmp_path / "bench.json"),
        ]
    )
    record = json.loads((tmp_path / "bench.json").read_text())
    rng = np.random.default_rng(1)
    maps, boxes = bench.draw_maps(rng, 5), bench.draw_boxes(rng, 5)
    negatives = {kind: 0.8 * bench.draw_maps(rng, 2, 5) for kind in bench.KINDS}
    expected = protocols.run(
        "vssl_eval",
        maps,
        bench.paint(boxes),
        negatives=[{kind: v[k] for kind, v in negatives.items()} for k in range(2)],
    )
    whole = record["whole_protocol"]
    found = expected["figures"]["audio_visual"]["false_alarms"]
    assert whole["maps"] == 40 and abs(whole["f_loc"] - found["f_loc_test_threshold"]) < 1e-3
    assert all(row["cpu_us"] > 0 and row["wall_x"] > 0 for row in record["by_map"])
    assert "| bicubic | compiled |" in capsys.readouterr().out
