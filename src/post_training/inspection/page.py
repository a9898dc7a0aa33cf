"""Examples on one self-contained HTML page."""

from pathlib import Path

import jinja2

from post_training.core.fingerprint import write_atomically
from post_training.inspection.collect import Example
from post_training.inspection.terminal import as_json, content, plain, visible


def write(path: Path, title: str, examples: list[Example]) -> None:
    """Write the page; rows are data from anywhere, so everything in it is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"as_json": as_json, "visible": visible, "content": content, "plain": plain}
    write_atomically(path, environment.get_template("page.html.jinja").render(title=title, examples=examples))
