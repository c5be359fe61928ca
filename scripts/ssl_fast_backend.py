"""Build backend: scikit-build-core, with the CUDA compiler from PyPI where the system has none that works.

Read from the environment, or as `-C cmake.define.NAME=value`:

SSL_FAST_CUDA        AUTO: the CUDA kernels are compiled where that is possible; ON: it fails where it is not; PYPI:
                     like ON, with the compiler from PyPI whatever the system has; OFF: they are left out, nothing is
                     downloaded.
SSL_FAST_CUDA_ARCHS  architectures as CMake names them, or `all`; by default those of the GPUs of this machine, `all`
                     where there are none.

CMake gets the outcome in variables: CUDACXX, CUDAHOSTCXX, NVCC_APPEND_FLAGS and SSL_FAST_CUDA_ARCHS, or the reason
against CUDA in SSL_FAST_NO_CUDA.
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from scikit_build_core import build as base
from scikit_build_core.build import (  # noqa: F401, the hooks that stay as they are
    build_sdist,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

CUDA = "13.0"  # that of the PyTorch releases that this package works with: the same drivers run both
PACKAGES = ("nvidia-cuda-nvcc", "nvidia-cuda-crt", "nvidia-nvvm", "nvidia-cuda-runtime", "nvidia-cuda-cccl")
REQUIREMENTS = [f"{package}=={CUDA}.*" for package in PACKAGES]
HOST_LIMITS = {"GCC": 15, "Clang": 20}  # crt/host_config.h of that version
OLDEST_CUDA = (12, 0)  # knows sm_90a
OLDEST_GPU = (8, 0)
SYSTEM_CUDA = "/usr/local/cuda"
LAUNCHERS = ("ccache", "sccache", "distcc")  # of a compiler, in CXX
WAY_OUT = "name another compiler in CUDAHOSTCXX, or set SSL_FAST_CUDA=OFF"


def setting(name: str, default: str, config_settings: dict | None) -> str:
    given = config_settings or {}
    for key in (f"cmake.define.{name}", f"skbuild.cmake.define.{name}"):
        if key in given:
            return given[key]
    return os.environ.get(name) or default


def output_of(*command: str | Path) -> tuple[int, str]:
    try:
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    except OSError as error:
        return 1, str(error)
    return run.returncode, run.stdout


def host_compiler() -> str | None:
    """The C++ compiler that nvcc is to use: that of the other sources, unless CUDAHOSTCXX names one."""
    if os.environ.get("CUDAHOSTCXX"):
        return os.environ["CUDAHOSTCXX"]
    words = [word for word in shlex.split(os.environ.get("CXX", "")) if Path(word).name not in LAUNCHERS]
    names = words[:1] or ("g++", "c++", "clang++")  # without options
    return next(filter(None, map(shutil.which, names)), None)


def too_new(host: str) -> str | None:
    """Why the compiler from PyPI refuses a host compiler, or None."""
    _, macros = output_of(host, "-dM", "-E", "-x", "c++", os.devnull)
    versions = dict(re.findall(r"#define (__GNUC__|__clang_major__) (\d+)", macros))
    kind, macro = ("Clang", "__clang_major__") if "__clang_major__" in versions else ("GCC", "__GNUC__")
    if int(versions.get(macro, 0)) <= HOST_LIMITS[kind]:
        return None
    return f"{host} is {kind} {versions[macro]}, and CUDA {CUDA} supports {kind} up to {HOST_LIMITS[kind]}: {WAY_OUT}"


def fault(nvcc: str, host: str, flags: str = "") -> str | None:
    """Why an nvcc cannot compile the kernels, or None: its version, and a trial."""
    _, text = output_of(nvcc, "--version")
    release = re.search(r"release (\d+)\.(\d+)", text)
    if not release:
        return f"{nvcc} does not work: {text.strip()[-200:]}"
    if tuple(map(int, release.groups())) < OLDEST_CUDA:
        return (
            f"{nvcc} is of CUDA {'.'.join(release.groups())}, and {'.'.join(map(str, OLDEST_CUDA))} or newer is needed"
        )
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "trial.cu")
        source.write_text("#include <cuda_fp16.h>\n__global__ void f() {}\nint main() { f<<<1, 1>>>(); }\n")
        command = [
            nvcc,
            "-std=c++17",
            "-arch=sm_80",
            "-ccbin",
            host,
            *flags.split(),
            source,
            "-o",
            Path(folder, "trial"),
        ]
        status, text = output_of(*command)
    if status == 0:
        return None
    lines = text.strip().splitlines() or [f"exit status {status}"]
    return f"{nvcc} does not work with {host}: {next((x for x in lines if 'error' in x), lines[-1]).strip()}: {WAY_OUT}"


def system_compilers() -> list[str]:
    if os.environ.get("CUDACXX"):
        return [os.environ["CUDACXX"]]
    folders = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), SYSTEM_CUDA]
    found = [shutil.which("nvcc"), *(shutil.which("nvcc", path=f"{folder}/bin") for folder in folders if folder)]
    return list(dict.fromkeys(filter(None, found)))


def capabilities() -> list[tuple[int, int]]:
    """Of the GPUs of this machine, in order."""
    status, text = output_of("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
    found = re.findall(r"^\s*(\d+)\.(\d+)\s*$", text, re.M) if status == 0 else []
    return sorted({(int(major), int(minor)) for major, minor in found})


def architectures(nvcc: str, gpus: list[tuple[int, int]]) -> str:
    """Those of the GPUs; all where there are none, or where nvcc is older than one of them."""
    names = [f"{major}{minor}" for major, minor in gpus]
    known = output_of(nvcc, "--list-gpu-arch")[1].split()
    if not names or not {f"compute_{name}" for name in names} <= set(known):
        return "all"
    return ";".join("90a-real" if name == "90" else name for name in names)


def plan(config_settings: dict | None = None) -> tuple[list[str], dict[str, str]]:
    """What has to be installed for the build, and the environment that it gets."""
    wanted = setting("SSL_FAST_CUDA", "AUTO", config_settings)
    host = host_compiler()
    if wanted == "OFF" or not host:  # without a C++ compiler, CMake says so
        return [], {}
    archs, gpus = setting("SSL_FAST_CUDA_ARCHS", "", config_settings), []
    if not archs and (all_gpus := capabilities()):
        gpus = [gpu for gpu in all_gpus if gpu >= OLDEST_GPU]
        if not gpus:
            newest = ".".join(map(str, all_gpus[-1]))
            return [], {"SSL_FAST_NO_CUDA": f"the GPU here has compute capability {newest}, and 8.0 or newer is needed"}

    def outcome(nvcc: str) -> dict[str, str]:
        return {"CUDACXX": nvcc, "CUDAHOSTCXX": host, "SSL_FAST_CUDA_ARCHS": archs or architectures(nvcc, gpus)}

    faults = []
    for nvcc in system_compilers() if wanted != "PYPI" else ():
        faults.append(fault(nvcc, host))
        if not faults[-1]:
            return [], outcome(nvcc)
    if os.environ.get("CUDACXX") and wanted != "PYPI":
        return [], {"SSL_FAST_NO_CUDA": faults[0]}

    faults = faults or ["no nvcc was found"]
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        faults.append(f"PyPI has none for {sys.platform} on {platform.machine()}")
    elif reason := too_new(host):
        faults.append(reason)
    else:
        folder = next(
            (path for path in (Path(p, "nvidia/cu13") for p in sys.path) if (path / "bin/nvcc").exists()), None
        )
        if not folder:
            faults.append("that of PyPI is not installed")
            return REQUIREMENTS, {"SSL_FAST_NO_CUDA": ", and ".join(faults)}
        if " " in str(folder):  # which nvcc would take for the end of an option
            faults.append(f"that of PyPI cannot work in a folder with a space: {folder}")
            return [], {"SSL_FAST_NO_CUDA": ", and ".join(faults)}
        # its libraries lie in lib, where nvcc does not look
        flags = f"{os.environ.get('NVCC_APPEND_FLAGS', '')} -L{folder / 'lib'}".strip()
        nvcc = str(folder / "bin/nvcc")
        reason = fault(nvcc, host, flags)
        if not reason:
            return REQUIREMENTS, {**outcome(nvcc), "NVCC_APPEND_FLAGS": flags}
        faults.append(reason)
    return [], {"SSL_FAST_NO_CUDA": ", and ".join(faults)}


def get_requires_for_build_wheel(config_settings=None):
    return [*base.get_requires_for_build_wheel(config_settings), *plan(config_settings)[0]]


def get_requires_for_build_editable(config_settings=None):
    return [*base.get_requires_for_build_editable(config_settings), *plan(config_settings)[0]]


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    os.environ.update(plan(config_settings)[1])
    return base.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    os.environ.update(plan(config_settings)[1])
    return base.build_editable(wheel_directory, config_settings, metadata_directory)
