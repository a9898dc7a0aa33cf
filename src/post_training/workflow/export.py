"""`snakemake --report`: pages that share plotly.js are put into it with a copy of their own."""

from collections.abc import Iterator
from contextlib import contextmanager

from post_training.core import html
from post_training.core.fingerprint import write_atomically
from post_training.plan import Graph


@contextmanager
def self_contained(graph: Graph) -> Iterator[None]:
    """While it lasts, every page of the graph holds the file that it shares with others. One left so by a kill works, too."""
    pages = [graph.base / page.directory / "report.html" for page in graph.reports]
    before = {page: page.read_text(encoding="utf-8") for page in pages if page.is_file()}
    try:
        for page, text in before.items():
            write_atomically(page, html.embed(text, graph.base))
        yield
    finally:
        for page, text in before.items():
            write_atomically(page, text)
