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
DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}  # bytes of a number


def build(path: Path, flags: list[str], emulation_flags: list[str]) -> None:
    """The module of emulated kernels; the emulation itself may be compiled with other flags than the kernels."""
    import pybind11

    units = {unit: flags for unit in sorted(SOURCES.glob("cuda/*.cu")) if unit.name != "device.cu"}  # asks the driver
    units |= {EMULATION / name: flags for name in ("module.cpp", "ptx_wrappers.cu")}
    units |= {EMULATION / "emulation.cpp": emulation_flags}
    includes = EMULATION, pybind11.get_include(), sysconfig.get_paths()["include"]
    command = [
        "g++",
        "-fPIC",
        "-std=c++17",
        "-O1",
        "-g",
        "-fdata-sections",  # for the script of the linker
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
    script = f"-Wl,-T,{EMULATION / 'static_shared.ld'}"
    subprocess.run(["g++", "-shared", *flags, script, "-o", str(path), *map(str, objects)], check=True)


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

    def at(array) -> tuple[int, int]:
        alive.append(array)
        return array.ctypes.data, array.nbytes

    def stored(dtype, *shape):
        values = random.standard_normal(shape)
        if dtype == "bfloat16":
            return (np.ascontiguousarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)
        return values.astype(dtype)

    def rows(dtype, count, channels):
        per_slab = 64 // DTYPES[dtype]
        width = -(-channels // per_slab) * per_slab
        values = np.zeros((count, width), stored(dtype, 1).dtype)
        values[:, :channels] = stored(dtype, count, channels)
        return values

    for name, (images, audios, channels, cells) in product(DTYPES, ((3, 5, 33, 15), (2, 130, 65, 49), (1, 3, 40, 230))):
        real, dtype = np.float64 if name == "float64" else np.float32, getattr(kernels.DType, name)

        def numbers(*shape, real=real):
            return random.uniform(0.1, 1, shape).astype(real)

        def shape_of(last, images=images, cells=cells, channels=channels, dtype=dtype):
            return kernels.Shape(
                dtype=dtype, channels_last=last, images=images, audios=images, channels=channels, cells=cells
            )

        for last in (False, True):
            visual, norm = at(stored(name, images, channels, cells)), at(numbers(images, cells))
            gradient = {"grad_visual": at(stored(name, images, channels, cells))}
            features = {"visual": visual, "audio": at(stored(name, images, channels)), "inverse_norm": norm}
            maps = at(numbers(images, cells))
            kernels.cosine_forward(shape_of(last), **features, out=maps)
            kernels.cosine_backward(
                shape_of(last),
                **features,
                out=maps,
                grad_out=at(numbers(images, cells)),
                **gradient,
                grad_audio=at(numbers(images, channels)),
            )
            for shared in (9, 99):  # KiB: the larger images do not fit, and then do
                kernels.set_device(3, shared * 2**10)
                out = at(numbers(images, channels))
                kernels.mean_forward(shape_of(last), visual=visual, inverse_norm=norm, out=out)
            kernels.mean_backward(
                shape_of(last), visual=visual, inverse_norm=norm, grad_out=at(numbers(images, channels)), **gradient
            )
        argmax = at(random.integers(0, cells, (images, audios)).astype(np.int32))
        packed_audios, packed_cells = rows(name, audios, channels), rows(name, images * cells, channels)
        k_blocks, columns = packed_audios.nbytes // audios // 64, -(-audios // 8) * 8
        norms = {"audio_norm": at(numbers(audios)), "cell_norm": at(numbers(images, cells))}
        for tf32 in (False, True) if name == "float32" else (False,):
            of_audios = kernels.Pack(
                shape_of(True, 1, audios),
                k_blocks=k_blocks,
                features=at(stored(name, audios, channels)),
                packed=at(packed_audios),
                inverse_norm=norms["audio_norm"],
                tf32=tf32,
            )
            features = at(stored(name, images, channels, cells))
            of_cells = kernels.Pack(
                shape_of(False),
                k_blocks=k_blocks,
                packed=at(packed_cells),
                inverse_norm=norms["cell_norm"],
                features=features,
                tf32=tf32,
            )
            kernels.pack([of_audios])
            kernels.pack([of_cells, of_cells, of_audios, of_audios])
            sizes = {
                "dtype": dtype,
                "tf32": tf32,
                "audios": audios,
                "images": images,
                "cells": cells,
                "k_blocks": k_blocks,
            }
            pairs = kernels.Pairs(**sizes, packed_audios=at(packed_audios), packed_cells=at(packed_cells), **norms)
            resident = cells < 100 and kernels.plan(**sizes)["resident"]
            own_cells = {"features": features, "channels": channels} if resident else {"packed_cells": at(packed_cells)}
            from_features = kernels.Pairs(**sizes, packed_audios=at(packed_audios), **own_cells, **norms)
            own_cells["packed_cells"] = at(packed_cells)
            writes_rows = kernels.Pairs(**sizes, packed_audios=at(packed_audios), **own_cells, **norms)
            matrix = stored(name, images * cells, columns) if name == "bfloat16" else numbers(images * cells, columns)
            for pooling, (count, sparse) in kernels.poolings.items():
                residual = np.zeros((images, audios), np.int32) if sparse else numbers(images, audios)
                pool = {
                    "pooling": getattr(kernels.Pooling, pooling),
                    "parameters": [0.4, 0.1][:count],
                    "scores": at(numbers(images, audios)),
                    "residual": at(residual),
                }
                kernels.pool_forward(pairs, **pool)
                if not sparse:
                    slopes, cached_images = at(matrix.copy()), images - 1
                    gradient = {"grad_scores": at(numbers(images, audios)), "slopes": slopes}
                    kernels.pool_slopes(pairs, **pool, **gradient)
                    cached = at(np.zeros((cached_images * cells, columns), stored(name, 1).dtype))
                    cache = at(stored(name, images * cells, columns))
                    kernels.pool_forward(from_features, **pool, cached=cached, cached_images=cached_images)
                    kernels.pool_slopes(pairs, **pool, **gradient, cached=cache)
            kernels.alphas([pairs], out=[at(matrix)])
            kernels.alphas([from_features, writes_rows], out=[at(matrix), at(matrix.copy())])
        grad_scores = at(numbers(images, audios))
        of_pairs = {"grad_scores": grad_scores, "argmax": argmax}
        kernels.max_backward_audio(pairs, **of_pairs, sums=at(numbers(*packed_audios.shape)))
        for last, is_real in product((False, True), (False, True)):
            packed = {
                "k_blocks": k_blocks,
                "features": at(stored(name, images, channels, cells)),
                "packed": at(packed_cells),
                "inverse_norm": norms["cell_norm"],
            }
            kernels.pack([kernels.Pack(shape_of(last), **packed)])
            gradient = at(numbers(*packed_cells.shape) if is_real else rows(name, images * cells, channels))
            kernels.max_backward_visual(pairs, **of_pairs, gradient=gradient, real_gradient=is_real)
            scale = at(numbers(1)) if is_real else None
            unpacked = kernels.Unpack(shape_of(last), **packed, gradient=gradient, real_gradient=is_real, scale=scale)
            kernels.unpack([unpacked] * 4)
        for reduce, instances in product(("sum", "max"), ("audio", "image")):
            per_instance = (images * cells,) if instances == "audio" else (cells, audios)
            loc, avc = at(matrix.copy()), at(matrix.copy())
            chunk = kernels.ProductChunk(
                dtype=dtype,
                reduce=getattr(kernels.Reduce, reduce),
                instances=getattr(kernels.Instances, instances),
                tau=0.1,
                images=images,
                audios=audios,
                cells=cells,
                loc=loc,
                avc=avc,
                loc_slopes=loc,
                avc_slopes=avc,
                instance_top=at(numbers(*per_instance)),
                instance_log=at(numbers(*per_instance)),
                loc_top=at(numbers(images, audios)),
                loc_log=at(numbers(images, audios)),
                top=at(numbers(images, audios)),
                log=at(numbers(images, audios)),
                scores=at(numbers(images, audios)),
                argmax=argmax,
                grad_scores=grad_scores,
                grad_sums=at(numbers(*per_instance)),
                **{f"{space}_{norm}": values for space in ("loc", "avc") for norm, values in norms.items()},
            )
            kernels.product_instances(chunk, first=True, last=True)
            kernels.product_scores(chunk)
            if instances == "image":
                kernels.product_grad_sums(chunk, first=True)
            kernels.product_slopes(chunk)
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
