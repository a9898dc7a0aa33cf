"""Makes the pictures of the documentation: `python docs/scripts/pictures.py FOLDER` (minutes on two cores; needs tmux and Chromium).

FOLDER becomes a copy of the project in which the demo and a sweep of beta are run; what is finished there already is not run again.
"""

import io
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from playwright.sync_api import Page, sync_playwright
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "docs" / "pictures"
BIN = Path(sys.executable).parent
SWEEP = "sweep={dpo.beta: [0.05, 0.1, 0.4]}"
COLUMNS, LINES = 100, 24


def prepare(folder: Path) -> None:
    """Copy what a run needs."""
    for name in ("Snakefile", "workflow", "profiles", "envs", "config"):
        source, target = ROOT / name, folder / name
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copy(source, target)


def snakemake(folder: Path, *words: str) -> None:
    """Run it to its end."""
    subprocess.run([BIN / "snakemake", *words], cwd=folder, check=True)


def console(folder: Path) -> None:
    """The terminal while the demo trains, as `console.svg`: the screen that is shown half a minute into SFT."""
    session = ["tmux", "-L", "pictures"]
    words = f"env PATH={BIN}:$PATH COLORTERM=truecolor snakemake --config method=dpo run_name=demo; sleep 3"
    subprocess.run(
        [*session, "new-session", "-d", "-x", str(COLUMNS), "-y", str(LINES), "-c", folder, words], check=True
    )
    screen, seen = "", 0.0
    while subprocess.run([*session, "has-session"], capture_output=True).returncode == 0:
        found = subprocess.run([*session, "capture-pane", "-p", "-e"], capture_output=True, text=True).stdout
        if "tokens/s" in found:
            seen = seen or time.monotonic()
            if time.monotonic() - seen < 30:
                screen = found
        time.sleep(0.5)
    if screen:
        recorder = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
        recorder.print(Text.from_ansi(screen.rstrip()))
        drawn = re.sub(
            r"@font-face \{.*?\}", "", recorder.export_svg(title="make demo"), flags=re.DOTALL
        )  # of a web server
        (PICTURES / "console.svg").write_text(drawn, encoding="utf-8")


def shots(folder: Path) -> None:
    """`page.png`, `training.png`, `comparison.png`, `inspect.png`."""
    outputs = folder / "outputs"
    rows = folder / "rows.html"
    words = [
        BIN / "python",
        "-m",
        "post_training",
        "inspect",
        "--config",
        "config/config.yaml",
        "--stage",
        "sft",
        "-n",
        "2",
        "--html",
        rows,
    ]
    subprocess.run(words, cwd=folder, check=True)
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_context(viewport={"width": 1100, "height": 680}).new_page()
        shot(page, outputs / "demo" / "report.html", "page")
        shot(page, outputs / "demo" / "report.html", "training", "[data-chart='curve dpo loss']")
        shot(page, outputs / "demo-comparison" / "report.html", "comparison")
        shot(page, rows, "inspect", drawn=False)
        browser.close()


def shot(page: Page, path: Path, name: str, selector: str | None = None, drawn: bool = True) -> None:
    """What a browser's window shows of a page, from `selector` on where one is given."""
    page.goto(path.absolute().as_uri())
    if drawn:
        page.wait_for_selector("html[data-drawn=yes]")
    if selector:
        page.locator(selector).evaluate("element => scrollTo(0, element.getBoundingClientRect().top + scrollY - 90)")
    page.wait_for_timeout(500)
    page.screenshot(path=PICTURES / f"{name}.png")


def main() -> None:
    """Run what is missing, and make every picture."""
    folder = Path(sys.argv[1]).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    PICTURES.mkdir(exist_ok=True)
    prepare(folder)
    console(folder)
    snakemake(folder, "all", "report", "--config", "method=dpo")
    snakemake(folder, "all", "report", "--config", "method=dpo", SWEEP)
    shots(folder)


if __name__ == "__main__":
    main()
