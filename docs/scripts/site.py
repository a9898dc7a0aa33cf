"""Hooks of mkdocs: pages that are outside docs/ join the site, and links between all of them lead to where they are there.

Links to files that are no page (recipes, results of benchmarks) become plain text: the site has no copy of them.
"""

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = {
    "README.md": "index.md", "config/README.md": "config.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md",
}  # fmt: skip
"""Page of the repository -> page of the site."""
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of OUTSIDE."""
    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links as they are in the repository -> links of the site, outside of fenced blocks."""
    here = next((source for source, name in OUTSIDE.items() if name == page.file.src_uri), f"docs/{page.file.src_uri}")
    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(
        part if part.startswith("```") else _LINK.sub(lambda found: _link(found, here), part) for part in parts
    )


def _link(found: re.Match[str], here: str) -> str:
    picture, text, target = found.groups()
    path, hash_sign, anchor = target.partition("#")
    if "://" in target or not path:
        return found[0]
    repository = os.path.normpath(PurePosixPath(here).parent / path)
    site = OUTSIDE.get(repository) or (repository.removeprefix("docs/") if repository.startswith("docs/") else None)
    if site is None or not (ROOT / repository).is_file():
        return text
    start = PurePosixPath(OUTSIDE.get(here, here.removeprefix("docs/"))).parent
    return f"{picture}[{text}]({os.path.relpath(site, start)}{hash_sign}{anchor})"
