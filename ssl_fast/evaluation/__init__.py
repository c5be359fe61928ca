"""Evaluation: metrics, baselines that never hear the sound, results as files and as one self-contained page.

    from ssl_fast import evaluation
    results = evaluation.evaluate(localizer, {"single": single, "duo": duo}, validation=val)
    results.write_json("metrics.json"), results.write_csv("per_sample.csv")
    shown = evaluation.collect_overlays(localizer, duo, results, "duo")
    evaluation.write_report("report.html", results, overlays=shown)

Maps that are already there become numbers by any published protocol, or by ours:

    evaluation.run("ez_vsl", maps, ground_truth, prior=prior)["figures"]
"""

from .baselines import BASELINES
from .evaluate import evaluate
from .overlays import collect as collect_overlays
from .protocols import PROTOCOLS, Accumulator, Protocol, Rule, Upsampling, run
from .report import write_report
from .results import Results

__all__ = [
    "BASELINES",
    "PROTOCOLS",
    "Accumulator",
    "Protocol",
    "Results",
    "Rule",
    "Upsampling",
    "collect_overlays",
    "evaluate",
    "run",
    "write_report",
]
