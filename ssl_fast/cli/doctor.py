"""`ssl-fast doctor`: print what is installed, what was built, what is in use, and why something is not."""

import argparse
import importlib
import os
import platform

from .. import __version__

HELP = "what is installed, what was built, what is in use, and why something is not"

# (distribution, module, what it is for); torch itself is reported on its own
LIBRARIES = (
    ("torchaudio", "torchaudio", "resampling"),
    ("numpy", "numpy", "arrays"),
    ("pillow", "PIL", "images"),
    ("soundfile", "soundfile", "decoding of sound"),
    ("faiss-cpu", "faiss", "nearest neighbours"),
    ("matplotlib", "matplotlib", "plots of the report"),
    ("safetensors", "safetensors", "checkpoints"),
    ("tqdm", "tqdm", "progress bars"),
)
OPTIONAL = (
    ("av", "av", "videos"),
    ("timm", "timm", "backbones"),
    ("huggingface_hub", "huggingface_hub", "repositories of the Hub"),
    ("tensorboard", "tensorboard", "curves of training"),
    ("wandb", "wandb", "curves of training"),
    ("trackio", "trackio", "curves of training"),
    ("torchmetrics", "torchmetrics", "figures in a training loop"),
    ("pillow-heif", "pillow_heif", "HEIC images"),
    ("scipy", "scipy", "tests only"),
    ("pytest", "pytest", "tests only"),
)


def _library(distribution: str, module: str) -> tuple[bool, str]:
    """True and the version of a module that can be imported, else False and the reason."""
    from importlib import metadata

    try:
        importlib.import_module(module)
    except Exception as error:  # a broken binary raises anything from OSError to RuntimeError: report whatever it is
        reason = (str(error).strip().splitlines() or [""])[0]
        return False, f"MISSING ({type(error).__name__}: {reason})"
    try:
        return True, metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return True, "version unknown"


def _cuda_built(extension) -> tuple[str, str]:
    """Two texts: the architectures that CUDA code was built for, and the devices that are usable through it."""
    if extension is None:
        return "unknown: the compiled module did not load", "no"
    architectures = getattr(extension, "cuda_architectures", "")
    if not architectures:
        return f"none ({extension.no_cuda})", "no: no CUDA code was built"
    count, error = extension.cuda_status()
    if error:
        return architectures, f"no: {error}"
    able = sum(extension.cuda_error(index) is None for index in range(count))
    return (
        architectures,
        f"yes, {able} device(s)" if able else f"no: none of {count} device(s)" if count else "no: no device",
    )


def _cuda_tensors() -> dict[str, str]:
    """{device: whether its tensors go through the kernels, or why not}, for each CUDA device that torch sees. Where it
    sees none, what would stop them on any."""
    import torch

    from ..ops import checks

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    reasons = {f"cuda:{index}": checks.why_no_kernels("cuda", index) for index in range(count)}
    if not count and (reason := checks.why_no_kernels("cuda")):
        reasons["CUDA tensors"] = reason
    return {
        name: "runs the kernels" if reason is None else checks.fallback_sentence("cuda", reason)
        for name, reason in reasons.items()
    }


def _cuda_torch() -> str:
    import torch

    if torch.version.cuda is None:
        return "no: torch was built without CUDA"
    if not torch.cuda.is_available():
        return f"no: torch was built for CUDA {torch.version.cuda}, but finds no usable device or driver"
    names = ", ".join(
        f"{torch.cuda.get_device_name(i)} (sm_{''.join(map(str, torch.cuda.get_device_capability(i)))})"
        for i in range(torch.cuda.device_count())
    )
    return f"yes: {names}"


