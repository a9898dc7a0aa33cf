"""A result as an RO-Crate, read again by the library that others read it with."""

import json

import pytest

from post_training.__main__ import main
from post_training.core.errors import UserError
from post_training.lineage.collect import collect
from post_training.lineage.crate import write_crate


def test_a_model_with_its_lineage(exported, tmp_path, capsys):
    from rocrate.rocrate import ROCrate

    model, folder = exported.parent, tmp_path / "crate"
    assert main(["lineage", str(model), "--ro-crate", str(folder)]) == 0
    crate = ROCrate(str(folder))
    graph = {entity["@id"]: entity for entity in json.loads((folder / "ro-crate-metadata.json").read_text())["@graph"]}
    lineage = collect(model)
    assert crate.mainEntity["name"] == "post-training" and (folder / crate.mainEntity.id).is_file()
    assert any("wfrun/workflow" in profile.id for profile in crate.root_dataset["conformsTo"])
    # Every file of the model is in it and is the run's result; every stage is an action of the workflow.
    files = {str(path.relative_to(model)) for path in model.rglob("*") if path.is_file()}
    assert {
        str(path.relative_to(folder / "result")) for path in (folder / "result").rglob("*") if path.is_file()
    } == files
    assert {entry["@id"] for entry in graph["#run"]["result"]} == {f"result/{name}" for name in files}
    for key in lineage["stages"]:
        assert graph[f"#{key}"]["@type"] == "CreateAction" and graph[f"#{key}"]["instrument"] == {
            "@id": crate.mainEntity.id
        }
    for entity in graph.values():  # no reference into nothing
        for value in entity.values():
            for one in value if isinstance(value, list) else [value]:
                target = one.get("@id", "") if isinstance(one, dict) else ""
                assert not target.startswith(("#", "result/")) or target in graph, target
    with pytest.raises(UserError, match="is not empty"):
        write_crate(lineage, folder)
    assert all((folder / "result" / name).read_bytes() == (model / name).read_bytes() for name in files)
