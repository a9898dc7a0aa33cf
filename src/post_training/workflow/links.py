"""`<run_name>`, `<run_name>-sft`, `<run_name>-beta0.1`, ... -> directories: the names that users type; `<run_name>/report.html`."""

import os
from pathlib import Path

from post_training.core.errors import UserError
from post_training.plan import Graph


def point_links(graph: Graph) -> None:
    """Make each link lead to its run directory, where that exists already.

    Run at the start (so that going back to an earlier configuration, which runs nothing, leads to
    that run again), and at the end.
    """
    for name, directory in graph.links().items():
        if (graph.base / directory).is_dir():
            point_link(graph.base / name, directory)
    for name, page in graph.pages().items():
        if (graph.base / page).is_file() and (graph.base / name).parent.is_dir():
            point_link(graph.base / name, os.path.relpath(page, Path(name).parent))


def point_link(link: Path, target: str) -> None:
    """Point one relative link, atomically; anything that is not a link is left alone and reported."""
    if link.is_symlink() and os.readlink(link) == target:
        return
    if link.exists() and not link.is_symlink():
        raise UserError(f"{link}: is not a link, so it will not be replaced; move it away or choose another run_name")
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)
