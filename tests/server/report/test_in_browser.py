"""report.html in a real browser: silent, without a request, in the light and in the dark, narrow, and on paper."""

from __future__ import annotations

import io
import json
import time

import numpy as np
import pytest
from PIL import Image

from server.report.page import write_report
from tests.server.fake_run import write_run
from tests.server.report import browser

pytestmark = pytest.mark.skipif(not browser.CHROMIUM, reason="no Chromium on this machine")
MANY = {f"hospital-with-a-rather-long-name-{index}": (40, 160, 60) for index in range(30)}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Of a run with all that a run can have: tensors by name, absences, comparisons."""
    folder = write_run(tmp_path_factory.mktemp("run"))
    summary = json.loads((folder / "summary.json").read_text())
    for phase in summary["shared"].values():
        phase["names"] = [f"encoder.stages.{index}.blocks.0.conv.weight" for index in range(phase["tensors"])]
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "config.yaml").write_text("study: demo\n" + "".join(f"key_{index}: 1\n" for index in range(300)))
    return write_report(folder)


def test_the_console_is_silent_and_nothing_is_asked_for(report, tmp_path):
    _, log, asked = browser.run(report, tmp_path, "--dump-dom")
    assert not browser.console(log) and not asked


def test_the_browser_tells_what_a_page_does_wrong(tmp_path):
    """The test above can fail."""
    page = tmp_path / "page.html"
    policy = "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'\">"
    page.write_text(f"{policy}<img src=http://127.0.0.1:9/a.png>")
    assert browser.console(browser.run(page, tmp_path, "--dump-dom")[1])
    page.write_text("<img src=http://127.0.0.1:9/a.png>")
    assert "http://127.0.0.1:9/a.png" in browser.run(page, tmp_path, "--dump-dom")[2]


@pytest.mark.parametrize("width", [390, 640, 800])
def test_a_narrow_window_shows_all_without_scrolling_to_the_side(report, tmp_path, width):
    assert browser.size(report, tmp_path, width)[0] <= width


def test_many_sites_fit_into_a_narrow_window(tmp_path):
    report = write_report(write_run(tmp_path / "run", sites=MANY))
    (tmp_path / "scratch").mkdir()
    assert browser.size(report, tmp_path / "scratch", 390)[0] <= 390


def test_lists_of_tensors_and_settings_are_not_printed(report, tmp_path):
    """Six pages are enough for three sites, whatever the network."""
    assert browser.pages(report, tmp_path) <= 6


def test_the_page_is_light_or_dark_as_the_reader_wants(report, tmp_path):
    def brightness(*flags):
        return np.asarray(Image.open(io.BytesIO(browser.screenshot(report, tmp_path, *flags))).convert("L")).mean()

    assert brightness() > 200 and brightness("--blink-settings=preferredColorScheme=0") < 80


def test_a_page_of_thirty_sites_is_made_in_ten_seconds(tmp_path):
    folder = write_run(tmp_path / "run", sites=MANY)
    started = time.process_time()
    write_report(folder)
    assert time.process_time() - started < 10
