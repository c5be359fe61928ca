"""Benchmarks: the ops beside their references, and each stage from files to a training step."""
