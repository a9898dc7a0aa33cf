"""A right answer is right in every shipped template, whatever it consists of and however its JSON is spelled."""

import json

import pytest

from post_training.data import registry
from post_training.data.tokens.chat_template import ChatTemplate, as_passed, text_and_spans
from post_training.evaluation.fields import AnswerReader, compare_answers

USER = {"role": "user", "content": "time in Oslo?"}
TOOLS = [{"type": "function", "function": {"name": "clock", "description": "d", "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "zone": {"type": "string"}}}}}]  # fmt: skip
STOPS = ("<|im_end|>", "<|eot_id|>", "<|assistant_end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "</s>")


def call(arguments):
    return {"type": "function", "function": {"name": "clock", "arguments": arguments}}


def answer(content="", **more):
    return {"role": "assistant", "content": content, **more}


def renderer(name):
    named = {"bos_token": "<s>", "eos_token": "</s>"}
    template = ChatTemplate(registry.chat_template_text(name), named)

    def render(messages, tools):
        try:
            prompt, text = (
                text_and_spans(template.render_marked(as_passed(part), tools, asked))[0]
                for part, asked in ((messages[:-1], True), (messages, False))
            )
        except ValueError:
            return None
        if not text.startswith(prompt):
            return None
        text = text[len(prompt) :]
        return text[: min((text.find(stop) for stop in STOPS if stop in text), default=len(text))]

    return render


CASES = {
    "content": (answer("It is five."), answer("It is six.")),
    "reasoning": (answer("five", reasoning_content="the clock"), answer("five", reasoning_content="a guess")),
    "a call": (answer(tool_calls=[call({"city": "Oslo", "zone": "x"})]), answer(tool_calls=[call({"city": "Bergen", "zone": "x"})])),
    "two calls": (answer(tool_calls=[call({"city": c}) for c in "ab"]), answer(tool_calls=[call({"city": c}) for c in "ba"])),
    "all": (answer("so", reasoning_content="hm", tool_calls=[call({"city": "a"})]), answer("so", reasoning_content="hm", tool_calls=[call({"city": "b"})])),
    "JSON that is no call": (answer('{"name": "x"}'), answer('{"name": "y"}')),
}  # fmt: skip


@pytest.mark.parametrize("name", registry.chat_template_names())
def test_an_answer_is_compared_by_fields(name):
    render, written = renderer(name), 0
    for right, wrong in CASES.values():
        texts = [render([USER, turn], TOOLS) for turn in (right, wrong)]
        if None in texts or texts[0] == texts[1]:
            continue  # this template knows no calls, or writes no reasoning
        written += 1
        row = {"messages": [USER, right], "tools": TOOLS}
        samples = [{"text": text, "stopped": True} for text in texts]
        compare_answers([row, row], samples, render)
        assert [sample["correct"] for sample in samples] == [True, False], (samples, texts)
        cut = [{"text": texts[0], "stopped": False}]
        compare_answers([row], cut, render)
        assert not cut[0]["correct"]
    assert written >= 2


@pytest.mark.parametrize("name", ["chatml", "qwen3"])
def test_calls_are_equal_as_json_and_each_field_is_reported(name):
    render = renderer(name)
    right = answer("look", reasoning_content="hm", tool_calls=[call({"city": "Oslo", "zone": "x"})])
    text = render([USER, right], TOOLS)
    spaced = text.replace('{"city": "Oslo", "zone": "x"}', '{ "zone":"x",\n"city":"Oslo" }')
    assert spaced != text
    samples = [{"text": one, "stopped": True} for one in (spaced, text.replace("look", "see"))]
    rates = compare_answers([{"messages": [USER, right], "tools": TOOLS}] * 2, samples, render)
    assert [sample["correct"] for sample in samples] == [True, False]
    assert samples[1]["fields"]["tool_calls"] and not samples[1]["fields"]["content"]
    assert rates["tool_calls_match"] == 1 and rates["content_match"] == 0.5


def test_text_without_the_spelling_of_a_template_is_content():
    reader = AnswerReader(lambda _: None)
    for text in ("{", "[1, 2] and {}", "</think>", json.dumps({"name": 1, "arguments": {}}), "[" * 5000):
        assert reader.read(text).content == text
