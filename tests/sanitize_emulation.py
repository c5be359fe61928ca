"""The emulated CUDA kernels under the sanitizers: every kernel once in each dtype and with odd sizes.

    python tests/sanitize_emulation.py [address] [thread]

AddressSanitizer finds what is read or written out of bounds. ThreadSanitizer takes each CUDA thread for a thread that
only barriers order with the others of its block, so it finds the barriers that are missing. Without torch, whose
libraries the sanitizers do not bear; results are compared with references in test_emulation.py.
"""

import os
import subprocess
import sys
import sysconfig
import tempfile
from importlib import util
from itertools import product
from pathlib import Path

SOURCES = Path(__file__).resolve().parent.parent / "csrc"
EMULATION = Path(__file__).resolve().parent / "cuda_emulation"
ADDRESS_BYTES = {0: 4, 1: 2, 2: 2, 3: 8}  # of a dtype of csrc/params.h


def build(path: Path, flags: list[str], emulation_flags: list[str]) -> None:
    """The module of emulated kernels; the emulation itself may be compiled with other flags than the kernels."""
    import pybind11

    units = {unit: flags for unit in sorted(SOURCES.glob("cuda/*.cu")) if unit.name != "device.cu"}  # asks the driver
    units |= {EMULATION / "module.cpp": flags, EMULATION / "emulation.cpp": emulation_flags}
    includes = EMULATION, pybind11.get_include(), sysconfig.get_paths()["include"]
    command = [
        "g++",
        "-fPIC",
        "-std=c++17",
        "-O1",
        "-g",
        "-DSSL_FAST_EMULATION",
        *(f"-I{folder}" for folder in includes),
    ]
    objects = [path.with_name(f"{unit.stem}.o") for unit in units]
    running = [
        subprocess.Popen(
            [*command, *own, "-c", "-x", "c++", str(unit), "-o", str(to)], stderr=subprocess.PIPE, text=True
        )
        for (unit, own), to in zip(units.items(), objects)
    ]
    errors = [process.communicate()[1] for process in running]
    failed = [error for process, error in zip(running, errors) if process.returncode]
    if failed:
        raise RuntimeError(failed[0])
    subprocess.run(["g++", "-shared", *flags, "-o", str(path), *map(str, objects)], check=True)