def report() -> tuple[dict[str, dict[str, str]], bool]:
    """{section: {item: finding}}, and whether everything that the package needs is there and works."""
    import torch

    from ..ops import checks
    from ..reproducibility import processor_name
    from ..training.learner import bfloat16_native

    usable = True
    software = {"ssl_fast": __version__, "python": platform.python_version(), "torch": torch.__version__}
    for distribution, module, purpose in LIBRARIES:
        found, text = _library(distribution, module)
        usable &= found
        software[distribution] = text if found else f"{text}; needed for {purpose}"
        if distribution == "torchaudio" and not found and torch.__version__.startswith(("2.11.", "2.12.")):
            software[distribution] += "; with this torch, `pip install torchaudio==2.11.0`"
    for distribution, module, purpose in OPTIONAL:
        found, text = _library(distribution, module)
        text = "not installed" if text.startswith("MISSING (ModuleNotFoundError: ") else text
        software[distribution] = text if found else f"{text} (optional, {purpose})"
    extension = checks.extension
    if extension is None:
        reason = f"NOT LOADED ({checks.extension_error}); every op runs its plain-PyTorch reference"
        kernels = {"compiled module": reason}
    else:
        kernels = {
            "compiled module": extension.__file__,
            "instruction set in use": extension.instruction_set(),
            "instruction sets available": ", ".join(extension.instruction_sets()),
        }
    architectures, device = _cuda_built(extension)
    processor = {
        "name": processor_name(),
        "cores": str(os.cpu_count()),
        "torch threads": f"{torch.get_num_threads()} (OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'not set')})",
        "torch's instruction set": torch.backends.cpu.get_cpu_capability(),
        "bfloat16": "native: used in training by default" if bfloat16_native() else "not native: training uses float32",
    }
    cuda = {
        "built for": architectures,
        "device usable by the kernels": device,
        "device usable by torch": _cuda_torch(),
        **_cuda_tensors(),
    }
    return {"software": software, "processor": processor, "kernels": kernels, "cuda": cuda}, usable


# Multiprocessors, and bytes of shared memory that a block may have.
GPUS = {"H100, H200": (132, 227 * 2**10), "A100": (108, 163 * 2**10), "RTX 4090": (128, 99 * 2**10)}


def plans(extension) -> dict[str, dict[str, str]]:
    """{GPU: {features: how the CUDA kernels launch the product of all pairs}} of 1,024 images and audios of 512
    channels; {} where no CUDA code was built."""
    import torch

    kernels = getattr(extension, "cuda", None)
    if kernels is None:
        return {}
    found = {}
    for gpu, device in GPUS.items() if not torch.cuda.is_available() else (("this GPU", (0, 0)), *GPUS.items()):
        found[gpu] = {}
        for dtype, tf32, size in (("bfloat16", False, 2), ("float16", False, 2), ("float32", True, 4)):
            for side in (7, 14, 16, 28):
                plan = kernels.plan(
                    dtype=getattr(kernels.DType, dtype),
                    tf32=tf32,
                    audios=1024,
                    images=1024,
                    cells=side * side,
                    k_blocks=512 * size // 64,
                    multiprocessors=device[0],
                    shared=device[1],
                )
                cells = "resident" if plan["resident"] else "streamed"
                found[gpu][f"{'tf32' if tf32 else dtype} {side}x{side}"] = (
                    f"cells {cells}, {plan['warp_groups']} warp group(s), {plan['blocks']} blocks, {plan['splits']} "
                    f"for each tile of cells, {plan['shared']:,} bytes of shared memory"
                )
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--plan",
        action="store_true",
        help="print how the CUDA kernels launch the product of all pairs, and nothing else",
    )


def _print(sections: dict[str, dict[str, str]]) -> None:
    for section, items in sections.items():
        print(section)
        for name, text in items.items():
            print(f"  {name:<28} {text}")


def run(args: argparse.Namespace) -> int:
    """Print the report, or the plans; 0 where the package is usable, 1 where something that it needs is missing."""
    if args.plan:
        from ..ops import checks

        sections = plans(checks.extension)
        _print(sections)
        if not sections:
            print(f"no plan: CUDA code was built for {_cuda_built(checks.extension)[0]}")
        return int(not sections)
    sections, usable = report()
    _print(sections)
    print("usable" if usable else "NOT usable: install what is missing above")
    return 0 if usable else 1
