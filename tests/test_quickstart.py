"""The command of the README at full length: some minutes of training, then what it must have learned."""

import json

import pytest

from ssl_fast.cli import main as cli


@pytest.mark.slow
def test_default_quickstart_learns_to_localize(tmp_path, monkeypatch, set_threads):
    monkeypatch.setenv("SSL_FAST_CACHE", str(tmp_path / "cache"))
    assert cli.main(["quickstart", "--out", str(tmp_path / "run"), "--minutes", "60", "--quiet"]) == 0
    results = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert results["method"] == "ssl_align" and results["steps"] == results["planned_steps"]
    least = {
        "single_ciou_adaptive": 0.92,
        "duo_ciou_adaptive": 0.80,
        "iiou_adaptive": 0.65,
        "interactive_pointing": 0.80,
    }
    assert {name: results[name] for name in least if results[name] < least[name]} == {}
    assert results["final_loss"] < 0.8 * results["chance"]
    for name in ("whole_image", "centre_box", "random", "objectness"):  # never hear the sound
        assert results[f"baseline_{name}_iiou_adaptive"] <= 0.03
        assert results[f"baseline_{name}_interactive_pointing"] <= 0.10
