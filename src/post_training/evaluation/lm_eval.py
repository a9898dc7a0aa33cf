"""lm-evaluation-harness on one model, as its own command line runs it: the model's folder and the tasks."""

import json
import math
from typing import Any

from post_training.core import manifest
from post_training.core.errors import UserError, brief
from post_training.core.fingerprint import slug, write_atomically
from post_training.core.task import Task
from post_training.data.tokens.chat_template import resolve_template
from post_training.evaluation.lm_tasks import prepare, task_manager
from post_training.models import folder as model_folder
from post_training.models.conversation import own_template
from post_training.models.loading import load_tokenizer, silence_progress_bars
from post_training.models.weights import load_arguments

# Keys of lm_eval's results about the time and the machine.
_NOT_KEPT = ("date", "pretty_env_info", "git_hash", "upper_git_hash")


def run(task: Task) -> None:
    """Write `results.json`, as lm_eval gives it, `samples_<task>.jsonl` if configured, and the manifest with `results`.

    Raises UserError when a task's data cannot be read.
    """
    chosen = task.input_manifest("tasks")["config"]
    prepare(task.runtime)
    tasks = task_manager(chosen, task.runtime, task.directory)
    silence_progress_bars()
    from lm_eval import simple_evaluate
    from lm_eval.utils import handle_non_serializable, hash_string

    asked = task.config
    seeds = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
    try:
        found = simple_evaluate(
            model=_model(task),
            tasks=chosen["tasks"],
            task_manager=tasks,
            num_fewshot=asked["num_fewshot"],
            batch_size=task.runtime["batch_size"],
            limit=asked["limit"],
            apply_chat_template=asked["apply_chat_template"],
            fewshot_as_multiturn=asked.get("fewshot_as_multiturn", False),
            **dict.fromkeys(seeds, asked["seed"]),
        )
    except (ConnectionError, FileNotFoundError) as error:
        remedy = f"delete {task.inputs['tasks']} and start again where there is internet, with the jobs' HF_HOME"
        raise UserError(f"lm_eval: rows of a task cannot be read ({brief(error)}); {remedy}") from None
    samples = found.pop("samples")
    hashes = {name: hash_string("".join(map(_hashes, rows))) for name, rows in samples.items()}
    kept = {key: value for key, value in found.items() if key not in _NOT_KEPT} | {"task_hashes": hashes}

    def text(value: Any, **form: Any) -> str:
        return json.dumps(value, default=handle_non_serializable, ensure_ascii=False, **form) + "\n"

    write_atomically(task.directory / "results.json", text(kept, indent=1))
    for name, rows in samples.items() if asked["log_samples"] else ():
        with open(task.directory / f"samples_{slug(name)}.jsonl", "w", encoding="utf-8") as file:
            file.writelines(map(text, rows))
    results = summary(kept)
    for name, measures in results.items():
        print(f"lm_eval: {name}: {json.dumps(measures)}", flush=True)
    counts = kept["n-samples"].values()
    task.finish(
        results=results,
        rows={name: kept["results"][name]["sample_len"] for name in results},
        rows_in=sum(count["original"] for count in counts),
        rows_out=sum(count["effective"] for count in counts),
        task_versions={name: kept["versions"].get(name) for name in hashes},
        task_hashes=hashes,
        lm_eval_version=kept["lm_eval_version"],
    )


def summary(found: dict[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Task or group -> measure -> `value`, `stderr` (None where it has none) and `higher_is_better`.

    The parts of a group with a value of its own are only in `results.json`. Measures have the names that lm_eval gives
    them, with the filter, `exact_match,strict-match`, where it is not `none`.
    """
    parts = {part for group in found.get("groups", {}) for part in found["group_subtasks"][group]}
    results = {}
    for name, scores in found["results"].items():
        measures = {}
        for key, value in scores.items():
            metric, comma, kind = key.partition(",")
            if name in parts or not comma or metric.endswith("_stderr") or not _is_number(value):
                continue
            stderr = scores.get(f"{metric}_stderr,{kind}")
            measures[metric if kind == "none" else key] = {
                "value": float(value),
                "stderr": float(stderr) if _is_number(stderr) else None,
                "higher_is_better": found["higher_is_better"].get(name, {}).get(metric),
            }
        if measures:
            results[name] = measures
    return results


def _model(task: Task) -> Any:
    from lm_eval.models.huggingface import HFLM

    folder = model_folder(task.inputs["model"])
    trust = bool(manifest.read(task.inputs["model"]).get("trust_remote_code"))
    tokenizer, chat = None, {}
    if task.config["apply_chat_template"]:
        chat = {"add_bos_token": False}  # it is there where the template writes it: models/conversation.py
        tokenizer = load_tokenizer(folder, trust)
        if own_template(tokenizer) is None:  # of a starting model
            tokenizer.chat_template = resolve_template(task.config["chat_template"], folder)
    placed = load_arguments(folder)
    return HFLM(
        pretrained=str(folder),
        tokenizer=tokenizer,
        device="cuda" if placed else "cpu",
        parallelize="max_memory" in placed,  # over several GPUs
        batch_size=task.runtime["batch_size"],
        trust_remote_code=trust,
        **chat,
    )


def _hashes(sample: dict[str, Any]) -> str:
    return f"{sample['doc_hash']}{sample['prompt_hash']}{sample['target_hash']}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
