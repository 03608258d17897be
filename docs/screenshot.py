"""A picture of a run's report for the README: `python docs/screenshot.py runs/NAME docs/report.png`.

Needs Chromium (or Chrome) with its chromedriver, and `selenium`; nothing is downloaded. The tests open their browser
with `open_browser` too.
"""

import argparse
import io
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WIDTH, HEIGHT = 1240, 1500
COLOURS = 128


def find_browser() -> tuple[str, str] | None:
    """Paths of a browser and its driver; None where one of them is missing."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


@contextmanager
def open_browser(width: int = WIDTH, height: int = HEIGHT, *, dark: bool = False) -> Iterator[Any]:
    """A headless browser that keeps its console and its network log, and calls home as little as it can."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    found = find_browser()
    if found is None:
        raise SystemExit("No Chromium with chromedriver was found. On Debian: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = found[0]
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with tempfile.TemporaryDirectory(prefix="afina-browser-", ignore_cleanup_errors=True) as profile:
        for flag in (
            "headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "disable-background-networking",
            "disable-component-update", "disable-sync", "no-first-run", f"user-data-dir={profile}",
            f"window-size={width},{height}", "hide-scrollbars",
        ):  # fmt: skip
            options.add_argument(f"--{flag}")
        driver = webdriver.Chrome(options=options, service=Service(found[1]))
        try:
            set_screen(driver, width, height, dark=dark)
            yield driver
        finally:
            driver.quit()


def set_screen(driver: Any, width: int = WIDTH, height: int = HEIGHT, *, dark: bool = False) -> None:
    """Make the browser believe in such a screen, that of a phone where it is narrow."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


def show(driver: Any, page: Path) -> None:
    """Open a report and wait until its charts are drawn."""
    from selenium.webdriver.support.wait import WebDriverWait

    driver.get(page.resolve().as_uri())
    drawn = "return document.documentElement.dataset.drawn === 'true' || !document.querySelector('.chart')"
    WebDriverWait(driver, 30).until(lambda d: d.execute_script(drawn))


def main() -> None:
    """Take the picture."""
    from PIL import Image

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a run folder, or a report.html")
    parser.add_argument("out", type=Path, help="the .png to write")
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--height", type=int, default=HEIGHT)
    parser.add_argument("--dark", action="store_true")
    arguments = parser.parse_args()
    page = arguments.run / "report.html" if arguments.run.is_dir() else arguments.run
    with open_browser(arguments.width, arguments.height, dark=arguments.dark) as driver:
        show(driver, page)
        picture = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
    # A palette is enough for a page of text and lines, and takes a third of the bytes.
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(arguments.out, optimize=True)
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1000:.0f} KB")


if __name__ == "__main__":
    main()
