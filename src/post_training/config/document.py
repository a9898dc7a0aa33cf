"""Generates `config/README.md` and `config/schema.json` from the schema, and the reasons' table of docs/troubleshooting.md.

Run `make docs`; a test fails while they differ from the schema.
"""

import ast
import dataclasses
import inspect
import itertools
import json
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from post_training import methods
from post_training.config import schema
from post_training.data import reasons, registry

CONFIG = Path(__file__).resolve().parents[3] / "config"
TROUBLESHOOTING = CONFIG.parent / "docs" / "troubleshooting.md"
_INTRO = """# Configuration

Every key, its type, its default and its meaning. Generated from the schema by `make docs`; do not edit.

One YAML file describes a pipeline. Sections other than the methods' own (`sft`, `dpo`) are shared by
every stage, and may be given again inside a method's section for that stage alone:
`training.learning_rate` is shared, `dpo.training.learning_rate` is DPO's. Later wins: defaults, file
(shared), file (stage), command line (shared), command line (stage).

    snakemake --configfile my.yaml --config method=dpo set='training.max_steps=200 data.datasets[0].weight=0.5'

`set` takes dotted keys; for values with spaces give it a list: `set='["run_name=x", "data.seed=3"]'`.

A method is a stage of that name: `sft`, then `dpo` on its output. Any other top-level section with a `method` adds a stage;
`init_from` names the stage it starts from:

    method: dpo
    sft: {max_seq_length: 4096}
    maths: {method: sft, init_from: sft, data: {datasets: [{path: maths.jsonl}]}}
    dpo: {init_from: maths, data: {datasets: [{path: pairs.jsonl, transform: preference}]}}

An index edits one list: `data.datasets[0]` the shared one, `dpo.data.datasets[0]` DPO's.
"""
_TRANSFORMS = """
## Transforms

The values of `transform:`, as `transform: alpaca` or `transform: {name: alpaca, output: response}`; arguments and their
defaults are in braces. Each gives conversations, preferences or unpaired completions with binary labels, which are then
checked.
"""
_REWARDS = """
## Rewards

The values of `reward:` in `score`, as `{reward: length, at_most: 50}`; arguments and their defaults are in braces.
"""


class Key(NamedTuple):
    """One documented key."""

    path: str
    kind: Any
    default: Any
    text: str


def keys(cls: Any, prefix: str = "") -> Iterator[Key]:
    """The keys of a section and of the sections in it, in the order of the source."""
    for name, kind, default, text in _fields(cls):
        path = prefix + name
        nested = next((part for part in _parts(kind) if dataclasses.is_dataclass(part)), None)
        listed = typing.get_origin(kind) is list
        if nested is None:
            yield Key(path, kind, default, text)
            continue
        if text:
            yield Key(path, kind, [] if listed else default if default is None else {}, text)
        yield from keys(nested, f"{path}[]." if listed else f"{path}.")


def readme() -> str:
    """The text of config/README.md."""
    lines = [_INTRO]
    for title, cls, found in _sections():
        text = (cls.__doc__ or "").strip()
        lines += [f"\n## {title}\n\n{text}\n", "| key | type | default | meaning |", "|---|---|---|---|"]
        for path, kind, default, text in found:
            meaning = text.replace("|", "\\|")
            lines.append(f"| `{path}` | {_type_name(kind)} | `{json.dumps(default)}` | {meaning} |")
    lines.append(_TRANSFORMS)
    for name, source in registry.transform_names([]).items():
        function = source.function.args
        lines.append(_called(name, source, list(zip(function.args[1:], function.defaults, strict=True))))
    lines.append(_REWARDS)
    for name, source in registry.reward_names([]).items():
        function = source.function.args
        lines.append(_called(name, source, list(zip(function.kwonlyargs, function.kw_defaults, strict=True))))
    return "\n".join(lines) + "\n"


def _called(name: str, source: registry.TransformSource, arguments: list[tuple[ast.arg, ast.expr | None]]) -> str:
    """A line about a transform or reward: its arguments, with their defaults, and its docstring before the examples."""
    given = ", ".join(f"{a.arg}: {ast.unparse(default)}" if default else a.arg for a, default in arguments)
    text = (ast.get_docstring(source.function) or "").partition(">>>")[0]
    return f"- **`{name}`** `{{{given}}}`. {' '.join(text.split())}"


