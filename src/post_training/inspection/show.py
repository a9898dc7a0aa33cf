"""Examples in the terminal and on an HTML page."""

from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from post_training.core.fingerprint import write_atomically
from post_training.core.format import as_json, plain, visible
from post_training.core.html import render
from post_training.inspection.collect import Example, Sequence

_SHOWN_CHARACTERS = 2000


def write_page(path: Path, title: str, examples: list[Example]) -> None:
    """Write the HTML page."""
    template = Path(__file__).parent / "page.html.jinja"
    write_atomically(path, render(template, [], {}, title=title, examples=examples))


def show(examples: list[Example], console: Console) -> None:
    """Print each example from its source row to its tokens; those that are trained on are green."""

    def panel(title: str, text: Text | str) -> None:
        console.print(
            Panel(text if isinstance(text, Text) else Text(_shortened(text)), title=title, title_align="left")
        )

    for dataset, unused in {example.dataset: example.unused for example in examples}.items():
        if unused:
            console.print(Text(f"{dataset}: columns that the transform does not use: {', '.join(unused)}", style="dim"))
    for example in examples:
        part = f", example {example.part}" if example.part else ""
        console.rule(f"[bold]{example.dataset}[/] row {example.row}{part}")
        if example.place:
            console.print(Text(example.place, style="dim"))
        if example.fate:
            console.print(Text(example.fate, style="yellow"))
        if example.raw is not None:
            panel("raw", as_json(example.raw))
        if example.transformed is not None:
            panel("transformed", as_json(example.transformed))
        for sequence in example.sequences:
            panel(f"{sequence.name}: formatted", sequence.text)
            counts = f"{sequence.name}: {len(sequence.tokens):,} tokens, {sequence.trained:,} trained on"
            panel(counts, _coloured(sequence, marked=not console.color_system))


def _coloured(sequence: Sequence, marked: bool) -> Text:
    """The tokens, every other one underlined to show where they begin; `marked` puts « » where there are no colours."""
    text, inside = Text(), False
    for index, token in enumerate(sequence.tokens):
        if marked and token.trained != inside:
            text.append("«" if token.trained else "»")
        inside = token.trained
        style = "black on green" if token.trained else "dim"
        text.append(visible(token.text), style=f"{style} underline" if index % 2 else style)
        if "\n" in token.text:
            text.append("\n")
    if marked and inside:
        text.append("»")
    return text


def _shortened(text: str) -> str:
    """The beginning of a long text, without control characters."""
    long = len(text) > _SHOWN_CHARACTERS
    return plain(f"{text[:_SHOWN_CHARACTERS]} ... ({len(text):,} characters)" if long else text)
