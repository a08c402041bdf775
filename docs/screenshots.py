"""Take pictures of pages of the built site: wide and narrow, light and dark.

It needs Chromium.

python docs/screenshots.py                      # every page
python docs/screenshots.py index mathematics    # some of them
"""

import argparse
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILT = ROOT / "build" / "docs"
WIDTHS = {"desktop": 1280, "phone": 390}
COLOURS = {"light": 1, "dark": 0}  # Chromium's preferredColorScheme


def picture(
    browser: str, page: Path, output: Path, width: int, colour: int, height: int
) -> None:
    """Take one picture.

    Args:
      browser: the program.
      page: a page of the site.
      output: the picture, a PNG.
      width: of the window, in pixels.
      colour: a value of COLOURS.
      height: of the window, in pixels.
    """
    command = [
        browser,
        "--headless=new",
        "--no-sandbox",
        "--hide-scrollbars",
        "--virtual-time-budget=4000",
        f"--blink-settings=preferredColorScheme={colour}",
        f"--window-size={width},{height}",
        f"--screenshot={output}",
        page.as_uri(),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def main() -> None:
    """Take the pictures that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "pages", nargs="*", help="such as how-to/images; all if not given"
    )
    parser.add_argument("--height", type=int, default=3000)
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "screenshots")
    parser.add_argument("--widths", nargs="+", choices=WIDTHS, default=list(WIDTHS))
    parser.add_argument("--colours", nargs="+", choices=COLOURS, default=list(COLOURS))
    arguments = parser.parse_args()
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        parser.error("chromium is not installed")
    pages = [BUILT / f"{name}.html" for name in arguments.pages]
    pages = pages or [
        p for p in sorted(BUILT.rglob("*.html")) if "_" not in str(p.relative_to(BUILT))
    ]
    arguments.output.mkdir(parents=True, exist_ok=True)
    for page in pages:
        name = "-".join(page.relative_to(BUILT).with_suffix("").parts)
        for width in arguments.widths:
            for colour in arguments.colours:
                output = arguments.output / f"{name}-{width}-{colour}.png"
                sizes = WIDTHS[width], COLOURS[colour], arguments.height
                picture(browser, page, output, *sizes)
                print(output)


if __name__ == "__main__":
    main()
