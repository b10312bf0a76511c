"""Chromium without a window, driven by selenium: a page as its reader gets it."""

import base64
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

Seen = TypeVar("Seen")
SECONDS = 30.0
"""After these a page, a script or a wait is given up, so that no test hangs."""
WIDTH, HEIGHT = 1460, 1320
"""In CSS pixels; TensorBoard's cards of a run's ten curves all fit."""
FLAGS = (
    "--headless",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
    "--no-proxy-server",
    "--disable-dev-shm-usage",  # containers often have 64 MB there, and pages crash
    "--enable-unsafe-swiftshader",  # TensorBoard's projector draws by WebGL, also without a GPU
    # A request to another host fails at once, and is still noted.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
# TensorBoard's older pages are made of components, whose inside no ordinary selector reaches.
EVERY = """
const found = [];
const look = (root) => {
  found.push(...root.querySelectorAll(arguments[0]));
  for (const host of root.querySelectorAll("*")) if (host.shadowRoot) look(host.shadowRoot);
};
look(document);
return found.filter((element) => element.checkVisibility())"""


class Browser:
    """A running Chromium.

    Args:
        driver: Drives it.
        pictures: The folder in which pictures of pages are kept, if they are.
    """

    def __init__(self, driver: "Chrome", pictures: Path | None) -> None:
        self.driver = driver
        self.pictures = pictures
        driver.set_page_load_timeout(SECONDS)
        driver.set_script_timeout(SECONDS)

    def open(self, address: str) -> None:
        """Go to a page; another fragment of the same page loads it anew, too."""
        self.driver.get("about:blank")
        self.driver.get(address)

    def reset(self) -> None:
        """Leave the page, and forget how it was looked at and what it did."""
        self.driver.get("about:blank")
        self.look()
        self.errors()
        self.strangers()

    def look(
        self,
        scheme: Literal["light", "dark"] = "light",
        width: int = WIDTH,
        height: int = HEIGHT,
        phone: bool = False,
    ) -> None:
        """Look at pages with a reader's preference, in a window of this size or on a phone."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        preference = {"name": "prefers-color-scheme", "value": scheme}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [preference]})

    def run(self, script: str, *arguments: object) -> Any:
        """Run a script in the page, and return what it returns."""
        return self.driver.execute_script(script, *arguments)

    def read(self, selector: str, expression: str = "element.innerText") -> list[Any]:
        """Read something of each `element` that is shown, inside components too."""
        return list(self.run(f"{EVERY}.map((element) => {expression})", selector))

    def click(self, selector: str, text: str) -> None:
        """Click on the first such element that is shown and has this text."""
        click = f"{EVERY}.find((element) => element.innerText.trim() === arguments[1]).click()"
        self.run(click, selector, text)

    def wait_for(self, look: Callable[[], Seen], wanted: Callable[[Seen], bool]) -> Seen:
        """Look until it is as wanted, and return what was seen."""
        end = monotonic() + SECONDS
        while not wanted(seen := look()):
            assert monotonic() < end, f"after {SECONDS:.0f} s it is still {seen!r}"
            sleep(0.1)
        return seen

    def errors(self) -> list[str]:
        """The console's errors since the last call."""
        entries = self.driver.get_log("browser")
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]

    def requests(self) -> list[str]:
        """The files and addresses that were asked for since the last call."""
        entries = self.driver.get_log("performance")
        messages = [json.loads(entry["message"])["message"] for entry in entries]
        sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        addresses = [params["request"]["url"] for params in sent]
        return [
            a for a in addresses if urlsplit(a).scheme in ("file", "http", "https", "ws", "wss")
        ]

    def strangers(self) -> list[str]:
        """Those of them that are not on this machine."""
        here = (None, "", "127.0.0.1")
        return [address for address in self.requests() if urlsplit(address).hostname not in here]

    @contextmanager
    def inside(self, frame: str) -> Iterator[None]:
        """Look into the first frame that this selector finds."""
        (found, *_) = self.wait_for(lambda: self.run(EVERY, frame), bool)
        self.driver.switch_to.frame(found)
        yield
        self.driver.switch_to.parent_frame()

    def picture(self, name: str, height: int = HEIGHT, width: int = WIDTH) -> None:
        """Keep a picture of what is shown, down to this height, if pictures are asked for."""
        if self.pictures:
            taken = [b"", self._take(width, height)]
            # What moves comes to rest, but for a blinking cursor.
            while taken[-1] != taken[-2] and len(taken) < 10:
                taken.append(self._take(width, height))
            (self.pictures / f"{name}.png").write_bytes(taken[-1])

    def _take(self, width: int, height: int) -> bytes:
        top = self.run("return window.scrollY")
        clip = {"x": 0, "y": top, "width": width, "height": height, "scale": 1}
        taken = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip})
        return base64.b64decode(taken["data"])


def start(chromium: str, chromedriver: str, profile: Path, pictures: Path | None) -> Browser:
    """Start these programs, with settings in a folder of their own."""
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # root gets none
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # With both paths given, selenium looks for no programs, and so downloads none.
    return Browser(Chrome(options, Service(chromedriver)), pictures)
