"""scripts/ptxas_table.py, on what ptxas of CUDA 13.0 prints."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "scripts/ptxas_table.py"
pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="the scripts are not here")

FINE = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'pack' for 'sm_90a'
ptxas info    : Function properties for pack
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 5248 bytes smem
ptxas info    : Compile time = 11.905 ms
"""
SPILLS = """\
ptxas info    : Compiling entry function 'pool' for 'sm_120'
ptxas info    : Function properties for pool
    88 bytes stack frame, 84 bytes spill stores, 96 bytes spill loads
ptxas info    : Used 255 registers, used 3 barriers, 88 bytes cumulative stack size
"""


@pytest.fixture
def table():
    spec = importlib.util.spec_from_file_location("ptxas_table", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_table_of_registers_and_spills(table, capsys):
    assert table.report(table.parse(FINE)) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["sm_90a", "40", "0", "5248", "pack"]
    assert table.report(table.parse(FINE + "[5/7] Building CUDA object\n" + SPILLS)) == 1
    *_, pool, summary = capsys.readouterr().out.splitlines()
    assert pool.split() == ["sm_120", "255", "180", "0", "pool"] and summary == "2 kernels, 1 of them spill registers"
    assert table.report(table.parse("nothing was compiled\n")) == 1
