"""Every configuration key: its type, its only default, and its meaning.

Dataclasses and nothing else, because the Snakefile imports it. The text under a field is its documentation;
`config/README.md` and `config/schema.json` are generated from it. A method's own keys are in `methods/<method>.py`.
"""

from dataclasses import dataclass, field
from typing import Any

from post_training.config.schema.data import DataConfig
from post_training.config.schema.evaluation import EvaluationConfig
from post_training.config.schema.model import ModelConfig
from post_training.config.schema.slurm import SlurmConfig
from post_training.config.schema.training import (
    AccelerateConfig,
    CheckpointingConfig,
    DeepSpeedConfig,
    LoggingConfig,
    TrainingConfig,
)


@dataclass
class PreflightConfig:
    """Checks before any GPU is requested. Never makes a stage stale."""

    only_warn: list[str] = field(default_factory=list)
    """Checks whose failure is a warning, by name (`data.trained_share`)."""
    min_trained_share: float = 0.01
    """Preflight warns when a smaller share of a dataset's tokens is trained on."""
    max_trained_share: float = 0.98
    """Preflight fails when a larger share is, unless `sft.train_on` is `all`: the prompts would be trained on."""
    assumed_mfu: float = 0.3
    """Assumed share of a device's peak FLOPs where no earlier run or probe has measured the speed."""
    probe_steps: int = 5
    """Optimizer steps of `snakemake preflight_probe`, at the longest batch."""


@dataclass
class PathsConfig:
    """Where results go. Never makes a stage stale."""

    output_base: str = "outputs"
    """Folder of all results."""
    debug_base: str = "outputs/debug"
    """Folder of all results when `debug.enabled`."""


@dataclass
class DebugConfig:
    """Throw-away runs."""

    enabled: bool = False
    """Write below `paths.debug_base`."""
    override_existing: bool = False
    """Wipe the run directory of a debug run and train again. Needs `enabled`."""


@dataclass
class ExportConfig:
    """The final inference checkpoint."""

    checkpoint: str = "last"
    """Which checkpoint becomes the model: `last`, or `best`, that of the lowest held-out loss, which training then keeps. Needs
    `evaluation.during_training_steps`."""
    max_shard_size: str = "5GB"
    """Largest safetensors file of an export; an export that exists stays as it is."""


@dataclass
class PublishConfig:
    """The last stage's exported model on the Hugging Face Hub. Never makes a stage stale."""

    push_to_hub: bool = False
    """Upload it from the machine where `snakemake` runs. The token comes from HF_TOKEN in the environment only."""
    hub_model_id: str | None = None
    """Repository, `org/name`; made if it does not exist."""
    private: bool = True
    """Whether a repository that is made is private."""


@dataclass
class SharedSections:
    """Sections that are defaults for every stage and may be overridden in a method's section."""

    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    checkpointing: CheckpointingConfig = field(default_factory=CheckpointingConfig)
    data: DataConfig = field(default_factory=DataConfig)
    deepspeed: DeepSpeedConfig = field(default_factory=DeepSpeedConfig)
    accelerate: AccelerateConfig = field(default_factory=AccelerateConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    preflight: PreflightConfig = field(default_factory=PreflightConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    export: ExportConfig = field(default_factory=ExportConfig)


@dataclass
class GlobalSections:
    """Keys of the pipeline as a whole."""

    method: str = "sft"
    """The last stage: `sft`, `dpo` on its output, `kto`, or a stage with a name of its own."""
    run_name: str | None = None
    """Name of the links to the results. Null = made from model and data."""
    runs: dict[str, Any] = field(default_factory=dict)
    """Several pipelines in one graph: name -> the keys in which that run differs, dotted or nested. Equal stages run once."""
    sweep: dict[str, Any] = field(default_factory=dict)
    """A grid of runs: dotted key -> list of values; each of `runs`, where there are any, at each point."""
    run: Any = None
    """Only this run of `runs` and `sweep`, or a list of them. Null = all."""
    offline: bool = False
    """No network call at all; set it where compute nodes have no internet."""
    recorded_files: dict[str, Any] = field(default_factory=dict)
    """Recorded contents of local files, written into an export's `config.yaml`: path as configured -> list of name and
    sha256. Planning fails where the files have other content; paths that are not named are not checked. Never makes a
    stage stale."""
    paths: PathsConfig = field(default_factory=PathsConfig)
    debug: DebugConfig = field(default_factory=DebugConfig)
    publish: PublishConfig = field(default_factory=PublishConfig)


SHARED = tuple(SharedSections.__dataclass_fields__)
GLOBAL = tuple(GlobalSections.__dataclass_fields__)
RENAMED = {"hygiene": "filters"}
"""Keys of earlier versions -> what they are called now."""
