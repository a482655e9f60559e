"""Debian's Chromium, driven by Playwright, and a page that is watched all the time it is open."""

from __future__ import annotations

import base64
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from playwright.sync_api import expect, sync_playwright

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Page

CHROMIUM = "/usr/bin/chromium"

# What the browser itself logs about an answer that is an error. The page shows those answers, and the tests read them.
_FAILED_ANSWER = "Failed to load resource:"


@contextmanager
def chromium(camera: Path) -> Iterator[Browser]:
    """Run the browser, without a window.

    Args:
        camera: Motion JPEG file that every camera shows; permission to use it is given.
    """
    arguments = [
        "--disable-gpu",  # there is none: drawing without it is quicker than imitating one
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-video-capture={camera}",
    ]
    if os.geteuid() == 0:
        arguments.append("--no-sandbox")  # Chromium refuses to run as root with its sandbox
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def watched_page(browser: Browser, url: str, **context: Any) -> Iterator[Page]:
    """Open a page of its own context, and let no complaint pass.

    Args:
        browser: from `chromium`.
        url: of the page; requests to any other origin fail the test.
        context: of `Browser.new_context`, such as the viewport.

    Raises:
        AssertionError: at the end, where the page logged an error or a warning (as it does for everything that its
            content security policy forbids), threw, or asked another origin for something.
    """
    complaints: list[str] = []
    opened = browser.new_context(**context)
    opened.set_default_timeout(60_000)
    page = opened.new_page()
    page.on("pageerror", lambda error: complaints.append(f"threw {error}"))
    page.on(
        "console",
        lambda message: (
            complaints.append(f"logged {message.text}")
            if message.type in ("error", "warning") and not message.text.startswith(_FAILED_ANSWER)
            else None
        ),
    )
    page.on(
        "request",
        lambda request: (
            complaints.append(f"asked for {request.url}")
            if urlsplit(request.url).scheme not in ("blob", "data")
            and urlsplit(request.url).netloc != urlsplit(url).netloc
            else None
        ),
    )
    # Playwright takes over the browser's file dialogue for a listener, a moment after the listener was added.
    page.on("filechooser", lambda _: None)
    try:
        page.goto(url)
        expect(page.locator("#limit")).not_to_be_empty()  # the last thing that the page's script does
        yield page
    finally:
        opened.close()
    assert not complaints, complaints


def drop(page: Page, *files: Path) -> None:
    """Drag files from outside the browser over the page's middle and let them go."""
    size = page.viewport_size
    assert size is not None
    session = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send(
            "Input.dispatchDragEvent",
            {
                "type": kind,
                "x": size["width"] // 2,
                "y": size["height"] // 2,
                "data": {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1},
            },
        )
    session.detach()


def copy_picture(page: Page, png: Path) -> None:
    """Put a picture on the clipboard, as another program's "Copy image" does."""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate(
        """async (encoded) => {
          const bytes = Uint8Array.from(atob(encoded), (character) => character.charCodeAt(0));
          const blob = new Blob([bytes], { type: "image/png" });
          await navigator.clipboard.write([new ClipboardItem({ "image/png": blob })]);
        }""",
        base64.b64encode(png.read_bytes()).decode(),
    )


def tab_to(page: Page, name: str, *, back: bool = False) -> None:
    """Press Tab, as often as it takes, until the focus is on the control whose text or label contains `name`."""
    passed = []
    for _ in range(60):
        page.keyboard.press("Shift+Tab" if back else "Tab")
        focused = page.evaluate(
            """() => {
              const element = document.activeElement;
              const by = element.getAttribute("aria-labelledby");
              const labels = by ? [document.getElementById(by)] : [...(element.labels ?? [])];
              return element.ariaLabel || labels.map((label) => label.textContent).join(" ") || element.textContent;
            }"""
        )
        if name in focused:
            return
        passed.append(" ".join(focused.split())[:40])
    raise AssertionError(f"Tab does not come to {name!r}, only to {passed}")
