"""The benchmark of mining at small size: what it times is all products, and the search that is used."""

import json

import numpy as np
import torch

from programs import example
from ssl_fast.data import neighbors


def test_the_tiles_are_all_products(monkeypatch):
    units, seen, mm = torch.randn(23, 4), [], torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b, out: seen.append(mm(a, b, out=out).clone()))
    example("bench_mining").products(units, 5, 7)()
    torch.testing.assert_close(torch.cat(seen, 1), units[:5] @ units.T)


def test_figures_fit_together(tmp_path, capsys):
    search = neighbors._search_in_heaps
    before = torch.get_num_threads()
    example("bench_mining").main(
        ["--samples", "1500", "--dimension", "16", "--k", "5", "--rounds", "2", "--json", str(tmp_path / "b.json")]
    )
    assert neighbors._search_in_heaps is search and torch.get_num_threads() == before
    record = json.loads((tmp_path / "b.json").read_text())
    row = record["blocks"]
    assert (record["samples"], record["k"], row["queries"]) == (1500, 5, 1024) and record["versions"]["faiss"]
    np.testing.assert_allclose(row["mining_wall_gflops"] * row["mining_wall_s"], 2e-9 * 1024 * 1500 * 16)
    np.testing.assert_allclose(row["whole_minutes"], row["mining_wall_s"] * 1500 / 1024 / 60)
    assert "share of torch.mm's rate" in capsys.readouterr().out
