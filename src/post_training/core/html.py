"""Self-contained HTML pages: a template in the common frame and style. No server, and no request leaves a page.

Text on a page comes from data and from models, so all of it is escaped. The page's own policy (CSP) allows only its scripts,
by their hashes: a script that got past the escaping could neither run nor send anything.
"""

import base64
import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2

from post_training.core.format import as_json, duration, number, plain, size, visible

_HERE = Path(__file__).parent
_FILTERS = {
    "as_json": as_json, "duration": duration, "number": number, "plain": plain, "size": size, "visible": visible,
}  # fmt: skip


def render(template: Path, scripts: list[str], filters: Mapping[str, Callable[..., str]], **values: Any) -> str:
    """The text of a page.

    Args:
        template: a file that extends `base.html.jinja`; those beside it can be included.
        scripts: JavaScript that the page runs, in this order.
        filters: the template's own, beside those of `core.format`.
        values: what the template shows; `charts` becomes a JSON element of this id, for the scripts.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, _HERE]), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {**_FILTERS, **filters}
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    return environment.get_template(template.name).render(
        **values,
        scripts=scripts,
        hashes=[f"sha256-{digest}" for digest in digests],
        style=(_HERE / "style.css").read_text(encoding="utf-8"),
        written=time.strftime("%Y-%m-%d %H:%M %Z"),
    )
