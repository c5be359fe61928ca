"""Every command of docs/papers.md, on folders of six samples in the published layouts."""

import itertools
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import multi_source_folders
from published_folders import CLIPS, FOLDERS, NUMBERS, make, ms3, s4
from ssl_fast.cli import main as cli
from ssl_fast.models.resnet import ResNet18

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/papers.md"
TESTS = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py")}


def commands() -> list[list[str]]:
    """In the order of the page, in which one writes what another reads."""
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines]


def folders(root: Path) -> None:
    """What the page says that there is."""
    training, flickr = make(root / "VGGSound", FOLDERS["ez-vsl, slavc: vggsound"]), root / "Flickr"
    for name in ("vggss_144k", "vggss_heard"):
        (training / f"{name}.txt").write_text("\n".join(CLIPS))
    (training / "vggss_test.csv").write_text(CLIPS[5])
    (make(flickr, FOLDERS["ez-vsl, slavc, fnac: flickr"]) / "flickr_144k.txt").write_text("\n".join(NUMBERS))
    test = make(root / "VGG-SS", FOLDERS["lvs, ez-vsl, slavc: vgg-ss"])
    (test / "vggss_heard_test.csv").write_text("\n".join(CLIPS[:3]))
    (test / "vggss_unheard_test.csv").write_text("\n".join(CLIPS[3:]))
    other = make(root / "Flickr-test", FOLDERS["ez-vsl, slavc: flickr test"])
    for folder, name, ids in ((test, "vggss", CLIPS), (other, "flickr", NUMBERS)):
        rows = "".join(f"{ids[k]},{ids[(k + 1) % 6]},non-sounding\n" for k in range(6))
        (folder / f"{name}_test_plus_silent.csv").write_text(f"video,audio,label\n{rows}")
    make(root / "SSL-TIE", FOLDERS["ssl-tie: vgg-ss-xml"])
    (root / "SSL-TIE/heard_test.csv").write_text("\n".join(f"{clip}.jpg" for clip in CLIPS))
    names = ["owl_train_7_owl", "owl_train_7_train", "accordion_missile_8_accordion", "accordion_missile_8_missile"]
    files = [(f"images/{name}.jpg", f"audio_wav/{name}.wav", f"gt_segmentation/{name}.png") for name in names]
    make(root / "IS3", replace(FOLDERS["is3"], ids=names, lines=names, files=files))  # each has off-screen sounds
    make(root / "AVSBench", FOLDERS["avsbench: s4"])
    make(root / "VPO-SS", FOLDERS["ssl-align: vpo-ss"])
    s4(root / "Single-source"), ms3(root / "Multi-sources")
    duets = "vgg-instruments-duet", "music-duet", "ade20k-speech"
    for name, where in zip(duets, ("VGG-Instruments", "MUSIC-Duet", "ADE20KSpeechPrompted")):
        multi_source_folders.make(root / where, name)
    lines = [f"{one},owl_hooting,{other},playing_cello\n" for one, other in itertools.pairwise(CLIPS)]
    (test / "vggsound_duet_test.csv").write_text("".join(lines))
    fc = {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    torch.save(ResNet18().state_dict() | fc, root / "resnet18.pth")


@pytest.mark.slow
def test_commands_run(tmp_path, monkeypatch, capsys):
    """Each ends well, those that train after a step of two or three samples, and the next read what they wrote."""
    folders(tmp_path)
    monkeypatch.chdir(tmp_path)
    every = commands()
    for number, (program, command, *options) in enumerate(every):
        assert program == "ssl-fast"
        more = ["--k", "2"] if command == "mine" else []
        if command == "train":
            more = ["--batch-size", "2", "--epochs", "1"] + ["--nce-epochs", "0"] * ("fnac" in options)
            out = options[options.index("--out") + 1]
            if not any(out in later for later in every[number + 1 :]):  # else it is evaluated, at full size
                more += ["--image-size", "64"]
        code = cli.main([command, *options, *more, "--quiet"])
        assert code == 0, f"{shlex.join([command, *options])}: {capsys.readouterr().err}"
    for result in ("1-vggss", "2", "5", "7-flickr", "m1-flickr", "v-is3-anew", "r-ms3", "vpo-masks"):
        assert (tmp_path / "results" / result / "metrics.json").exists()


def test_tests_that_the_page_names_are_there():
    rows = re.findall(r"^\| (.+) \|$", PAGE.read_text(encoding="utf-8").partition("## What was reproduced")[2], re.M)
    names = set(itertools.chain(*(re.findall(r"`(test_\w+)`", row) for row in rows)))
    assert len(names) > 8
    for name in names:
        assert name in TESTS or any(f"def {name}(" in text for text in TESTS.values()), name


def test_programs_of_the_page_are_in_the_tests_that_it_names():
    """A program whose checkpoint, or folder, is said to be read stands in that test by name."""
    listed = {
        "LVS": "lvs",
        "EZ-VSL": "ezvsl",
        "SLAVC": "slavc",
        "FNAC": "fnac",
        "SSL-TIE": "ssltie",
        "SSL-Align": "sslalign",
    }
    for program, layout in listed.items():
        assert f'"{layout}"' in TESTS["test_published"], program
    for name in ("lvs", "ez_vsl", "slavc", "fnac", "ssl_tie", "ssl_align", "margin_nce"):
        assert f'"{name}": (' in TESTS["test_steps"]
