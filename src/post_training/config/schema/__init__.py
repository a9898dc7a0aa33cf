"""Every configuration key: its type, its only default, and what it means.

Light: dataclasses and nothing else, because the Snakefile imports it. The text under a field is
its documentation; `config/README.md` and `config/schema.json` are generated from it. A method's own
keys stand in `methods/<method>.py`.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class FromScratchConfig:
    """A small model with random weights and a tokenizer trained on your files."""

    model_type: str = "llama"
    """Architecture, a `model_type` of Transformers (`llama`, `qwen3`, `olmo2`, ...)."""
    config: dict[str, Any] = field(default_factory=dict)
    """Arguments of that architecture's configuration (`hidden_size`, `num_hidden_layers`, ...)."""
    vocab_size: int = 2000
    """Entries of the byte-level BPE tokenizer, control tokens included."""
    corpus: list[str] = field(default_factory=list)
    """JSON Lines files whose strings the tokenizer is trained on."""
    seed: int = 0
    """Seed of the weights."""


@dataclass
class LoraConfig:
    """Low-rank adapters beside frozen weights. Usual learning rates are ten times those of full fine-tuning."""

    r: int = 16
    """Rank of the adapters."""
    alpha: float = 32.0
    """The adapters' output is scaled by alpha / r."""
    dropout: float = 0.0
    """Dropout before the adapters, in [0, 1). TRL disables it for preferences, and the run's first lines say so."""
    target_modules: Any = "all-linear"
    """`all-linear` = every linear layer but the output embedding, or a list of names such as `[q_proj, v_proj]`."""


@dataclass
class ModelConfig:
    """The model that the first stage starts from."""

    name_or_path: str | None = None
    """Hugging Face model id or local folder. Null only together with `from_scratch`."""
    revision: str | None = None
    """Branch, tag or commit of a Hub model; recorded as a commit. Null = `main`."""
    from_scratch: FromScratchConfig | None = None
    """Build the model instead of loading one."""
    lora: LoraConfig | None = None
    """Train adapters instead of all weights; `{}` for the defaults. Full and inference checkpoints hold the adapters
    alone, the export has them merged into the weights. Null = off."""
    attn_implementation: str = "sdpa"
    """Attention backend: `eager`, `sdpa`, `flash_attention_2`, `flash_attention_3`, ... Never makes a stage stale."""
    dtype: str = "bfloat16"
    """Type of weights and activations in training: `float32`, `bfloat16`, `float16`."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off unless you have read it."""


@dataclass
class TrainingConfig:
    """Length, batch and optimiser. Exactly one of the four lengths is given."""

    max_steps: int | None = None
    """Length in optimizer steps."""
    num_training_samples: int | None = None
    """Length in rows (packed rows with packing): ceil(samples / effective_batch_size) steps."""
    num_training_tokens: int | None = None
    """Length in tokens: ceil(tokens / (effective_batch_size * max_seq_length)) steps. SFT with packing only."""
    num_train_epochs: float | None = None
    """Length in passes over the mixed data, each in another order and packing: ceil(rows * epochs / effective_batch_size) steps."""
    effective_batch_size: int = 32
    """Rows (pairs for DPO) an optimizer step over all devices; gradient accumulation follows from it."""
    per_device_train_batch_size: int = 1
    """Rows that one device holds at a time. Never makes a stage stale."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass: less memory, about a third more compute. Never makes stale."""
    use_liger_kernel: bool = False
    """Liger's fused layer kernels (GPU, extra `cuda`). Never makes a stage stale."""
    learning_rate: float = 2.0e-5
    """Peak learning rate."""
    warmup_ratio: float = 0.03
    """Share of the steps in which the learning rate rises from 0, in [0, 1)."""
    lr_scheduler_type: str = "cosine_with_min_lr"
    """A scheduler of Transformers: `linear`, `cosine`, `cosine_with_min_lr`, `constant_with_warmup`, ..."""
    lr_scheduler_kwargs: dict[str, Any] = field(default_factory=lambda: {"min_lr_rate": 0.1})
    """Arguments of the scheduler; `min_lr_rate` (share of the peak) belongs to `cosine_with_min_lr`."""
    weight_decay: float = 0.0
    """AdamW weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    seed: int = 42
    """Seed of dropout. The order of the rows is `data.seed`'s."""
    trainer_args: dict[str, Any] = field(default_factory=dict)
    """Any further argument of TRL's SFTConfig or DPOConfig, verbatim (`{adam_beta2: 0.95}`)."""


