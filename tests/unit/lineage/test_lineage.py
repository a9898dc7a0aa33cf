import json
import shutil
from pathlib import Path

import pytest

from post_training.__main__ import main
from post_training.core.errors import UserError
from post_training.lineage import collect, verify


@pytest.fixture
def copied(exported, model_manifest, sft_rows, tmp_path) -> Path:
    """A copy of the model, and of all that it was made from, as an output base."""
    for source in (model_manifest.parent, sft_rows.parent, exported.parents[1]):
        shutil.copytree(source, tmp_path / source.name)
    return tmp_path / exported.parents[1].name


def test_from_the_model_back_to_the_base_model_and_the_rows(copied, model_manifest, sft_rows):
    found = collect(copied / "model")
    run = copied.name
    assert found["root"] == f"{run}/model"
    assert set(found["stages"]) == {f"{run}/model", run, model_manifest.parent.name, sft_rows.parent.name}
    assert found["stages"][run]["inputs"] == {"model": model_manifest.parent.name, "data": sft_rows.parent.name}
    assert list(found["stages"])[-1] == found["root"]
    for stage in found["stages"].values():
        assert Path(stage["directory"]).is_relative_to(copied.parent), "the copy is followed within itself"


@pytest.mark.parametrize(
    "name,root",
    [
        ("", "model"),  # a run with a model stands for the model
        ("manifest.json", ""),
        ("config.yaml", ""),
        ("logs/metrics.jsonl", ""),
        ("model/config.json", "model"),
        ("model/manifest.json", "model"),
    ],
)
def test_any_file_of_a_stage_leads_to_it(copied, name, root):
    assert collect(copied / name)["root"] == str(Path(copied.name) / root)


def test_what_belongs_to_no_stage(tmp_path):
    with pytest.raises(UserError, match="belongs to no stage"):
        collect(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        collect(tmp_path / "nothing")


def test_a_copy_of_the_model_alone_is_told_by_its_provenance(exported, tmp_path):
    shutil.copytree(exported.parent, tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "manifest.json").unlink()  # as on the Hub
    found = collect(tmp_path / "elsewhere")
    assert found["stages"][found["root"]]["directory"] == str(tmp_path / "elsewhere")
    trained = found["stages"][found["stages"][found["root"]]["inputs"]["train"]]
    assert (trained["steps"], trained["directory"]) == (6, None)
    checked = verify(found)
    assert checked.problems == [] and len(checked.absent) == 3 and checked.files > 5
    weights = sorted((tmp_path / "elsewhere").glob("*.safetensors"))[0]
    flip(weights)
    assert [problem["file"] for problem in verify(found).problems] == [weights.name]


def test_provenance_names_no_person_and_no_place(exported):
    text = (exported.parent / "provenance.json").read_text()
    told = json.loads(text)
    assert not {"user", "host", "directory"} & {key for stage in told["stages"].values() for key in stage}
    assert str(exported.parents[2]) not in text and str(Path.home()) + "/" not in text


def flip(path: Path) -> None:
    """Change one byte in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


def test_a_changed_byte_is_found_wherever_it_is(copied):
    """Every file that a manifest lists, and the manifest itself."""
    lineage = collect(copied / "model")
    stages = {
        key: stage for key, stage in lineage["stages"].items() if stage["stage"] != "mix"
    }  # a fixture, not a stage
    lineage["stages"] = stages | {key: s | {"files": []} for key, s in lineage["stages"].items() if key not in stages}
    assert [p["stage"] for p in verify(lineage).problems] == [key for key in lineage["stages"] if key not in stages]
    tried = 0
    for key, stage in stages.items():
        names = [file["path"] for file in stage["files"] if not file["path"].startswith("/")] + ["manifest.json"]
        for name in names:
            path = Path(stage["directory"]) / name
            whole = path.read_bytes()
            if not whole:
                continue
            flip(path)
            try:
                found = verify({"stages": {key: stage | {"expected": {}}}})
                told = [(p["stage"], p["file"]) for p in found.problems]
            except UserError as error:
                told = [(key, name)] if str(path) in str(error) else []
            assert (key, name) in told, (key, name)
            path.write_bytes(whole)
            tried += 1
    assert tried > 25


def test_the_command_line(copied, capsys):
    assert main(["lineage", str(copied), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["root"] == f"{copied.name}/model"
    flip(copied / "model" / "config.json")
    assert main(["lineage", str(copied), "--verify"]) == 1
    shown = capsys.readouterr().out
    assert "model/config.json: was changed: sha256" in shown and "train" in shown and "made with" in shown


def test_an_input_that_was_made_again(copied, model_manifest):
    (copied.parent / model_manifest.parent.name / "model" / "extra.txt").write_text("x")
    path = copied.parent / model_manifest.parent.name / "manifest.json"
    told = json.loads(path.read_text())
    told["files"].append({"path": "model/extra.txt", "bytes": 1, "sha256": "0" * 64})
    path.write_text(json.dumps(told))
    problems = {problem["problem"] for problem in verify(collect(copied / "manifest.json")).problems}
    assert "its input model is another stage now" in problems or any("made again since" in p for p in problems)
    assert "was changed after it was written" in problems
