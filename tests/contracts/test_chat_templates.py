"""What every shipped chat template must do; a new `.jinja` file is tested by being there.

`UPDATE_GOLDEN=1 pytest tests/contracts` writes the golden renders.
"""

import json
import os
import re
from pathlib import Path

import pytest

from post_training.data import registry
from post_training.data.tokens.chat_template import ChatTemplate

NAMES = registry.chat_template_names()
GOLDEN = Path(__file__).parents[1] / "golden" / "chat_templates"
BUNDLED = pytest.importorskip("trl").__path__[0] + "/chat_templates"
# What ends an answer, and where it is another token, what ends one that calls a tool.
STOP = {"gemma": "<end_of_turn>", "llama3": "<|eot_id|>", "apertus": "<|assistant_end|>", "chatml": "<|im_end|>"}
STOP |= {"qwen3": "<|im_end|>"}
CALL_STOP = {"apertus": "<|tools_suffix|>"}
SPECIAL = {"bos_token": "<BOS>", "eos_token": "<EOS>"}
TOOL = {"type": "function", "function": {"name": "add", "description": "a < b & 'c' é", "parameters": {"a": "int"}}}
CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": "é\n"}}}


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


QUESTION = [turn("system", "Be brief."), turn("user", "2+3?")]
CONVERSATION = [
    *QUESTION,
    turn("assistant", "Let me add.", reasoning_content="A sum.", tool_calls=[CALL, {**CALL, "id": "2"}]),
    turn("tool", "5", tool_call_id="1"),
    turn("tool", "\nsix\n", tool_call_id="2"),
    turn("assistant", "Five,\n\nor six."),
    turn("user", "\n  Sure?\n"),
    turn("assistant", "Yes. ", reasoning_content="It is."),
    turn("user", "Again"),
    turn("assistant", None, tool_calls=[{"name": "add", "arguments": '{"a": 2}'}]),
]
CASES = {
    "all": (CONVERSATION, [TOOL, TOOL]),
    "tools without a system turn": (CONVERSATION[1:], [TOOL]),
    "plain": ([turn("user", "hi"), turn("assistant", "yo"), turn("user", "é👍"), turn("assistant", "日本")], None),
    "system": ([*QUESTION, turn("assistant", "5")], None),
    "a word after a result": ([*CONVERSATION[:5], turn("user", "So?"), CONVERSATION[5]], [TOOL]),
}


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def template(name):
    return ChatTemplate(registry.chat_template_text(name), SPECIAL)


def test_golden(name, template):
    found = ""
    for case, (messages, tools) in CASES.items():
        text, spans = template.render(messages, tools)
        for start, end in reversed(spans):
            text = f"{text[:start]}⟦{text[start:end]}⟧{text[end:]}"
        found += f"--- {case}\n{text}\n"
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(found, encoding="utf-8")
    assert found == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("case", CASES)
def test_the_first_turns_are_a_prefix_of_the_whole(template, case):
    messages, tools = CASES[case]
    whole, spans = template.render(messages, tools)
    for count in range(1, len(messages)):
        text, some = template.render(messages[:count], tools)
        assert whole.startswith(text), count
        assert spans[: len(some)] == some


@pytest.mark.parametrize("case", CASES)
def test_a_prompt_is_what_its_answer_follows(template, case):
    """The answer's trained characters begin where the prompt ends: what is asked at inference is what was trained."""
    messages, tools = CASES[case]
    whole, spans = template.render(messages, tools)
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    assert len(spans) == len(answers)
    for index, (start, _) in zip(answers, spans, strict=True):
        prompt, _ = template.render(messages[:index], tools, add_generation_prompt=True)
        assert whole[:start] == prompt


def test_the_mask_is_what_the_assistant_says_and_its_stop_token(name, template):
    text, spans = template.render(CONVERSATION, [TOOL])
    stop, call_stop = STOP.get(name, "<EOS>"), CALL_STOP.get(name) or STOP.get(name, "<EOS>")
    said = [text[start:end] for start, end in spans]
    assert said[0].endswith(call_stop) and said[3].endswith(call_stop)
    assert said[1].endswith("or six." + stop) and said[2].rstrip(stop).rstrip().endswith("Yes.")
    for part, expected in (
        (said[0], ["A sum.", "Let me add.", '"a": 1', "é\\n"]),
        (said[1], ["Five,\n\nor six."]),
        (said[3], ['{"a": 2}']),
    ):
        assert all(words in part for words in expected)
    outside = "".join(
        text[end:start] for (_, end), (start, _) in zip([(0, 0), *spans], [*spans, (None, None)], strict=True)
    )
    assert not any(words in outside for words in ("A sum.", "Let me", '"a": 1,', "Five", "Yes", '{"a": 2}'))
    # No header of the assistant's is trained on.
    assert not any(re.search(r"assistant[^_]|model\n|_start", part) for part in said)
    assert all(part.count(stop) + part.count(call_stop) * (stop != call_stop) == 1 for part in said)


def test_tools_and_their_results_render(template):
    text, _ = template.render(CONVERSATION, [TOOL])
    assert json.dumps(TOOL, ensure_ascii=False) in text
    assert "six" in text and text.index("six") < text.index("Five")
    assert "add" not in template.render(CONVERSATION[:2])[0]


