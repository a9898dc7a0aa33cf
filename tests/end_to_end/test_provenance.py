"""One finished run of every stage that a CPU can make: verified byte by byte, searched for secrets, made again elsewhere."""

import contextlib
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from own_pipeline import make_project
from projects import git, run
from tiny import launcher_command, losses_of, task

from post_training.__main__ import main
from post_training.config import read_config, resolve
from post_training.core import manifest
from post_training.core.errors import ConfigError, UserError
from post_training.core.fingerprint import FileHashes, file_sha256
from post_training.core.locate import folder_sha256
from post_training.core.stages import STAGES
from post_training.lineage import collect, verify
from post_training.lineage.compare import differences
from post_training.plan import make_plan
from post_training.run_dir.wandb_offline import sync_command

pytestmark = pytest.mark.slow
SECRETS = {
    "HF_TOKEN": "hf_" + "aB3" * 11 + "x",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "MY_SERVICE_TOKEN": "plain-secret-0815",
}
PASTED = "hf_" + "zZ9" * 11 + "x"
# What is not made here, and why.
ELSEWHERE = {
    "push": "needs the Hub; it lists no file",
    "merge_adapter": "tests/unit/test_merge_adapter.py makes them",
    "download_kernel": "tests/training/test_hub_kernel.py makes one",
    "preflight_probe": "two more trainings; it lists all that it has",
    **dict.fromkeys(("prompts", "generate", "score", "score_model", "select"), "tests/unit/on_policy makes them"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """The project, whose checkout is not clean, and what its run said."""
    project = make_project(tmp_path_factory.mktemp("provenance") / "project")
    (project / "src" / "post_training" / "notes.py").write_text(f"# {PASTED}\n")
    done = run(project, "snakemake", "--configfile", "my.yaml", "--", "all", "report", **SECRETS)
    assert done.returncode == 0, done.stdout[-6000:]
    return project, done.stdout


def test_no_file_holds_a_secret(finished):
    """Not what a job prints, not what git's diff has, and not a configuration that is refused."""
    project, told = finished
    model = f"https://me:{SECRETS['MY_SERVICE_TOKEN']}@site.org/m"
    refused = run(project, "snakemake", "--configfile", "my.yaml", "--config", f"model={{name_or_path: '{model}'}}")
    assert refused.returncode == 1 and "model.name_or_path: holds " in refused.stdout
    assert any("the token is ***" in log.read_text() for log in (project / "outputs" / "logs").rglob("*.log"))
    written = [path for name in ("outputs", ".snakemake") for path in (project / name).rglob("*") if path.is_file()]
    assert any("wandb" in path.parts for path in written) and any(path.suffix == ".log" for path in written)
    patches = [path for path in written if path.name == "code.diff"]
    assert patches and all("+# ***" in path.read_text() for path in patches)
    for secret in (*SECRETS.values(), PASTED):
        assert secret not in told + refused.stdout
        leaks = [path for path in written if secret.encode() in path.read_bytes()]
        assert not leaks, leaks


def make_the_others(base: Path) -> None:
    """Stages that this pipeline has none of, from what it has made."""
    from post_training.evaluation import lm_eval, lm_tasks
    from post_training.models import download
    from post_training.report import compare

    folder = (base / "tiny" / "model").resolve()
    config = {"sha256": [[name, file_sha256(folder / name)] for name in ("config.json", "model.safetensors")]}
    runtime = {"folder": str(folder), "offline": True, "trust_remote_code": False}
    download.run(task("download_model", config, runtime, {}, base / "models" / "own@1" / manifest.NAME))
    tasks = Path("my/tasks")
    tasks.mkdir()
    (tasks / "sums.yaml").write_text(
        "{task: sums, dataset_path: json, dataset_kwargs: {data_files: {test: my/tasks/sums.jsonl}}, test_split: test, "
        "output_type: multiple_choice, doc_to_text: '{{a}} and {{b}}?', doc_to_choice: ['1', '{{sum}}'], doc_to_target: 1}"
    )
    shutil.copy("my/asked.jsonl", tasks / "sums.jsonl")
    chosen = {"tasks": ["sums"], "include_path": folder_sha256(tasks, FileHashes(base / "none.json"))}
    runtime = {"include_path": str(tasks), "offline": False, "trust_remote_code": False, "batch_size": 2}
    fetched = task("download_tasks", chosen, runtime, {}, base / "data" / "tasks" / "lm_eval-1" / manifest.NAME)
    lm_tasks.run(fetched)
    asked = {"num_fewshot": None, "limit": None, "seed": 1, "log_samples": True, "apply_chat_template": False}
    inputs = {"model": folder / manifest.NAME, "tasks": fetched.output}
    lm_eval.run(task("lm_eval", asked, runtime, inputs, base / "lm_eval" / "dpo-1" / manifest.NAME))
    (page,) = (base / "reports").glob(f"*/{manifest.NAME}")
    both = {"runs": [["a", {}], ["b", {}]]}
    comparison = base / "comparisons" / "both-1" / manifest.NAME
    comparison.parent.mkdir(parents=True)
    compare.run(task("compare", both, {}, {"a": page, "b": page}, comparison))


@pytest.fixture(scope="module")
def stages(finished) -> dict[str, dict[str, Any]]:
    """Every stage of the run by its key, as `collect` tells of it."""
    base = finished[0] / "outputs"
    with contextlib.chdir(finished[0]):  # paths in manifests are as they were given
        make_the_others(base)
    found = {}
    for path in sorted(base.rglob(manifest.NAME)):
        if not path.resolve().parent.is_symlink() and path.resolve() == path.absolute():
            lineage = collect(path)
            found[lineage["root"]] = lineage["stages"][lineage["root"]]
    return found


def test_every_kind_of_stage_is_here(stages):
    assert {stage["stage"] for stage in stages.values()} == set(STAGES) - set(ELSEWHERE)


def named(key: str, stage: dict[str, Any]) -> set[tuple[str, str]]:
    """What verification of one stage complains of."""
    return {(one["stage"], one["file"]) for one in verify({"stages": {key: stage | {"expected": {}}}}).problems}


def change(data: bytes, rng: random.Random) -> bytes:
    """The same with one byte changed; of nothing, one byte."""
    if not data:
        return b"x"
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ rng.randrange(1, 256)]) + data[place + 1 :]


