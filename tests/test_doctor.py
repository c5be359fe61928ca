import importlib.metadata
import types

import pytest
import torch

from ssl_fast.cli import doctor
from ssl_fast.cli import main as cli
from ssl_fast.ops import checks
from ssl_fast.reproducibility import processor_name


def flat():
    sections, usable = doctor.report()
    return {f"{section}: {name}": text for section, items in sections.items() for name, text in items.items()}, usable


def extension(**changes):
    fields = {
        "__file__": "/somewhere/_C.so",
        "instruction_set": lambda: "avx2",
        "instruction_sets": lambda: ["baseline", "avx2"],
        "cuda_architectures": "80-real 90a-real",
        "no_cuda": "no nvcc",
        "cuda_status": lambda: (1, None),
        "cuda_error": lambda index: None,
    }
    return types.SimpleNamespace(**(fields | changes))


def test_report_of_this_installation(capsys):
    found, usable = flat()
    assert usable
    assert found["software: torch"] == torch.__version__
    assert found["software: numpy"] == importlib.metadata.version("numpy")
    assert found["processor: torch threads"].startswith(f"{torch.get_num_threads()} ")
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert all(text in out for text in found.values()) and out.endswith("\nusable\n")


X86 = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Some Xeon @ 2.10GHz\n\nprocessor\t: 1\n"
ARM = "processor\t: 0\nBogoMIPS\t: 243.75\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\nCPU revision\t: 1\n"


@pytest.mark.parametrize(
    "cpuinfo, name",
    [
        (X86, "Some Xeon @ 2.10GHz"),
        (ARM, "aarch64, CPU implementer 0x41, CPU part 0xd0c"),
        ("", "aarch64"),
        (None, "aarch64"),
    ],
)
def test_name_of_the_processor(cpuinfo, name, tmp_path, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert processor_name(tmp_path / "cpuinfo") == name


def test_compiled_module_in_use(monkeypatch):
    monkeypatch.setattr(checks, "extension", extension())
    found, _ = flat()
    assert found["kernels: instruction set in use"] == "avx2"
    assert found["kernels: instruction sets available"] == "baseline, avx2"
    assert found["cuda: built for"] == "80-real 90a-real"
    assert found["cuda: device usable by the kernels"] == "yes, 1 device(s)"


def test_absent_module_is_visible_and_usable(monkeypatch, capsys):
    monkeypatch.setattr(checks, "extension", None)
    monkeypatch.setattr(checks, "extension_error", "No module named 'ssl_fast._C'")
    found, usable = flat()
    assert usable
    assert (
        found["kernels: compiled module"]
        == "NOT LOADED (No module named 'ssl_fast._C'); every op runs its plain-PyTorch reference"
    )
    assert found["cuda: device usable by the kernels"] == "no"
    assert cli.main(["doctor"]) == 0 and "NOT LOADED" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes, built, device",
    [
        ({"cuda_architectures": ""}, "none (no nvcc)", "no: no CUDA code was built"),
        (
            {"cuda_status": lambda: (0, "CUDA driver version is insufficient")},
            "80-real 90a-real",
            "no: CUDA driver version is insufficient",
        ),
        ({"cuda_status": lambda: (0, None)}, "80-real 90a-real", "no: no device"),
    ],
)
def test_cuda_says_why_not(changes, built, device, monkeypatch):
    monkeypatch.setattr(checks, "extension", extension(**changes))
    found, usable = flat()
    assert (found["cuda: built for"], found["cuda: device usable by the kernels"]) == (built, device) and usable


def test_each_device_says_what_a_warning_would(set_extension, monkeypatch):
    names, capabilities = ["NVIDIA H100", "NVIDIA GeForce GTX 1080"], [(9, 0), (6, 1)]
    properties = [
        types.SimpleNamespace(name=name, major=major, minor=minor) for name, (major, minor) in zip(names, capabilities)
    ]
    for name, function in {
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "get_device_name": names.__getitem__,
        "get_device_capability": capabilities.__getitem__,
        "get_device_properties": properties.__getitem__,
    }.items():
        monkeypatch.setattr(torch.cuda, name, function)
    errors = [None, ("cudaErrorNoKernelImageForDevice", "no kernel image is available", 13000, 13000)]
    set_extension(extension(cuda_status=lambda: (2, None), cuda_error=errors.__getitem__))
    found, _ = flat()
    assert found["cuda: device usable by the kernels"] == "yes, 1 device(s)"
    assert found["cuda: cuda:0"] == "runs the kernels"
    with pytest.warns(RuntimeWarning, match="sm_80") as told:
        checks.use_compiled("auto", types.SimpleNamespace(device=torch.device("cuda:1")))
    assert str(told[0].message) == f"ssl_fast: {found['cuda: cuda:1']}"
    set_extension(extension(cuda_status=lambda: (1, None), cuda_error=lambda index: errors[1]))
    assert flat()[0]["cuda: device usable by the kernels"] == "no: none of 1 device(s)"
    set_extension(extension(cuda_architectures=""))
    found, _ = flat()
    assert all(
        "CUDA tensors run plain PyTorch: the package was built without" in found[f"cuda: cuda:{i}"] for i in (0, 1)
    )


def test_without_a_device_or_kernels_for_one(set_extension, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    set_extension(extension(cuda_architectures=""))
    sentence = flat()[0]["cuda: CUDA tensors"]
    assert sentence.startswith(
        "CUDA tensors run plain PyTorch: the package was built without CUDA kernels (no nvcc); `"
    )
    set_extension(extension())
    assert "cuda: CUDA tensors" not in flat()[0]


def test_missing_and_broken_libraries(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "OPTIONAL", (("no-such-thing", "no_such_thing", "live curves"),))
    found, usable = flat()
    assert usable and found["software: no-such-thing"] == "not installed (optional, live curves)"

    def load(name):
        if name == "no_such_thing":
            raise AttributeError("`np.float_` was removed")
        if name == "faiss":
            raise OSError("libgomp.so.1: cannot open shared object file\nand more")
        return types.ModuleType(name)

    monkeypatch.setattr(doctor.importlib, "import_module", load)
    found, usable = flat()
    assert not usable
    broken = "MISSING (AttributeError: `np.float_` was removed) (optional, live curves)"
    assert found["software: no-such-thing"] == broken
    assert (
        found["software: faiss-cpu"]
        == "MISSING (OSError: libgomp.so.1: cannot open shared object file); needed for nearest neighbours"
    )
    assert cli.main(["doctor"]) == 1 and capsys.readouterr().out.endswith("NOT usable: install what is missing above\n")


@pytest.mark.parametrize("version, told", [("2.12.1+cu130", True), ("2.13.0", False)])
def test_torchaudio_that_needs_another_torch(version, told, monkeypatch):
    def load(name):
        if name == "torchaudio":
            raise OSError("Could not load this library")
        return types.ModuleType(name)

    monkeypatch.setattr(doctor.importlib, "import_module", load)
    monkeypatch.setattr(torch, "__version__", version)
    found, usable = flat()
    assert not usable and ("`pip install torchaudio==2.11.0`" in found["software: torchaudio"]) == told
