"""Localizers: two residual nets, the heads of each method, and momentum copies."""

from .localizers import METHODS, Localizer, LocalizerConfig, Momentum, build
from .resnet import ResNet18, SmallResNet

__all__ = ["METHODS", "Localizer", "LocalizerConfig", "Momentum", "ResNet18", "SmallResNet", "build"]
