"""The site: it builds without a warning, no link of it goes nowhere, and no page of it asks for anything outside."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.chromium import console_of, dom_of, needs_chromium

ROOT = Path(__file__).parents[2]
REQUESTS = {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("video", "src"), ("use", "href")}
"""Attributes for which a browser fetches something; of `link` it depends on `rel`."""
FETCHED = {"stylesheet", "icon", "preload", "preconnect", "prefetch", "dns-prefetch", "modulepreload", "manifest"}


class Page(HTMLParser):
    """What a page links to, what it fetches, and its anchors."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.anchors: set[str] = set()
        self.styles: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        if tag == "link" and set((found.get("rel") or "").split()) & FETCHED:
            self.fetched.append(found["href"])
        self.fetched += [value for name, value in attributes if (tag, name) in REQUESTS and value]
        self.styles.append(found.get("style") or "")

    def handle_data(self, data):
        if self.cdata_elem == "style":
            self.styles.append(data)


def outside(page: Page) -> list[str]:
    """What a page asks of another machine."""
    styled = [url for style in page.styles for url in re.findall(r"""url\(["']?([^"')]+)""", style)]
    return [url for url in [*page.fetched, *styled] if urlsplit(url).netloc]


def nowhere(pages: dict[Path, Page]) -> list[str]:
    """Links to a file, or to an anchor, that is not there."""
    lost = []
    for path, page in pages.items():
        for link in [*page.links, *page.fetched]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchors = pages[target].anchors if target in pages else set()
            there = target.exists() and (not parts.fragment or unquote(parts.fragment) in anchors)
            # the theme's own links to the top of a page
            if not there and parts.fragment != "__top":
                lost.append(f"{path.name}: {link}")
    return lost


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site; strict, so that a warning is an error."""
    folder = tmp_path_factory.mktemp("site") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0 and not done.stderr.strip(), done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def pages(site):
    # 404.html is for servers: its links begin at their root
    found = [path for path in site.rglob("*.html") if path.name != "404.html"]
    return {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in found}


def test_what_a_page_asks_of_another_machine_is_seen():
    asking = (
        '<link rel="stylesheet" href="https://fonts.example/css">',
        '<script src="//cdn.example/x.js"></script>',
        '<img src="https://example.org/x.png">',
        "<style>@font-face {src: url(https://example.org/x.woff)}</style>",
    )
    for text in asking:
        assert outside(Page(text)), text
    assert not outside(Page('<a href="https://example.org">x</a><link rel="canonical" href="https://example.org/">'))


def test_a_link_that_goes_nowhere_is_seen(tmp_path):
    one, other = (tmp_path / name for name in ("one.html", "other.html"))
    for path in (one, other):
        path.touch()
    pages = {one: Page('<a href="other.html#a">x</a><a href="#top">y</a><a href="third.html">z</a>'), other: Page("")}
    assert nowhere(pages) == ["one.html: other.html#a", "one.html: #top", "one.html: third.html"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_site_builds_without_a_warning_and_has_every_document(site):
    for document in (ROOT / "docs").rglob("*.md"):
        assert (site / document.relative_to(ROOT / "docs").with_suffix(".html")).is_file(), document


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_no_link_of_the_site_goes_nowhere(pages):
    assert len(pages) > 25
    assert not nowhere(pages)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_no_page_of_the_site_asks_for_anything_outside(site, pages):
    assert not {path.name: found for path, page in pages.items() if (found := outside(page))}
    for style in site.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//[^)]*", style.read_text(encoding="utf-8")), style


@pytest.mark.slow
@pytest.mark.timeout(1200)
@needs_chromium
@pytest.mark.parametrize("name", ["index", "architecture", "reference/study", "reference/api/methods"])
def test_a_browser_finds_nothing_to_complain_of(site, name):
    assert console_of(site / f"{name}.html") == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
@needs_chromium
def test_the_search_works_from_the_folder(site):
    found = re.search(r"(\d+) matching documents", dom_of(site / "index.html", "?q=epsilon"))
    assert found and int(found[1]) > 3
    assert "No matching documents" in dom_of(site / "index.html", "?q=xyzzyplugh")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_python_interface_is_described_and_has_no_private_part(site):
    pages = sorted((site / "reference" / "api").glob("*.html"))
    assert len(pages) == 7
    for page in pages:
        text = page.read_text(encoding="utf-8")
        names = re.findall(r'<h[2-6] id="([\w.]+)" class="doc doc-heading"', text)
        assert not [name for name in names if any(part.startswith("_") for part in name.split("."))]
    methods = (site / "reference" / "api" / "methods.html").read_text(encoding="utf-8")
    assert "dusss_core.objectives.objective.Objective.losses" in methods
    # a docstring of a member, word for word
    assert "Unlabelled records that teach it something." in methods
