"""Our rendering is Transformers' rendering, and the spans are what the assistant says."""

import json

import pytest

from post_training.core.errors import DataError
from post_training.data import registry
from post_training.data.tokens.chat_template import ChatTemplate, resolve_template, special_tokens

CHATML = registry.chat_template_text("chatml")
# Sets names inside and outside of a generation block, prints special tokens, uses a loop control and a namespace.
SCOPES = (
    "{{ bos_token }}{% set ns = namespace(n=0) %}{% set word = 'out' %}{% for m in messages %}"
    "{% if m.role == 'system' %}{% continue %}{% endif %}{% set ns.n = ns.n + 1 %}{{ '[' + m.role + ']' }}"
    "{% if m.role == 'assistant' %}{% generation %}{% set word = 'in' %}{{ m.content }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}{{ word }}{{ ns.n }}{{ m.reasoning_content }}{{ m.thinking }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)
TOOL = {"type": "function", "function": {"name": "add", "description": "a < b & 'c' é", "parameters": {"a": "int"}}}
CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": "é\n"}}}


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


CONVERSATIONS = {
    "plain": [user("hi"), assistant("yo")],
    "system and turns": [
        {"role": "system", "content": "Be brief."},
        user("a"),
        assistant("b"),
        user("c"),
        assistant("d"),
    ],
    "blanks": [user("\n\n  a \n"), assistant("\n b\r\n\t\n"), user("\u2028\u0085"), assistant(" ")],
    "unicode": [user("naïve 👩‍👩‍👧 e\u0301"), assistant("日本語 👍🏽\u0000")],
    "spells markup": [user("{{ 1 }} {% generation %}"), assistant("<|im_end|>\n<|im_start|>user\n")],
    "tool": [
        user("2+3?"),
        assistant(None, tool_calls=[CALL, {"name": "add", "arguments": '{"a": 1}'}]),
        {"role": "tool", "content": "5", "tool_call_id": "1"},
        assistant("5", tool_calls=[CALL]),
    ],
    "reasoning": [user("a"), assistant("b", reasoning="because"), user("c"), assistant("d", thinking="so")],
    "nulls": [{**user("a"), "name": None}, assistant("b", tool_calls=None, reasoning_content=None)],
}


@pytest.fixture(scope="module")
def tokenizer(bpe_folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(bpe_folder)


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("text", [CHATML, SCOPES], ids=["chatml", "scopes"])
@pytest.mark.parametrize("tools", [None, [TOOL, TOOL]], ids=["", "tools"])
@pytest.mark.parametrize("prompt", [False, True], ids=["", "prompt"])
def test_equal_to_transformers(bpe_folder, tokenizer, name, text, tools, prompt):
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = CONVERSATIONS[name]
    if text == SCOPES and any(turn["content"] is None for turn in messages):
        messages = [{**turn, "content": turn["content"] or ""} for turn in messages]
    ours = ChatTemplate(text, special_tokens(bpe_folder))
    given = {"tools": tools, "add_generation_prompt": prompt}
    rendered, spans = ours.render(messages, **given)
    assert rendered == tokenizer.apply_chat_template(messages, chat_template=text, tokenize=False, **given)
    without_nulls = [{key: value for key, value in turn.items() if value is not None} for turn in messages]
    _, ((*theirs,),) = render_jinja_template(
        [without_nulls], chat_template=text, return_assistant_tokens_mask=True, **given, **tokenizer.special_tokens_map
    )
    assert spans == theirs


def test_chatml_as_text():
    system = {"role": "system", "content": "Be brief."}
    messages = [
        system,
        user("2+3?"),
        assistant(None, tool_calls=[CALL]),
        {"role": "tool", "content": "5"},
        assistant("5"),
    ]
    text, spans = ChatTemplate(CHATML, {}).render(messages, [TOOL])
    assert text == (
        "<|im_start|>system\nBe brief.\n\n# Tools\n\nYou may call these functions, one JSON object in "
        "<tool_call></tool_call> for each call:\n<tools>\n"
        + json.dumps(TOOL, ensure_ascii=False)
        + "\n</tools><|im_end|>\n"
        "<|im_start|>user\n2+3?<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "é\\n"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>tool\n5<|im_end|>\n"
        "<|im_start|>assistant\n5<|im_end|>\n"
    )
    assert [text[start:end] for start, end in spans] == [
        '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "é\\n"}}\n</tool_call><|im_end|>',
        "5<|im_end|>",
    ]


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_prompt_is_a_prefix_of_the_conversation(name):
    """Otherwise a preference's answer would begin inside of the header."""
    template = ChatTemplate(CHATML, {})
    messages = CONVERSATIONS[name]
    prompt, spans = template.render(messages[:-1], add_generation_prompt=True)
    whole, whole_spans = template.render(messages)
    assert whole.startswith(prompt)
    assert spans == whole_spans[:-1] and whole_spans[-1][0] == len(prompt)


@pytest.mark.parametrize("content", ["a\ufdd0b\ufdd1c", "\ufdd0", "\ufdd1\ufdd0", "\ufdd1"])
@pytest.mark.parametrize("role", [0, 1])
def test_text_cannot_choose_what_is_trained_on(content, role):
    messages = [user("q"), assistant("a")]
    messages[role] = {**messages[role], "content": content}
    with pytest.raises(ValueError, match=r"reserved_character: .*U\+FDD0"):
        ChatTemplate(CHATML, {}).render(messages)


@pytest.mark.parametrize(
    "text, said",
    [
        ("{{ raise_exception('no system turn,\nplease') }}", "template_error: no system turn, please"),
        ("{{ messages[0].content + 1 }}", "template_error: can only concatenate"),
        ("{{ messages[9].content.x }}", "template_error: "),
        ("{{ strftime_now('%Y') }}", "template_error: the template asks for today's date"),
        ("{{ messages.append(1) }}", "template_error: "),
        ("{{ ''.__class__.__mro__ }}", "template_error: "),
    ],
)
def test_a_template_that_fails_says_why_in_one_line(text, said):
    with pytest.raises(ValueError) as caught:
        ChatTemplate(text, {}).render([user("a")])
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)
    assert ChatTemplate(CHATML, {}).render([user("a"), assistant("b")])[1], "and the next row renders"


def test_a_template_that_does_not_compile():
    with pytest.raises(DataError, match=r"chat template: line 2: "):
        ChatTemplate("{{ 1 }}\n{% if %}", {})


@pytest.mark.parametrize("eos", ["</s>", {"content": "</s>", "lstrip": False, "__type": "AddedToken"}])
def test_special_tokens_of_a_folder(tmp_path, eos):
    assert special_tokens(tmp_path) == {}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "old"}))
    assert special_tokens(tmp_path) == {"bos_token": "<s>", "eos_token": "old"}
    config = {"eos_token": eos, "bos_token": None, "added_tokens_decoder": {}, "model_max_length": 7}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert special_tokens(tmp_path) == {"eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer_config\.json: cannot be read"):
        special_tokens(tmp_path)


def test_the_tokenizers_own_template(tmp_path):
    assert resolve_template(CHATML, tmp_path) == CHATML
    with pytest.raises(
        DataError, match=r"data\.chat_template: .* has no template of its own; choose one of apertus, chatml"
    ):
        resolve_template("tokenizer", tmp_path)
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHATML}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert resolve_template("tokenizer", tmp_path) == CHATML
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named[:1]}))
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("x")
    with pytest.raises(
        DataError, match=r"no template of its own but tool_use, additional_chat_templates/rag\.jinja: write"
    ):
        resolve_template("tokenizer", tmp_path)
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": CHATML}))
    with pytest.raises(DataError, match=r"its processor has one, in chat_template\.json: write that text to .*\.jinja"):
        resolve_template("tokenizer", tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"chat_template\.jinja: cannot be read"):
        resolve_template("tokenizer", tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(DataError, match=r"has no generation markers, so nothing could be trained on; choose one of"):
        resolve_template("tokenizer", tmp_path)
