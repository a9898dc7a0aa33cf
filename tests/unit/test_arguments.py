import dataclasses
import re

import pytest
from tiny import view_of

from post_training.config.batch import Topology, batch_plan
from post_training.config.optimiser import SCHEDULERS
from post_training.core.errors import ConfigError
from post_training.training import arguments

CPU1 = Topology(1, 1, "CPU")
GPUS = Topology(1, 1, "GPU")


def made(template, tmp_path, method="sft", topology=CPU1, **changes):
    view = view_of(template, method, **changes)
    return arguments.trainer_arguments(view, method, tmp_path / "run", batch_plan(view, method, topology), 6)


def test_every_argument_exists_in_trl(template, tmp_path):
    from post_training import methods

    known = set()
    for method in methods.names():
        fields = {field.name for field in dataclasses.fields(methods.config_class(method))}
        assert set(made(template, tmp_path, method)) <= fields
        known |= fields
    assert set(arguments._OURS) - known <= {"warmup_ratio"}


def test_moved_names_and_derived_numbers(template, tmp_path):
    found = made(template, tmp_path, training__warmup_ratio=0.1, training__gradient_checkpointing=False)
    assert found["warmup_steps"] == 0.1
    assert (found["activation_checkpointing"], found["gradient_checkpointing"]) == (False, False)
    assert (found["per_device_train_batch_size"], found["gradient_accumulation_steps"], found["max_steps"]) == (2, 2, 6)
    assert (found["seed"], found["train_sampling_strategy"]) == (42, "sequential")
    assert found["logging_nan_inf_filter"] is False
    assert found["output_dir"] == str(tmp_path / "run" / "checkpoints")
    assert (found["max_length"], found["packing"], found["report_to"]) == (64, True, ["none"])


@pytest.mark.parametrize("value", [True, False])
def test_trl_takes_our_gradient_checkpointing_and_not_its_default(template, tmp_path, value):
    from trl.trainer.sft_config import SFTConfig

    args = SFTConfig(**made(template, tmp_path, training__gradient_checkpointing=value))
    assert args.gradient_checkpointing is value
    assert args.activation_checkpointing is value


def test_number_formats(template, tmp_path):
    assert {made(template, tmp_path, model__dtype=d)["bf16"] for d in ("float32",)} == {False}
    found = made(template, tmp_path, topology=GPUS, model__dtype="float16")
    assert (found["bf16"], found["fp16"], found["use_cpu"]) == (False, True, False)
    plain = view_of(template, model__dtype="bfloat16")
    assert arguments.load_dtype(plain) == "float32"  # the optimizer's copy
    sharded = view_of(template, model__dtype="bfloat16", deepspeed__config={"zero_optimization": {"stage": 2}})
    assert arguments.load_dtype(sharded) == "bfloat16"  # DeepSpeed keeps that copy itself
    with pytest.raises(ConfigError, match=r"model\.dtype: float16 needs a GPU"):
        made(template, tmp_path, model__dtype="float16")


def test_schedulers_are_those_of_transformers():
    from transformers import SchedulerType

    assert set(SCHEDULERS) == {kind.value for kind in SchedulerType}


def test_liger_and_schedulers_are_checked_before_training(template, tmp_path):
    with pytest.raises(ConfigError, match=r"training\.use_liger_kernel: is true, but"):
        made(template, tmp_path, training__use_liger_kernel=True)
    with pytest.raises(ConfigError, match=r"training\.lr_scheduler_type: found 'cosin'\. Did you mean 'cosine'"):
        made(template, tmp_path, training__lr_scheduler_type="cosin")
    assert made(template, tmp_path)["lr_scheduler_kwargs"] == {"min_lr_rate": 0.1}
    assert made(template, tmp_path, training__lr_scheduler_type="linear")["lr_scheduler_kwargs"] == {}
    found = made(template, tmp_path, training__lr_scheduler_kwargs={"min_lr": 1e-6})
    assert found["lr_scheduler_kwargs"] == {"min_lr": 1e-6}


def test_compilation(template, tmp_path):
    assert made(template, tmp_path)["torch_compile"] is False
    found = made(template, tmp_path, accelerate__dynamo_backend="inductor")
    assert (found["torch_compile"], found["torch_compile_backend"]) == (True, "inductor")


def test_trainer_args_go_through_typed_and_win(template, tmp_path):
    given = {"adam_epsilon": "1e-9", "adam_beta2": 0.95, "optim": "sgd", "dataloader_num_workers": "2"}
    found = made(template, tmp_path, training__trainer_args=given)
    assert found["adam_epsilon"] == 1e-9
    assert (found["adam_beta2"], found["optim"], found["dataloader_num_workers"]) == (0.95, "sgd", 2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adam_beta3", "training.trainer_args.adam_beta3: no argument of SFTConfig. Did you mean 'adam_beta"),
        ("zzz", "training.trainer_args.zzz: no argument of SFTConfig. See its documentation"),
        ("max_steps", "training.trainer_args.max_steps: is decided by training.max_steps; set that"),
        # Without that flag TRL would pack packed rows again.
        ("dataset_kwargs", "training.trainer_args.dataset_kwargs: is decided by the section sft; set that"),
        ("padding_free", "training.trainer_args.padding_free: is decided by sft.packing"),
        ("warmup_ratio", "training.trainer_args.warmup_ratio: is decided by training.warmup_ratio"),
    ],
)
def test_trainer_args_that_cannot_work(template, tmp_path, name, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        made(template, tmp_path, training__trainer_args={name: 1})


def test_deepspeed_file_inline_keys_and_off(template, tmp_path):
    path = tmp_path / "zero3.yaml"
    path.write_text("train_micro_batch_size_per_gpu: 7\nzero_optimization:\n  stage: 3\n  overlap_comm: true\n")
    file = {"deepspeed__config_path": str(path)}
    found = arguments.deepspeed_config(
        view_of(template, **file, deepspeed__config={"zero_optimization": {"overlap_comm": False}})
    )
    assert found == {
        "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
        "zero_optimization": {"stage": 3, "overlap_comm": False, "stage3_gather_16bit_weights_on_model_save": True},
    }
    assert arguments.deepspeed_config(view_of(template)) is None
    assert arguments.deepspeed_config(view_of(template, **file, accelerate__use_deepspeed=False)) is None