@dataclass
class DatasetConfig:
    """One source of rows."""

    name: str = ""
    """Your name for it, used in paths: letters, digits, `.`, `_`, `-`. Empty = from `path`."""
    path: Any = ""
    """Local file, glob, folder of files or of `save_to_disk`, a list of these, or Hugging Face dataset id."""
    subset: str | None = None
    """Configuration name of a Hub dataset."""
    split: str = "train"
    """Split of a Hub dataset or of a folder of `save_to_disk`; other local files are one, `train`. May be cut:
    `train[:1%]`, `train[100:200]`."""
    revision: str | None = None
    """Branch, tag or commit of a Hub dataset; recorded as a commit."""
    weight: float = 1.0
    """Copies of the dataset in the mix: 1 = each row once, 0.5 = half the rows, 2 = each row twice, 0 = left out."""
    rows: int | None = None
    """Instead of `weight`: how many rows, some of them more than once where there are fewer."""
    tokens: int | None = None
    """Instead of `weight`: the fewest rows that hold so many tokens."""
    eval_split: str | None = None
    """Held-out rows: another split, or beside a local file another path. None of them is trained on in any dataset."""
    transform: Any = "messages"
    """Name of a transform, or `{name: ..., argument: value}`."""


@dataclass
class HygieneConfig:
    """What is taken out of each dataset before it is tokenised, with reasons in `removed.jsonl`. Rows that are held out
    or evaluated on stay as they are."""

    deduplicate: str | None = None
    """`exact` = equal rows, `near` = similar ones too; the first stays, datasets in the order of `data.datasets`. Null = off."""
    near_threshold: float = 0.8
    """Jaccard similarity of two rows' runs of 5 words from which they are near-duplicates, in (0, 1]."""
    decontaminate: bool = False
    """Remove rows that hold texts of `evaluation.datasets`, of an `eval_split` or of `decontaminate_against`."""
    decontaminate_against: list[str] = field(default_factory=list)
    """Further evaluation sets: data files of any columns, or globs."""
    ngram_words: int = 8
    """Words of the n-grams that a row may have in common with an evaluation text; 8 as Tulu 3, 13 as GPT-3."""
    ngram_overlap: float = 0.5
    """Share of an evaluation text's words in common n-grams above which a row is removed; 0 = any common n-gram (GPT-3)."""
    languages: list[str] = field(default_factory=list)
    """ISO 639 codes of the languages that stay (`[en, de]`). Text that is no language (code, numbers) stays. Empty = all."""
    min_language_confidence: float = 0.8
    """A row whose language is told with less confidence stays, in [0, 1]."""
    min_characters: int | None = None
    """Fewest characters of a row without its system turns."""
    max_characters: int | None = None
    """Most characters of it."""
    min_turns: int | None = None
    """Fewest turns of a row without its system turns; of a pair, those of both answers."""
    max_turns: int | None = None
    """Most turns of it."""


@dataclass
class DataConfig:
    """Sources, how they become conversations, and how those become tokens."""

    datasets: list[DatasetConfig] = field(default_factory=list)
    """The sources of the mix."""
    chat_template: str = "chatml"
    """`chatml`, `llama3`, `tulu3`, `olmo`, `qwen3`, `zephyr`, `gemma`, `apertus`, the path of a `.jinja` file with
    generation markers, or `tokenizer` for the one that comes with the model, if it has markers."""
    special_tokens_in_content: str = "encode_as_text"
    """Text in a row that spells a control token (`<|im_end|>`): `encode_as_text`, so that it never becomes that token;
    `reject` the row; or `allow` it to forge the token."""
    eval_fraction: float = 0.0
    """Share of each dataset's rows that is held out, chosen by content, where it has no `eval_split`. Equal rows (pairs of
    one prompt) are held out together, in every dataset."""
    transform_modules: list[str] = field(default_factory=list)
    """Your own transforms: `.py` files or importable modules that call `register_transform`."""
    max_reject_fraction: float = 0.05
    """Share of a dataset's rows that may be rejected before its job fails."""
    strict: bool = False
    """Fail at the first rejected row instead."""
    last_turn: str = "trim"
    """A conversation or answer whose last turn is not the assistant's: `trim` cuts what follows the assistant's last
    turn, which nothing would be learned from, and counts it; `reject` rejects the row."""
    seed: int = 42
    """Seed of which rows are used, and in what order."""
    hygiene: HygieneConfig = field(default_factory=HygieneConfig)
    """Filters between transform and tokenise; all off by default, and then there is no such stage."""
    num_proc: int | None = None
    """Worker processes of a data job, capped by the cores. Null = all cores of the job. Never makes stale."""


@dataclass
class CheckpointingConfig:
    """What is saved while training. Never makes a stage stale."""

    save_steps: int = 500
    """Steps between full checkpoints (`checkpoints/checkpoint-*`), from which a run resumes."""
    save_total_limit: int | None = 2
    """Full checkpoints kept, 2 or more, so that one whole one always remains. Null = all."""
    inference_checkpoint_steps: int | None = None
    """Steps between model-only saves (`inference_checkpoints/step-*`). Null, zero or less = off."""
    inference_checkpoint_path: str | None = None
    """Another folder for them; each run gets its own below it. Null = in the run directory."""


