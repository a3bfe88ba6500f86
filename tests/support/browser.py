"""The browser that pages are tested with: the system's Chromium, offline."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Locator, Page

# The folder for the pictures of the docs; without it none are taken (`make screenshots`).
PICTURES = "FLYWHEEL_SCREENSHOTS"
_COLOURS = 256
# MLflow opens its assistant's panel by itself, once. The frame of an artifact has no storage.
_NO_ASSISTANT = (
    "try { localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true') } catch {}"
)

_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start Chromium; where there is none, skip, or fail in CI."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        complaint = "no chromium on PATH"
        if os.environ.get("CI"):
            pytest.fail(complaint)
        pytest.skip(complaint)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=_ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


def watched(page: Page, host: str) -> list[str]:
    """Return a list in which everything appears that a page does wrong: errors, and requests to another host."""
    trouble: list[str] = []
    page.add_init_script(_NO_ASSISTANT)
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on(
        "console", lambda said: trouble.append(said.text) if said.type == "error" and _ours(said) else None
    )
    page.on("request", lambda request: _foreign(request.url, host) and trouble.append(request.url))
    return trouble


def _ours(said: ConsoleMessage) -> bool:
    # MLflow's own pages ask who is logged in, also of a server that asks nobody; a form that does not fit is answered so
    return not said.location["url"].endswith("/mlflow/users/current") and "(Bad Request)" not in said.text


def _foreign(url: str, host: str) -> bool:
    return not url.startswith((host, "data:", "blob:", "about:"))


def picture(shown: Page | Locator, name: str, **options: Any) -> None:
    """Take a picture for the docs when somebody wants them: few colours, so that it is small."""
    if not wants_pictures():
        return
    from PIL import Image

    taken = Image.open(io.BytesIO(shown.screenshot(**options)))
    few = taken.convert("RGB").quantize(_COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(Path(os.environ[PICTURES]) / f"{name}.png", optimize=True)


def wants_pictures() -> bool:
    return bool(os.environ.get(PICTURES))
