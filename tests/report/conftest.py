"""A page that tests share, and a browser that opens it."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from spatialdata import SpatialData, deepcopy

import pixel2gene as p2g
from pixel2gene.report import write_report

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)


@pytest.fixture(scope="session")
def finished(embedded_once: SpatialData, fitted_once: p2g.Model) -> SpatialData:
    """A slide as `pixel2gene run` leaves it."""
    sdata = deepcopy(embedded_once)
    p2g.tl.predict(sdata, fitted_once, progress=False)
    p2g.tl.denoise(sdata, fitted_once, progress=False)
    return sdata


@pytest.fixture(scope="session")
def page(finished: SpatialData, fitted_once: p2g.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "slide.html"
    write_report(finished, fitted_once, path, name="<slide> & co")
    return path


class Browser:
    """Chromium without a window or network, over its debugging pipe."""

    def __init__(self, folder: Path, width: int, height: int) -> None:
        read, self._write = os.pipe()
        self._read, write = os.pipe()
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"]
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{read} 4>&{write}', "_", CHROMIUM, *options, f"--user-data-dir={folder}"],
            pass_fds=(read, write),
            stderr=subprocess.DEVNULL,
        )
        os.close(read)
        os.close(write)
        self._number, self._buffer, self._session = 0, b"", None
        self.events: list[dict[str, Any]] = []
        target = self.do("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.do("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.do(f"{domain}.enable")
        self.do("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)
        self.do(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def do(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def open(self, path: Path) -> None:
        """Go to a file, and wait until it is loaded."""
        self.do("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())

    def tell(self, script: str) -> Any:
        """Value of an expression, awaited."""
        answer = self.do("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str, code: int) -> None:
        """Press a key where the focus is."""
        for kind in ("rawKeyDown", "keyUp"):
            self.do("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def screenshot(self, path: Path) -> None:
        """Picture of the whole page."""
        shot = self.do("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        """End it."""
        os.close(self._write)
        self._process.terminate()
        self._process.wait(20)
        os.close(self._read)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            part = os.read(self._read, 1 << 20)
            assert part, "the browser is gone"
            self._buffer += part
        message, self._buffer = self._buffer.split(b"\0", 1)
        found: dict[str, Any] = json.loads(message)
        return found


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Callable[..., Browser]]:
    """Open a browser of so many pixels."""
    if not CHROMIUM:
        pytest.skip("no Chromium here: apt-get install chromium")
    opened: list[Browser] = []

    def start(width: int = 1280, height: int = 900) -> Browser:
        opened.append(Browser(tmp_path / f"profile{len(opened)}", width, height))
        return opened[-1]

    yield start
    for one in opened:
        one.close()
