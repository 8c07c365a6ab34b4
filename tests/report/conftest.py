"""A headless Chromium for the pages; tests that need it are skipped where there is none."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--hide-scrollbars", "--window-size=1360,1000",
)  # fmt: skip


class Browser:
    """Chromium by Selenium, with what the tests ask of a page."""

    def __init__(self, driver, downloads: Path):
        self.driver = driver
        self.downloads = downloads

    def open(self, page: Path, fragment: str = "") -> None:
        self.driver.get(page.as_uri() + fragment)

    def errors(self) -> list[str]:
        """What the console said since the last call: errors, refused loads, policy violations."""
        return [
            entry["message"]
            for entry in self.driver.get_log("browser")
            if entry["level"] in ("SEVERE", "WARNING")
        ]

    def run(self, script: str, *arguments):
        return self.driver.execute_script(script, *arguments)

    def find(self, selector: str):
        return self.driver.find_element("css selector", selector)

    def all(self, selector: str):
        return self.driver.find_elements("css selector", selector)

    def pixels(self, element) -> np.ndarray:
        """What an element looks like now, uint8 [H,W,3]."""
        import io

        from PIL import Image

        self.run("arguments[0].scrollIntoView({block: 'center'})", element)
        with Image.open(io.BytesIO(element.screenshot_as_png)) as picture:
            return np.asarray(picture.convert("RGB"))

    def screenshot(self, path: Path) -> Path:
        """The whole page, from top to end."""
        size = self.driver.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
        shot = self.driver.execute_cdp_cmd(
            "Page.captureScreenshot",
            {"captureBeyondViewport": True, "clip": {**size, "x": 0, "y": 0, "scale": 1}},
        )
        path.write_bytes(base64.b64decode(shot["data"]))
        return path

    def requests(self) -> list[str]:
        """Addresses that were asked for since the last call, other than files and data."""
        messages = [
            json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")
        ]
        addresses = [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]
        local = ("file:", "data:", "blob:", "chrome:")
        return [url for url in addresses if not url.startswith(local)]


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    """One browser for the session, with a new profile."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is in the extra 'test'")
    from selenium.webdriver.chrome.service import Service

    binary = shutil.which("chromium") or shutil.which("google-chrome")
    server = shutil.which("chromedriver")
    if binary is None or server is None:
        pytest.skip("no Chromium with chromedriver here (Debian: chromium, chromium-driver)")
    downloads = tmp_path_factory.mktemp("downloads")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(server))
    driver.set_page_load_timeout(60)
    yield Browser(driver, downloads)
    driver.quit()


@pytest.fixture
def browser(chromium):
    """The session's browser, with nothing left in its logs."""
    chromium.open(Path("/dev/null"))
    chromium.errors()
    chromium.requests()
    return chromium


def _separated(folder: Path, network: Path, write_joint, cases) -> Path:
    """Results of ``blsgan separate`` for phantoms {place: (seed, gap_px)}; returns their folder."""
    from blsgan.cli import main
    from blsgan.synthesis.phantoms import joint_phantom

    for place, (seed, gap) in cases.items():
        path = folder / "in" / place
        write_joint(path.parent, path.name, source=joint_phantom(seed, 128, gap_px=gap), bits=8)
    arguments = ["--weights", str(network), "--pixel-spacing", "0.2"]
    assert main(["separate", str(folder / "in"), "-o", str(folder / "out"), *arguments]) == 0
    return folder / "out"


@pytest.fixture(scope="session")
def separated(network, write_joint):
    """The function that separates phantoms: (folder, {place: (seed, gap_px)}) -> results."""

    def run(folder: Path, cases) -> Path:
        return _separated(folder, network, write_joint, cases)

    return run


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory, separated):
    """Results of a joint with three visits and of another one; inputs in ``in`` beside them."""
    folder = tmp_path_factory.mktemp("run")
    return separated(
        folder,
        {
            "00001_L_2/a": (1, 5.0),
            "00001_L_2/b": (1, -3.0),
            "00001_L_2/c": (1, -8.0),
            "alone/only": (4, -9.0),
        },
    )


JSN_HEADER = "joint,baseline,followup,narrowing_px,narrowing_mm,mismatch,quality,problems,notes\n"


@pytest.fixture
def write_pairs():
    """Write a ``jsn.csv``: (path, [(joint, baseline, followup, px, mismatch, problems)])."""

    def write(path: Path, rows) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [
            f"{joint},{one},{other},{'' if px is None else px},{'' if px is None else px * 0.1},"
            f"{mismatch},0.9,{problems},\n"
            for joint, one, other, px, mismatch, problems in rows
        ]
        path.write_text(JSN_HEADER + "".join(lines), encoding="utf-8")
        return path

    return write
