"""Evaluation: metrics, baselines that never hear the sound, results as files and as one self-contained page."""

from .baselines import BASELINES
from .evaluate import Protocol, evaluate
from .results import Results

__all__ = ["BASELINES", "Protocol", "Results", "evaluate"]
