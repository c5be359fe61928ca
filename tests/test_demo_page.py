"""The page of `ssl-fast demo` in a browser without a screen."""

import os
import shutil
import threading

import numpy as np
import pytest
import soundfile
from PIL import Image

from ssl_fast.demo.server import Server

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSER = shutil.which(os.environ.get("SSL_FAST_BROWSER", "chromium"))


@pytest.fixture(scope="module")
def server(pipeline):
    with Server(pipeline) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    if BROWSER is None:
        pytest.skip("no chromium; another browser of its kind: $SSL_FAST_BROWSER")
    with playwright.sync_playwright() as drivers:
        browser = drivers.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, server):
    """The page with its first answer; at the end nothing may have gone wrong in it that it does not tell itself."""
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: said.type in ("error", "warning") and wrong.append(said.text))
    page.on("request", lambda made: made.url.startswith((server.url, "data:")) or wrong.append(made.url))
    page.goto(server.url)
    settled(page)
    yield page
    page.close()
    refusal = "Failed to load resource: the server responded with a status of 4"
    assert not [text for text in wrong if not text.startswith(refusal)]


def settled(page):
    page.wait_for_selector("#result[data-updates]", state="attached")
    page.wait_for_selector("#pictures[aria-busy=false]")


def shown(page) -> dict:
    """The visible text of the page once all answers came."""
    settled(page)
    panels = [page.get_attribute(f"#panel-{k}", "src") for k in range(3)]
    scores = {name: page.inner_text(f"#{name}") for name in ("maximum", "confidence", "area", "result")}
    return {"panels": panels, "audio": page.get_attribute("#audio", "src"), **scores}


def slide(page, name: str, value: float):
    page.fill(f"#{name}", str(value))


def test_sounds_of_a_scene(page, server):
    page.click("#scene-1")
    page.click("#sound-0")
    first = shown(page)
    page.click("#sound-1")
    second = shown(page)
    assert (page.inner_text("#sound-0"), page.inner_text("#sound-1")) == ("bell", "phone")
    assert page.get_attribute("#sound-1", "aria-pressed") == "true" != page.get_attribute("#sound-0", "aria-pressed")
    assert first["maximum"] != second["maximum"] and first["result"] != second["result"]
    assert first["panels"][0] != second["panels"][0] and first["panels"][2] != second["panels"][2]
    assert first["panels"][1] == second["panels"][1]  # the prior hears nothing
    assert first["audio"] != second["audio"]
    assert second["panels"][0].startswith("data:image/jpeg;base64,") and second["result"].startswith("Found")
    for one in ("image", "panel-0", "panel-1", "panel-2"):
        assert page.evaluate(f"document.getElementById('{one}').naturalWidth") == 448
    page.wait_for_selector("#audio", state="visible")
    duration = page.evaluate("""new Promise(done => { const audio = document.getElementById('audio');
        if (audio.readyState) done(audio.duration); else audio.onloadedmetadata = () => done(audio.duration); })""")
    assert duration == 1


@pytest.mark.slow
def test_sounds_of_nothing(page):
    page.click("#scene-1")
    for name in ("silence", "noise", "offscreen"):
        page.click(f"#sound-{name}")
        assert shown(page)["result"] == "Nothing here makes this sound"
    assert page.inner_text("#sound-offscreen") == "off-screen: guitar"
    assert "guitar, which is not in the image" in page.inner_text("#heard")
    page.click("#sound-silence")
    page.click("#scene-3")
    assert page.get_attribute("#sound-silence", "aria-pressed") == "true"  # another image under the same sound