def load(path: Path):
    spec = util.spec_from_file_location("ssl_fast_emulation", path)
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_all(kernels) -> None:
    """Every kernel, on arrays of exactly the size that it may touch."""
    import numpy as np

    random = np.random.default_rng(0)
    alive = []  # arrays whose addresses were handed out

    def at(array) -> int:
        alive.append(array)
        return array.ctypes.data

    def stored(dtype, *shape):
        values = random.standard_normal(shape)
        if dtype == 1:
            return (np.ascontiguousarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)
        return values.astype((np.float32, None, np.float16, np.float64)[dtype])

    def rows(dtype, count, channels):
        per_slab = 64 // ADDRESS_BYTES[dtype]
        width = -(-channels // per_slab) * per_slab
        values = np.zeros((count, width), stored(dtype, 1).dtype)
        values[:, :channels] = stored(dtype, count, channels)
        return values

    for dtype, (images, audios, channels, cells) in product(
        range(4), ((3, 5, 33, 15), (2, 130, 65, 49), (1, 3, 40, 230))
    ):
        real = np.float64 if dtype == 3 else np.float32
        numbers = lambda *shape: random.uniform(0.1, 1, shape).astype(real)  # noqa: E731
        for last in (0, 1):
            shape = dtype, last, images, images, channels, cells
            visual = at(stored(dtype, images, channels, cells))
            for audio, out, grad in (
                (at(stored(dtype, images, channels)), (images, cells), (images, cells)),
                (0, (images, channels), (images, channels)),
            ):
                kernel, norm, forward = (
                    (kernels.cosine if audio else kernels.mean),
                    at(numbers(images, cells)),
                    at(numbers(*out)),
                )
                kernel(shape, visual=visual, audio=audio, inverse_norm=norm, out=forward)
                kernel(
                    shape,
                    visual=visual,
                    audio=audio,
                    inverse_norm=norm,
                    out=forward if audio else 0,
                    grad_out=at(numbers(*grad)),
                    grad_visual=at(stored(dtype, images, channels, cells)),
                    grad_audio=at(numbers(images, channels)) if audio else 0,
                )
        best = at(random.integers(0, cells, (images, audios)).astype(np.int32))
        audio_rows, cell_rows = rows(dtype, audios, channels), rows(dtype, images * cells, channels)
        slabs, columns = audio_rows.nbytes // audios // 64, -(-audios // 8) * 8
        norms = at(numbers(audios)), at(numbers(images, cells))
        for tf32 in (0, 1) if dtype == 0 else (0,):
            kernels.pack(
                (dtype, 1, 1, 0, channels, audios),
                slabs=slabs,
                features=at(stored(dtype, audios, channels)),
                rows=at(audio_rows),
                inverse_norm=norms[0],
                tf32=tf32,
            )
            kernels.pack(
                (dtype, 0, images, 0, channels, cells),
                slabs=slabs,
                rows=at(cell_rows),
                inverse_norm=norms[1],
                features=at(stored(dtype, images, channels, cells)),
                tf32=tf32,
            )
            pairs = ((dtype, tf32, audios, images, cells, slabs), (at(audio_rows), at(cell_rows), *norms))
            scores = at(numbers(images, audios))
            kernels.similarity(
                pairs, pooling=1, epsilon=0, beta=1, scores=scores, kept=at(np.zeros((images, audios), np.int32))
            )
            soft = {"pooling": 0, "epsilon": 0.4, "beta": 0.1, "scores": scores, "kept": at(numbers(images, audios))}
            kernels.similarity(pairs, **soft)
            matrix = stored(1, images * cells, columns) if dtype == 1 else numbers(images * cells, columns)
            kernels.similarity(pairs, **soft, grad_scores=at(numbers(images, audios)), slopes=at(matrix.copy()))
            kernels.alphas(pairs, out=at(matrix))
        grad_scores = at(numbers(images, audios))
        kernels.gather_audio(pairs, grad_scores=grad_scores, best=best, sums=at(numbers(*audio_rows.shape)))
        for last, is_real in product((0, 1), (0, 1)):
            packed = {
                "slabs": slabs,
                "features": at(stored(dtype, images, channels, cells)),
                "rows": at(cell_rows),
                "inverse_norm": norms[1],
            }
            kernels.pack((dtype, last, images, 0, channels, cells), **packed)
            gradient = numbers(*cell_rows.shape) if is_real else rows(dtype, images * cells, channels)
            kernels.gather_visual(
                pairs, grad_scores=grad_scores, best=best, gradient=at(gradient), real_gradient=is_real
            )
            kernels.unpack(
                (dtype, last, images, 0, channels, cells), **packed, gradient=at(gradient), real_gradient=is_real
            )
        for reduce, instances in product((0, 1), (0, 1)):
            per_instance = (images * cells,) if instances == 0 else (cells, audios)
            by_cell = [at(matrix.copy()) for _ in range(2)]
            options = {
                "tau": 0.1,
                "cosines": by_cell,
                "instance_norm": [at(numbers(*per_instance)) for _ in range(2)],
                "space_norm": [at(numbers(images, audios)) for _ in range(2)],
                "scores": at(numbers(images, audios)),
                "best_cell": best,
                "grad_scores": at(numbers(images, audios)),
                "shares": at(numbers(*per_instance)),
                "norms": [*norms, *norms],
            }
            for stage in ("instances", "scores", *(["shares"] if instances else []), "slopes"):
                kernels.product(stage, (dtype, reduce, instances, images, audios, cells), **options)
        alive.clear()


def sanitize(name: str) -> None:
    flags = [f"-fsanitize={name}"]
    library = subprocess.run(
        ["g++", f"-print-file-name=lib{name[0]}san.so"], capture_output=True, text=True, check=True
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ssl_fast_emulation.so"
        build(path, flags, flags if name == "address" else ["-DSSL_FAST_THREAD_SANITIZER"])
        options = {
            "ASAN_OPTIONS": "detect_leaks=0",
            "TSAN_OPTIONS": "halt_on_error=1",
            "LD_PRELOAD": library.stdout.strip(),
        }
        # ThreadSanitizer wants the addresses that programs have without randomisation
        command = ["setarch", "-R", sys.executable, __file__, "--run", str(path)]
        done = subprocess.run(command, env=os.environ | options | {"OPENBLAS_NUM_THREADS": "1"})
    if done.returncode:
        sys.exit(f"{name} sanitizer: exit status {done.returncode}")
    print(f"{name} sanitizer: nothing found")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        run_all(load(Path(sys.argv[2])))
    else:
        for which in sys.argv[1:] or ("address", "thread"):
            sanitize(which)
