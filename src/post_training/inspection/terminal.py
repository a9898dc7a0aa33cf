"""Examples and tables in the terminal."""

import json
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from post_training.inspection.collect import Example, Sequence

_SHOWN_CHARACTERS = 2000


def show(examples: list[Example], console: Console) -> None:
    """Each example from its source row to its tokens; what is trained on is green."""
    for example in examples:
        part = f", example {example.part}" if example.part else ""
        console.rule(f"[bold]{example.dataset}[/] row {example.row}{part}")
        if example.fate:
            console.print(Text(example.fate, style="yellow"))
        if example.raw is not None:
            console.print(Panel(Text(shortened(as_json(example.raw))), title="raw", title_align="left"))
        if example.transformed is not None:
            console.print(
                Panel(Text(shortened(as_json(content(example.transformed)))), title="transformed", title_align="left")
            )
        for sequence in example.sequences:
            title = f"{sequence.name}: formatted"
            console.print(Panel(Text(shortened(sequence.text)), title=title, title_align="left"))
            counts = f"{sequence.name}: {len(sequence.tokens):,} tokens, {sequence.trained:,} trained on"
            console.print(Panel(coloured(sequence, marked=not console.color_system), title=counts, title_align="left"))


def coloured(sequence: Sequence, marked: bool) -> Text:
    """The tokens, every other one underlined so that borders are seen; `marked` puts « » where there are no colours."""
    text, inside = Text(), False
    for place, token in enumerate(sequence.tokens):
        if marked and token.trained != inside:
            text.append("«" if token.trained else "»")
        inside = token.trained
        style = "black on green" if token.trained else "dim"
        text.append(visible(token.text), style=f"{style} underline" if place % 2 else style)
        if "\n" in token.text:
            text.append("\n")
    if marked and inside:
        text.append("»")
    return text


def content(transformed: dict[str, Any]) -> dict[str, Any]:
    """A transformed row without its number."""
    return {key: value for key, value in transformed.items() if key not in ("row", "part")}


def visible(text: str) -> str:
    """With signs for line ends and control characters, which a terminal would obey."""
    named = text.replace("\n", "\u23ce").replace("\t", "\u21e5").replace("\r", "\u240d")
    return "".join(character if character.isprintable() else f"\\x{ord(character):02x}" for character in named)


def as_json(value: Any) -> str:
    """Indented JSON, or the text itself."""
    return value if isinstance(value, str) else json.dumps(value, indent=1, ensure_ascii=False, default=repr)


def shortened(text: str) -> str:
    """The beginning of a long text, without control characters."""
    cut = text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]} ... ({len(text):,} characters)"
    return plain(cut)


def plain(text: str) -> str:
    """The text with control characters written out, but for line ends and tabs."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)
