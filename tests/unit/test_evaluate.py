import json
import shutil
from types import SimpleNamespace

import pytest
from rich.console import Console
from tiny import TEMPLATE, conversation, task

from post_training.core.errors import UserError
from post_training.core.fingerprint import file_sha256
from post_training.data.view import open_rows
from post_training.evaluation import held_out as evaluation
from post_training.evaluation.prompts import read_prompts
from post_training.models import folder
from post_training.models.loading import load_for_inference, load_tokenizer
from post_training.report import summary


def rows_file(path, rows):
    path.mkdir()
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "manifest.json").write_text('{"stage": "transform"}')
    return path / "manifest.json"


@pytest.fixture
def held_out(tmp_path):
    sums = [{"messages": conversation(n)} for n in range(7)]
    pairs = [
        {
            "prompt": conversation(n)[:1],
            "chosen": conversation(n)[1:],
            "rejected": [{"role": "assistant", "content": "no idea"}],
        }
        for n in range(7)
    ]
    return {"sums": rows_file(tmp_path / "sums", sums), "pairs": rows_file(tmp_path / "pairs", pairs)}


def evaluated(tmp_path, model, inputs, batch_size=4, **config):
    output = tmp_path / f"evaluation-{batch_size}" / "manifest.json"
    output.parent.mkdir()
    settings = {"max_samples": None, "max_new_tokens": 8, "chat_template": TEMPLATE} | config
    evaluation.run(task("evaluate", settings, {"batch_size": batch_size}, {"model": model, **inputs}, output))
    samples = [json.loads(line) for line in (output.parent / "samples.jsonl").read_text().splitlines()]
    return json.loads(output.read_text()), samples


def test_results_and_samples(tmp_path, exported, held_out):
    manifest, samples = evaluated(tmp_path, exported, held_out)
    sums, pairs = manifest["results"]["sums"], manifest["results"]["pairs"]
    assert (sums["kind"], sums["rows"]) == ("exact_match", 7)
    answered = [sample for sample in samples if sample["dataset"] == "sums"]
    assert sums["exact_match"] == sum(sample["correct"] for sample in answered) / 7
    assert answered[0]["prompt"] == conversation(0)[:1]
    assert answered[3]["expected"] == conversation(3)[1]["content"]
    assert pairs["accuracy"] == sum(s["chosen_logp"] > s["rejected_logp"] for s in samples if "chosen" in s) / 7
    assert (manifest["rows_in"], manifest["rows_out"]) == (14, 14)


def test_the_batch_changes_nothing(tmp_path, exported, held_out):
    one, samples = evaluated(tmp_path, exported, held_out, batch_size=1)
    four, more = evaluated(tmp_path, exported, held_out, batch_size=4)
    assert [s.get("answer") for s in samples] == [s.get("answer") for s in more]
    assert one["results"]["sums"]["loss"] == pytest.approx(four["results"]["sums"]["loss"], abs=1e-5)
    assert one["results"]["pairs"]["margin"] == pytest.approx(four["results"]["pairs"]["margin"], abs=1e-4)


def test_log_probabilities_are_those_of_the_answer_alone(exported, tokenizer):
    import torch

    model = load_for_inference(folder(exported))
    evaluator = evaluation.Evaluator(model, load_tokenizer(folder(exported)), TEMPLATE, 8, 2)
    messages = conversation(12) + conversation(34)
    ids, positions = evaluator._encode(messages)
    assert tokenizer.decode([ids[place] for place in positions]) == "7<|im_end|>"
    both = evaluator._encode(messages, skip=0)[1]
    assert tokenizer.decode([ids[place] for place in both]) == "3<|im_end|>7<|im_end|>"
    with torch.inference_mode():
        log_probs = torch.log_softmax(model(torch.tensor([ids])).logits[0], -1)
    expected = sum(log_probs[place - 1, ids[place]].item() for place in positions)
    (total, count), _ = evaluator._scored([(ids, positions), (ids[:9], positions[:0])])
    assert (total, count) == (pytest.approx(expected, abs=1e-5), len(positions))


def test_an_answer_that_was_cut_off_is_not_correct(exported, monkeypatch):
    evaluator = evaluation.Evaluator(
        load_for_inference(folder(exported)), load_tokenizer(folder(exported)), TEMPLATE, 8, 2
    )
    expected = conversation(5)[1]["content"]
    for ids, correct in ((evaluator.tokenizer(f"{expected}<|im_end|>"), True), (evaluator.tokenizer(expected), False)):
        monkeypatch.setattr(evaluation, "generate", lambda *_, found=ids["input_ids"]: [found])
        assert evaluator.answers([{"messages": conversation(5)}])[0]["exact_match"] == float(correct)


