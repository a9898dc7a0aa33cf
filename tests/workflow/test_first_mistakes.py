"""Mistakes of the first hour, as they were made: one or two lines, an exit code, the key or file, and what to do.

Each is asked of the function that meets it, in this process; a few go through the real command to show that nothing is lost
on the way. What needs a finished dataset or a device is in the tests of that stage.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from post_training.__main__ import main
from post_training.config import resolve_runs
from post_training.config.hints import COMING_FROM, unknown_key
from post_training.config.trees import plain
from post_training.config.yaml_file import load_file
from post_training.console import command_line
from post_training.console.messages import tidy
from post_training.core.errors import UserError
from post_training.plan import make_graph

SNAKEMAKE = str(Path(sys.executable).with_name("snakemake"))


def said(function, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments)
    text = str(caught.value)
    assert text.count("\n") <= 1 and len(text) < 700, text
    return text


@pytest.mark.parametrize(
    "text,where,remedy",
    [
        ("method: sft\ntraining:\n\tmax_steps: 3\n", "line 3, column 1: found a tab", "use spaces"),
        ("training:\n  max_steps: 3\n seed: 2\n", "line 3, column 2: the indentation fits no line above", "alike"),
        ("training:\n  max_steps: 3\n    seed: 2\n", "line 3, column 9: the indentation", "alike"),
        ("run_name: a\nmethod: sft\nrun_name: b\n", "line 3, column 1: run_name is there twice, in line 1", "keep one"),
        (
            "training:\n  seed: 1\nmodel: {}\ntraining:\n  seed: 2\n",
            "line 4, column 1: training is there twice, in line 1",
            "keep",
        ),
        ("training: {max_steps: 3\n", "line 2, column 1: ", "expected ',' or '}'"),
        ("- method: sft\n", "found a list, expected a mapping", "`key: value`"),
        ("method sft\n", "found the text 'method sft', expected a mapping", "`key: value`"),
        ('method = "sft"\n[training]\n', "found the text 'method = \"sft\"', expected a mapping", "`key: value`"),
        ("method: sft # f\u00fcr\n".encode("latin-1"), "line 1: byte 0xfc is not UTF-8", "save the file as UTF-8"),
        ("method: sft\n".encode("utf-16"), "is UTF-16", "save it as UTF-8"),
        (b"method: sft\nrun_name: a\x00\n", "line 2: holds a NUL byte", "give a YAML file"),
        (
            "training:\n\u00a0\u00a0max_steps: 3\n",
            "line 2: an invisible character (U+00A0) at 'max_steps'",
            "plain space",
        ),
        ("training\u200b:\n  seed: 3\n", "line 1: an invisible character (U+200B) at 'training'", "delete it"),
        ("method:\u00a0sft\nseed: 1\n", "line 1: an invisible character (U+00A0)", "plain space"),
        (
            "model:\n  dtype:float32\n  lora: null\n",
            "line 2: no `key: value` ('dtype:float32')",
            "a space follows",
        ),
        ("run_name: @home\n", "line 1, column 11: '@' cannot begin a value", "quote it"),
        ("method: 'sft\nrun_name: a\n", "line 1, column 9: the quote that begins here has no end", "close it"),
        ("method: sft\n---\nmethod: dpo\n", "line 2, column 1: a second document begins", "keep one"),
        (
            "training: {max_steps: !include a.yaml}\n",
            "line 1, column 23: tags such as ! and !! are not read",
            "write the value",
        ),
        ("training: {<<: *base, seed: 1}\n", "line 1, column 16: *name is used before any &name", "define it above"),
        (
            "training: {max_steps: ${sft.x}}\n",
            "line 1, column 24: a `${...}` within { } needs quotes",
            '"${section.key}"',
        ),
        ("run_name: ${method\n", "run_name: no `${...}` that can be read", "write ${section.key}"),
        ("~: 3\nmethod: sft\n", "a key is empty or no text", "quote it"),
        (
            'data:\n  path: "C:\\Users\\me"\n',
            "line 2, column 14: a backslash within double quotes",
            "write single quotes",
        ),
        ("run_name: a: b\n", "line 1, column 12: a second colon in one line", "quote the value"),
        ("run_name: {{ name }}\n", "line 1, column 12: a list or mapping stands where a name belongs", "quote text"),
        ("data:\n  datasets:\n    - name: a\n     path: b\n", "line 4, column 6: the indentation fits no", "alike"),
        ("method: sft\nrun_name: a\x0bb\n", "line 2: a control character (U+000B)", "delete it"),
        ("700\n", "not a YAML mapping: found '700'", "expected lines of `key: value`"),
        ("a: " + "[" * 2000 + "]" * 2000, "is nested too deeply for a configuration", ""),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path, text, where, remedy):
    path = tmp_path / "my.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    line = said(load_file, path)
    assert line.startswith(f"config error: {path}: {where}") and remedy in line, line


def test_sections_that_are_no_mapping(project):
    for section, value, expected in (
        (
            "training",
            [{"max_steps": 3}],
            "training: found [{'max_steps': 3}], expected a mapping of keys; a dash begins a list",
        ),
        ("training", "max_steps 3", "expected a mapping of keys; write max_steps: 3"),
        (
            "data",
            {"datasets": {"path": "a.jsonl"}},
            "expected a list of datasets; each begins with a dash: `- path: ...`",
        ),
        ("data", {"datasets": ["a.jsonl"]}, "expected a mapping with path and transform, such as `- path: a.jsonl`"),
        ("debug", True, "debug: found True, expected a mapping of keys, such as {enabled: True}"),
        (
            "training.max_steps",
            3,
            "unknown key; dots are for --config set=...; in a file write training: {max_steps: ...}",
        ),
        ("extends", "base.yaml", "Files are merged by --configfile base.yaml my.yaml; leave it out"),
    ):
        assert expected in said(resolve_runs, {**project.config, section: value})


def test_files_of_other_editors_are_read(tmp_path):
    """With a byte order mark, Windows' line ends, a merge key, and a date where a text is meant."""
    path = tmp_path / "my.yaml"
    path.write_bytes(
        b"\xef\xbb\xbfrun_name: 2026-11-29\r\ntraining: &all\r\n  seed: 1\r\nsft:\r\n  training: {<<: *all}\r\n"
    )
    tree = plain(load_file(path))
    assert tree == {"run_name": "2026-11-29", "training": {"seed": 1}, "sft": {"training": {"seed": 1}}}


