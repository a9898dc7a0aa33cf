"""lm-evaluation-harness itself on an exported model, against the model asked by hand and against our own evaluation."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny import TEMPLATE, conversation, task

from post_training.core.errors import UserError
from post_training.core.fingerprint import FileHashes
from post_training.core.locate import folder_sha256
from post_training.evaluation import held_out, lm_eval, lm_tasks
from post_training.models import folder
from post_training.models.loading import load_for_inference, load_tokenizer

ROWS, CHOICES = 6, ("1", "4", "7")
TASK = """
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/rows.jsonl}}
test_split: test
doc_to_text: "{{question}}"
target_delimiter: ""
metadata: {version: 1.0}
"""
PICK = f"""task: pick
{TASK}
output_type: multiple_choice
doc_to_choice: {list(CHOICES)}
doc_to_target: "{{{{label}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
SUMS = f"""task: sums
tag: arithmetic
{TASK}
output_type: generate_until
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["<|im_end|>"], max_gen_toks: 8, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
ALL = "group: all\ntask: [pick]\naggregate_metric_list: [{metric: acc}]\n"
ASKED = {"num_fewshot": None, "limit": None, "seed": 1234, "log_samples": True, "apply_chat_template": True,
         "fewshot_as_multiturn": True, "chat_template": TEMPLATE}  # fmt: skip


@pytest.fixture(scope="module")
def evaluator(exported):
    return held_out.Evaluator(load_for_inference(folder(exported)), load_tokenizer(folder(exported)), TEMPLATE, 8, 4)


@pytest.fixture(scope="module")
def answers(evaluator):
    """What the model says to each question, by our own evaluation."""
    prompts = [{"messages": conversation(n)[:1]} for n in range(ROWS)]
    return [sample["answer"] for sample in evaluator.open_answers(prompts)]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory, answers):
    """A folder of tasks whose first four expected answers are what the model says."""
    path = tmp_path_factory.mktemp("tasks")
    for name, text in (("pick", PICK), ("sums", SUMS), ("all", ALL)):
        (path / f"{name}.yaml").write_text(text.replace("FOLDER", str(path)))
    rows = [
        {"question": conversation(n)[0]["content"], "label": n % 3, "answer": answers[n] if n < 4 else "no such answer"}
        for n in range(ROWS)
    ]
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def download(output: Path, path: Path | None, *names: str, **runtime):
    output.parent.mkdir(parents=True, exist_ok=True)
    content = folder_sha256(path, FileHashes(output.parent / "x")) if path else None
    where = {"include_path": str(path) if path else None, "offline": False, "trust_remote_code": False} | runtime
    made = task("download_tasks", {"tasks": [*names], "include_path": content}, where, {}, output)
    lm_tasks.run(made)
    return made


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, exported, tasks):
    """The stage's manifest, and the samples of each task."""
    base = tmp_path_factory.mktemp("lm_eval")
    fetched = download(base / "tasks" / "manifest.json", tasks, "pick", "sums")
    output = base / "lm_eval" / "manifest.json"
    output.parent.mkdir()
    inputs = {"model": exported, "tasks": fetched.output}
    lm_eval.run(task("lm_eval", ASKED, {**fetched.runtime, "batch_size": 4}, inputs, output))
    samples = {
        name: [json.loads(line) for line in (output.parent / f"samples_{name}.jsonl").read_text().splitlines()]
        for name in ("pick", "sums")
    }
    return json.loads(output.read_text()), samples


def test_choices_have_the_probabilities_that_the_model_gives_by_hand(evaluated, exported):
    import torch

    manifest, samples = evaluated
    model, tokenizer = load_for_inference(folder(exported)), load_tokenizer(folder(exported))
    right = []
    for number, sample in enumerate(samples["pick"]):
        prompt = tokenizer.apply_chat_template(conversation(number)[:1], tokenize=False, add_generation_prompt=True)
        found = []
        for choice, ((log_probability, _),) in zip(CHOICES, sample["resps"], strict=True):
            ids = tokenizer(prompt + choice)["input_ids"]
            # lm_eval counts white space at the end of a question to the answer.
            start = len(tokenizer(prompt.rstrip())["input_ids"])
            with torch.inference_mode():
                scores = torch.log_softmax(model(torch.tensor([ids])).logits[0], -1)
            found.append(sum(float(scores[place - 1, ids[place]]) for place in range(start, len(ids))))
            assert log_probability == pytest.approx(found[-1], abs=1e-4)
        right.append(found.index(max(found)) == number % 3)
    assert manifest["results"]["pick"]["acc"]["value"] == sum(right) / ROWS
    assert manifest["results"]["pick"]["acc"]["stderr"] is not None


