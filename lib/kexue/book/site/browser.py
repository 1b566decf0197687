"""Finds a browser for the tests of the site, and installs one where that is allowed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["FLAGS", "BrowserMissing", "find_browser"]

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
ADVICE = "the site tests need a browser: run `apt-get install chromium` or `playwright install chromium`, or name one in KEXUE_BROWSER"


class BrowserMissing(RuntimeError):
    """There is no browser, and none could be installed."""


def find_browser() -> str:
    """Path of a Chromium or Chrome: the one in KEXUE_BROWSER, an installed one, the distribution's, or Playwright's own.

    :raises BrowserMissing: in one line that says what to do, if none of these is there or can be installed.
    """
    chosen = os.environ.get("KEXUE_BROWSER")
    if chosen:
        if shutil.which(chosen):
            return chosen
        raise BrowserMissing(f"KEXUE_BROWSER names {chosen!r}, which cannot be run")
    return _installed() or _from_distribution() or _from_playwright() or _none()


def _installed() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def _from_distribution() -> str | None:
    """Install the package of a Debian-like system, if we are allowed to."""
    if os.name != "posix" or os.geteuid() != 0 or not shutil.which("apt-get"):
        return None
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update", "-q"], ["apt-get", "install", "-q", "-y", "--no-install-recommends", "chromium"]):
        if subprocess.run(command, env=environment, capture_output=True, check=False).returncode:
            return None
    return _installed()


def _from_playwright() -> str | None:
    if subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"], capture_output=True, check=False).returncode:
        return None
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).is_file() else None


def _none() -> str:
    raise BrowserMissing(ADVICE)
