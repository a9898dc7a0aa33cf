"""A conversation as the ids that a model reads: the chat template's text, tokenised as it is.

That is one rule for the rows of training, evaluation, `generate`, rewards and lm-evaluation-harness, and what servers of the chat API and
Transformers' pipelines do with an export: nothing is put around the text, so a token at the beginning (BOS) is there where the
template writes it, once, whether or not the tokenizer adds one to other text.
"""

from typing import Any

from post_training.core.errors import DataError, brief

Messages = list[dict[str, Any]]


def own_template(tokenizer: Any) -> str | None:
    """The template of a tokenizer, of several by name the one called `default`; None where it has none."""
    found = tokenizer.chat_template
    return found.get("default") if isinstance(found, dict) else found


def rendered(
    tokenizer: Any, messages: Messages, template: str | None, tools: Any = None, add_generation_prompt: bool = False
) -> str:
    """The text of a conversation. Raises whatever the template does: it is a program."""
    text = tokenizer.apply_chat_template(
        messages, chat_template=template, tools=tools, tokenize=False, add_generation_prompt=add_generation_prompt
    )
    return str(text)


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text that a template has written."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def conversation_ids(
    tokenizer: Any, messages: Messages, template: str | None, tools: Any = None, add_generation_prompt: bool = False
) -> list[int]:
    """Ids of a conversation; `template` None is the tokenizer's own. Raises DataError, in one line, where the template refuses it."""
    try:
        text = rendered(tokenizer, messages, template, tools, add_generation_prompt)
    except Exception as error:  # a template may raise anything
        raise DataError(f"the chat template refuses a conversation: {brief(error)}") from None
    return text_ids(tokenizer, text)


def ids_before_text(tokenizer: Any) -> list[int]:
    """What a tokenizer puts before a text by itself, where nothing forbids it: `[BOS]` of many, `[]` of the others."""
    text = "x"
    alone, plain = tokenizer(text)["input_ids"], text_ids(tokenizer, text)
    for start in range(len(alone)):
        if alone[start : start + len(plain)] == plain:
            return list(alone[:start])
    return []