def test_answers_are_those_of_our_own_evaluation(evaluated, answers):
    manifest, samples = evaluated
    assert [sample["resps"][0][0].strip() for sample in samples["sums"]] == answers
    measure = manifest["results"]["sums"]["exact_match"]
    assert (measure["value"], measure["higher_is_better"]) == (pytest.approx(4 / ROWS), True)
    assert (manifest["rows"], manifest["rows_in"], manifest["rows_out"]) == ({"pick": ROWS, "sums": ROWS}, 12, 12)


def test_what_lm_eval_tells_of_its_tasks_is_kept(evaluated):
    manifest, _ = evaluated
    assert manifest["task_versions"] == {"pick": 1.0, "sums": 1.0}
    assert all(len(sha) == 64 for sha in manifest["task_hashes"].values())
    assert manifest["lm_eval_version"] == "0.4.13"
    assert {file["path"] for file in manifest["files"]} == {"results.json", "samples_pick.jsonl", "samples_sums.jsonl"}


@pytest.fixture
def without_its_own_tasks(monkeypatch):
    """An index of the tasks that come with lm_eval takes it ten seconds and more."""
    import lm_eval.tasks

    full = lm_eval.tasks.TaskManager
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda **kwargs: full(**{**kwargs, "include_defaults": False}))


def test_its_own_program_reads_the_exported_model_and_finds_the_same(
    evaluated, exported, tasks, tmp_path, monkeypatch, without_its_own_tasks
):
    from lm_eval._cli import HarnessCLI

    manifest, _ = evaluated
    words = ["--model", "hf", "--model_args", f"pretrained={folder(exported)}", "--tasks", "pick", "sums"]
    words += ["--include_path", str(tasks), "--device", "cpu", "--batch_size", "4", "--apply_chat_template"]
    monkeypatch.setattr(sys, "argv", ["lm_eval", "run", *words, "--log_samples", "--output_path", str(tmp_path)])
    program = HarnessCLI()
    program.execute(program.parse_args())
    (written,) = tmp_path.rglob("results*.json")
    found = json.loads(written.read_text())
    assert found["task_hashes"] == manifest["task_hashes"], "the same questions in the same words"
    assert found["results"]["pick"]["acc,none"] == manifest["results"]["pick"]["acc"]["value"]
    assert found["results"]["sums"]["exact_match,none"] == manifest["results"]["sums"]["exact_match"]["value"]


def test_tags_stand_for_their_tasks(tasks, tmp_path):
    made = download(tmp_path / "t" / "manifest.json", tasks, "arithmetic")
    told = json.loads(made.output.read_text())["tasks"]
    assert told == {"sums": {"dataset": "json", "version": 1.0, "rows": ROWS}}


def test_a_task_is_asked_for_once(tasks, tmp_path):
    with pytest.raises(
        UserError, match="arithmetic: sums is asked for by another name of the list, too; leave one out"
    ):
        download(tmp_path / "t" / "manifest.json", tasks, "sums", "arithmetic")


def test_of_a_group_its_own_value_is_shown():
    acc = {"acc,none": 0.5, "acc_stderr,none": "N/A", "alias": "x", "sample_len": 4}
    found = {
        "results": {
            "a": acc,
            "b": {"exact_match,strict-match": 1.0, "exact_match,flexible-extract": float("nan")},
            "all": acc,
        },
        "groups": {"all": acc},
        "group_subtasks": {"all": ["a"]},
        "higher_is_better": {"all": {"acc": True}},
    }
    assert lm_eval.summary(found) == {
        "b": {"exact_match,strict-match": {"value": 1.0, "stderr": None, "higher_is_better": None}},
        "all": {"acc": {"value": 0.5, "stderr": None, "higher_is_better": True}},
    }