@dataclass
class DeepSpeedConfig:
    """DeepSpeed ZeRO. Never makes a stage stale."""

    config_path: str | None = None
    """A DeepSpeed YAML, or a shipped one by name: `zero2`, `zero3`, `zero3_offload`. Null = off unless `config` is given."""
    config: dict[str, Any] = field(default_factory=dict)
    """DeepSpeed keys that go over the file's."""


@dataclass
class AccelerateConfig:
    """How ranks are started. Never makes a stage stale."""

    num_processes: int | None = None
    """Ranks on a machine; under Slurm on a node without GPUs. Null = one a GPU, or one on the CPU."""
    use_cpu: bool = False
    """Train on the CPU although there are GPUs, one rank in place of each."""
    mixed_precision: str | None = None
    """`no`, `bf16` or `fp16`; must match `model.dtype`. Null = what matches it."""
    dynamo_backend: str = "no"
    """torch.compile backend (`no`, `inductor`, ...)."""
    use_deepspeed: bool | None = None
    """Null = on when `deepspeed.config_path` or `deepspeed.config` is given; false = off in any case."""
    deepspeed_multinode_launcher: str = "standard"
    """Ranks are started by srun, so only `standard` exists."""
    same_network: bool = True
    """All nodes reach the first one by its name; only true is possible."""
    rdzv_backend: str = "static"
    """Ranks meet at a fixed address and port; only `static` is possible."""


@dataclass
class LoggingConfig:
    """What is reported while training. Never makes a stage stale."""

    report_to: list[str] = field(default_factory=lambda: ["tensorboard"])
    """`tensorboard`, `wandb`, or `none`."""
    wandb_project: str | None = None
    """W&B project; the API key comes from the environment only."""
    logging_steps: int = 10
    """Steps between two lines of `logs/metrics.jsonl`."""
    include_num_input_tokens_seen: bool = True
    """Log the tokens seen so far, padding not counted."""
    loss_spike_sigmas: float | None = 6.0
    """Warn of a loss this many standard deviations above the mean of the last 128 steps. Null = off."""


@dataclass
class SlurmCpuConfig:
    """Where CPU rules run."""

    partition: str | None = None
    """Partition. Null = the cluster's default."""
    account: str | None = None
    """Account. Null = `slurm.account`."""
    qos: str | None = None
    """Quality of service. Null = the cluster's default."""
    cpus_per_task: int = 8
    """Cores of a job."""
    mem: str | None = None
    """Memory of a job, such as `32G`. Null = the partition's default."""
    wall_time: str = "04:00:00"
    """Time limit, `HH:MM:SS` or `D-HH:MM:SS`, in quotes."""
    constraint: str | None = None
    """Node features."""
    reservation: str | None = None
    """Reservation."""
    exclude: str | None = None
    """Nodes that are not used, such as `node[3,7]`."""
    extra: str = ""
    """Further `sbatch` options."""


@dataclass
class ContainerConfig:
    """The image that GPU work runs in; the launcher itself runs outside of it."""

    image: str | None = None
    """A `.sif` file or a folder. Null = no container."""
    bind: list[str] = field(default_factory=list)
    """Folders that are seen inside, `source[:target[:options]]`; the working directory always is."""
    env_file: str | None = None
    """File of `NAME=value` lines that are set inside."""
    program: str = "apptainer"
    """`apptainer` or `singularity`."""
    options: list[str] = field(default_factory=lambda: ["--nv"])
    """Further words of `apptainer exec`: `--nv` for NVIDIA, `--rocm` for AMD."""
    python: str = "python"
    """The interpreter inside, which must find this package (install it in the image, or set PYTHONPATH in `env_file`)."""