@pytest.mark.parametrize(
    "words,expected",
    [
        ("--configfile my.yaml --configfile rows.jsonl", "to merge them, type --configfile my.yaml rows.jsonl"),
        ("-c 0", "-c 0: with none, no job would ever begin; give 1 or more, or all"),
        ("all -j0", "-j0: with none, no job would ever begin"),
        (
            "--config dpo.beta=0.3",
            "--config dpo.beta=0.3: dotted keys go through set; type: --config set='dpo.beta=0.3'",
        ),
        ("--config set=dpo.beta=1 training.max_steps=2", "type: --config set='training.max_steps=2'"),
        ("--config set=a=1 b=2", "the shell has split it at the space; quote it: --config set='a=1 b=2'"),
        ("--config set=a.b=1 set=c.d=2", "`set` is given 2 times, and the last one would win; type: set='a.b=1 c.d=2'"),
        ("--config method = dpo", "expected key=value without spaces, found 'method'"),
        (
            "--config method=dpo data",
            "data: a target after --config is taken for a setting; type it first: `snakemake data",
        ),
        ("--configfile my.yaml data", "data: is a target after --configfile, which takes it for a file; type it first"),
        ("--configfile my.yaml dta", "dta: no target of this workflow; did you mean `snakemake data`?"),
        ("--configfile my.yaml dpo", "dpo: is a method, not a target; type `snakemake --config method=dpo`"),
        ("--configfile mine.yaml", "--configfile mine.yaml: there is no such file. Did you mean 'my.yaml'?"),
        ("--configfile config", "--configfile config: is a folder, expected a YAML file"),
        ("--configfile", "--configfile: expected the path of a YAML file"),
        ("--configfile empty.yaml", "--configfile empty.yaml: is empty, expected lines of `key: value`"),
        ("--configfile rows.jsonl", "config error: rows.jsonl: line 2, column 1: "),
        ("--configfile tab.yaml", "config error: tab.yaml: line 2, column 1: found a tab"),
        ("--workflow-profile slurmm", "there is no such profile. Did you mean 'slurm'?"),
        (
            "--workflow-profile jupiter",
            "is a cluster; type --workflow-profile profiles/slurm, and set slurm.cluster=jupiter",
        ),
    ],
)
def test_a_command_line_that_cannot_work(project, words, expected):
    Path("my.yaml").write_text("method: sft\n")
    Path("tab.yaml").write_text("training:\n\tmax_steps: 3\n")
    Path("empty.yaml").write_text("# nothing yet\n")
    Path("rows.jsonl").write_text('{"a": 1}\n{"a": 2}\n')
    assert expected in said(command_line.check, words.split())


