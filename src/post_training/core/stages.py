"""The kinds of stages, in one table. A new kind needs a line here, a module and a rule."""

import importlib
from dataclasses import dataclass
from typing import Any, Literal

Place = Literal["local", "cpu", "gpu", "ranks"]
Reads = Literal["whole", "mapped", "few"]


@dataclass(frozen=True)
class StageKind:
    """One kind of file target; `name` is also that of its rule.

    Attributes:
        body: module of this package with `run(task: Task) -> int | None`.
        place: `local`, where snakemake is typed; `cpu`, a job of `slurm.cpu`; `gpu`, a job with one GPU, or more where its model asks for them; `ranks`, one rank a
            device on every node.
        version: raised when a change of the code changes what the stage writes; part of every fingerprint.
        folder: directory of its kind below the output base; empty for stages in a run directory.
        is_result: False for a view of results, which can be made again without loss.
    """

    name: str
    body: str
    place: Place
    version: int
    folder: str
    is_result: bool = True
    resumes: bool = False
    """Whether a job beside the ranks' stops at Slurm's warning and continues in the next one."""
    reads: Reads = "few"
    """Files of its inputs: `whole`, every byte; `mapped`, of large ones what it touches; or `few`, which it shows or copies."""

    def run(self, task: Any) -> int | None:
        """Do what a `Task` says, in this process."""
        body: int | None = importlib.import_module(f"post_training.{self.body}").run(task)
        return body

    @property
    def stops_on_request(self) -> bool:
        """Whether it saves and ends at a signal."""
        return self.place == "ranks" or self.resumes

    @property
    def on_gpu(self) -> bool:
        """Whether `slurm.*` places its jobs, rather than `slurm.cpu.*`."""
        return self.place in ("gpu", "ranks")


STAGES: dict[str, StageKind] = {
    kind.name: kind
    for kind in (
        StageKind("download", "data.download", "local", 2, "data/raw"),
        StageKind("download_model", "models.download", "local", 1, "models"),
        StageKind("download_kernel", "models.hub_kernel", "local", 1, "kernels"),
        StageKind("build_model", "models.build", "cpu", 1, "models"),
        StageKind("merge_adapter", "release.merge_adapter", "cpu", 1, "models", reads="whole"),
        StageKind("transform", "data.transform", "cpu", 2, "data/transformed", reads="whole"),
        StageKind("filter", "data.filters.stage", "cpu", 1, "data/filtered", reads="whole"),
        StageKind("prompts", "on_policy.prompts", "cpu", 1, "data/prompts", reads="whole"),
        StageKind("generate", "on_policy.generate", "gpu", 1, "data/generated", resumes=True, reads="whole"),
        StageKind("score", "on_policy.score", "cpu", 1, "data/scored", resumes=True, reads="whole"),
        StageKind("score_model", "on_policy.score", "gpu", 1, "data/scored_by_model", resumes=True, reads="whole"),
        StageKind("select", "on_policy.select", "cpu", 1, "data/selected", reads="whole"),
        StageKind("tokenize", "data.tokenize", "cpu", 3, "data/tokenized", reads="mapped"),
        StageKind("mix", "data.mix", "cpu", 3, "data/mixed", reads="mapped"),
        StageKind("preflight", "preflight", "local", 1, "preflight", is_result=False),
        StageKind("preflight_probe", "preflight.probe", "gpu", 1, "preflight_probe", is_result=False, reads="mapped"),
        StageKind("reference", "launch.launcher", "ranks", 1, "data/reference", reads="mapped"),
        StageKind("train", "launch.launcher", "ranks", 1, "", reads="mapped"),
        StageKind("export", "release.export", "gpu", 2, "", reads="whole"),
        StageKind("evaluate", "evaluation.held_out", "gpu", 1, "evaluations", reads="whole"),
        StageKind("download_tasks", "evaluation.lm_tasks", "local", 1, "data/tasks"),
        StageKind("lm_eval", "evaluation.lm_eval", "gpu", 1, "lm_eval", reads="whole"),
        StageKind("report", "report.page", "cpu", 3, "reports", is_result=False),
        StageKind("compare", "report.compare", "local", 3, "comparisons", is_result=False),
        StageKind("card", "release.card", "local", 1, "cards", is_result=False),
        StageKind("push", "release.publish", "local", 1, "published", is_result=False, reads="whole"),
    )
}
