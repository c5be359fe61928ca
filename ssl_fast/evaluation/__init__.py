"""Evaluation: metrics, baselines that never hear the sound, results as files and as one self-contained page.

    from ssl_fast import evaluation
    results = evaluation.evaluate(localizer, {"single": single, "duo": duo}, validation=val)
    results.write_json("metrics.json"), results.write_csv("per_sample.csv")
    shown = evaluation.collect_overlays(localizer, duo, results, "duo")
    evaluation.write_report("report.html", results, overlays=shown)
"""

from .baselines import BASELINES
from .evaluate import evaluate
from .overlays import collect as collect_overlays
from .protocols import PROTOCOLS, Protocol, Rule, Upsampling
from .report import write_report
from .results import Results

__all__ = ["BASELINES", "PROTOCOLS", "Protocol", "Results", "Rule", "Upsampling", "collect_overlays", "evaluate",
           "write_report"]