def test_command_lines_that_work_are_left_alone(project):
    Path("my.yaml").write_text("method: sft\n")
    Path("my.json").write_text('{\n\t"method": "sft"\n}')
    for words in (
        [], ["-n"], ["--configfile", "my.json"], ["data", "--configfile", "my.yaml"], ["--configfile", "my.yaml", "--", "data"], ["--workflow-profile", "none"],
        ["--config", "set=a.b=1 c.d=2", "method=dpo", "training={max_steps: 3}"], ["--workflow-profile", "profiles/slurm", "all"],
        ["-c2", "--config", "method=dpo", "--configfile", "my.yaml"], ["--mode", "remote", "--config", "a.b=1"],
    ):  # fmt: skip
        command_line.check(words)


@pytest.mark.parametrize(
    "key,expected",
    [
        ("training.micro_batch_size=2", "Here it is training.per_device_train_batch_size"),
        ("training.gradient_accumulation_steps=2", "Here it is training.effective_batch_size: devices x"),
        ("training.eval_steps=5", "Here it is evaluation.during_training_steps"),
        ("training.lr=1e-5", "Here it is training.learning_rate"),
        ("training.optim=adamw", "Here it is training.trainer_args: {optim: ...}"),
        ("training.epochs=3", "Here it is training.num_train_epochs"),
        ("training.save_steps=3", "Here it is checkpointing.save_steps"),
        ("training.report_to=none", "Here it is logging.report_to"),
        ("model.load_in_4bit=true", "Here it is model.quantization: {} with model.lora"),
        ("model.torch_dtype=bfloat16", "Here it is model.dtype"),
        ("model.lora.rank=8", "Here it is model.lora.r"),
        ("data.val_set_size=0.1", "Here it is data.eval_fraction"),
        ("data.datasets[0].type=alpaca", "Here it is data.datasets[].transform"),
        ("training.resume_from_checkpoint=x", "A run always resumes from its newest complete checkpoint; leave it out"),
        ("learning_rate=1e-5", "Here it is training.learning_rate"),
        ("datasets=[]", "Here it is data.datasets or evaluation.datasets"),
        ("training.learning_rat=1", "Did you mean 'learning_rate'?"),
        ("cutoff_len=2048", "Here it is sft.max_seq_length or dpo.max_seq_length"),
        ("max_seq_length=2048", "or sft.max_seq_length"),
        ("seed=3", "Here it is training.seed for dropout, data.seed for the order"),
        ("template=qwen", "Here it is data.chat_template"),
        ("finetuning_type=lora", "Here it is model.lora"),
        ("dataset=alpaca_en", "Here it is data.datasets, a list"),
        ("training.evals_per_epoch=4", "Here it is evaluation.during_training_steps"),
        ("model.lora.use_dora=true", "Adapters are plain LoRA; leave it out"),
        ("fsdp=full_shard", "Here it is deepspeed.config_path: zero3"),
        ("data.hf_token=x", "Secrets come from the environment only: export HF_TOKEN"),
        ("enable_activation_checkpointing=true", "Here it is training.gradient_checkpointing"),
        ("slurm.time=4h", "Here it is slurm.wall_time"),
    ],
)
def test_a_key_that_is_called_something_else_here(project, key, expected):
    line = said(resolve_runs, project.config, {"set": [key]})
    assert line.startswith(f"config error: {key.partition('=')[0]}: unknown key") and expected in line, line