def files_of(stage: dict[str, Any]) -> list[str]:
    """Everything that a stage has made or read outside: what its manifest lists, its card, and the code's changes."""
    told = [file["path"] for file in stage["files"]]
    beside = [stage.get("card"), (stage["git"] or {}).get("diff")]  # the checkout that runs the tests may be clean
    return [*told, *(file["path"] for file in beside if file)]


def test_a_changed_byte_is_found_in_every_file(stages):
    rng = random.Random(0)
    tried = 0
    for key, stage in stages.items():
        assert named(key, stage) == set(), key
        for name in files_of(stage):
            path = Path(stage["directory"]) / name
            whole, mode = path.read_bytes(), path.stat().st_mode
            path.chmod(0o644)
            for damaged in (change(whole, rng), whole[:-1] or b"x"):
                path.write_bytes(damaged)
                assert named(key, stage) == {(key, name)}, (key, name)
            path.unlink()
            assert named(key, stage) == {(key, name)}, (key, name)
            path.write_bytes(whole)
            path.chmod(mode)
            tried += 1
        assert named(key, stage) == set(), key
    assert tried > 120


def test_a_file_that_came_later_is_told(stages):
    """But in a training's directory, which holds more than a result, and as an epoch of a mix, which longer runs add."""
    for key, stage in stages.items():
        for name in ("added.txt", "epoch-00099.npy"):
            added = Path(stage["directory"]) / name
            added.write_text("x")
            allowed = stage["stage"] == "train" or (stage["stage"] == "mix" and name.startswith("epoch"))
            assert named(key, stage) == (set() if allowed else {(key, name)}), key
            added.unlink()


def test_all_that_a_stage_has_made_is_listed(stages):
    """So that a new stage cannot leave out a file; a training's directory is told by its own test below."""
    for key, stage in stages.items():
        if stage["stage"] != "train":
            directory = Path(stage["directory"])
            there = {str(path.relative_to(directory)) for path in manifest.own_files(directory)} - {"owner.1.json"}
            assert there <= {*files_of(stage), "README.md"}, key


def test_what_a_training_leaves_is_listed(stages):
    (sft,) = [stage for key, stage in stages.items() if key.startswith("sft-") and stage["stage"] == "train"]
    listed = {file["path"] for file in sft["files"]}
    directory = Path(sft["directory"])
    kept = {
        path for path in directory.rglob("*") if path.is_file() and "model" not in path.relative_to(directory).parts
    }
    names = {str(path.relative_to(directory)) for path in kept} - listed
    left = {name for name in names if not name.startswith(("logs/", "checkpoints/checkpoint-2/"))}
    assert left == {"manifest.json", "code.diff", "owner.1.json", "checkpoints/README.md"}


