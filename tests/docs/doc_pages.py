"""README.md and docs/ as pages of fenced blocks, and what a comment above a block says of it (see CONTRIBUTING.md)."""

import re
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
_FENCE = re.compile(
    r"(?:^<!-- (?P<note>.+?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: str
    line: int
    language: str
    text: str
    note: str
    """`file: x`, `planned: why`, `prepared`, `not run: why`, or empty."""

    @property
    def kind(self) -> str:
        return self.note.partition(":")[0]

    @property
    def detail(self) -> str:
        return self.note.partition(":")[2].strip()

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """Every page, README first, relative to the repository."""
    found = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    found += sorted((REPOSITORY / "docs").rglob("*.md"))
    return [str(path.relative_to(REPOSITORY)) for path in found]


def text_of(page: str) -> str:
    return (REPOSITORY / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    text = text_of(page)
    return [
        Block(
            page,
            text.count("\n", 0, match.start("language")) + 1,
            match["language"],
            match["text"],
            match["note"] or "",
        )
        for match in _FENCE.finditer(text)
    ]


def prose(page: str) -> str:
    """The page without its fenced blocks."""
    return _FENCE.sub("", text_of(page))
