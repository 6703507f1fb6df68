"""The documentation as a site: it builds without a warning, and its pages open in a browser."""

from __future__ import annotations

import functools
import http.server
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from browser import Browser, find_chromium

import regnet_itk

pytest.importorskip("mkdocs", reason="the site's programs are missing: pip install 'regnet-itk[docs]'")
pytest.importorskip("mkdocstrings", reason="the site's programs are missing: pip install 'regnet-itk[docs]'")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def pages_of(site):
    """All pages but the one that a server shows in place of a missing one."""
    return sorted(page for page in site.rglob("*.html") if page.name != "404.html")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


@pytest.fixture(scope="module")
def address(site):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser():
    program = find_chromium()
    if program is None:
        pytest.skip("Chromium is missing")
    browser = Browser(program)
    yield browser
    browser.close()


def test_the_reference_has_every_public_name(site):
    listed = set(re.findall(r'id="regnet_itk\.(\w+)"', (site / "reference.html").read_text(encoding="utf-8")))
    assert listed == set(regnet_itk.__all__)


def test_every_heading_of_a_page_is_one_on_the_site(site):
    for page in (ROOT / "docs").glob("*.md"):
        text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        shown = re.findall(r"<h2 id=", (site / f"{page.stem}.html").read_text(encoding="utf-8"))
        if page.stem != "reference":  # whose names are headings too
            assert len(shown) == len(re.findall(r"^## ", text, flags=re.MULTILINE)), page.name


def test_the_readme_is_the_first_page_and_every_page_is_in_the_menu(site):
    first = (site / "index.html").read_text(encoding="utf-8")
    assert "What do you want to do?" in first
    assert [page for page in pages_of(site) if f'href="{page.relative_to(site)}"' not in first] == []


def test_every_page_opens_and_asks_for_nothing_from_elsewhere(site, browser):
    for page in pages_of(site):
        browser.open(page)
        assert browser.value("document.querySelector('h1').innerText.length") > 0, page
        assert browser.value("getComputedStyle(document.querySelector('.md-header')).position") == "sticky", page
        assert browser.value("[...document.images].every(image => image.naturalWidth > 0)"), page
        assert browser.complaints() == [], page


def test_search_finds_a_function(address, browser):
    browser.events.clear()
    browser.call("Page.navigate", url=f"{address}/index.html")
    browser.wait("document.readyState === 'complete' && location.protocol === 'http:'")
    browser.click(".md-search__input")
    browser.call("Input.insertText", text="invert_points")
    browser.wait("document.querySelector('.md-search-result__item a[href*=\"reference.html\"]')")
    assert [said for said in browser.complaints() if not said.startswith(address)] == []
