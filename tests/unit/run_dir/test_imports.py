"""Launcher, ranks, status and report read a run directory: it needs the standard library and `core` alone."""

import ast
import sys
from pathlib import Path

from post_training import run_dir

ALLOWED = ("post_training.core", "post_training.run_dir")


def imported(path: Path) -> set[str]:
    """Modules that a file imports, also within functions."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return found | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}


def test_run_dir_needs_the_standard_library_and_core_alone():
    folder = Path(run_dir.__file__).parent
    modules = {(path.name, name) for path in folder.glob("*.py") for name in imported(path)}
    assert len(modules) > 50
    foreign = {
        (path, name)
        for path, name in modules
        if name.partition(".")[0] not in sys.stdlib_module_names and not name.startswith(ALLOWED)
    }
    assert not foreign
