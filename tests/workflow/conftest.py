"""A small project on disk whose planned jobs are asked of Snakemake's API, in about 0.1 s each."""

import contextlib
import io
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from snakemake.api import SnakemakeApi
from snakemake.settings.types import (
    ConfigSettings,
    DAGSettings,
    OutputSettings,
    ResourceSettings,
)
from snakemake_interface_logger_plugins.common import LogEvent

from post_training.config import resolve, resolve_runs
from post_training.plan import make_graph, make_plan

REPOSITORY = Path(__file__).resolve().parents[2]

TRANSFORMS = """
from post_training.data.transforms import register_transform


@register_transform("first")
def first(row):
    return {"messages": row["messages"]}


@register_transform("second")
def second(row, column="messages"):
    return {"messages": row["messages"]}


@register_transform("pairs")
def pairs(row):
    return row
"""

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}{{ '\\n' }}"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% endfor %}"
)


def default_config() -> dict:
    return {
        "method": "dpo",
        "model": {"from_scratch": {"corpus": ["a.jsonl"], "config": {"hidden_size": 16}}, "dtype": "float32"},
        "training": {"max_steps": 10, "effective_batch_size": 4},
        "data": {
            "chat_template": "template.jinja",
            "transform_modules": ["transforms.py"],
            "datasets": [
                {"name": "a", "path": "a.jsonl", "transform": "first"},
                {"name": "b", "path": "b.jsonl", "weight": 0.5, "transform": "second"},
            ],
        },
        "sft": {"max_seq_length": 128},
        "dpo": {"data": {"datasets": [{"name": "p", "path": "p.jsonl", "transform": "pairs"}]}},
        "evaluation": {"datasets": [{"name": "held", "path": "h.jsonl", "transform": "first"}]},
    }


@dataclass
class Project:
    """A working directory with data, a config, and Snakemake's answer to "what would run?"."""

    path: Path
    config: dict

    def write(self) -> None:
        (self.path / "config" / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(self.config)))

    def plan(self):
        return make_plan(resolve(self.config))

    def graph(self):
        return make_graph(resolve_runs(self.config))

    def complete(self) -> None:
        """Make every planned stage of every run exist, as if the pipelines had run."""
        graph = self.graph()
        for stages in graph.stages.values():
            for stage in stages.values():
                path = graph.base / stage.manifest
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(
                    json.dumps({"stage": stage.kind, "fingerprint": stage.fingerprint, "results": {}, "checks": []})
                )
                if stage.kind in ("report", "compare"):
                    path.with_name("report.html").touch()

    def jobs(self, *targets: str, snakefile: str = "Snakefile", **command_line) -> dict[str, list[str]]:
        """Rule -> wildcards of the jobs that Snakemake would run; rules without wildcards are left out."""
        return {
            rule: names
            for rule, names in self.planned(*targets, snakefile=snakefile, **command_line).items()
            if any(names)
        }

    def planned(self, *targets: str, snakefile: str = "Snakefile", **command_line) -> dict[str, list[str]]:
        """The same with rules that have no wildcard, each as an empty name."""
        planned = PlannedJobs()
        logging.getLogger().addHandler(planned)
        try:
            with contextlib.redirect_stderr(io.StringIO()), SnakemakeApi(OutputSettings()) as api:
                workflow = api.workflow(
                    resource_settings=ResourceSettings(cores=2),
                    config_settings=ConfigSettings(config=command_line),
                    snakefile=self.path / snakefile,
                    workdir=self.path,
                )
                workflow.dag(DAGSettings(targets=frozenset(targets))).execute_workflow(executor="dryrun")
        finally:
            logging.getLogger().removeHandler(planned)
        return {rule: sorted(names) for rule, names in planned.found.items()}


class PlannedJobs(logging.Handler):
    """Collects what a dry run announces."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, list[str]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "event", None) == LogEvent.JOB_INFO:
            self.found.setdefault(record.rule_name, []).append(next(iter(record.wildcards.values()), ""))


@pytest.fixture
def project(tmp_path, monkeypatch) -> Project:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name in ("Snakefile", "workflow", "profiles", "envs"):
        (shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy)(REPOSITORY / name, tmp_path / name)
    (tmp_path / "config").mkdir()
    for name in "abph":
        row = {"messages": [{"role": "user", "content": name}, {"role": "assistant", "content": "yes"}]}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "transforms.py").write_text(TRANSFORMS)
    (tmp_path / "template.jinja").write_text(TEMPLATE)
    made = Project(tmp_path, default_config())
    made.write()
    return made