@pytest.mark.slow
def test_sliders(page):
    before = shown(page)
    assert page.inner_text("#alpha-value") == "0.40" and page.inner_text("#threshold-value") == "0.548, the model's"
    assert page.is_disabled("#universal")
    slide(page, "alpha", 0.9)
    after = shown(page)
    assert page.inner_text("#alpha-value") == "0.90" and page.inner_text("#title-2") == "mixture, alpha 0.9"
    assert after["panels"][2] != before["panels"][2] and after["panels"][0] == before["panels"][0]
    slide(page, "threshold", -0.5)
    lower = shown(page)
    assert page.inner_text("#threshold-value") == "-0.50" and lower["area"] != before["area"]
    assert lower["panels"][0] != before["panels"][0] and lower["maximum"] == before["maximum"]
    slide(page, "threshold", 1)
    assert shown(page)["result"] == "Nothing here makes this sound"
    page.click("#universal")
    assert shown(page)["area"] == before["area"] and page.inner_text("#threshold-value") == "0.548, the model's"


@pytest.mark.slow
def test_many_movements_end_at_the_last(page):
    asked = []
    page.on("request", lambda made: made.url.endswith("/answer") and asked.append(made))
    page.evaluate("""for (let k = 0; k <= 20; k++) { const slider = document.getElementById('alpha');
        slider.value = k / 20; slider.dispatchEvent(new Event('input')); }""")
    settled(page)
    assert page.inner_text("#title-2") == "mixture, alpha 1" and len(asked) == 2  # the first, and the latest after it


@pytest.mark.slow
def test_own_files(page, tmp_path):
    picture, tone, bad = tmp_path / "mine.png", tmp_path / "tone.wav", tmp_path / "bad<i>.wav"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 120, 3), np.uint8)).save(picture)
    soundfile.write(tone, np.sin(np.arange(16000) / 9) / 2, 16000)
    bad.write_text("no sound")
    before = shown(page)
    page.set_input_files("#image-file", picture)
    page.wait_for_selector("#image-own[aria-pressed=true]")
    image = shown(page)
    assert page.get_attribute("#image", "alt") == "mine.png" and page.is_hidden("#sound-offscreen")
    assert page.evaluate("document.getElementById('panel-0').naturalHeight") == 224
    page.set_input_files("#sound-file", tone)
    page.wait_for_selector("#sound-own[aria-pressed=true]")
    sound = shown(page)
    assert page.inner_text("#sound-own") == "tone.wav"
    assert before["panels"][0] != image["panels"][0] != sound["panels"][0] and sound["audio"] != image["audio"]
    assert page.is_hidden("#error")
    page.set_input_files("#sound-file", bad)
    page.wait_for_selector("#error", state="visible")
    assert page.inner_text("#error") == "bad<i>.wav: cannot be read as a sound"
    assert page.inner_text("#sound-own") == "tone.wav" and shown(page) == sound
    page.click("#scene-2")
    settled(page)
    assert page.is_hidden("#error") and page.get_attribute("#sound-own", "aria-pressed") == "true"


@pytest.mark.slow
def test_dropped_file(page):
    page.evaluate("""async () => {
        const blob = await new Promise(done => Object.assign(document.createElement("canvas"), {width: 50, height: 50})
            .toBlob(done));
        const transfer = new DataTransfer();
        transfer.items.add(new File([blob], "dropped.png"));
        document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true}));
    }""")
    page.wait_for_selector("#image-own[aria-pressed=true]")
    assert page.get_attribute("#image", "alt") == "dropped.png"


@pytest.mark.slow
def test_too_large_a_file_is_not_sent(page, tmp_path):
    path = tmp_path / "large.png"
    with open(path, "wb") as file:
        file.truncate(20_000_001)
    page.set_input_files("#image-file", path)
    page.wait_for_selector("#error", state="visible")
    assert page.inner_text("#error") == "large.png: expected at most 20 MB"


def test_token_becomes_a_cookie(browser, pipeline):
    with Server(pipeline, token="s3cret") as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = browser.new_page()
        assert page.goto(server.url).status == 403
        page.goto(server.link)
        settled(page)
        assert page.url == server.url and page.evaluate("document.cookie") == ""
        assert page.reload().status == 200
        settled(page)
        other = browser.new_page()
        assert other.goto(server.url).status == 403
        for one in (page, other):
            one.close()
        server.shutdown()