@dataclass
class SlurmConfig:
    """Where rules run under `--executor slurm`. Never makes a stage stale."""

    cluster: str | None = None
    """A folder of `profiles/`, or a YAML file, whose `slurm` keys are defaults below these."""
    partition: str | None = None
    """Partition of the GPU rules. Null = the cluster's default."""
    account: str | None = None
    """Account that is charged."""
    qos: str | None = None
    """Quality of service."""
    num_nodes: int = 1
    """Nodes of a training allocation."""
    gpus_per_node: int = 1
    """GPUs a node, one rank each. 0 = no GPUs: `accelerate.num_processes` CPU ranks a node, or one."""
    gpu_model: str | None = None
    """Which GPU they are, for preflight: `a100-64`, `h100-80`, `gh200`, `mi250x`, ... Null = as the partition's gres says."""
    cpus_per_gpu: int = 8
    """Cores a rank."""
    cpus_per_task: int | None = None
    """Cores a rank, for clusters that count them by task. Null = `cpus_per_gpu`."""
    mem: str | None = None
    """Memory a node, such as `200G`; `0` = all of it. Null = the partition's default."""
    wall_time: str = "24:00:00"
    """Time limit of one allocation, `HH:MM:SS` or `D-HH:MM:SS`, in quotes."""
    signal_time_seconds: int = 300
    """Slurm warns the ranks this long before the limit (or up to 60 s earlier); they save and stop. 60 or more."""
    requeue: bool | None = None
    """Whether a job may start again under its id. Null = as the cluster does; where it may not, a new job goes on."""
    max_failures: int = 3
    """Failures of a run after which it is submitted again; the next one ends it. Wall time is no failure."""
    constraint: str | None = None
    """Node features, such as `h100`."""
    reservation: str | None = None
    """Reservation."""
    exclude: str | None = None
    """Nodes that are not used, such as `node[3,7]`."""
    job_name: str | None = None
    """Prefix of job names. Null = none: jobs are named as their stages' folders are."""
    extra: str = ""
    """Further `sbatch` options."""
    modules: list[str] = field(default_factory=list)
    """Environment modules that are loaded before a job's work begins."""
    container: ContainerConfig = field(default_factory=ContainerConfig)
    """Container of the GPU rules."""
    cpu: SlurmCpuConfig = field(default_factory=SlurmCpuConfig)
    """The CPU rules."""


@dataclass
class PreflightConfig:
    """What is looked at before a GPU is asked for. Never makes a stage stale."""

    only_warn: list[str] = field(default_factory=list)
    """Checks whose failure is a warning, by name (`data.trained_share`)."""
    min_trained_share: float = 0.01
    """Share of a dataset's tokens that is trained on, below which preflight warns."""
    max_trained_share: float = 0.98
    """Share above which it refuses a dataset, unless `sft.train_on` is `all`: the prompts are trained on."""
    assumed_mfu: float = 0.3
    """Share of a device's peak that training is taken to reach where no earlier run or probe has measured its speed."""
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
class LmEvalConfig:
    """Tasks of lm-evaluation-harness (extra `evaluation`) for the same models. The names are its own."""

    tasks: list[str] = field(default_factory=list)
    """Names of tasks, groups or tags: those that come with lm_eval, and those of `include_path`. Empty = off."""
    include_path: str | None = None
    """Folder of your own task files (YAML), with their data and Python. A change of any file in it makes a stage stale."""
    num_fewshot: int | None = None
    """Solved examples before each question. Null = as the task says."""
    limit: float | None = None
    """Rows of each task: a number, or below 1 a share. Null = all."""
    apply_chat_template: bool = False
    """Ask in the model's chat template; a starting model without one is asked in `data.chat_template`."""
    fewshot_as_multiturn: bool = True
    """With the template, solved examples are turns of their own."""
    seed: int = 1234
    """Seed of the choice of examples."""
    log_samples: bool = False
    """Keep every question and answer, `samples_<task>.jsonl`."""
    batch_size: Any = 8
    """Rows at a time, or `auto` for as many as fit. Never makes a stage stale."""


@dataclass
class EvaluationConfig:
    """What every exported model, and the starting model, is measured on."""

    datasets: list[DatasetConfig] = field(default_factory=list)
    """Conversations give exact match of the greedy last answer; preferences give accuracy. `weight` is not used."""
    max_samples: int | None = None
    """Rows of each dataset that are used. Null = all."""
    max_new_tokens: int = 128
    """Longest answer that is generated."""
    batch_size: int = 64
    """Rows at a time. Never makes a stage stale."""
    prompts: str | None = None
    """JSON Lines file of prompts without an expected answer, `{"prompt": text}` or `{"messages": [...]}`; the answers stand
    in `samples.jsonl`."""
    lm_eval: LmEvalConfig = field(default_factory=LmEvalConfig)
    """Benchmarks; off by default, and then there is no such stage."""


@dataclass
class ExportConfig:
    """The final inference checkpoint."""

    max_shard_size: str = "5GB"
    """Largest safetensors file of an export that is yet to be made."""


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
    """What the local files of a path held, as an export's `config.yaml` says of those that the model was made from: path as
    configured -> list of name and sha256. Planning ends where they hold something else; a path that is not named is not
    looked at. Never makes a stage stale."""
    paths: PathsConfig = field(default_factory=PathsConfig)
    debug: DebugConfig = field(default_factory=DebugConfig)
    publish: PublishConfig = field(default_factory=PublishConfig)


SHARED = tuple(SharedSections.__dataclass_fields__)
GLOBAL = tuple(GlobalSections.__dataclass_fields__)
