"""README, CONTRIBUTING and docs/ name files, modules, commands and variables that are there."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from ssl_fast.cli import config_file
from ssl_fast.cli.main import parser
from ssl_fast.losses import LOSSES
from ssl_fast.training import loss_options

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "examples/README.md", *sorted(ROOT.glob("docs/**/*.md"))]
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path, language: str) -> str:
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S))


@pages
def test_links(page):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pages
def test_imports(page):
    for module, names in re.findall(r"^from (ssl_fast[\w.]*) import (.+?)(?:  #.*)?$", blocks(page, "python"), re.M):
        for name in names.split(", "):
            if not hasattr(importlib.import_module(module), name):
                importlib.import_module(f"{module}.{name}")


@pages
def test_dotted_names(page):
    """`ssl_fast.a.b.C` in the text, and what the API reference is made of."""
    for name in re.findall(r"(?:`|^::: )(ssl_fast(?:\.\w+)+)", page.read_text(), re.M):
        found = importlib.import_module("ssl_fast")
        for part in name.split(".")[1:]:
            if not hasattr(found, part):
                importlib.import_module(f"{found.__name__}.{part}")
            found = getattr(found, part)


@pages
def test_commands(page, monkeypatch):
    """Every `ssl-fast ...` of a bash block is one that the command line takes."""
    monkeypatch.setattr(config_file, "read", lambda file, parser: {"data": file})
    text = blocks(page, "bash").replace("\\\n", " ")
    for line in re.findall(r"\bssl-fast (.+)", text):
        words = shlex.split(line.partition(" && ")[0], comments=True)
        if "..." in words or any(word.startswith("[") for word in words):
            continue
        parser().parse_args(words)


def test_options_of_losses():
    """The table of options has every option that a recipe may give a loss, with its default."""
    text = (ROOT / "docs/losses.md").read_text().partition("### Options")[2]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", text, re.M))
    for method, loss in LOSSES.items():
        expected = {name: loss().options[name] for name in loss_options.loss_options(method)}
        if method == "ssl_tie":
            expected = {name: value for name, value in expected.items() if name not in LOSSES["lvs"]().options}
        if not expected:
            continue
        found = loss_options.read(re.findall(r"`(\w+=[^`]+)`", rows[method]))
        if "pooling" in found:
            found["pooling"] = loss_options.pooling(found["pooling"])
        assert found == expected, method


def test_environment_variables():
    """Every variable that the code reads stands in the table."""
    sources = [*ROOT.glob("ssl_fast/**/*.py"), *ROOT.glob("tests/*.py"), *ROOT.glob("scripts/*"), ROOT / ".ci/gpu"]
    read = r"""(?:environ(?:\.get\(|\[)|getenv\()\s*["'](\w+)["']"""
    found = {name for path in sources if path.is_file() for name in re.findall(read, path.read_text())}
    assert "SSL_FAST_CACHE" in found
    text = (ROOT / "docs/environment.md").read_text()
    set_by_us = {"SSL_FAST_TEST_TRACE", "COLUMNS", "PATH"}
    assert {name for name in found - set_by_us if f"`{name}`" not in text} == set()
