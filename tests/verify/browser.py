"""A headless browser for tests of pages; they are skipped where there is none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
RESOLVED = """element => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const over = (below, colour) => { canvas.fillStyle = `rgb(${below})`; canvas.fillRect(0, 0, 1, 1); canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1); return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3); };
  const chain = []; for (let e = element; e; e = e.parentElement) chain.unshift(getComputedStyle(e).backgroundColor);
  const back = chain.reduce(over, [255, 255, 255]);
  return [over(back, getComputedStyle(element).color), back];
}"""
"""The colours of an element's text and of what lies behind it, 0 to 255, as painted."""


def launch() -> Iterator[Any]:
    """A browser of playwright: its own Chromium, else one of the system's."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install 'ringfence[dev]'")
    with playwright.sync_playwright() as play:
        own = Path(play.chromium.executable_path).exists()
        system = next(filter(None, map(shutil.which, NAMES)), None)
        if not own and system is None:
            pytest.skip("no Chromium here: run playwright install chromium")
        # Chromium's sandbox refuses to run as root, which is who runs tests in containers.
        arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        browser = play.chromium.launch(executable_path=None if own else system, args=arguments)
        yield browser
        browser.close()


def contrast(colours: list[list[float]]) -> float:
    """Contrast of two colours, 1 to 21. Reference: WCAG 2.2, relative luminance and contrast ratio."""
    linear = [[(v / 12.92) if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (c / 255 for c in colour)] for colour in colours]
    light, dark = sorted((0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in linear), reverse=True)
    return (light + 0.05) / (dark + 0.05)
