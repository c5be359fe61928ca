"""Temporary folders of `ssl-fast demo`: none is left by a program that was ended or killed."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time

import pytest

from demo_clients import head
from ssl_fast.demo.uploads import UploadFolders


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_folder_is_removed(temporary):
    folders = UploadFolders()
    with pytest.raises(KeyError), folders.folder() as folder:
        (folder / "upload.png").write_bytes(b"x")
        raise KeyError
    assert not list(temporary.iterdir())
    with folders.folder() as folder:
        (folder / "upload.png").write_bytes(b"x")
        folders.remove()
        assert not folder.exists()


def test_only_what_was_abandoned_is_removed(temporary):
    with UploadFolders().folder() as used:
        (used / "upload.png").write_bytes(b"x")
        elsewhere = temporary / "elsewhere"
        for folder in (elsewhere, temporary / "ssl-fast-demo-abandoned"):
            folder.mkdir()
            (folder / "upload.png").write_bytes(b"x")
        (temporary / "ssl-fast-demo-link").symlink_to(elsewhere)
        (temporary / "ssl-fast-demo-file").write_bytes(b"x")
        (temporary / "ssl-fast-demo-new").mkdir()  # of another server that is about to lock it
        before = set(temporary.iterdir())
        UploadFolders()
        assert before - set(temporary.iterdir()) == {temporary / "ssl-fast-demo-abandoned"}
        assert (used / "upload.png").exists() and (elsewhere / "upload.png").exists()


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGINT, signal.SIGKILL))]
)
def test_command_that_is_ended_during_an_upload(temporary, number):
    process = subprocess.Popen(
        [sys.executable, "-m", "ssl_fast", "demo", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1", "TMPDIR": str(temporary)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background may ignore it
    )
    try:
        lines = [process.stdout.readline() for _ in range(2)]
        assert "embedded quickstart model" in lines[0]
        host, port = re.match(r"http://([\d.]+):(\d+)/", lines[1]).groups()
        request = head(None, path="/image", Host=f"{host}:{port}", X_Name="a.png", Content_Length=5000)
        with socket.create_connection((host, int(port)), 20) as connection:
            connection.sendall(request + b"some")
            until = time.monotonic() + 20
            while not list(temporary.glob("ssl-fast-demo-*/upload.png")) and time.monotonic() < until:
                time.sleep(0.02)
            assert list(temporary.glob("ssl-fast-demo-*/upload.png"))
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    if number == signal.SIGKILL:
        UploadFolders()
    else:
        assert process.returncode == 0 and out.split() == ["ssl-fast", "demo:", "ended"]
    assert err == "" and not list(temporary.glob("ssl-fast-demo-*"))