@pytest.mark.parametrize(
    "dotted,expected",
    [
        ("method=DPO", "method: found 'DPO'. Did you mean"),
        ("method=grpo2", "method: found 'grpo2'"),
        ("model.name_or_path=org/model offline=true model.from_scratch=null", "not on this machine"),
        ("data.datasets[0].path=nowhere.jsonl", "data.datasets[0].path: nowhere.jsonl: no such file"),
        ("data.datasets[0].transform=alpacca", "no transform named 'alpacca'. Did you mean 'alpaca'?"),
        ("data.chat_template=llama4", "no template named 'llama4'. Did you mean"),
        ("training.num_train_epochs=1", "give exactly one of"),
        ("model.dtype=bf16", "model.dtype: found 'bf16'"),
        ("deepspeed.config_path=zero4", "deepspeed.config_path: "),
        ("model.lora=true", "model.lora: found True, expected a mapping"),
        ("logging.report_to=wandb", "logging.report_to: found 'wandb', expected a list"),
        ("dpo.beta=50", "dpo.beta"),
        ("training.max_steps=2k", "training.max_steps: found '2k', expected integer; write 2000"),
        ("data.eval_fraction=10%", "data.eval_fraction: found '10%', expected float; write 0.1"),
        ("training.seed=-1", "training.seed: found -1, expected a number from 0 to"),
        ("model=org/model", "model: found 'org/model', expected a mapping of keys, such as {name_or_path: org/model}"),
        ("model=dtype:float32", "model: found 'dtype:float32', expected a mapping of keys; a space follows the colon"),
        ("sft=null", "sft: is empty; give its keys below it, indented, or leave it out"),
        ("paths.output_base=null", "paths.output_base: found None, expected a value"),
        ("paths.output_base=~/out", f"paths.output_base: found '~/out'; write it out: {Path.home()}/out"),
        ("paths.output_base=a.jsonl/out", "paths.output_base: a.jsonl: is a file, expected a folder"),
        (f"run_name={'a' * 120}", "run_name: has 120 characters, at most 100 are possible"),
        ("run_name=a/b", "run_name: found 'a/b'; use letters, digits"),
        ("training.learning_rate=-1e-5", "training.learning_rate: found -1e-05, expected a number above 0"),
        ("training.weight_decay=-1", "training.weight_decay: found -1.0, expected 0 or more"),
        ("training.lr_scheduler_type=Cosine", "training.lr_scheduler_type: found 'Cosine'. Did you mean 'cosine'?"),
        ("training.lr_scheduler_type=[cosine]", "training.lr_scheduler_type: found ['cosine'], expected text"),
        ("training.per_device_train_batch_size=4.0", "found 4.0, expected a number or auto"),
        ("training.trainer_args=[optim]", "training.trainer_args: found ['optim'], expected a mapping"),
        ("training.early_stopping=true", "found True, expected a mapping, or null for off; `early_stopping: {}` has"),
        ("training.num_train_epochs=2epochs", "training.num_train_epochs: found '2epochs', expected float; write 2"),
        ("training.max_steps=1e3", "training.max_steps: found 1000.0, expected integer; write 1000"),
        ("training.max_steps=7,000", "training.max_steps: found '7,000', expected integer; write 7000"),
        ("sft.max_seq_length=4k", "sft.max_seq_length: found '4k', expected integer; write 4000 or 4096"),
        ("data.datasets[0].tokens=1B", "found '1B', expected integer; write 1000000000"),
        ("logging.report_to=tensorboard,wandb", "expected a list, such as [tensorboard, wandb]"),
        ("logging.report_to=[none,wandb]", "logging.report_to: found ['none', 'wandb']; none is alone"),
        ("deepspeed=zero3", "deepspeed: found 'zero3', expected a mapping of keys, such as {config_path: zero3}"),
        ("deepspeed.config_path=conf/z3.json", "conf/z3.json: no such file; there is no folder conf"),
        (
            "deepspeed.config.zero_optimization=3",
            "found zero_optimization: 3, expected a mapping with a stage from 0 to 3",
        ),
        ("accelerate.num_processes=0", "accelerate.num_processes: found 0, expected 1 or more"),
        ("export.max_shard_size=5", "export.max_shard_size: found '5', expected a size such as 5GB"),
        ("evaluation.max_samples=0", "evaluation.max_samples: found 0, expected 1 or more"),
        ("evaluation.prompts=p.json", "evaluation.prompts: p.json: no such file"),
        ("checkpointing.inference_checkpoint_path=~/c", f"found '~/c'; write it out: {Path.home()}/c"),
        (
            "slurm.gpu_model=H100",
            "slurm.gpu_model: found 'H100'. Of the h100 there are h100-pcie, h100-94, h100-64, h100-80",
        ),
        ("data.chat_template=my/template.jinja", "my/template.jinja: no such file; there is no folder my"),
        ("data.chat_template=templates/llama3", "data.chat_template: no template named 'templates/llama3'"),
        ("data.datasets[0].path=a.json", "data.datasets[0].path: a.json: no such file or folder"),
        ("data.datasets[0].path=a.json", ". Did you mean 'a.jsonl'?"),
        ("data.datasets[0].path=a.jsonl,b.jsonl", "several files are a list: [a.jsonl, b.jsonl]"),
        (
            "data.datasets[0].path=~/nowhere.jsonl",
            f"~/nowhere.jsonl: no such file or folder (= {Path.home()}/nowhere.jsonl)",
        ),
        (
            "data.datasets[0].path=C:\\Users\\me\\a.jsonl",
            "a path of Windows; in WSL the file is /mnt/c/Users/me/a.jsonl",
        ),
        ("data.datasets[0].path=data/*.csv", "data.datasets[0].path: data/*.csv: no file matches"),
        (
            "data.datasets[0].path=https://huggingface.co/datasets/org/name/tree/main",
            "expected a file or a dataset on the Hugging Face Hub; write org/name",
        ),
        ("model.name_or_path=org/name@v1", "the revision is a key of its own: model.revision=v1"),
        ("model.name_or_path=https://hf.co/org/name", "no such folder; the model on the Hugging Face Hub is org/name"),
        ("model.name_or_path=models/a.Q4_K_M.gguf", "a GGUF file is made for inference; name the model that"),
        (
            "dpo.init_from=outputs/sft/model",
            "a folder or a Hub model goes into model.name_or_path, with init_from: base",
        ),
        ("sweep.training.learning_rate=1e-4,2e-4", "expected a list of values, such as [1e-4, 2e-4]"),
        (
            "data.datasets[0].transform.column=a",
            "data.datasets[0].transform.column: transform is 'first', not a mapping",
        ),
        ("data.datasets[1].name=a", "datasets[1].name: 'a' is used twice"),
        (
            "training.max-steps=3",
            "set: expected key=value, found 'training.max-steps=3'; a key looks like training.max_steps",
        ),
        ("dop.beta=0.1", "dop: unknown key. Did you mean 'dpo'?"),
        ("sft.init_from=dpo dpo.init_from=sft", "cannot start from itself (dpo -> sft -> dpo)"),
        (
            "slurm.cluster=snellius",
            "slurm.cluster: found 'snellius', expected a YAML file or a folder of profiles. On offer: ",
        ),
    ],
)
def test_a_value_that_cannot_work(project, dotted, expected):
    if dotted.startswith("model.name_or_path"):
        project.config["model"].pop("from_scratch")
    line = said(lambda: make_graph(resolve_runs(project.config, {"set": dotted})))
    assert expected in line, line
    offered = line.rpartition("On offer: ")[2].split(", ")
    assert len(offered) == len({*offered}), "each is offered once"


