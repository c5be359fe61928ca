"""The answers of the server of `ssl-fast demo`, and the command."""

import dataclasses
import re
import socket

import numpy as np
import pytest
import soundfile
from PIL import Image

import demo_clients
from demo_clients import SCENE, ask, exchange, head, of_data_uri, pixels, question, running
from ssl_fast.cli import main as cli
from ssl_fast.data.scenes import dataset as scenes
from ssl_fast.inference.localize import LocalizationPipeline

uploads, server = demo_clients.uploads, demo_clients.server  # fixtures


def test_page(server):
    status, headers, content = exchange(server, head(server, "GET", "/"))
    assert status == 200 and headers["content-type"] == "text/html; charset=utf-8"
    policy = headers["content-security-policy"]
    nonce = re.search("script-src 'nonce-([^']+)'", policy).group(1)
    assert content.decode().count(f'nonce="{nonce}"') == 2 and "default-src 'none'" in policy and "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
    outside = re.findall(r"""(?:https?:)?//[a-z][^\s"']*""", content.decode())
    assert not [address for address in outside if "." in address], outside
    assert "innerHTML" not in content.decode()
    assert exchange(server, head(server, "GET", "/"))[1]["content-security-policy"] != policy  # a nonce is used once


def test_about(server, pipeline):
    status, about = ask(server, "/about")
    assert status == 200 and about["threshold"] == pipeline.threshold and about["alpha"] == 0.4
    assert about["model"]["categories"] == list(scenes.CATEGORIES[:12]) and about["model"]["method"] == "ssl_align"
    assert about["colours"][0] == "#0d0887" and about["colours"][-1] == "#f0f921"  # plasma
    assert len(about["scenes"]) == 8 and len({one["id"] for one in about["scenes"]}) == 8
    for index, one in enumerate(about["scenes"]):
        drawn = scenes.scene(scenes.Settings(), "duo", index)
        assert one["categories"] == list(drawn.categories) == [sound["category"] for sound in one["sounds"]]
        assert one["offscreen"]["category"] not in one["categories"]
        small = np.asarray(Image.fromarray(pixels(one["picture"]).astype(np.uint8)).resize((112, 112), 4)).astype(int)
        assert np.abs(small - drawn.image).mean() < 6


@pytest.mark.parametrize("position", [0, 1])
def test_answer_is_the_pipelines(server, pipeline, position):
    drawn = scenes.scene(scenes.Settings(), "duo", SCENE)
    waveform = drawn.waveforms[position].astype(np.float32) / 32768
    expected = pipeline.localize(drawn.image, waveform)
    status, answer = question(server, sound=f"scene-{SCENE}-{position}", alpha=0.7)
    assert status == 200 and answer["scores"] == pytest.approx(expected.scores(), abs=1e-6)
    panels = expected.panels(0.7)
    assert [panel["title"] for panel in answer["panels"]] == [panel.title for panel in panels]
    for got, panel in zip(answer["panels"], panels):
        assert (got["low"], got["high"]) == pytest.approx((panel.low, panel.high), abs=1e-6)
        assert np.abs(pixels(got["picture"]) - panel.picture).mean() < 3
    with soundfile.SoundFile(of_data_uri(answer["heard"], "audio/wav")) as file:
        assert file.samplerate == 16000
        np.testing.assert_allclose(file.read(dtype="float32"), waveform, atol=2 / 32768)


def test_two_sounds_move_the_maximum(server):
    drawn = scenes.scene(scenes.Settings(), "duo", SCENE)
    for position, (left, top, right, bottom) in zip(drawn.sounding, drawn.boxes):
        scores = question(server, sound=f"scene-{SCENE}-{position}")[1]["scores"]
        assert left <= scores["x"] * 112 < right and top <= scores["y"] * 112 < bottom and scores["found"] is True


def test_sounds_of_nothing_in_the_image(server, pipeline):
    drawn = scenes.scene(scenes.Settings(), "duo", SCENE)
    silent = question(server, sound="silence")[1]
    assert silent["scores"]["found"] is False and silent["scores"]["area"] == 0
    expected = pipeline.localize(drawn.image, np.zeros(16000, np.float32)).scores()
    assert silent["scores"] == pytest.approx(expected, abs=1e-6)
    noise = question(server, sound="noise")[1]
    assert noise["scores"]["found"] is False
    heard, _ = soundfile.read(of_data_uri(noise["heard"], "audio/wav"))
    assert heard.std() > 0.5 and np.abs(heard).max() <= 1
    offscreen = ask(server, "/about")[1]["scenes"][SCENE]["offscreen"]["id"]
    assert question(server, sound=offscreen)[1]["scores"]["found"] is False


def test_sliders(server, pipeline):
    own, low, high = (question(server, threshold=t)[1] for t in (None, -1, 1))
    assert own["scores"]["threshold"] == pipeline.threshold == own["panels"][0]["threshold"]
    assert low["scores"]["area"] == 1 and low["scores"]["found"] is True
    assert high["scores"]["area"] == 0 and high["scores"]["found"] is False
    assert own["scores"]["maximum"] == low["scores"]["maximum"] == high["scores"]["maximum"]
    mixtures = [question(server, alpha=alpha)[1]["panels"] for alpha in (0, 1)]
    assert mixtures[0][2]["title"] == "mixture, alpha 0" and mixtures[1][2]["title"] == "mixture, alpha 1"
    assert mixtures[0][0]["picture"] == mixtures[1][0]["picture"]
    assert np.abs(pixels(mixtures[0][2]["picture"]) - pixels(mixtures[1][2]["picture"])).mean() > 5


def test_sliders_do_not_run_the_net_again(pipeline):
    class Counting(LocalizationPipeline):
        count = 0

        def localize(self, image, waveform):
            self.count += 1
            return super().localize(image, waveform)

    counting = Counting(pipeline.found)
    with running(counting) as server:
        for alpha in (0, 0.5, 1):
            assert question(server, alpha=alpha, threshold=alpha)[0] == 200
        assert counting.count == 1
        server.shutdown()


def test_a_model_without_threshold(pipeline):
    deaf = LocalizationPipeline(dataclasses.replace(pipeline.found, threshold=None))
    with running(deaf) as server:
        assert ask(server, "/about")[1]["threshold"] is None
        assert question(server)[1]["scores"]["found"] is None
        assert question(server, threshold=0)[1]["scores"]["found"] is True
        server.shutdown()


def test_front_end_of_another_rate_and_length(pipeline):
    recipe = pipeline.found.recipe | {
        "front_end": dataclasses.replace(pipeline.front_end, sample_rate=8000, seconds=2.5)
    }
    with running(LocalizationPipeline(dataclasses.replace(pipeline.found, recipe=recipe))) as server:
        heard, rate = soundfile.read(of_data_uri(question(server)[1]["heard"], "audio/wav"))
        assert rate == 8000 and len(heard) == 20000 and heard.std() > 0.01
        np.testing.assert_array_equal(heard[:8000], heard[8000:16000])  # of one second, repeated
        server.shutdown()


@pytest.mark.parametrize("port", ["taken", "70000", "-1"])
def test_command_without_a_port(capsys, port):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1]) if port == "taken" else port
        assert cli.main(["demo", f"--port={port}"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"--port {port}" in err


def test_command_with_an_unknown_host(capsys):
    assert cli.main(["demo", "--host", "no.such.host.invalid", "--port", "0"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "no.such.host.invalid" in err
