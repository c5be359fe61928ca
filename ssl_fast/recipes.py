"""The names of `ssl_fast.training.recipes`, also for `import ssl_fast.recipes`."""

from .training.recipes import *  # noqa: F403
