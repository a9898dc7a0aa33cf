"""Self-contained HTML pages: a template in the common frame and style. No server, and no request leaves a page.

Text on a page comes from data and from models, so all of it is escaped. The page's own policy (CSP) allows only its scripts,
by their hashes: a script that got past the escaping could neither run nor send anything.
"""

import base64
import hashlib
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2

from post_training.core.format import as_json, duration, number, plain, size, visible

_HERE = Path(__file__).parent
_LIBRARY = re.compile(r'<meta name="library" content="([^"/]+)">')
_FILTERS = {
    "as_json": as_json, "duration": duration, "number": number, "plain": plain, "size": size, "visible": visible,
}  # fmt: skip


def render(
    template: Path,
    scripts: list[str],
    filters: Mapping[str, Callable[..., str]],
    library: str | None = None,
    **values: Any,
) -> str:
    """The text of a page.

    Args:
        template: a file that extends `base.html.jinja`; those beside it can be included.
        scripts: JavaScript that the page runs, in this order.
        filters: the template's own, beside those of `core.format`.
        library: name of a script file that the scripts load, which the policy then allows beside them.
        values: what the template shows; `charts` becomes a JSON element of this id, for the scripts.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, _HERE]), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {**_FILTERS, **filters}
    return environment.get_template(template.name).render(
        **values,
        scripts=scripts,
        library=library,
        hashes=[_hash(script) for script in scripts],
        style=(_HERE / "style.css").read_text(encoding="utf-8"),
        written=time.strftime("%Y-%m-%d %H:%M %Z"),
    )


def embed(text: str, folder: Path) -> str:
    """The page with the library of `folder` that it loads in it; as it is where it loads none. Raises OSError without the file."""
    found = _LIBRARY.search(text)
    if found is None:
        return text
    script = (folder / found[1]).read_text(encoding="utf-8")
    text = text.replace("script-src ", f"script-src '{_hash(script)}' ", 1)
    return text.replace(found[0], f"<script>{script}</script>", 1)


def _hash(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