def test_rows_that_do_not_fit_are_counted(tmp_path, exported, held_out):
    inputs = {"sums": rows_file(tmp_path / "long", [{"messages": conversation(1)}, {"messages": [
        {"role": "user", "content": "why? " * 500}, {"role": "assistant", "content": "so"}]}])}  # fmt: skip
    manifest, _ = evaluated(tmp_path, exported, inputs)
    assert manifest["dropped"] == {"no answer in the row": 0, "too long for the model": 1}
    with pytest.raises(UserError, match="has no rows to evaluate on"):
        evaluated(tmp_path, exported, {"none": rows_file(tmp_path / "none", [])}, batch_size=2)


def test_max_samples_takes_the_first(tmp_path, exported, held_out):
    manifest, samples = evaluated(tmp_path, exported, {"sums": held_out["sums"]}, max_samples=3)
    assert [sample["prompt"] for sample in samples] == [conversation(n)[:1] for n in range(3)]
    assert manifest["results"]["sums"]["rows"] == 3


def test_a_conversation_is_asked_up_to_its_last_answer():
    messages = conversation(3)
    assert evaluation.up_to_last_answer({"messages": [*messages, messages[0]]}) == {"messages": messages}
    assert evaluation.up_to_last_answer({"messages": messages[:1]}) is None
    assert evaluation.up_to_last_answer({"messages": messages[1:]}) is None  # nothing was asked


def test_summary_puts_the_models_side_by_side(tmp_path, capsys):
    def stage(name, exact, answer):
        path = tmp_path / name
        path.mkdir()
        results = {
            "sums": {"kind": "exact_match", "exact_match": exact},
            "pairs": {"kind": "preference", "accuracy": exact / 2},
        }
        (path / "manifest.json").write_text(json.dumps({"results": results}))
        asked = {"dataset": "sums", "prompt": conversation(1)[:1], "expected": "1", "answer": answer}
        (path / "samples.jsonl").write_text(
            json.dumps(asked) + "\n" + json.dumps({"dataset": "pairs", "prompt": [], "chosen": []}) + "\n"
        )
        return SimpleNamespace(manifest=f"{name}/manifest.json")

    (tmp_path / "sft-run").mkdir()
    evaluations = {"base": stage("base", 0.0, "[bold]x"), "sft": stage("sft", 0.96, "1")}
    evaluations["dpo"] = SimpleNamespace(manifest="dpo/manifest.json")  # not there yet
    (tmp_path / "lm").mkdir()
    told = {"pick": {"acc": {"value": 0.25, "stderr": 0.125}, "bleu": {"value": 7.0, "stderr": None}}}
    (tmp_path / "lm" / "manifest.json").write_text(json.dumps({"results": told}))
    tasks = {"sft": SimpleNamespace(manifest="lm/manifest.json")}
    plan = SimpleNamespace(
        base=tmp_path,
        run_name="r",
        evaluated=evaluations,
        lm_evaluated=tasks,
        report=SimpleNamespace(directory="reports/r"),
        links=lambda: {"r-sft": "sft-run", "r": "missing"},
    )
    graph = SimpleNamespace(base=tmp_path, plans={"r": plan}, first=plan, every=lambda _: [])
    summary.print_summary(graph, Console(stderr=True, width=120, highlight=False))
    printed = capsys.readouterr().err
    for expected in (
        "exact match",
        "0.960",
        "preference accuracy",
        "0.480",
        "base: [bold]x",
        "sft: 1",
        "0.250 ± 0.125",
        "7.000 │",
        "r-sft -> sft-run",
        "`snakemake report` makes it",
    ):
        assert expected in printed
    assert "dpo" not in printed.split("prompt:")[0]
    assert "missing" not in printed


