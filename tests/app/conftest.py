"""The browser that the tests of the painter's page share."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def browser() -> Iterator:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; `dev` brings it")
    sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks" / "studies"))
    from painter_hand import BROWSERS, find_browser

    found = find_browser()
    if found is None:
        pytest.skip(f"there is no browser on the PATH; expected one of {', '.join(BROWSERS)}")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()