def json_schema() -> dict[str, Any]:
    """A JSON schema for editors: completion, hover texts, unknown keys marked."""
    shared = _object(schema.SharedSections)["properties"]
    tree: dict[str, Any] = {"type": "object", "additionalProperties": False, "properties": {**shared}}
    tree["properties"] |= _object(schema.GlobalSections)["properties"]
    for name in methods.names():
        own = _object(methods.load(name).Config)
        own["properties"] |= shared
        tree["properties"][name] = own
    # A stage with a name of its own.
    named = {"type": "object", "required": ["method"], "properties": {"method": {"enum": methods.names()}}}
    tree["additionalProperties"] = named
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "urn:post-training:config"}
    return {**head, "title": "post-training", **tree}


def _sections() -> Iterator[tuple[str, Any, list[Key]]]:
    yield "Top level", schema.GlobalSections, [key for key in keys(schema.GlobalSections) if "." not in key.path]
    for cls in (schema.GlobalSections, schema.SharedSections):
        for field in _fields(cls):
            if dataclasses.is_dataclass(field.kind):
                yield f"`{field.path}`", field.kind, list(keys(field.kind, f"{field.path}."))
    for name in methods.names():
        cls = methods.load(name).Config
        yield f"`{name}`", cls, list(keys(cls, f"{name}."))


def _fields(cls: Any) -> list[Key]:
    """A section's own keys, inherited ones included."""
    hints, texts = typing.get_type_hints(cls), _field_texts(cls)
    return [
        Key(f.name, hints[f.name], f.default_factory() if callable(f.default_factory) else f.default, texts.get(f.name, ""))
        for f in dataclasses.fields(cls)
    ]  # fmt: skip


def _field_texts(cls: type) -> dict[str, str]:
    """The string below each field, own and inherited; Python itself does not keep them."""
    texts: dict[str, str] = {}
    for owner in reversed(cls.__mro__[:-1]):
        (tree,) = ast.parse(inspect.getsource(owner)).body
        for node, below in itertools.pairwise(getattr(tree, "body", [])):
            match node, below:
                case ast.AnnAssign(target=target), ast.Expr(value=ast.Constant(value=text)):
                    texts[ast.unparse(target)] = " ".join(str(text).split())
    return texts


def _object(cls: Any) -> dict[str, Any]:
    properties = {}
    for name, kind, default, text in _fields(cls):
        properties[name] = _json_type(kind)
        if not dataclasses.is_dataclass(default):
            properties[name]["default"] = default
        if text:
            properties[name]["description"] = text
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _json_type(kind: Any) -> dict[str, Any]:
    simple = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
    if kind is Any:
        return {}
    if kind in simple:
        return {"type": simple[kind]}
    if dataclasses.is_dataclass(kind):
        return _object(kind)
    if typing.get_origin(kind) is list:
        return {"type": "array", "items": _json_type(typing.get_args(kind)[0])}
    if typing.get_origin(kind) is dict:
        return {"type": "object"}
    return {"anyOf": [_json_type(part) for part in typing.get_args(kind)]}


def _parts(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) in (list, typing.Union, types.UnionType) else (kind,)


def _type_name(kind: Any) -> str:
    if typing.get_origin(kind) is list:
        return f"list of {_type_name(typing.get_args(kind)[0])}"
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join("null" if part is type(None) else _type_name(part) for part in typing.get_args(kind))
    if dataclasses.is_dataclass(kind) or typing.get_origin(kind) is dict:
        return "mapping"
    return "any" if kind is Any else str(kind.__name__)


def troubleshooting() -> str:
    """The text of docs/troubleshooting.md with the table of reasons as it is in the code."""
    before, begin, rest = TROUBLESHOOTING.read_text(encoding="utf-8").partition("<!-- reasons -->\n")
    _, end, after = rest.partition("\n<!-- end of reasons -->")
    return f"{before}{begin}{reasons.table()}{end}{after}"


def main() -> int:
    """Write all three files."""
    TROUBLESHOOTING.write_text(troubleshooting(), encoding="utf-8")
    (CONFIG / "README.md").write_text(readme(), encoding="utf-8")
    (CONFIG / "schema.json").write_text(json.dumps(json_schema(), indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
