"""Training of localizers: recipes, the views of a sample, a step, and the loop with its checkpoints."""

from .callbacks import Callback
from .learner import Learner, TrainingError
from .loop import Interrupted, Run, train
from .recipes import Recipe, recipe

__all__ = ["Callback", "Interrupted", "Learner", "Recipe", "Run", "TrainingError", "recipe", "train"]