def test_a_name_that_is_no_task(tasks, tmp_path, without_its_own_tasks):
    with pytest.raises(UserError) as error:
        download(tmp_path / "t" / "manifest.json", tasks, "pick", "sumz")
    assert str(error.value) == (
        "config error: evaluation.lm_eval.tasks: no task named 'sumz'. Did you mean 'sums'? "
        "include_path offers all, arithmetic, pick, sums; `lm_eval ls tasks` lists those that come with it"
    )


def test_tasks_that_are_refused(tasks, tmp_path, monkeypatch):
    def own(name, text):
        path = tmp_path / name
        path.mkdir()
        (path / "own.yaml").write_text(text)
        return path

    elsewhere = own("elsewhere", SUMS.replace("FOLDER", str(tasks)))
    with pytest.raises(UserError, match=r"the task sums reads .*rows\.jsonl, which is not below it"):
        download(tmp_path / "a" / "manifest.json", elsewhere, "sums")
    wild = own("wild", SUMS.replace("FOLDER/rows", f"{tasks}/r*s"))
    with pytest.raises(UserError, match=r"the task sums reads .*r\*s\.jsonl, which is not below it"):
        download(tmp_path / "w" / "manifest.json", wild, "sums")
    unsafe = own("unsafe", SUMS.replace("FOLDER", str(tasks)) + "unsafe_code: true\n")
    with pytest.raises(UserError, match="sums: runs code that the model writes"):
        download(tmp_path / "b" / "manifest.json", unsafe, "sums")
    gone = own("gone", SUMS.replace("FOLDER", str(tmp_path / "nowhere")))
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")  # what the stage sets would stay for other tests
    with pytest.raises(
        UserError,
        match=r"lm_eval.tasks: sums: cannot be loaded \(FileNotFoundError: .*; rows of the Hub: where there is internet",
    ):
        download(tmp_path / "c" / "manifest.json", gone, "sums", offline=True)


@pytest.mark.parametrize(
    "given,refused",
    [
        ({"data_files": {"test": ["~/out*.jsonl"]}}, True),
        ({"data_files": "file://HOME/outside.jsonl"}, True),
        ({"data_dir": "~"}, True),
        ({"data_dir": "HOME/tasks", "data_files": "../outside.jsonl"}, True),
        ({"data_files": "out*.jsonl"}, True),
        ({"data_dir": "HOME/tasks", "data_files": "*.jsonl"}, False),
        ({"data_files": "https://site.org/out*.jsonl"}, False),
        ({"data_files": "hf://datasets/org/name/outside.jsonl"}, False),
    ],
)
def test_every_way_to_name_rows_outside_of_the_folder(given, refused, tmp_path, monkeypatch):
    (tmp_path / "tasks").mkdir()
    for path in ("outside.jsonl", "tasks/rows.jsonl"):
        (tmp_path / path).touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    given = json.loads(json.dumps(given).replace("HOME", str(tmp_path)))

    def check(source):
        asked = SimpleNamespace(dump_config=lambda: {"dataset_path": source, "dataset_kwargs": given})
        lm_tasks._check({"own": asked}, str(tmp_path / "tasks"))

    if refused:
        with pytest.raises(UserError, match=r"the task own reads .*, which is not below it"):
            check("json")
    else:
        check("json")
    if given == {"data_files": "out*.jsonl"}:
        check("org/name")  # whose files they are


def test_a_metric_of_the_hub_is_code(tasks, tmp_path, monkeypatch):
    import evaluate as library

    monkeypatch.setattr(library, "load", library.load)
    path = tmp_path / "own"
    path.mkdir()
    (path / "rows.jsonl").write_bytes((tasks / "rows.jsonl").read_bytes())
    (path / "own.yaml").write_text(SUMS.replace("FOLDER", str(path)).replace("exact_match", "org/mine"))
    with pytest.raises(UserError, match="sums: wants org/mine from the Hub, which is code; allow it"):
        download(tmp_path / "t" / "manifest.json", path, "sums")


def test_a_folder_that_changes_after_planning(tasks, tmp_path):
    made = download(tmp_path / "t" / "manifest.json", tasks, "pick")
    made.config["include_path"] = "0" * 64
    with pytest.raises(UserError, match="changed since the run was planned"):
        lm_tasks.run(made)
