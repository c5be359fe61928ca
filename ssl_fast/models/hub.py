"""Repositories of the Hugging Face Hub (extra `hub`), for from_pretrained and push_to_hub of checkpoints.Checkpoint."""

import json
import typing
from collections.abc import Sequence
from pathlib import Path

from ..optional import optional_module

CARD = "README.md"


def _library(beginning: str) -> typing.Any:
    """huggingface_hub. beginning: of the error where there is none."""
    needs = f"{beginning} a repository of the Hub needs huggingface_hub, which"
    return optional_module("huggingface_hub", needs, '"ssl_fast[hub]"')


def download(repo_id: str, revision: str | None, names: Sequence[str]) -> Path:
    """The folder of these files of a repository OWNER/NAME, all of one commit, from the cache where they are there.

    revision: a branch, tag or commit; None: the main branch. ValueError, which names the repository, for any reason why
    there are none.
    """
    beginning = f"{repo_id}{'' if revision is None else f', revision {revision}'}: no such folder, and"
    library = _library(beginning)
    try:
        return Path(library.snapshot_download(repo_id, revision=revision, allow_patterns=list(names)))
    except Exception as error:  # of the network, the server, the cache: anything
        raise _failure(beginning, error) from error


def upload(repo_id: str, folder: Path, private: bool | None, message: str) -> str:
    """Commit the files of a folder to a repository, which is made where there is none; the address of the commit.

    A card that the repository has is kept. ValueError, which names the repository, for any reason why not.
    """
    library = _library(f"{repo_id}:")
    try:
        api = library.HfApi()
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        kept = [CARD] if api.file_exists(repo_id, CARD) else None
        commit = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message, ignore_patterns=kept)
    except Exception as error:  # as above
        raise _failure(f"{repo_id}:", error) from error
    return commit.commit_url


def _failure(beginning: str, error: Exception) -> ValueError:
    return ValueError(f"{beginning} on the Hub: {type(error).__name__}: {' '.join(str(error).split())}")


def card(method: str, name: str) -> str:
    """The README.md of a repository."""
    quoted = json.dumps(name, ensure_ascii=False)
    return f"""---
library_name: ssl_fast
tags:
- visual-sound-source-localization
- {method}
---
A localizer of visual sound sources ({method}), for `ssl_fast`:

```python
from ssl_fast.models.checkpoints import Checkpoint

found = Checkpoint.from_pretrained({quoted})  # found.localizer, found.front_end, found.image_size, found.threshold
```
"""
