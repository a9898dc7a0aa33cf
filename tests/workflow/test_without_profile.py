"""What is stale does not depend on the profile: as a module of another workflow, or with a profile of the user's own."""

import contextlib
import io

from snakemake.api import SnakemakeApi
from snakemake.settings.types import ConfigSettings, DAGSettings, OutputSettings, ResourceSettings

from post_training.workflow.lookup import Lookup


def touch(project, snakefile: str) -> None:
    """Have Snakemake record every job, with the inputs that it has while its stage is incomplete, preflight included."""
    with contextlib.redirect_stderr(io.StringIO()), SnakemakeApi(OutputSettings()) as api:
        workflow = api.workflow(
            resource_settings=ResourceSettings(cores=2),
            config_settings=ConfigSettings(configfiles=[project.path / "config/config.yaml"]),
            snakefile=project.path / snakefile,
            workdir=project.path,
        )
        workflow.dag(DAGSettings(forceall=True)).execute_workflow(executor="touch")


def test_the_second_call_as_a_module_has_nothing_to_do(project, monkeypatch):
    own = 'rule own:\n    output: "own.txt"\n    shell: "echo 1 > {output}"\n'
    (project.path / "other.smk").write_text(
        'configfile: "config/config.yaml"\n'
        'module pt:\n    snakefile: "workflow/Snakefile"\n    config: config\nuse rule * from pt as pt_*\n'
        + own
        + 'rule everything:\n    default_target: True\n    input: rules.pt_all.input, "own.txt"\n'
    )
    project.complete()
    (project.path / "own.txt").touch()
    with monkeypatch.context() as patch:
        patch.setattr(Lookup, "_is_complete", lambda self, stage: False)
        touch(project, "other.smk")
    text = (project.path / "workflow/rules/common.smk").read_text()
    (project.path / "workflow/rules/common.smk").write_text(text.replace("{log:q} 2>&1", "{log:q}  2>&1"))
    assert project.jobs("everything", snakefile="other.smk") == {}
    # Rules of the other workflow are compared as ever.
    other = project.path / "other.smk"
    other.write_text(other.read_text().replace("echo 1", "echo 2"))
    assert "own" in project.planned("everything", snakefile="other.smk")


def test_the_second_call_without_a_profile_has_nothing_to_do(project, monkeypatch):
    project.complete()
    with monkeypatch.context() as patch:
        patch.setattr(Lookup, "_is_complete", lambda self, stage: False)
        touch(project, "Snakefile")
    assert project.jobs() == {}
