"""Checks of the template, on the tokenizer of the tiny model."""

import json

import pytest
from tiny import TEMPLATE

from post_training.preflight import template as of_template


@pytest.fixture
def checked(subject_of, model_manifest, tmp_path):
    """Text of a template -> {name: check}."""

    def check(text, made_with=None):
        path = tmp_path / "asked.jinja"
        path.write_text(text)
        folder = tmp_path / "data" / "tokenized" / "d"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "manifest.json").write_text(json.dumps({"config": {"chat_template": made_with or text}}))
        mix = {"inputs": {"d": {"path": str(folder / "manifest.json")}}}
        subject = subject_of(mix=mix, folder=model_manifest.parent / "model", data__chat_template=str(path))
        return {found.name: found for found in of_template.checks(subject)}

    return check


def test_a_sound_template_is_silent(checked):
    found = checked(TEMPLATE)
    assert {check.verdict for check in found.values()} == {"ok"}, found
    assert len(found) == 8


DATE = "{{ strftime_now('%d %B %Y') if strftime_now is defined }}"
ONLY_LAST = TEMPLATE.replace("{% for m in messages %}", "{% for m in messages %}{% if not loop.last %}~{% endif %}")


@pytest.mark.parametrize(
    "name,text,verdict,said",
    [
        ("template.stop_token", TEMPLATE.replace("m.content + '<|im_end|>' }}{% endgeneration %}", "m.content }}{% endgeneration %}{{ '<|im_end|>' }}"), "failure", "would not learn to stop"),
        ("template.same_text_always", DATE + TEMPLATE, "failure", "another text at each rendering, and asks for the date"),
        ("template.same_text_always", "{{ [1, 2, 3, 4, 5, 6, 7, 8, 9] | random }}" + TEMPLATE, "failure", "another text"),
        ("template.prefix_stable", ONLY_LAST, "warning", "a further turn changes the text from"),
        ("template.generation_prompt", TEMPLATE.replace("{{ '<|im_start|>assistant\n' }}{% endif %}", "{{ '<|im_start|>bot\n' }}{% endif %}"), "failure", ""),
        ("template.generation_prompt", TEMPLATE.replace("{% generation %}", "{{ 'Answer: ' }}{% generation %}"), "warning", "then 'Answer: ', which is not trained on"),
        ("template.single_ids", TEMPLATE.replace("{% for", "{{ '<|begin_of_text|>' }}{% for", 1), "warning", "tokens more a turn"),
        ("template.single_ids", "{#- tokens: <|begin_of_text|>; new tokenizer: eos_token=<|im_end|> -#}" + TEMPLATE, "failure", "<|begin_of_text|> ("),
    ],
)  # fmt: skip
def test_fires(checked, name, text, verdict, said):
    assert text != TEMPLATE
    found = checked(text)[name]
    assert (found.verdict, said in found.value) == (verdict, True), found


def test_rows_made_with_another_template_than_the_export_gets(checked):
    found = checked(TEMPLATE, made_with=TEMPLATE + "{# older #}")["template.as_exported"]
    assert (found.verdict, found.value) == ("failure", "the rows were made with another template than the export gets")


def test_a_tokenizer_without_a_template_of_its_own_is_one_line(subject_of, model_manifest):
    folder = model_manifest.parent / "model"
    (found,) = of_template.checks(subject_of(folder=folder, data__chat_template="tokenizer"))
    assert found.verdict == "failure" and "\n" not in found.line()


def test_transformers_other_ids_are_a_failure(checked, monkeypatch):
    monkeypatch.setattr(of_template, "transformers_ids", lambda *_: [1, 2, 3])
    assert checked(TEMPLATE)["template.as_exported"].verdict == "failure"


@pytest.mark.parametrize("name", ["zephyr", "tulu3", "olmo"])
def test_templates_of_plain_text_pass_with_a_tokenizer_that_does_not_know_their_markers(checked, name):
    from post_training.data.registry import chat_template_text

    found = checked(chat_template_text(name))
    assert found["template.single_ids"].verdict == "ok" and "tokens more a turn" in found["template.single_ids"].value
    assert not [check for check in found.values() if check.verdict == "failure"], found
