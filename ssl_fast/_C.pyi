"""The compiled module (csrc/module.cpp), which ssl_fast.ops calls."""

from typing import Any

def __getattr__(name: str) -> Any: ...