@pytest.mark.parametrize(
    "section,key,value,expected",
    [
        (
            "",
            "run_name",
            "${oc.env:NOT_SET_HERE}",
            "run_name: the environment variable NOT_SET_HERE is not set; export it",
        ),
        ("training", "seed", "${training.seed}", "training.seed: refers to itself in a circle of ${...}"),
        (
            "training",
            "max_steps",
            "${trainin.seed}",
            "Interpolation key 'trainin.seed' not found; write ${section.key}",
        ),
        (
            "training",
            "seed",
            "${SLURM_JOB_ID}",
            "seed: the key SLURM_JOB_ID is not there; an environment variable is ${oc.env:",
        ),
        ("training", "max_steps", "${eval:2*3}", "Unsupported interpolation type eval; write ${section.key} or"),
    ],
)
def test_a_reference_that_leads_nowhere(project, section, key, value, expected):
    (project.config[section] if section else project.config)[key] = value
    assert expected in said(resolve_runs, project.config)


@pytest.mark.parametrize(
    "words,expected",
    [
        ("xyz", "xyz: no such command. On offer: completion, diff"),
        ("statsu", "statsu: no such command. Did you mean 'status'?"),
        ("report", "report: is a target of Snakemake's; type `snakemake report`"),
        ("dpo", "dpo: is a method; type `snakemake --config method=dpo`"),
        ("export", "export: is a stage; type `snakemake --until export`"),
        ("status my.yaml", "my.yaml: expected key=value, such as dpo.beta=0.3; a file goes after --config"),
        ("status --conf x", "post-training status: ambiguous option: --conf could match --config, --configfile"),
        ("inspect --dataset a", "unrecognized arguments: --dataset"),
        ("diff outputs", "post-training diff: the following arguments are required: b"),
        ("status", "config/config.yaml: cannot be read"),
        ("lineage nowhere", "nowhere: no such file or folder; give a run directory"),
        ("diff a.jsonl a.jsonl", "a.jsonl: belongs to no stage"),
        ("preflight --config nowhere.yaml", "nowhere.yaml: cannot be read (No such file or directory); give the path"),
    ],
)
def test_a_command_of_ours_that_cannot_work(project, capsys, words, expected):
    Path("config/config.yaml").unlink()
    assert main(words.split()) == 1
    told = capsys.readouterr()
    assert not told.out and expected in told.err and told.err.count("\n") == 1, told.err


