"""Modules that `import ssl_fast` imports, and those that are imported on first use."""

import importlib
import subprocess
import sys
import textwrap

import pytest

import ssl_fast
from op_checks import needs_compiled
from ssl_fast import training


@needs_compiled
def test_torch_is_imported_on_first_use_and_before_the_compiled_module():
    """Behind torch the compiled module shares its OpenMP runtime."""
    code = """
        import sys
        import ssl_fast
        print(*{"torch", "numpy", "ssl_fast._C"} & sys.modules.keys())
        print(ssl_fast.losses.lvs.__name__, ssl_fast.ops.cosine_map.__name__, ssl_fast.training.recipes.recipe.__name__)
        print(*(name for name in sys.modules if name in ("torch", "ssl_fast._C")))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("\nlvs cosine_map recipe\ntorch ssl_fast._C\n", "")


def test_attributes():
    assert {"losses", "ops", "data", "evaluation", "recipes", "distributed", "__version__"} <= set(dir(ssl_fast))
    assert callable(ssl_fast.evaluation.evaluate)
    assert importlib.import_module("ssl_fast.recipes").recipe is ssl_fast.recipes.recipe is training.recipes.recipe
    with pytest.raises(AttributeError, match="module 'ssl_fast' has no attribute 'loses'"):
        _ = ssl_fast.loses
