"""The words of the field: terms that an ML engineer would read twice are not used in code, documentation and pages.

`python tests/docs/test_words.py [PATH ...]` lists each place, with the word to use instead.
"""

import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PLACES = ("src", "docs", "workflow", "README.md", "Snakefile")
SUFFIXES = ("", ".py", ".md", ".smk", ".jinja", ".js", ".css")

# Pattern over text in which identifiers are split into words -> what to write instead. Case counts only where said.
TERMS = {
    r"foret(?:old|ells?)|fores(?:ee|een|ees)": "predicted, predict",
    r"told": "a name that says what it is: manifest, entry, recorded, section, stderr",
    r"hygiene": "filters, filtering, decontamination",
    r"mend(?:s|ed|ing)?": "fix",
    # "the whole file" and `whole, rest = divmod(...)` are English; "the last whole checkpoint" and "is whole" are meant here.
    r"(?:is|are|was|be|became|not|left|there|if|once|last|newest|no|its) whole(?! (?:numbers?|nodes?|files?|rows?)\b)"
    r"|whole (?:checkpoints?|shards?|weights|ones?)|(?<=\.)whole|whole(?=: bool)": "complete",
    r"segments?": "attempt",
    r"judged?": "unpaired completions with binary labels; Evaluator; check",
    r"meter": "token counter",
    r"polish": "make_portable",
    r"blamed?": "error_context; named",
    r"carded": "cards",
    r"la(?:y|id|ys|ying) out": "write",
    r"came to|come to its end|coming to": "measured; ended",
    r"numbers? that (?:is|are) none": "NaN or Inf",
    r"goes on|went on|go on|going on": "resumes, continues, is requeued",
    r"(?:that|which|what|and|it|this) (?:is|are) none": "is not one",
    r"stands? (?:in|at|on|above|below|before|beside|there|elsewhere|twice)(?! for\b)": "is, is stored",
    r"lies? (?:in|at|on|below|beside|there)": "is, is stored",
    r"looked at": "checked",
    r"persons?": "user",
    r"(?-i:Light\.)": "nothing: the contract of layers holds it",
    r"say stopping|forget (?:failures|stopped)": "mark_stopping, reset_failure_count, clear_stop_marker",
    r"in vain": "lost to restarts",
    r"your word": "intentional",
}
# Path pattern, term that is allowed there, reason. What the code says to another program, or reads from disk, keeps its name.
ALLOWED: list[tuple[str, str, str]] = [
    (r".*", r"segments?\.jsonl?", "files of run directories that earlier versions wrote"),
    (r"src/.*\.py", r"[\"']segments?(?:_\w+)?[\"']", "keys of files that earlier versions wrote"),
    (
        r"src/.*/transforms/preference\.py",
        r"whole",
        "a docstring is part of a transform's digest: other words would apply it again",
    ),
    (r".*", r"data\.hygiene|[\"']hygiene[\"']", "the old name of data.filters, which is still understood"),
    (r"src/.*/rewards/judge\.py|docs/on_policy\.md", r"judge", "LLM-as-a-judge is the field's term"),
    (r"src/.*/task_dialogue\.py", r"a person with an agent", "the data are dialogues of people"),
]
_PATTERN = re.compile("|".join(rf"(?P<t{number}>\b(?:{term})(?!\w))" for number, term in enumerate(TERMS)), re.I)
_REPLACEMENTS = list(TERMS.values())


def as_words(line: str) -> str:
    """The line with identifiers split: `told_by_file` -> `told by file`, `SegmentLock` -> `Attempt Lock`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", line).replace("_", " ")


def files(places: tuple[str, ...] = PLACES) -> Iterator[Path]:
    """The files that are read, relative to the repository."""
    for place in places:
        path = REPOSITORY / place
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and file.suffix in SUFFIXES and not {"chat_templates", "__pycache__"} & set(file.parts):
                yield file.relative_to(REPOSITORY)


def quaint(places: tuple[str, ...] = PLACES) -> Iterator[tuple[Path, int, str, str]]:
    """(file, line, word, replacement) of each term that is left, also where it runs over the end of a line."""
    for path in files(places):
        text = (REPOSITORY / path).read_text(encoding="utf-8")
        for pattern, term, _ in ALLOWED:
            if re.fullmatch(pattern, str(path)):
                text = re.sub(term, lambda found: "\n" * found[0].count("\n"), text)
        # Each line break and the indent or comment sign after it count as one space, so that positions tell the line.
        lines = [as_words(line) for line in text.splitlines()]
        joined = "\n".join(re.sub(r"^[\s#>]+", "", line) for line in lines)
        for found in _PATTERN.finditer(joined.replace("\n", " ")):
            number = joined.count("\n", 0, found.start()) + 1
            yield path, number, found[0], _REPLACEMENTS[int((found.lastgroup or "t0")[1:])]


def test_the_words_of_the_field():
    left = list(quaint())
    counts = Counter(str(path) for path, *_ in left)
    table = "\n".join(f"{count:5}  {path}" for path, count in sorted(counts.items()))
    assert not left, f"{len(left)} quaint terms; `python tests/docs/test_words.py [PATH ...]` lists them:\n{table}"


def test_the_list_finds_identifiers_texts_and_broken_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "REPOSITORY", tmp_path)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text(
        "told_by_file = 1\nclass SegmentLock: ...\n# the run goes\n# on\nwhole_number = 'a whole number'\n"
        "open('segments.jsonl')\nparagraph = 'the last whole checkpoint'\ntimetold = Judge\n"
    )
    found = [(number, word.lower()) for _, number, word, _ in quaint(("src",))]
    assert found == [(1, "told"), (2, "segment"), (3, "goes on"), (7, "last whole"), (8, "judge")]


if __name__ == "__main__":
    wanted = tuple(sys.argv[1:]) or PLACES
    listed = list(quaint(wanted))
    for name, place, word, instead in listed:
        print(f"{name}:{place}: {word} -> {instead}")
    print(f"{len(listed)} in {len({name for name, *_ in listed})} files")