def test_refused_answer(page):
    gone = {"status": 410, "content_type": "application/json", "body": '{"error": "gone"}'}
    page.route("**/answer", lambda route: route.fulfill(**gone))
    page.click("#sound-1")
    page.wait_for_selector("#error", state="visible")
    assert page.inner_text("#error") == "gone" and page.inner_text("#result") == ""
    page.unroute("**/answer")
    page.click("#sound-0")
    assert shown(page)["result"] and page.is_hidden("#error")


def test_keyboard_and_names(page):
    """Everything is reached by the Tab key, and has a name for those who do not see it."""
    page.focus("#scene-0")
    reached = []
    for _ in range(24):
        reached.append(page.evaluate("document.activeElement.id"))
        page.keyboard.press("Tab")
    wanted = {
        "scene-7",
        "image-file",
        "sound-0",
        "sound-1",
        "sound-offscreen",
        "sound-silence",
        "sound-noise",
        "sound-file",
        "audio",
        "alpha",
        "threshold",
    }
    assert wanted <= set(reached), reached
    page.focus("#sound-silence")
    page.keyboard.press("Enter")
    page.focus("#alpha")
    page.keyboard.press("ArrowRight")
    settled(page)
    assert page.inner_text("#alpha-value") == "0.45" and page.get_attribute("#sound-silence", "aria-pressed") == "true"
    assert page.get_by_label("alpha").count() == 1 and page.get_by_label("threshold, a cosine").count() == 1
    assert page.get_by_label("own image").count() == page.get_by_label("own sound").count() == 1
    names = page.eval_on_selector_all("img", "all => all.filter(one => one.offsetParent).map(one => one.alt)")
    assert len(names) == 12 and all(names)
    assert page.get_attribute("[aria-live]", "aria-live") == "polite"
    assert page.get_attribute("#error", "role") == "alert"


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width, height", [(1200, 900), (375, 800)])
def test_looks(browser, server, tmp_path, scheme, width, height):
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.goto(server.url)
    settled(page)
    assert page.evaluate("document.documentElement.scrollWidth") == width  # nothing sticks out
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(18, 22, 29)")
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert (tmp_path / "page.png").stat().st_size > 20_000
    page.close()


def test_the_map_moves_with_the_sound(browser, token_pipeline):
    with Server(token_pipeline) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = browser.new_page()
        page.goto(server.url)
        settled(page)
        whole = page.get_attribute("#panel-0", "src")
        assert page.inner_text("#time-value") == "all of the sound"
        with page.expect_response("**/answer") as response:
            page.click("#sound-1")
        moving = response.value.json()["moving"]
        settled(page)
        assert set(moving["found"]) == {True, False}  # the threshold lies between the maxima of the maps
        for k in (0, 5, len(moving["times"]) - 1):
            page.fill("#time", str(k))
            page.wait_for_function(
                "text => document.getElementById('time-value').textContent.startsWith(text)",
                arg=f"{moving['times'][k]:.2f} s",
            )
            assert page.get_attribute("#panel-0", "src") == moving["pictures"][k] != whole
            said = ", something sounds here" if moving["found"][k] else ", nothing here sounds"
            assert page.inner_text("#time-value").endswith(said)
        page.evaluate("document.getElementById('audio').currentTime = 0")
        seen = page.evaluate("""() => new Promise(done => {
            const [audio, panel] = ['audio', 'panel-0'].map(id => document.getElementById(id)), seen = new Set();
            new MutationObserver(() => seen.add(panel.getAttribute('src'))).observe(panel, {attributes: true});
            audio.onended = () => setTimeout(() => done([...seen]), 100);
            audio.muted = true;
            audio.playbackRate = 0.25;  // for machines under load
            audio.play();
        })""")
        assert len(set(seen) & set(moving["pictures"])) >= 3  # as many as the machine's load lets the browser draw
        assert page.inner_text("#time-value") == "all of the sound"
        server.shutdown()
        page.close()


def test_a_model_without_tokens_shows_no_times(page):
    assert page.is_hidden("#times")
