"""A real Chromium without a window: this machine's own, or that of Debian's packages."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import debian
from selenium.webdriver import Chrome, ChromeOptions, ChromeService

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--renderer-process-limit=1",
)


class Chromium(NamedTuple):
    """What starts one."""

    browser: str
    driver: str
    env: dict[str, str]


def find(folder: Path) -> Chromium:
    """This machine's; else unpacked below the folder.

    Raises:
      OSError, CalledProcessError: the packages cannot be had.
    """
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser and driver:
        return Chromium(browser, driver, {})
    root = debian.unpack(folder, "chromium", "chromium-driver")
    libraries = root / debian.LIBRARIES
    env = {"LD_LIBRARY_PATH": f"{libraries}:{libraries / 'pulseaudio'}"}
    if (root / "etc/fonts").exists():  # the machine has none
        env["FONTCONFIG_SYSROOT"] = str(root)
    browser = root / "usr/lib/chromium/chromium"  # usr/bin has a script that looks in /usr/lib
    return Chromium(str(browser), str(root / "usr/bin/chromedriver"), env)


@contextmanager
def opened(chromium: Chromium, folder: Path) -> Iterator[Chrome]:
    """One that is open, with a profile of its own in the folder."""
    options = ChromeOptions()
    options.binary_location = chromium.browser
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = ChromeService(
        chromium.driver,
        log_output=str(folder / "chromedriver.log"),
        env=os.environ | chromium.env | {"HOME": str(folder)},
    )
    browser = Chrome(options, service)
    try:
        yield browser
    finally:
        browser.quit()