def test_unknown_targets_are_explained():
    text = "MissingRuleException:\nNo rule to produce {} (if you use input functions make sure that they don't raise)"
    assert tidy("MissingRuleException", text.format("dpo")) == (
        "dpo: is a method, not a target; type `snakemake --config method=dpo`"
    )
    assert tidy("MissingRuleException", text.format("reprot")).startswith(
        "reprot: no target of this workflow; did you mean `snakemake report`?"
    )


def test_what_snakemake_says_of_other_words_is_said_with_a_remedy():
    assert "`--until RULE` ends with it" in tidy(
        "WorkflowError", "Target rules may not contain wildcards. Please specify"
    )
    missing = "File outputs/r/report.html marked for report but does not exist."
    assert tidy("WorkflowError", missing).startswith(
        "outputs/r/report.html: is not made yet; type `snakemake report` first"
    )


def test_hints_are_the_pairs_of_the_documentation():
    """Wherever a page names one key for a name that is none of ours, an error says the same."""
    checked = 0
    for page in sorted((Path(__file__).parents[2] / "docs" / "coming-from").glob("*.md")):
        for row in (line.split("|") for line in page.read_text().splitlines() if line.startswith("| `")):
            theirs, ours = (re.findall(r"`([^`]+)`", cell) for cell in row[1:3])
            names = [re.sub(r"^--|[: ].*$", "", name).rpartition(".")[2] for name in theirs]
            keys = [re.split(r"[=: ]", key)[0] for key in ours]
            for name in names if len(keys) == 1 else []:
                if name != keys[0].rpartition(".")[2] and re.fullmatch(r"[a-z_]\w+", name) and name in COMING_FROM:
                    checked += keys[0] in COMING_FROM[name] or name in _BY_CASE
                    assert keys[0] in COMING_FROM[name] or name in _BY_CASE, f"{page.name}: {name}: {keys[0]}"
    assert checked > 60


# What they mean depends on the method or on their value.
_BY_CASE = {"rl", "rl_beta", "dpo_beta", "max_length", "output_dir", "load_in_4bit"}


def test_no_hint_names_a_key_that_does_not_exist():
    from post_training.config import document

    known = {key.path for _, _, found in document._sections() for key in found}
    known |= {key.rpartition(".")[0].removesuffix("[]") for key in known if "." in key}
    for name, text in COMING_FROM.items():
        if not text.startswith("- "):
            first = text.partition(":")[0].partition(",")[0].split()[0]
            assert first in known, f"{name}: {text}"
            assert unknown_key(name, [], name) == f"unknown key. Here it is {text}"


@pytest.mark.parametrize(
    "words,expected",
    [
        (
            ["--config", "dpo.beta=0.3"],
            "--config dpo.beta=0.3: dotted keys go through set; type: --config set='dpo.beta=0.3'",
        ),
        (["-n", "dpo"], "dpo: is a method, not a target; type `snakemake --config method=dpo`"),
        (
            ["--configfil", "my.yaml"],
            "snakemake: error: ambiguous option: --configfil could match --configfile, --configfiles",
        ),
        (
            ["--config", "set=paths.output_base=/proc/here"],
            "config error: paths.output_base: /proc/here: cannot be written (No such file or directory); make room or take "
            "another folder",
        ),
    ],
)
def test_the_command_itself_says_so_last_and_alone(project, words, expected):
    done = subprocess.run([SNAKEMAKE, *words], capture_output=True, text=True)
    lines = [
        line
        for line in (done.stdout + done.stderr).splitlines()
        if not line.startswith("Using workflow specific profile")
    ]
    assert done.returncode in (1, 2) and lines[-1] == expected and len(lines) <= 1 + len(words), lines
    assert "Traceback" not in done.stderr and not Path("outputs").exists()


def test_ctrl_c_while_modules_are_imported_is_one_line():
    code = "import snakemake_logger_plugin_post_training; raise KeyboardInterrupt"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode and done.stderr == "stopped before the first job\n"
