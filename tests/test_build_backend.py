"""What the build downloads and which CUDA compiler it uses, on machines made of a few shell scripts."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "scripts" / "ssl_fast_backend.py"
TOOLKIT = [
    "nvidia-cuda-nvcc==13.0.*",
    "nvidia-cuda-crt==13.0.*",
    "nvidia-nvvm==13.0.*",
    "nvidia-cuda-runtime==13.0.*",
    "nvidia-cuda-cccl==13.0.*",
]
NVCC = """case "$1" in
  --version) echo "Cuda compilation tools, release {release}, V{release}.88" ;;
  --list-gpu-arch) for arch in {archs}; do echo compute_$arch; done ;;
  *) echo "$@" >> {log}; {compile} ;;
esac"""


class Machine:
    def __init__(self, root: Path):
        self.root, self.log = root, root / "compiled"
        self.program("bin/g++", "echo '#define __GNUC__ 12'")

    def program(self, name: str, text: str) -> str:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return str(path)

    def nvcc(self, name: str, release="12.8", archs="80 86 90 90a 100 120", compile="true") -> str:
        return self.program(name, NVCC.format(release=release, archs=archs, log=self.log, compile=compile))

    def gpus(self, *capabilities: str) -> None:
        self.program("bin/nvidia-smi", "\n".join(f"echo {capability}" for capability in capabilities))


@pytest.fixture
def machine(tmp_path, monkeypatch):
    for name in (
        "CUDACXX",
        "CUDAHOSTCXX",
        "CUDA_HOME",
        "CUDA_PATH",
        "CXX",
        "NVCC_APPEND_FLAGS",
        "SSL_FAST_CUDA",
        "SSL_FAST_CUDA_ARCHS",
        "SSL_FAST_NO_CUDA",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(sys, "path", [p for p in sys.path if not Path(p, "nvidia/cu13/bin/nvcc").exists()])
    return Machine(tmp_path)


@pytest.fixture
def backend(machine, monkeypatch):
    """The backend on a Linux machine without a toolkit, over a stand-in for scikit-build-core that returns its
    environment."""
    base = types.ModuleType("scikit_build_core.build")
    for kind in ("wheel", "editable", "sdist"):
        setattr(base, f"get_requires_for_build_{kind}", lambda settings=None: ["ninja>=1.5"])
        setattr(base, f"prepare_metadata_for_build_{kind}", None)
        setattr(base, f"build_{kind}", lambda *arguments: dict(os.environ))
    package = types.ModuleType("scikit_build_core")
    package.build = base
    monkeypatch.setitem(sys.modules, "scikit_build_core", package)
    monkeypatch.setitem(sys.modules, "scikit_build_core.build", base)
    spec = importlib.util.spec_from_file_location("ssl_fast_backend", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SYSTEM_CUDA", str(machine.root / "none"))
    monkeypatch.setattr(module.sys, "platform", "linux")
    monkeypatch.setattr(module.platform, "machine", lambda: "x86_64")
    return module


@pytest.mark.parametrize("settings", [None, {"cmake.define.SSL_FAST_CUDA": "OFF"}])
def test_off_downloads_and_runs_nothing(settings, machine, backend, monkeypatch):
    machine.nvcc("bin/nvcc")
    if not settings:
        monkeypatch.setenv("SSL_FAST_CUDA", "OFF")
    assert backend.get_requires_for_build_wheel(settings) == ["ninja>=1.5"]
    assert "CUDACXX" not in backend.build_wheel("folder", settings) and not machine.log.exists()


@pytest.mark.parametrize("kind", ["wheel", "editable"])
@pytest.mark.parametrize("wanted", ["AUTO", "ON"])
def test_without_a_toolkit_that_of_pypi_is_asked_for_and_used(kind, wanted, machine, backend, monkeypatch):
    monkeypatch.setenv("SSL_FAST_CUDA", wanted)
    monkeypatch.setenv("NVCC_APPEND_FLAGS", "-lineinfo")
    assert getattr(backend, f"get_requires_for_build_{kind}")() == ["ninja>=1.5", *TOOLKIT]
    nvcc = machine.nvcc("site/nvidia/cu13/bin/nvcc", release="13.0")
    monkeypatch.syspath_prepend(machine.root / "site")
    seen = getattr(backend, f"build_{kind}")("folder")
    flags = f"-lineinfo -L{machine.root}/site/nvidia/cu13/lib"
    assert seen["CUDACXX"] == nvcc and seen["NVCC_APPEND_FLAGS"] == flags and seen["SSL_FAST_CUDA_ARCHS"] == "all"
    assert seen["CUDAHOSTCXX"] == f"{machine.root}/bin/g++" and "SSL_FAST_NO_CUDA" not in seen
    assert f"-ccbin {machine.root}/bin/g++ {flags}" in machine.log.read_text()


def test_without_build_isolation_the_reason_says_what_is_missing(backend):
    assert backend.plan()[1] == {"SSL_FAST_NO_CUDA": "no nvcc was found, and that of PyPI is not installed"}


@pytest.mark.parametrize("variable", ["PATH", "CUDACXX", "CUDA_HOME", "CUDA_PATH", "usual place"])
def test_a_toolkit_of_the_system_is_used(variable, machine, backend, monkeypatch):
    nvcc = machine.nvcc("bin/nvcc" if variable == "PATH" else "cuda/bin/nvcc")
    if variable == "usual place":
        monkeypatch.setattr(backend, "SYSTEM_CUDA", f"{machine.root}/cuda")
    elif variable != "PATH":
        monkeypatch.setenv(variable, nvcc if variable == "CUDACXX" else f"{machine.root}/cuda")
    requirements, environment = backend.plan()
    assert requirements == [] and environment["CUDACXX"] == nvcc and "NVCC_APPEND_FLAGS" not in environment


def test_pypi_on_request(machine, backend, monkeypatch):
    machine.nvcc("bin/nvcc")
    monkeypatch.setenv("SSL_FAST_CUDA", "PYPI")
    assert backend.plan()[0] == TOOLKIT and not machine.log.exists()


REFUSAL = "echo 'host_config.h:143:2: error: #error -- unsupported GNU version!'; exit 1"


@pytest.mark.parametrize(
    "trouble, reason",
    [
        ({"release": "11.5"}, "{nvcc} is of CUDA 11.5, and 12.0 or newer is needed"),
        (
            {"compile": REFUSAL},
            "{nvcc} does not work with {root}/bin/g++: host_config.h:143:2: error: #error -- unsupported "
            "GNU version!: name another compiler in CUDAHOSTCXX, or set SSL_FAST_CUDA=OFF",
        ),
    ],
)
def test_a_toolkit_that_does_not_work(trouble, reason, machine, backend, monkeypatch):
    nvcc = machine.nvcc("bin/nvcc", **trouble)
    reason = reason.format(nvcc=nvcc, root=machine.root)
    newer = machine.nvcc("cuda/bin/nvcc")
    requirements, environment = backend.plan()
    assert requirements == TOOLKIT and environment["SSL_FAST_NO_CUDA"].startswith(reason)
    monkeypatch.setenv("CUDA_HOME", f"{machine.root}/cuda")  # the next one may work
    assert backend.plan()[0] == [] and backend.plan()[1]["CUDACXX"] == newer
    monkeypatch.setenv("CUDACXX", nvcc)  # but what was named is not replaced
    assert backend.plan() == ([], {"SSL_FAST_NO_CUDA": reason})


@pytest.mark.parametrize(
    "macros, reason",
    [
        (["__GNUC__ 15"], None),
        (["__GNUC__ 16"], "GCC 16, and CUDA 13.0 supports GCC up to 15"),
        (["__GNUC__ 4", "__clang_major__ 20"], None),
        (["__GNUC__ 4", "__clang_major__ 21"], "Clang 21, and CUDA 13.0 supports Clang up to 20"),
    ],
)
def test_host_compilers_that_are_too_new(macros, reason, machine, backend, monkeypatch):
    own = machine.program("bin/my-c++", "\n".join(f"echo '#define {macro}'" for macro in macros))
    monkeypatch.setenv("CXX", "my-c++")
    requirements, environment = backend.plan()
    if reason:
        way_out = "name another compiler in CUDAHOSTCXX, or set SSL_FAST_CUDA=OFF"
        reason = f"no nvcc was found, and {own} is {reason}: {way_out}"
        assert (requirements, environment) == ([], {"SSL_FAST_NO_CUDA": reason})
    monkeypatch.setenv("CUDAHOSTCXX", f"{machine.root}/bin/g++")
    assert backend.plan()[0] == TOOLKIT and (reason or requirements == TOOLKIT)


@pytest.mark.parametrize("words", ["my-c++ -O2", "ccache my-c++", "/usr/bin/sccache my-c++ -O2"])
def test_the_host_compiler_is_that_of_the_other_sources(words, machine, backend, monkeypatch):
    own = machine.program("bin/my-c++", "echo '#define __GNUC__ 13'")
    monkeypatch.setenv("CXX", words)
    assert backend.host_compiler() == str(own)


@pytest.mark.parametrize("system, processor", [("darwin", "arm64"), ("linux", "ppc64le")])
def test_systems_without_a_toolkit_on_pypi(system, processor, backend, monkeypatch):
    monkeypatch.setattr(backend.sys, "platform", system)
    monkeypatch.setattr(backend.platform, "machine", lambda: processor)
    reason = f"no nvcc was found, and PyPI has none for {system} on {processor}"
    assert backend.plan() == ([], {"SSL_FAST_NO_CUDA": reason})


@pytest.mark.parametrize(
    "capabilities, architectures",
    [
        (["9.0"], "90a-real"),
        (["9.0", "8.6", "9.0"], "86;90a-real"),
        (["7.5", "8.0"], "80"),
        (["12.0", "10.0"], "100;120"),
        (["13.5"], "all"),  # nvcc does not know it: PTX for the newest that it knows may run there
        ([], "all"),
        (["No devices were found"], "all"),
    ],
)
def test_architectures_are_those_of_the_gpus(capabilities, architectures, machine, backend, monkeypatch):
    machine.nvcc("bin/nvcc")
    machine.gpus(*capabilities)
    assert backend.plan()[1]["SSL_FAST_CUDA_ARCHS"] == architectures
    monkeypatch.setenv("SSL_FAST_CUDA_ARCHS", "90a-real;120")
    assert backend.plan()[1]["SSL_FAST_CUDA_ARCHS"] == "90a-real;120"


def test_gpus_that_are_too_old(machine, backend):
    machine.gpus("7.0", "7.5")
    reason = "the GPU here has compute capability 7.5, and 8.0 or newer is needed"
    assert backend.plan() == ([], {"SSL_FAST_NO_CUDA": reason})


@pytest.mark.skipif(not (shutil.which("cmake") and shutil.which("g++")), reason="needs cmake and g++")
def test_older_compiler(tmp_path):
    """The compiler here, with the macro of another version."""
    command = ["cmake", "-S", str(SOURCE.parent.parent), "-B", str(tmp_path)]
    environment = os.environ | {"CXX": "g++", "CXXFLAGS": "-U__GNUC__ -D__GNUC__=10"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode
    expected = (
        r"ssl_fast needs GCC 11 or newer, or Clang 14 or newer; found GNU 10\.\S+ \(/\S+\)\. Set CXX to a newer one\."
    )
    assert re.search(expected, " ".join(run.stderr.split())), run.stderr