def test_a_changed_byte_of_a_manifest_is_found(stages, capsys):
    rng = random.Random(1)
    for key, stage in stages.items():
        path = Path(stage["directory"]) / manifest.NAME
        whole = path.read_bytes()
        for number in range(4):
            path.write_bytes(change(whole, rng))
            try:
                lineage = collect(path)
                found = named(lineage["root"], lineage["stages"][lineage["root"]])
                assert manifest.NAME in {name for _, name in found}, (key, path.read_bytes())
            except UserError as error:
                assert str(path) in str(error), (key, error)
            if number == 0:  # a line, whatever it was
                assert main(["lineage", "--verify", str(path)]) == 1
                said = capsys.readouterr()
                assert manifest.NAME in said.out + said.err
        path.write_bytes(whole)


def test_the_whole_lineage_is_verified_by_the_command(finished, stages, capsys):
    model = finished[0] / "outputs" / "tiny" / "model"
    assert main(["lineage", "--verify", str(model)]) == 0
    rows = next(
        Path(s["directory"]) / "rows.jsonl" for s in stages.values() if s["stage"] == "transform" and s.get("module")
    )
    whole = rows.read_bytes()
    rows.write_bytes(change(whole, random.Random(2)))
    assert main(["lineage", "--verify", str(model)]) == 1
    assert f"{rows.parent.name}/rows.jsonl: was changed" in capsys.readouterr().out.replace("\n", "")
    rows.write_bytes(whole)


@pytest.fixture(scope="module")
def rebuilt(finished, tmp_path_factory) -> tuple[Path, str]:
    """A clean clone with nothing but the user's data, in which the export's configuration has run; without loggers."""
    folder = tmp_path_factory.mktemp("rebuilt")
    git(folder, "clone", "-q", str(finished[0]), "clone")
    shutil.copytree(finished[0] / "outputs" / "tiny" / "model", folder / "downloaded")
    (folder / "downloaded" / "manifest.json").unlink()  # as on the Hub
    (folder / "clone" / "my").mkdir()
    for path in (finished[0] / "my").glob("*.jsonl"):
        shutil.copy(path, folder / "clone" / "my")
    settings = ["paths={output_base: again}", "logging={report_to: [none]}"]
    words = ["--configfile", "../downloaded/config.yaml", "--omit-from", "evaluate", "--config", *settings]
    done = run(folder / "clone", "snakemake", *words)
    assert done.returncode == 0, done.stdout[-6000:]
    return folder / "clone", done.stdout


def test_an_export_alone_makes_the_same_again(finished, rebuilt):
    """Every file of every stage of data, the reference, and the weights of both trainings."""
    ours, theirs = finished[0] / "outputs", rebuilt[0] / "again"
    compared = 0
    for path in sorted(theirs.rglob(manifest.NAME)):
        if path.resolve() != path.absolute():
            continue  # below a link
        told = manifest.read(path)
        if told["stage"] in ("train", "export", "preflight"):
            continue
        other = manifest.read(ours / path.relative_to(theirs))
        assert told["fingerprint"] == other["fingerprint"]
        assert manifest.content(told) == manifest.content(other), path
        compared += 1
    assert compared > 12
    for name in ("tiny-sft", "tiny"):
        for file in ("model.safetensors", "tokenizer.json", "provenance/sums/words.py", "provenance/plain.jinja"):
            assert file_sha256(theirs / name / "model" / file) == file_sha256(ours / name / "model" / file), (
                name,
                file,
            )
        assert losses_of(theirs / name) == losses_of(ours / name)
        configurations = [read_config(base / name / "model" / "config.yaml") for base in (ours, theirs)]
        for one in (section for tree in configurations for section in (tree["sft"], tree.get("dpo", {}))):
            one.pop("logging", None)
        assert str(configurations[0]).replace(str(ours), "") == str(configurations[1]).replace(str(theirs), "")


def test_two_equal_runs_differ_in_the_code_alone(finished, rebuilt):
    found = differences(collect(finished[0] / "outputs" / "tiny"), collect(rebuilt[0] / "again" / "tiny"))
    assert found["inputs"] == []
    assert all(
        row["what"].startswith("evaluation: ") and row["b"] is None for row in found["results"]
    )  # left out there
    assert {row["what"] for row in found["versions"]} == {"code", "changes in the code"}
    measured = [row for row in found["keys"] if row["what"].startswith("dpo.evaluation.datasets")]
    assert measured and all(row["b"] in (None, []) for row in measured)  # as SFT's only, which kept their rows out
    assert {row["what"].split(".", 1)[1] for row in found["keys"] if row not in measured} == {
        "data.chat_template",
        "data.transform_modules[0]",
    }
    assert "logging.report_to" in str(found["keys that decide nothing"])


