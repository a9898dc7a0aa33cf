"""The chat template with the tokenizer: what is trained on, and whether inference will see the same text."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from post_training.core.errors import DataError, UserError
from post_training.data import registry
from post_training.data.tokens.blocks import Settings, Tokenization, check_template
from post_training.data.tokens.chat_template import (
    ChatTemplate,
    as_passed,
    resolve_template,
    special_tokens,
    text_and_spans,
)
from post_training.data.tokens.tokenizer_file import TokenizerFile
from post_training.models.conversation import ids_before_text
from post_training.preflight.check import FAILURE, WARNING, Check, check, failed
from post_training.preflight.data import template_texts
from post_training.preflight.subject import Subject

_TURNS = [
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "It is 4."},
    {"role": "user", "content": "And 3 + 3?"},
    {"role": "assistant", "content": "That is 6."},
]
_CLOCKS = ("1999-12-31", "2031-01-02")
# What only a control token is spelled like: `<|im_end|>`. Tags such as `<tool_call>` may be text.
_CONTROL = re.compile(r"<\|[^|<>\s]+\|>")
_RENDERINGS = 8


def checks(subject: Subject) -> list[Check]:
    """Every check of one template under one tokenizer."""
    try:
        given = registry.chat_template_text(subject.view["data"]["chat_template"])
        text = resolve_template(given, subject.folder)
        named = special_tokens(subject.folder)
        template, file = ChatTemplate(text, named), TokenizerFile.read(subject.folder)
    except UserError as error:
        return [failed("template.markers", error)]
    found = [check("template.markers", "generation markers are there", fails=not registry.can_mask(text))]
    found += [_stop_token(subject, text, file), _clock(text, named), _prefix(template), _generation_prompt(template)]
    found.append(_single_ids(text, template, file))
    try:
        rendered = text_and_spans(template.render_marked(as_passed(_TURNS)))[0]
    except ValueError as error:
        return [*found, Check("template.as_exported", str(error), FAILURE, "fix the template")]
    ours = file.load().encode(rendered, add_special_tokens=False).ids
    tokenizer = loaded_tokenizer(subject.folder, bool(subject.view["model"]["trust_remote_code"]))
    return [*found, _beginning(ours, tokenizer), _as_exported(subject, given, text, ours, tokenizer)]


def _stop_token(subject: Subject, text: str, file: TokenizerFile) -> Check:
    try:
        stop = check_template(Tokenization(subject.folder, Settings(text, "messages"), file))
    except (DataError, ValueError) as error:
        return Check("template.stop_token", str(error), FAILURE)
    return Check("template.stop_token", f"{file.special[stop]} ends each answer, and is trained on")


def _clock(text: str, named: dict[str, str]) -> Check:
    """Two renderings under two clocks, and several more, must be one text."""
    asked: list[str] = []

    def clock(day: str) -> Callable[[str], str]:
        def today(_: str) -> str:
            asked.append(day)
            return day

        return today

    texts = set()
    for number in range(_RENDERINGS):
        try:
            texts.add(ChatTemplate(text, named, clock=clock(_CLOCKS[number % 2])).render_marked(_TURNS))
        except ValueError as error:
            return Check("template.same_text_always", str(error), FAILURE, "fix the template")
    value = "the same under two clocks" if len(texts) == 1 else "another text at each rendering"
    return check(
        "template.same_text_always",
        f"{value}, and asks for the date" if asked else value,
        fails=len(texts) > 1,
        warns=asked,
        remedy="what a model is trained on must not depend on the day: copy the template without date and chance, and set "
        "data.chat_template to the copy",
    )


def _prefix(template: ChatTemplate) -> Check:
    """A turn is rendered alike whether or not others follow: in training as in the conversation that inference continues."""
    try:
        short, long = (text_and_spans(template.render_marked(_TURNS[:end]))[0] for end in (2, 4))
    except ValueError as error:
        return Check("template.prefix_stable", str(error), FAILURE, "the template must render several turns")
    changed = next((i for i, (a, b) in enumerate(zip(short, long, strict=False)) if a != b), min(len(short), len(long)))
    # Whatever closes a conversation (an end token) may be missing from a longer one.
    return check(
        "template.prefix_stable",
        "earlier turns stay as they are"
        if changed >= len(short.rstrip())
        else f"a further turn changes the text from {short[changed : changed + 30]!r}",
        warns=changed < len(short.rstrip()),
        remedy="earlier answers are trained on as inference never shows them: set sft.train_on=last, or change the template",
    )


def _generation_prompt(template: ChatTemplate) -> Check:
    """The generation prompt must be the text before each trained answer."""
    try:
        prompt = text_and_spans(template.render_marked(_TURNS[:1], None, True))[0]
        text, spans = text_and_spans(template.render_marked(_TURNS[:2]))
    except ValueError as error:
        return Check(
            "template.generation_prompt", str(error), FAILURE, "the template must render add_generation_prompt"
        )
    start = spans[0][0] if spans else len(text)
    agrees = text.startswith(prompt)
    gap = text[len(prompt) : start] if agrees else ""
    return check(
        "template.generation_prompt",
        f"{prompt[-30:]!r} begins an answer in both"
        + (f", then {gap!r}, which is not trained on" if gap.strip() else ""),
        fails=not agrees,
        warns=gap.strip() or start < len(prompt),
        remedy="let add_generation_prompt write exactly what comes before the generation block: the model answers what it was not "
        "trained to answer",
    )


def _single_ids(text: str, template: ChatTemplate, file: TokenizerFile) -> Check:
    """A control token that the tokenizer cuts up teaches a format of fragments; a marker that it does not know is text.

    Templates of plain text, as a first line `{#- tokens: ;` declares, are meant to be used so, at a price in tokens.
    """
    declared = registry.template_tokens(text)
    needed = set(declared.needed if declared else ())
    spelled = set(_CONTROL.findall(re.sub(r"\{#.*?#\}", "", text, flags=re.S))) | needed
    tokenizer = file.load()
    pieces = {token: len(tokenizer.encode(token, add_special_tokens=False).ids) for token in sorted(spelled)}
    cut = {token: count for token, count in pieces.items() if count != 1}
    broken = [token for token in cut if token in file.control or token in needed]
    value = f"{len(spelled)} control tokens, one id each"
    if cut:
        try:
            rendered = text_and_spans(template.render_marked(_TURNS))[0]
        except ValueError:
            rendered = ""
        more = sum((count - 1) * rendered.count(token) for token, count in cut.items()) / len(_TURNS)
        listed = ", ".join(f"{token} ({count} tokens)" for token, count in list(cut.items())[:6])
        value = listed if broken else f"{listed} are text to this tokenizer: {more:g} tokens more a turn"
    return check(
        "template.single_ids",
        value,
        fails=broken,
        warns=cut and declared is None,
        remedy="choose a template that fits the tokenizer, or a model whose tokenizer has these tokens",
    )


def _beginning(ours: list[int], tokenizer: Any) -> Check:
    """A model that has read the same token before every text (BOS) should find it before a conversation, and once.

    Only the template writes it there: see models/conversation.py.
    """
    name = "template.beginning"
    if isinstance(tokenizer, str):
        return Check(name, f"not known: {tokenizer}")
    wanted, bos = ids_before_text(tokenizer), tokenizer.bos_token_id
    begins = tokenizer.decode(ours[:1])
    if bos is not None and ours[:2] == [bos, bos]:
        remedy = "write it once: a model has never read it twice"
        return Check(name, f"the template begins with {begins} twice", WARNING, remedy)
    missing = ours[: len(wanted)] != wanted
    value = f"the tokenizer puts {tokenizer.decode(wanted)} before a text, and the template begins with {begins!r}"
    return check(
        name,
        value if missing else f"{begins!r} begins a conversation, in training as in inference",
        warns=missing,
        remedy="the model was made with it and would do without: put {{ bos_token }} at the beginning of a copy of the template, and set "
        "data.chat_template to the copy",
    )


def _as_exported(subject: Subject, given: str, text: str, ours: list[int], tokenizer: Any) -> Check:
    """The export carries this text, and Transformers must render and encode it as the rows were."""
    name, remedy = "template.as_exported", "run the data stages again with this template: delete the mix's manifest"
    try:
        others = template_texts(subject) - {given}
    except UserError as error:
        return failed(name, error)
    if others:
        return Check(name, "the rows were made with another template than the export gets", FAILURE, remedy)
    theirs = tokenizer if isinstance(tokenizer, str) else transformers_ids(tokenizer, text)
    if isinstance(theirs, str):
        return Check(name, theirs, FAILURE, "the exported tokenizer must load and render its template")
    return check(
        name,
        "rows and export: the same text and the same ids"
        if ours == theirs
        else f"{len(ours)} ids in the rows, other {len(theirs)} from the export",
        fails=ours != theirs,
        remedy="the tokenizer's class changes what its tokenizer.json says; use the files of a tokenizer that do not need the class",
    )


def loaded_tokenizer(folder: Path, trust_remote_code: bool) -> Any:
    """The tokenizer by Transformers, or why there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # a tokenizer of any class
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def transformers_ids(tokenizer: Any, template: str) -> list[int] | str:
    """Ids by `apply_chat_template`, or why there are none."""
    try:
        found = tokenizer.apply_chat_template(_TURNS, chat_template=template, tokenize=True, return_dict=True)
    except Exception as error:  # a template is a program
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return [int(index) for index in found["input_ids"]]