def test_prompts_are_answered_and_nothing_is_expected(tmp_path, exported):
    asked = [{"id": "a", "prompt": "3 and 4?"}, {"messages": [*conversation(12), *conversation(5)[:1]]}]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in [*asked, {"prompt": "why? " * 500}]))
    (tmp_path / "out").mkdir()
    config = {"max_samples": None, "max_new_tokens": 8, "chat_template": TEMPLATE, "prompts": file_sha256(path)}
    runtime = {"batch_size": 2, "prompts": str(path)}
    made = task("evaluate", config, runtime, {"model": exported}, tmp_path / "out" / "manifest.json")
    evaluation.run(made)
    samples = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert [(s["dataset"], s.get("id"), len(s["prompt"])) for s in samples] == [
        ("prompts", "a", 1),
        ("prompts", None, 3),
    ]
    assert all("expected" not in sample and "correct" not in sample for sample in samples)
    told = json.loads(made.output.read_text())
    assert (told["results"], told["rows_in"], told["rows_out"]) == ({}, 3, 2)
    assert told["dropped"]["too long for the model"] == 1
    evaluator = evaluation.Evaluator(
        load_for_inference(folder(exported)), load_tokenizer(folder(exported)), TEMPLATE, 8, 1
    )
    _, (alone,) = evaluator.answers([{"messages": [*conversation(12), *conversation(5)]}])
    assert alone["answer"] == samples[1]["answer"]
    assert summary.before_and_after({"sft": samples})[1:3] == ["prompt: 3 and 4?", f"  sft: {samples[0]['answer']}"]
    path.write_text("{}")
    with pytest.raises(UserError, match="changed since the run was planned"):
        evaluation.run(made)


@pytest.mark.parametrize(
    "line,expected",
    [
        ("{", "row 2: is not JSON"),
        ("[1]", r"row 2: found \[1\]; expected"),
        ('{"text": "x"}', 'row 2: found {"text": "x"}; expected'),
        ('{"prompt": "x", "answer": "y"}', "row 2: found answer; expected"),
        ('{"prompt": "x", "messages": []}', "row 2: found both prompt and messages"),
        ('{"prompt": " "}', "row 2: a message without text"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "row 2: a message without text, or of another role"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "row 2: the last turn is the assistant's"),
    ],
)
def test_a_bad_line_of_the_prompts_is_named(tmp_path, line, expected):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "good"}\n' + line + "\n")
    with pytest.raises(UserError, match=expected) as error:
        read_prompts(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_a_file_of_prompts_must_be_there_and_hold_some(tmp_path):
    with pytest.raises(UserError, match=r"evaluation.prompts: .*absent.jsonl: no such file; give a JSON Lines file"):
        read_prompts(tmp_path / "absent.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(UserError, match="has no prompt; expected"):
        read_prompts(tmp_path / "empty.jsonl")


def held_out_mix(source, name):
    """A mix whose rows are all held out."""
    path = source.parent.parent / name / "manifest.json"
    shutil.copytree(source.parent, path.parent)
    for file in path.parent.glob("*.npy"):
        shutil.copy(file, path.parent / f"eval-{file.name}")
    facts = json.loads(path.read_text())
    path.write_text(json.dumps(facts | {"held_out": {"rows": facts["rows_out"]}}))
    return path


def test_rows_that_a_mix_holds_out(tmp_path, exported, unpacked_rows, dpo_rows, held_out):
    import torch

    inputs = {
        "held-out sft": held_out_mix(unpacked_rows, f"{tmp_path.name}-sft"),
        "held-out dpo": held_out_mix(dpo_rows, f"{tmp_path.name}-dpo"),
        "sums": held_out["sums"],
    }
    manifest, samples = evaluated(tmp_path, exported, inputs)
    loss, pairs = (manifest["results"][f"held-out {stage}"] for stage in ("sft", "dpo"))
    assert (loss["rows"], pairs["rows"], len(samples), manifest["rows_out"]) == (96, 64, 7, 167)
    model = load_for_inference(folder(exported))
    total, count = 0.0, 0
    for row in open_rows(unpacked_rows):
        ids, labels = (torch.tensor(row[name].tolist())[None] for name in ("input_ids", "labels"))
        trained = int((labels[0, 1:] != -100).sum())
        total += float(model(input_ids=ids, labels=labels).loss.detach()) * trained
        count += trained
    assert loss["loss"] == pytest.approx(total / count, rel=1e-4) and loss["tokens"] == count
    assert pairs["kind"] == "preference" and 0 <= pairs["accuracy"] <= 1
    assert summary.measures({"sft": manifest["results"]})[0] == [
        "held-out sft",
        "loss per token",
        f"{loss['loss']:.3f}",
    ]
    few, _ = evaluated(tmp_path, exported, {"held-out sft": inputs["held-out sft"]}, batch_size=3, max_samples=5)
    assert few["results"]["held-out sft"]["rows"] == 5
