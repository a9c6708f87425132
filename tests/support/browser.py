"""A real browser without a window, for pages that are opened from disk."""

from __future__ import annotations

import contextlib
import shutil
import tempfile

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=1250,1600"),
)


@contextlib.contextmanager
def open_browser(language: str = "en-GB"):
    """Chromium or Chrome, with a new profile, driven by Selenium; the test is skipped where there is none.

    Args:
        language: the reader's.
    """
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("there is no Chromium or no chromedriver: sh scripts/install_system_packages.sh chromium-driver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = program
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.add_experimental_option("prefs", {"intl.accept_languages": language})
    with profile() as folder:
        for flag in (*FLAGS, f"--user-data-dir={folder}", f"--lang={language}"):
            options.add_argument(flag)
        browser = webdriver.Chrome(options=options, service=Service(driver))
        try:
            yield browser
        finally:
            browser.quit()


@contextlib.contextmanager
def profile():
    """A folder for the browser's profile; what the browser still writes at its end does not matter."""
    folder = tempfile.mkdtemp()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
