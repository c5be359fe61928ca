#!/usr/bin/env python3
"""Prints registers, spills and static shared memory of every CUDA kernel for every architecture, as ptxas reports them.

    scripts/ptxas_table.py [ARCHITECTURE ...]     (default: 80 90a 100 120)

Compiles csrc/cuda with the nvcc of CUDACXX (default: the one on PATH); a GPU is not needed. Exit status: 1 where a
kernel spills registers.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

SOURCES = Path(__file__).resolve().parent.parent / "csrc/cuda"
ARCHITECTURES = ("80", "90a", "100", "120")


class Kernel(NamedTuple):
    name: str  # mangled
    architecture: str
    registers: int
    spilled: int  # bytes of stores and loads
    shared: int  # bytes, static


def parse(log: str) -> list[Kernel]:
    """The kernels of a log of `ptxas -v`."""
    pattern = r"Compiling entry function '(\S+)' for '(\S+)'(.*?)Used (\d+) registers([^\n]*)"
    kernels = []
    for name, architecture, properties, registers, used in re.findall(pattern, log, re.DOTALL):
        spilled = sum(map(int, re.findall(r"(\d+) bytes spill", properties)))
        shared = re.search(r"(\d+) bytes smem", used)
        kernels.append(Kernel(name, architecture, int(registers), spilled, int(shared[1]) if shared else 0))
    return kernels


def readable(names: list[str]) -> list[str]:
    """Demangled, without namespaces and arguments; as they are where there is no c++filt."""
    if shutil.which("c++filt") is None:
        return names
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    texts = []
    for line in done.stdout.splitlines():
        line = re.sub(r"^void |ssl_fast::cuda::|\(anonymous namespace\)::|\((?:bool|int)\)", "", line)
        texts.append(line.rpartition(">(")[0] + ">" if ">(" in line else line)
    return texts


def report(kernels: list[Kernel]) -> int:
    """Prints the table; 1 where there is no kernel, or one that spills."""
    rows = sorted(zip(readable([kernel.name for kernel in kernels]), kernels), key=lambda row: (row[0], row[1][1]))
    print("architecture  registers  spilled bytes  static shared  kernel")
    for name, kernel in rows:
        print(f"{kernel.architecture:>12}{kernel.registers:>11}{kernel.spilled:>15}{kernel.shared:>15}  {name}")
    spilling = sum(kernel.spilled > 0 for kernel in kernels)
    print(f"{len(kernels)} kernels, {spilling} of them spill registers")
    return int(not kernels or spilling > 0)


def compile_one(source: Path, architecture: str, folder: str) -> str:
    to = Path(folder) / f"{source.stem}.{architecture}.o"
    command = [os.environ.get("CUDACXX", "nvcc"), "-std=c++17", "-O3", "-Xptxas=-v", "-c", str(source), "-o", str(to)]
    flag = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    done = subprocess.run([*command, flag], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{source.name} for sm_{architecture}: nvcc failed\n{done.stdout}")
    return done.stdout


def main(architectures: list[str]) -> int:
    if shutil.which(nvcc := os.environ.get("CUDACXX", "nvcc")) is None:
        sys.exit(f"{nvcc}: not found; set CUDACXX to a CUDA compiler")
    jobs = [(source, architecture) for source in sorted(SOURCES.glob("*.cu")) for architecture in architectures]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        logs = pool.map(lambda job: compile_one(*job, folder), jobs)
        return report([kernel for log in logs for kernel in parse(log)])


if __name__ == "__main__":
    if sys.argv[1:2] in (["-h"], ["--help"]):
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1:] or list(ARCHITECTURES)))
