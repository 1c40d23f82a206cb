"""The page of scripts/app.py in a browser, with a file as the microphone."""

import os
import shutil
import warnings

import numpy as np
import pytest
import soundfile

from conftest import script
from test_sessions import RATE, recogniser, speech

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("there is no chromium: apt-get install chromium", allow_module_level=True)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    gradio = pytest.importorskip("gradio", reason="gradio is not installed (extra app)")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]  # warnings are those of gradio and its server


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    app = script("app")
    folder = tmp_path_factory.mktemp("served")
    made = app.blocks(app.Page(*recogniser(), folder), "small")
    _, url, _ = made.launch(prevent_thread_lock=True, quiet=True, allowed_paths=[str(folder)])
    yield url
    made.close()


@pytest.fixture
def page(tmp_path):
    wav = tmp_path / "said.wav"
    soundfile.write(wav, np.concatenate([speech(4.0), np.zeros(RATE)]), RATE)
    options = ["--no-sandbox", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    options += [f"--use-file-for-fake-audio-capture={wav}", "--autoplay-policy=no-user-gesture-required"]
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=options)
        opened = browser.new_context(permissions=["microphone"]).new_page()
        opened.set_default_timeout(60_000)
        opened.said = wav
        yield opened
        browser.close()


def test_text_comes_while_the_microphone_is_open_and_a_click_plays_a_word(page, address):
    page.goto(address)
    page.click("#microphone .record")
    page.wait_for_function("document.querySelector('#microphone .said').textContent.trim() !== ''")
    assert page.inner_text("#microphone .record") == "Stop"
    live = page.inner_text("#microphone .said")
    page.click("#microphone .record")
    page.wait_for_selector("#microphone [data-start]")
    assert page.inner_text("#microphone .said").startswith(live)
    assert page.locator("#microphone circle").count() > 0
    word = page.locator("#microphone [data-start]").first
    word.click()
    page.wait_for_function("document.querySelector('#microphone audio').currentTime > 0")
    playing = page.evaluate("document.querySelector('#microphone audio').dataset.playing")
    assert playing == word.inner_text()
    srt = page.locator("#microphone a").first.get_attribute("href")
    assert page.request.get(f"{address}{srt}").text().startswith("1\n00:00:")


def test_a_file_is_shown_the_same_way(page, address):
    page.goto(address)
    page.click("button[role=tab]:has-text('File')")
    page.set_input_files("#file input[type=file]", str(page.said))
    page.wait_for_selector("#picture [data-start]")
    words = page.locator("#picture [data-start]").all_inner_texts()
    assert " ".join(words) == " ".join(page.input_value("#text textarea").split())
