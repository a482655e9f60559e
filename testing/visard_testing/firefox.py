"""Debian's Firefox, driven over WebDriver BiDi, which it speaks by itself: no driver beside it is needed.

Playwright drives only a Firefox that it has patched itself. https://www.w3.org/TR/webdriver-bidi/
"""

from __future__ import annotations

import json
import re
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from websockets.sync.client import connect

from visard_testing.processes import Processes
from visard_testing.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from websockets.sync.client import ClientConnection

FIREFOX = "/usr/bin/firefox-esr"
_WAIT_S = 120.0

_PREFERENCES = {
    "browser.download.folderList": 2,  # the folder below
    "browser.download.always_ask_before_handling_new_types": False,
    "intl.accept_languages": "en-US, en",
}


class Page:
    """A page that is open in Firefox.

    Attributes:
        downloads: the folder into which the browser saves files without asking.
        complaints: errors and warnings that the page logged or threw, and requests to other origins.
    """

    def __init__(self, connection: ClientConnection, downloads: Path, url: str) -> None:
        self.downloads = downloads
        self.complaints: list[str] = []
        self._connection, self._url = connection, url
        self._commands = 0
        self._send("session.new", capabilities={})
        self._send("session.subscribe", events=["log.entryAdded", "network.beforeRequestSent"])
        self._context = self._send("browsingContext.getTree")["contexts"][0]["context"]
        self._send("browsingContext.navigate", context=self._context, url=url, wait="complete")

    def evaluate(self, expression: str) -> Any:
        """Evaluate JavaScript, wait for it where it is a promise, and return what JSON can say of its value."""
        answer = self._send(
            "script.evaluate",
            expression=f"(async () => JSON.stringify(await ({expression})))()",
            target={"context": self._context},
            awaitPromise=True,
        )
        assert answer["type"] == "success", answer
        value = answer["result"]
        return json.loads(value["value"]) if value["type"] == "string" else None

    def wait_for(self, expression: str) -> None:
        """Wait until JavaScript says true."""
        wait_until(lambda: self.evaluate(expression) is True, _WAIT_S)

    def choose_files(self, selector: str, *files: Path) -> None:
        """Choose files for an input, as its dialog does."""
        self._send(
            "input.setFiles",
            context=self._context,
            element=self._element(selector),
            files=[str(file) for file in files],
        )

    def click(self, selector: str) -> None:
        """Click on the middle of an element with the mouse."""
        self.evaluate(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center'}})")
        middle = {"type": "element", "element": self._element(selector)}
        move = {"type": "pointerMove", "x": 0, "y": 0, "origin": middle}
        press = [{"type": "pointerDown", "button": 0}, {"type": "pointerUp", "button": 0}]
        self._send(
            "input.performActions",
            context=self._context,
            actions=[{"type": "pointer", "id": "mouse", "actions": [move, *press]}],
        )

    def _element(self, selector: str) -> dict[str, str]:
        nodes = self._send(
            "browsingContext.locateNodes", context=self._context, locator={"type": "css", "value": selector}
        )["nodes"]
        assert nodes, f"there is no {selector}"
        return {"sharedId": nodes[0]["sharedId"]}

    def _send(self, method: str, **parameters: Any) -> Any:
        """Send a command and return its result; events that come before it are looked at."""
        self._commands += 1
        self._connection.send(json.dumps({"id": self._commands, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._connection.recv(_WAIT_S))
            if message["type"] == "event":
                self._note(message["method"], message["params"])
            elif message.get("id") == self._commands:
                assert message["type"] == "success", message
                return message["result"]

    def _note(self, event: str, said: dict[str, Any]) -> None:
        if event == "log.entryAdded" and said["level"] in ("error", "warn"):
            self.complaints.append(f"logged {said['text']}")
        elif event == "network.beforeRequestSent":
            asked = urlsplit(said["request"]["url"])
            if asked.scheme not in ("blob", "data", "about") and asked.netloc != urlsplit(self._url).netloc:
                self.complaints.append(f"asked for {said['request']['url']}")


@contextmanager
def firefox(url: str) -> Iterator[Page]:
    """Open a page in a Firefox of its own, without a window.

    Raises:
        AssertionError: at the end, where the page logged an error or a warning, or asked another origin for something.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        folders = [Path(home, name) for name in ("profile", "downloads")]
        for folder in folders:
            folder.mkdir()
        profile, downloads = folders
        preferences = {**_PREFERENCES, "browser.download.dir": str(downloads)}
        (profile / "user.js").write_text(
            "".join(f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in preferences.items()),
            encoding="utf-8",
        )
        command = [FIREFOX, "--headless", "--no-remote", "--profile", str(profile), "--remote-debugging-port", "0"]
        with Processes(command, Path(home), {"HOME": home}) as browser:
            ready = re.compile(r"WebDriver BiDi listening on (ws://\S+)")
            wait_until(lambda: browser.ended() or ready.search(browser.said()), _WAIT_S)
            address = ready.search(browser.said())
            assert address is not None, browser.said()
            with connect(f"{address[1]}/session", max_size=None, open_timeout=_WAIT_S) as connection:
                page = Page(connection, downloads, url)
                yield page
        assert not page.complaints, page.complaints