def test_nothing_changes_with_the_clock(template, monkeypatch):
    import datetime
    import time

    first = template.render(CONVERSATION, [TOOL])

    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2099, 1, 2, tzinfo=tz)

    monkeypatch.setattr(datetime, "datetime", Later)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert template.render(CONVERSATION, [TOOL]) == first


def test_declared_tokens_are_those_of_the_text(name):
    text = registry.chat_template_text(name)
    tokens = registry.template_tokens(text)
    body = text.split("-#}", 2)[2]
    assert all(token in body for token in tokens.needed)
    written = set(re.findall(r"<\|[a-z_]+\|>|<[a-z]+_of_turn>", body)) - {"<|assistant|>", "<|system|>"}
    assert written == set(tokens.needed)
    for variable in ("bos_token", "eos_token"):
        spelled = tokens.named.get(variable) in tokens.needed
        assert (variable in body) == (variable in tokens.named and not spelled) or (variable, name) == (
            "bos_token",
            "zephyr",
        )
    assert tokens.named["eos_token"] == STOP.get(name, tokens.named["eos_token"])


PLAIN = [
    [turn("user", "hi"), turn("assistant", "yo")],
    [turn("user", " a\n"), turn("assistant", "b\n\nc"), turn("user", "\td"), turn("assistant", "日本 👍")],
]
WITH_SYSTEM = [[turn("system", "Be brief."), *messages] for messages in PLAIN]


def bundled(file, messages, **more):
    with open(f"{BUNDLED}/{file}.jinja", encoding="utf-8") as source:
        return ChatTemplate(source.read(), SPECIAL).render(messages, **more)


@pytest.mark.parametrize(
    "name, file, chats, newline",
    [
        ("llama3", "llama3_training", PLAIN + WITH_SYSTEM, False),
        # Trained on as well upstream: the newline after the stop token, which nobody generates.
        ("gemma", "gemma_training", PLAIN, True),
        ("gemma", "gemma3_training", PLAIN + WITH_SYSTEM, True),
        ("qwen3", "qwen3_training", PLAIN + WITH_SYSTEM, True),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_plain_chats_render_as_upstream(name, file, chats, newline):
    """The model families' templates as TRL bundles them, text and trained characters."""
    ours = ChatTemplate(registry.chat_template_text(name), SPECIAL)
    for messages in chats:
        text, spans = bundled(file, messages)
        assert ours.render(messages) == (text, [(start, end - newline) for start, end in spans])
        question = messages[:-1]
        prompt, _ = ours.render(question, add_generation_prompt=True)
        inference = file.removesuffix("_training")
        # Qwen's inference template drops the (empty) reasoning of earlier turns; the prompt of one turn is equal.
        if name != "qwen3" or len(question) <= 2:
            assert prompt == bundled(inference, question, add_generation_prompt=True)[0]


def test_reasoning_of_qwen3_as_upstream():
    ours = ChatTemplate(registry.chat_template_text("qwen3"), SPECIAL)
    for answer in (
        turn("assistant", "b", reasoning_content="\nwhy\n"),
        turn("assistant", "<think>\nwhy\n\nso\n</think>\n\nb"),
        turn("assistant", "<think></think>b"),
        turn("assistant", "why</think>b"),
        turn("assistant", "\n\nb"),
    ):
        messages = [turn("user", "a"), answer]
        text, ((start, end),) = bundled("qwen3_training", messages)
        assert ours.render(messages) == (text, [(start, end - 1)])
    # Upstream loses what stands before the block, or between two of them.
    for content in ("x <think>y</think> z", "<think>a</think>b</think>c"):
        assert (
            "".join(content.split("<think>")[0].split())
            in ours.render([turn("user", "q"), turn("assistant", content)])[0]
        )
    assert "b</think>c" in ours.render([turn("user", "q"), turn("assistant", "<think>a</think>b</think>c")])[0]


TULU = [turn("system", "S"), turn("user", "a"), turn("assistant", "b"), turn("user", "c"), turn("assistant", "d")]


@pytest.mark.parametrize(
    "name, messages, prompt, expected",
    [
        # As published with the models; their templates come in no package, so they are written out here.
        ("tulu3", TULU, False, "<|system|>\nS\n<|user|>\na\n<|assistant|>\nb<EOS>\n<|user|>\nc\n<|assistant|>\nd<EOS>"),
        ("tulu3", TULU[:2], True, "<|system|>\nS\n<|user|>\na\n<|assistant|>\n"),
        ("olmo", TULU[1:], False, "<BOS><|user|>\na\n<|assistant|>\nb<EOS>\n<|user|>\nc\n<|assistant|>\nd<EOS>"),
        ("zephyr", TULU[:3], False, "<|system|>\nS<EOS>\n<|user|>\na<EOS>\n<|assistant|>\nb<EOS>\n"),
        ("zephyr", TULU[:2], True, "<|system|>\nS<EOS>\n<|user|>\na<EOS>\n<|assistant|>\n"),
        (
            "apertus",
            TULU[:4],
            True,
            "<BOS><|system_start|>S<|system_end|><|developer_start|>Deliberation: disabled\nTool Capabilities: disabled"
            "<|developer_end|><|user_start|>a<|user_end|><|assistant_start|>b<|assistant_end|><|user_start|>c<|user_end|>"
            "<|assistant_start|>",
        ),
    ],
)
def test_published_formats(name, messages, prompt, expected):
    assert ChatTemplate(registry.chat_template_text(name), SPECIAL).render(messages, None, prompt)[0] == expected
