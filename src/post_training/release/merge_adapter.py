"""Body of the rule `merge_adapter`: adapters that somebody trained, in the weights of their model, as a starting model.

Written as an export is: the logits of the merged model are compared with those of model and adapters, and the written tensors with the
merged ones, before the manifest exists.
"""

import shutil
from pathlib import Path
from typing import Any

from post_training.core import manifest
from post_training.core.errors import UserError, brief
from post_training.core.locate import TOKENIZER_FILES
from post_training.core.task import Task
from post_training.models import folder as model_folder
from post_training.models import lora
from post_training.models.download import check_loadable, planned_folder
from post_training.models.files import carry_over, make_portable
from post_training.models.loading import load_for_inference
from post_training.release.export import logits_of
from post_training.release.tensors import compare

_ROW_TOKENS = 64


def run(task: Task) -> None:
    """Write `model/` beside the manifest. Raises UserError for adapters that are not of this model, or change as they are merged."""
    adapters, base = planned_folder(task), model_folder(task.inputs["base"])
    trust = bool(task.runtime["trust_remote_code"])
    target = task.directory / "model"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    model = load_for_inference(base, trust_remote_code=trust, on_cpu=True)
    resize(model, adapters)
    rows, dtype = model.get_input_embeddings().weight.shape[0], str(model.dtype).removeprefix("torch.")
    row = [index * rows // _ROW_TOKENS for index in range(min(rows, _ROW_TOKENS))]
    merged, checks = lora.merge(model, adapters, row, logits_of, dtype)
    tied = set(merged.all_tied_weights_keys)
    merged.save_pretrained(target, max_shard_size=task.runtime["max_shard_size"])
    checks |= compare(target, merged.state_dict(), tied, renamed=True)
    own = (adapters / "tokenizer.json").is_file()
    for name in TOKENIZER_FILES:
        if ((adapters if own else base) / name).is_file():
            shutil.copyfile((adapters if own else base) / name, target / name)
    carry_over(base, target, trust)
    make_portable(target)
    check_loadable(target)
    whose = "its own" if own else "the model's"
    print(f"merged: {adapters} into {base}, with {whose} tokenizer, {dtype}; {checks}", flush=True)
    task.finish(
        folder=target.name,
        trust_remote_code=trust,
        license=manifest.read(task.inputs["base"]).get("license"),
        checks=checks,
        files=manifest.describe(task.directory, manifest.own_files(task.directory)),
    )


def resize(model: Any, adapters: Path) -> None:
    """Give the model as many rows in its embeddings as the adapters' own embedding has, whose values replace all of them."""
    stored = lora.adapter_tensors(adapters)
    own = model.get_input_embeddings().weight
    path = next(name for name, module in model.named_modules() if module is model.get_input_embeddings())
    ending = f".{path.rpartition('.')[2]}.weight"
    found = next((shape for name, shape in stored.items() if name.endswith(ending)), None)
    if found is None or found[0] == own.shape[0]:
        return
    if found[1] != own.shape[1]:
        raise UserError(
            f"{adapters}: its embedding has {found[1]} columns, the model's {own.shape[1]}: adapters of another model"
        )
    try:
        model.resize_token_embeddings(found[0], mean_resizing=False)
    except Exception as error:  # an architecture of its own
        problem = f"{adapters}: the model's embedding cannot be made {found[0]:,} rows long: {brief(error)}"
        raise UserError(problem) from None