@pytest.mark.parametrize(
    "damage,expected",
    [
        (lambda my: (my / "pairs.jsonl").unlink(), "my/pairs.jsonl: no such file"),
        (lambda my: (my / "sums-more.jsonl").unlink(), "my/sums*.jsonl: sums-more.jsonl is missing"),
        (lambda my: (my / "sums-new.jsonl").write_text("{}\n"), "sums-new.jsonl is not among the recorded ones"),
        (lambda my: (my / "held.jsonl").write_text("{}\n"), "my/held.jsonl: held.jsonl has other content than recorded"),
        (lambda my: (my / "asked.jsonl").write_text("{}\n"), "my/asked.jsonl: asked.jsonl has other content than recorded"),
        (lambda my: (my / "benchmark.jsonl").write_text("{}\n"), "my/benchmark.jsonl: benchmark.jsonl has other content"),
    ],
)  # fmt: skip
def test_local_data_that_are_not_what_was_recorded(rebuilt, tmp_path, monkeypatch, damage, expected):
    shutil.copytree(rebuilt[0] / "my", tmp_path / "my")
    monkeypatch.chdir(tmp_path)
    config = read_config(rebuilt[0].parent / "downloaded" / "config.yaml")
    make_plan(resolve(config))
    damage(tmp_path / "my")
    with pytest.raises(ConfigError) as error:
        make_plan(resolve(config))
    assert expected in str(error.value) and "\n" not in str(error.value)


def scalars(logs: Path) -> dict[int, float]:
    """Step -> loss, as TensorBoard reads it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(logs))
    events.Reload()
    return {event.step: event.value for event in events.Scalars("train/loss")}


def offline_folders(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "logs" / "wandb").glob("offline-run-*"))


def test_loggers_by_report_to(finished, rebuilt):
    project, told = finished
    for name in ("tiny-sft", "tiny-dpo"):
        directory = (project / "outputs" / name).resolve()
        assert scalars(directory / "logs") == pytest.approx(dict(enumerate(losses_of(directory), 1)))
        (folder,) = offline_folders(directory)
        assert folder.endswith(f"-{directory.name}"), "the run's id is its directory"
        line = f"W&B was offline; where there is internet: wandb sync outputs/{directory.name}/logs/wandb/{folder}"
        assert line in told.splitlines()
        assert line in (project / "outputs" / "logs" / "train" / f"{directory.name}.log").read_text()
    again, said = rebuilt
    assert "wandb" not in said.lower() and "W&B" not in said
    assert not [*again.glob("again/*/logs/events*"), *again.glob("again/*/logs/wandb")]


def test_a_resumed_run_goes_on_under_its_id(finished, tmp_path, monkeypatch):
    project, _ = finished
    for name in ("outputs", "my"):
        shutil.copytree(project / name, tmp_path / name, symlinks=True)
    monkeypatch.chdir(tmp_path)
    plan = make_plan(resolve(read_config(project / "my.yaml")))
    stage = plan.trained["sft"]
    directory = tmp_path / "outputs" / stage.directory
    before = losses_of(directory)
    (directory / manifest.NAME).unlink()
    shutil.rmtree(directory / "checkpoints" / "checkpoint-4")
    done = run(tmp_path, *launcher_command(stage.task(plan.base)), PYTHONPATH=str(project / "src"))
    assert done.returncode == 0 and "resuming from checkpoint-2" in done.stdout, done.stdout
    first, second = offline_folders(directory)
    assert first.rpartition("-")[0] != second.rpartition("-")[0]
    assert all(folder.endswith(f"-{directory.name}") for folder in (first, second))
    place = f"outputs/{directory.name}/logs/wandb"
    assert f"where there is internet: wandb sync {place}/{first} {place}/{second}\n" in done.stdout
    assert losses_of(directory) == before
    assert scalars(directory / "logs") == pytest.approx(dict(enumerate(before, 1)))
    (directory / "logs" / "wandb" / first / f"run-{directory.name}.wandb.synced").touch()  # as `wandb sync` leaves it
    assert sync_command(Path(place).parents[1]) == f"wandb sync {place}/{second}"
