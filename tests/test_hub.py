"""Folders of save_pretrained, and repositories of the Hub, whose server is the only thing that is made up."""

import json
import shutil
import socket
import sys
import types

import pytest
import torch

from ssl_fast.cli import main as cli
from ssl_fast.models import Localizer, LocalizerConfig, build, checkpoints, storage
from ssl_fast.models.checkpoints import Checkpoint
from ssl_fast.training import recipes
from test_checkpoints import map_of, run  # noqa: F401
from test_cli import fails


@pytest.fixture
def saved(run, tmp_path):  # noqa: F811
    checkpoints.load(run).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def offline(monkeypatch):
    """Neither the extra nor a network."""

    def refuse(*args, **kwargs):
        raise AssertionError("a socket")

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setattr(socket, "socket", refuse)


@pytest.mark.usefixtures("offline")
def test_a_folder_has_all_that_the_run_has(run, saved, tmp_path, monkeypatch):  # noqa: F811
    before, after = checkpoints.load(run), Checkpoint.from_pretrained(saved)
    assert torch.equal(map_of(after), map_of(before)) and not after.localizer.training
    assert torch.equal(map_of(types.SimpleNamespace(localizer=Localizer.from_pretrained(str(saved)))), map_of(before))
    assert (after.front_end, after.reading, after.layout) == (before.front_end, before.reading, before.layout)
    assert (after.threshold, after.token_threshold) == (0.25, None)
    assert sorted(path.name for path in saved.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert 'Checkpoint.from_pretrained("saved")' in (saved / "README.md").read_text()
    (tmp_path / 'a"gain').mkdir()
    monkeypatch.chdir(tmp_path / 'a"gain')
    after.save_pretrained(".")
    assert r'from_pretrained("a\"gain")' in (tmp_path / 'a"gain/README.md').read_text()
    assert (tmp_path / 'a"gain/config.json').read_text() == (saved / "config.json").read_text()
    assert torch.equal(map_of(Checkpoint.from_pretrained(".")), map_of(before))
    assert cli.main(["convert", str(saved), str(tmp_path / "a.pt")]) == 0  # any --weights
    assert torch.equal(map_of(checkpoints.load(tmp_path / "a.pt")), map_of(before))


def edited(**changes):
    def edit(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return edit


def bare(folder):
    import safetensors.torch

    safetensors.torch.save_file({"a": torch.zeros(1)}, folder / "model.safetensors")


def flipped(folder):
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (folder / "model.safetensors").write_bytes(content)


WRONG = {
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors: no such file"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json: expected a copy of what .* No such"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json: expected a copy .* Expecting"),
    "a list": (lambda folder: (folder / "config.json").write_text("[]"), "config.json: expected a copy of what"),
    "a threshold": (edited(threshold=0.5), "config.json: expected a copy .* they differ in threshold"),
    "a key": (edited(colour=None), "config.json: .* they differ in colour"),
    "bare weights": (bare, "model.safetensors: expected a file that save_pretrained has written, got weights alone"),
    "a bit": (flipped, "model.safetensors: truncated, damaged .*checksum is wrong"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.usefixtures("offline")
def test_a_folder_that_is_not_what_was_written(case, saved):
    change, said = WRONG[case]
    change(saved)
    with pytest.raises(storage.CheckpointError, match=f"{saved}/{said}"):
        Checkpoint.from_pretrained(saved)


@pytest.mark.usefixtures("offline")
def test_checkpoints_beside_the_weights_are_not_read(run, saved):  # noqa: F811
    """As they are in the cache of the Hub, of a repository that has them too."""
    (saved / "best.pt").write_bytes(b"another net")
    found = Checkpoint.from_pretrained(saved)
    assert found.path == saved / "model.safetensors" and torch.equal(map_of(found), map_of(checkpoints.load(run)))


@pytest.mark.parametrize(
    "change, said",
    [
        ({"model": {"depth": 3}}, "'depth'"),
        ({"fit": "pad"}, "got 'pad'"),
        ({"fit": "crop", "resampler": "torch"}, "'to"),
    ],
)
def test_a_folder_of_a_later_version_is_refused(change, said, saved):
    found = Checkpoint.from_pretrained(saved)
    found.recipe.update(change | {"model": found.recipe["model"] | change.get("model", {})})
    found.save_pretrained(saved, overwrite=True)
    with pytest.raises(storage.CheckpointError, match=f"does not give the localizer it describes .*{said}"):
        Checkpoint.from_pretrained(saved)


@pytest.mark.parametrize("name", ["external_nets:Eyes", "external_nets:Tied"])
def test_code_is_imported_where_it_is_allowed(name, tmp_path):
    config = LocalizerConfig.small("ez_vsl", backbone=name, audio_backbone="small", width=4)
    recipe = recipes.recipe("ez_vsl", model=config, image_size=32)
    found = Checkpoint(tmp_path, build(config).eval(), recipe.to_dict(), "ssl_fast")
    found.save_pretrained(tmp_path / "a")
    with pytest.raises(storage.CheckpointError, match=f"{name}: code that is only run where you allow it"):
        Checkpoint.from_pretrained(tmp_path / "a")
    again = Checkpoint.from_pretrained(tmp_path / "a", allowed=[name]).localizer.state_dict()
    assert all(
        torch.equal(value, again[key]) and value.dtype == again[key].dtype
        for key, value in found.localizer.state_dict().items()
    )


@pytest.mark.usefixtures("offline")
def test_what_is_there_is_kept_and_other_names_are_refused(run, saved, tmp_path, capsys, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    found = Checkpoint.from_pretrained(saved)
    with pytest.raises(ValueError, match=f"{saved}: holds model.safetensors, config.json, README.md already"):
        found.save_pretrained(saved)
    with pytest.raises(ValueError, match=f"{run}: holds checkpoint.pt already; choose another folder"):
        found.save_pretrained(run, overwrite=True)
    for name in (saved / "config.json", "a/b/c", "none", "../x", "a b/c"):
        with pytest.raises(ValueError, match="expected a folder, or OWNER/NAME of a repository of the Hub"):
            Checkpoint.from_pretrained(name)
    with pytest.raises(ValueError, match="revision: expected with a repository of the Hub, got v1 with "):
        Checkpoint.from_pretrained(saved, revision="v1")
    with pytest.raises(ValueError, match=r'you/net: no such folder, .* pip install "ssl_fast\[hub\]"'):
        Checkpoint.from_pretrained("you/net")
    with pytest.raises(ValueError, match=r'you/net: .* pip install "ssl_fast\[hub\]"'):
        found.push_to_hub("you/net")
    (saved / "README.md").write_text("mine")
    found.save_pretrained(saved, overwrite=True)
    assert (saved / "README.md").read_text() == "mine"
    (saved / "config.json").unlink()
    fails(capsys, ["convert", saved, tmp_path / "a.pt"], f"{saved}/config.json: expected a copy of what")


class Server:
    """Repositories as the Hub keeps them: commits, each all files by name."""

    def __init__(self):
        self.commits = {}

    def create_repo(self, repo_id, *, private, exist_ok):
        assert exist_ok
        self.private = private
        self.commits.setdefault(repo_id, [{}])
        return types.SimpleNamespace(repo_id=repo_id)

    def file_exists(self, repo_id, filename):
        return filename in self.commits[repo_id][-1]

    def upload_folder(self, *, repo_id, folder_path, commit_message, ignore_patterns):
        new = {
            path.name: path.read_bytes() for path in folder_path.iterdir() if path.name not in (ignore_patterns or ())
        }
        self.commits[repo_id].append(self.commits[repo_id][-1] | new)
        return types.SimpleNamespace(commit_url=f"https://hub/{repo_id}/{commit_message}")

    def snapshot(self, folder):
        def download(repo_id, *, revision, allow_patterns):
            if repo_id not in self.commits:
                raise OSError("404\n  not found")
            files = self.commits[repo_id][-1 if revision is None else int(revision)]
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for name in set(files) & set(allow_patterns):
                (folder / name).write_bytes(files[name])
            return str(folder)

        return download


def test_a_repository_has_all_that_the_folder_has(saved, tmp_path, monkeypatch):
    library, server = pytest.importorskip("huggingface_hub"), Server()
    monkeypatch.setattr(library, "HfApi", lambda: server)
    monkeypatch.setattr(library, "snapshot_download", server.snapshot(tmp_path / "cache"))
    found = Checkpoint.from_pretrained(saved)
    assert found.push_to_hub("you/net", private=True, message="first") == "https://hub/you/net/first" and server.private
    files = server.commits["you/net"][1]
    assert files["config.json"] == (saved / "config.json").read_bytes()
    about = library.ModelCard(files["README.md"].decode()).data
    assert about.library_name == "ssl_fast" and "ssl_align" in about.tags and b'("you/net")' in files["README.md"]
    files["README.md"] = b"mine"
    other = Checkpoint(**{**vars(found), "threshold": 0.5})
    other.push_to_hub("you/net")
    assert server.commits["you/net"][2]["README.md"] == b"mine"
    assert Checkpoint.from_pretrained("you/net").threshold == 0.5
    assert Checkpoint.from_pretrained("you/net", revision="1").threshold == 0.25
    assert torch.equal(map_of(Checkpoint.from_pretrained("you/net")), map_of(found))
    with pytest.raises(
        ValueError, match="you/other, revision v1: no such folder, and on the Hub: OSError: 404 not found"
    ):
        Checkpoint.from_pretrained("you/other", revision="v1")
    with pytest.raises(storage.CheckpointError, match="model.safetensors: no such file"):
        Checkpoint.from_pretrained("you/net", revision="0")


def test_the_library_takes_these_arguments():
    """Those of the calls that the test above answers."""
    import inspect

    library = pytest.importorskip("huggingface_hub")
    for function, names in {
        library.snapshot_download: "repo_id revision allow_patterns",
        library.HfApi.create_repo: "repo_id private exist_ok",
        library.HfApi.file_exists: "repo_id filename",
        library.HfApi.upload_folder: "repo_id folder_path commit_message ignore_patterns",
    }.items():
        assert set(names.split()) <= inspect.signature(function).parameters.keys()
