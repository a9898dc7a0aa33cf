import pytest

from post_training.core.errors import ConfigError

PUBLISH = {"push_to_hub": True, "hub_model_id": "org/model"}


def test_a_model_that_is_evaluated_gets_a_card(project):
    jobs = project.jobs(method="dpo")
    assert len(jobs["card"]) == 2 and {name.rpartition("-")[0] for name in jobs["card"]} == {
        "sft-scratch-llama",
        "dpo-scratch-llama",
    }
    assert "push" not in jobs
    project.config["evaluation"] = {"datasets": []}
    project.write()
    assert "card" not in project.jobs(method="dpo")


def test_the_last_model_is_pushed_when_asked_for(project, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a-token-of-nothing")
    project.complete()
    project.config["publish"] = PUBLISH
    project.write()
    assert {rule: len(names) for rule, names in project.jobs().items()} == {"push": 1}
    (stage,) = project.plan().published.values()
    assert (stage.label, stage.inputs["export"]) == ("org--model", project.plan().exported["dpo"])
    frozen = project.plan().pipeline.frozen("dpo")
    assert "publish" not in frozen, "a rebuild publishes nothing"


def test_without_a_token_nothing_is_begun_and_a_finished_push_needs_none(project, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    project.config["publish"] = PUBLISH
    project.write()
    with pytest.raises(SystemExit, match=r"publish.push_to_hub: true, but HF_TOKEN is not set"):
        project.jobs()
    project.complete()
    assert project.jobs() == {}


@pytest.mark.parametrize(
    "changes,key",
    [
        ({"hub_model_id": None}, "publish.hub_model_id: found None, expected org/name"),
        ({"hub_model_id": "a b"}, "publish.hub_model_id: found 'a b'"),
        ({"hub_model_id": "model-alone"}, "publish.hub_model_id: found 'model-alone'"),
        ({"hub_token": "hf_x"}, "publish.hub_token: unknown key"),
    ],
)
def test_what_could_not_be_published_is_refused_before_anything_runs(project, changes, key):
    project.config["publish"] = PUBLISH | changes
    with pytest.raises(ConfigError, match=key):
        project.plan()


def test_offline_and_publishing_exclude_each_other(project):
    project.config |= {"publish": PUBLISH, "offline": True}
    with pytest.raises(ConfigError, match=r"publish.push_to_hub: true, but offline is true"):
        project.plan()


def test_two_runs_do_not_overwrite_each_other(project):
    from post_training.config import resolve_runs
    from post_training.plan import make_graph

    project.config |= {"publish": PUBLISH, "sweep": {"dpo.beta": [0.1, 0.2]}}
    with pytest.raises(ConfigError, match=r"publish.hub_model_id: several runs would be pushed to org/model"):
        make_graph(resolve_runs(project.config))
