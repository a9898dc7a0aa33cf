"""What every method must do, for every file in `methods/`: a new one is tested by being there."""

import json
import math

import pytest
from tiny import LLAMA, conversation, losses_of, train_here

from post_training import methods
from post_training.commands import train
from post_training.config import batch, resolve
from post_training.config.batch import Topology
from post_training.core import manifest
from post_training.core.errors import ConfigError
from post_training.data import shapes
from post_training.data.rows import Rules
from post_training.plan import make, make_plan


def asked(number):
    question, answer = conversation(number)
    return [question], [answer], [{"role": "assistant", "content": answer["content"] + "!"}]


def row_of(shape, number):
    prompt, right, wrong = asked(number)
    good = number % 3 != 1
    return {
        "messages": {"messages": prompt + right},
        "preference": {"prompt": prompt, "chosen": right, "rejected": wrong},
        "unpaired": {"prompt": prompt, "completion": right if good else wrong, "label": good},
    }[shape]


TRANSFORMS = {"messages": "messages", "preference": "preference", "unpaired": "unpaired_preference"}


def configuration(folder, template, method, **sections):
    """A pipeline of one stage on a file of that method's rows and a model of random weights."""
    shape = methods.load(method).ROWS
    rows = folder / f"{shape}.jsonl"
    rows.write_text("".join(json.dumps(row_of(shape, number)) + "\n" for number in range(40)))
    file = {
        "method": method,
        "model": {
            "from_scratch": {"model_type": "llama", "config": LLAMA, "vocab_size": 300, "corpus": [str(rows)]},
            "dtype": "float32",
        },
        "training": {
            "max_steps": 2,
            "effective_batch_size": 4,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-3,
            "warmup_ratio": 0.0,
        },
        "data": {
            "datasets": [{"path": str(rows), "transform": TRANSFORMS[shape]}],
            "chat_template": str(template),
            "num_proc": 1,
        },
        "checkpointing": {"save_steps": 1},
        "logging": {"logging_steps": 1, "report_to": ["none"]},
        "accelerate": {"num_processes": 1},
        "paths": {"output_base": str(folder / "outputs")},
        method: {"max_seq_length": 64, "init_from": "base"},
    }
    for section, values in sections.items():
        file[section] = file.get(section, {}) | values
    return file


def ready(file):
    """The plan, and the task of its last training stage, with everything upstream made."""
    plan = make_plan(resolve(file))
    stage = plan.trained[plan.pipeline.stages[-1]]
    train.make_inputs(plan, stage, first=True)
    return plan, stage.task(plan.base)


@pytest.mark.parametrize("method", methods.names())
def test_a_method_says_what_the_others_need_to_know(method):
    module = methods.load(method)
    assert module.ROWS in shapes.names()
    assert module.Config().init_from
    assert module.Config().max_seq_length
    assert module.__doc__ and module.Config.__doc__


@pytest.mark.parametrize("shape", shapes.names())
def test_a_shape_is_whole(shape):
    module = shapes.load(shape)
    assert shapes.name_of(row_of(shape, 1)) == shape
    assert shapes.of_columns([*module.SCHEMA.names, "seq_lengths"]) is module
    assert module.validate(row_of(shape, 1), Rules()) == row_of(shape, 1)


@pytest.mark.parametrize("method", methods.names())
def test_the_batch_of_a_method_is_arithmetic(tmp_path, template, method):
    view = resolve(configuration(tmp_path, template, method)).views[method]
    plan = batch.batch_plan(view, method, Topology(1, 2, "CPU"))
    assert (plan.accumulation, plan.rows) == (1, 4)
    with pytest.raises(ConfigError, match=r"training\.effective_batch_size: 4 (sequences|pairs) do not divide"):
        batch.batch_plan(view, method, Topology(3, 1, "CPU"))


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "lora"])
@pytest.mark.parametrize("method", methods.names())
def test_from_a_file_to_an_exported_model(tmp_path, template, method, lora):
    import transformers

    plan, task = ready(configuration(tmp_path, template, method, model={"lora": lora}))
    train_here(task)
    told = manifest.read(task.output)
    assert (told["trainable_parameters"] < told["parameters"]) == (lora is not None)
    assert told["steps"] == 2
    assert told["tokens"] > told["trained_tokens"] > 0
    assert len(losses_of(task.directory)) == 2
    assert all(math.isfinite(loss) for loss in losses_of(task.directory))
    exported = plan.exported[method]
    make.run_stage(plan, exported)
    model_class = getattr(transformers, methods.model_class(method))
    model, found = model_class.from_pretrained(plan.base / exported.directory, output_loading_info=True)
    assert model.config.model_type == "llama" and not found["missing_keys"] and not found["unexpected_keys"]


@pytest.mark.slow
def test_a_chain_of_four_stages_trains_each_on_the_one_before(tmp_path, template):
    """SFT, SFT again under a name of its own, DPO, KTO."""
    from post_training.models import folder

    file = configuration(tmp_path, template, "kto", kto={"init_from": "dpo"})
    for name, method in (("sft", "sft"), ("again", "sft"), ("dpo", "dpo")):
        other = configuration(tmp_path, template, method)
        file[name] = {"max_seq_length": 64, "data": {"datasets": other["data"]["datasets"]}}
    file["again"] |= {"method": "sft", "init_from": "sft", "training": {"max_steps": 1}}
    file["dpo"] |= {"init_from": "again", "reference": "online", "model": {"lora": {"r": 4}}}
    plan = make_plan(resolve(file))
    assert list(plan.trained) == ["sft", "again", "dpo", "kto"]
    starts = []
    for name, stage in plan.trained.items():
        train.make_inputs(plan, stage, first=True)
        task = stage.task(plan.base)
        train_here(task)
        told = manifest.read(task.output)
        assert told["steps"] == (1 if name == "again" else 2)
        starts.append(str(folder(told["inputs"]["model"]["path"])))
    exports = [str(plan.base / plan.exported[name].directory) for name in ("sft", "again", "dpo")]
    assert starts[1:] == exports
    # The reference of each is the model that it was given, so the losses start at ln 2 and at 1/2.
    runs = {name: plan.base / stage.directory for name, stage in plan.trained.items()}
    assert losses_of(runs["dpo"])[0] == pytest.approx(0.693147, abs=1e-5)
    assert losses_of(runs["kto"])[0] == pytest.approx(0.5, abs=1e-5)
