"""Checks of TRL's arguments, number formats, kernels and DeepSpeed."""

import json

import pytest

from post_training.core.devices import Device
from post_training.preflight import libraries

ZERO = {"zero_optimization": {"stage": 2}}


@pytest.fixture(autouse=True)
def deepspeed_is_installed(monkeypatch):
    """Whatever is installed here, in the environment of these tests it is what each of them says."""
    monkeypatch.setattr(libraries, "installed", lambda package: package == "deepspeed")
    monkeypatch.setattr(libraries, "_validation", lambda config: [])


def test_sound_configurations_are_silent(subject_of, verdicts):
    for method in ("sft", "dpo", "kto"):
        changes = {"training__per_device_train_batch_size": 2} if method == "kto" else {}
        for device, ranks in (("GPU", 8), ("CPU", 1)):
            found = libraries.checks(subject_of(method, device=device, ranks=ranks, **changes))
            assert set(verdicts(found).values()) == {"ok"}, [check.line() for check in found]
    assert verdicts(libraries.checks(subject_of(deepspeed__config_path="zero3")))["libraries.deepspeed"] == "ok"


@pytest.mark.parametrize(
    "name,changes,verdict,said",
    [
        ("arguments", {"training__trainer_args": {"adam_beta3": 1}}, "failure", "training.trainer_args.adam_beta3: no argument"),
        ("arguments", {"training__trainer_args": {"optim": "adam_x"}}, "failure", "SFTConfig refuses these settings"),
        ("arguments", {"training__lr_scheduler_type": "cosin"}, "failure", "training.lr_scheduler_type: found 'cosin'"),
        ("attention", {"model__attn_implementation": "flash_attention_2"}, "failure", "flash_attn is not installed"),
        ("attention", {"model__attn_implementation": "kernels-community/flash-attn2"}, "failure", "pip install 'kernels>="),
        ("attention", {"training__per_device_train_batch_size": 2, "model__attn_implementation": "sdpa"}, "warning", "sdpa"),
        ("kernels", {"training__use_liger_kernel": True}, "failure", "liger_kernel and triton not installed"),
        ("deepspeed", {"deepspeed__config": {"zero_optimization": {"stage": 5}}}, "failure", "a stage from 0 to 3"),
        ("deepspeed", {"deepspeed__config": {"zero_optimization": {"stage": 0}}}, "warning", "ZeRO-0"),
        ("deepspeed", {"deepspeed__config": ZERO | {"scheduler": {"type": "WarmupLR"}}}, "failure", "ZeRO-2"),
        (
            "deepspeed",
            {"deepspeed__config": {"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}},
            "failure",
            "ZeRO-2",
        ),
    ],
)  # fmt: skip
def test_fires(subject_of, name, changes, verdict, said):
    found = {check.name: check for check in libraries.checks(subject_of(**changes))}[f"libraries.{name}"]
    assert (found.verdict, said in found.value) == (verdict, True), found


@pytest.mark.parametrize(
    "name,changes",
    [
        ("attention", {"model__attn_implementation": "flash_attention_2"}),
        ("attention", {"model__attn_implementation": "flex_attention"}),
        ("kernels", {"training__use_liger_kernel": True}),
        ("number_format", {"model__dtype": "float16"}),
    ],
)
def test_what_the_cpu_cannot_do(subject_of, verdicts, name, changes):
    assert verdicts(libraries.checks(subject_of(device="CPU", ranks=1, **changes)))[f"libraries.{name}"] == "failure"


def write_config(folder, model_type):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


def test_attention_follows_the_family(subject_of, tmp_path):
    def found(model_type, wanted="auto", method="sft"):
        folder = tmp_path / f"{model_type}-{wanted}-{method}"
        stage = subject_of(method, folder=write_config(folder, model_type), model__attn_implementation=wanted)
        checks = {check.name.partition(".")[2]: check for check in libraries.checks(stage)}
        return checks["attention"], checks["packing"]

    plain, packing = found("qwen3")
    assert (plain.verdict, plain.value, packing.verdict) == ("ok", "varlen", "ok")
    capped, packing = found("gemma2")
    assert (capped.verdict, packing.verdict) == ("ok", "ok")
    assert capped.value == "eager; varlen does not serve this model: Gemma2Attention has soft-capped scores"
    asked, _ = found("gemma2", "varlen")
    assert asked.verdict == "failure" and "soft-capped" in asked.value
    _, packing = found("mamba")
    assert packing.verdict == "failure" and "mix packed documents: logits differ by 0." in packing.value
    assert packing.remedy == "set sft.packing=false"
    _, packing = found("qwen3_next")
    assert packing.verdict == "failure" and "is not known" in packing.value
    assert found("mamba", method="dpo")[1].value == "off"


def test_number_formats(subject_of, verdicts):
    name = "libraries.number_format"
    wrong = subject_of()
    wrong.view["accelerate"]["mixed_precision"] = "fp16"  # the plan refuses it before; a view by hand may not
    assert verdicts(libraries.checks(wrong))[name] == "failure"
    old = subject_of(gpu=Device("v100-32", 1, 1.0))
    assert verdicts(libraries.checks(old))[name] == "failure"
    assert verdicts(libraries.checks(subject_of(gpu=Device("v100-32", 1, 1.0), model__dtype="float16")))[name] == "ok"


def test_what_is_in_a_container_is_not_looked_for_here(subject_of, verdicts):
    changes = {"model__attn_implementation": "flash_attention_2", "training__use_liger_kernel": True}
    inside = subject_of(slurm__container={"image": "x.sif"}, **changes)
    found = libraries.checks(inside)
    assert verdicts(found)["libraries.attention"] == "ok" and verdicts(found)["libraries.kernels"] == "ok"


def test_one_rank_has_nobody_to_divide_with(subject_of, verdicts):
    alone = subject_of(ranks=1, deepspeed__config=ZERO)
    assert verdicts(libraries.checks(alone))["libraries.deepspeed"] == "warning"


def test_deepspeeds_own_word(monkeypatch):
    pytest.importorskip("deepspeed")
    monkeypatch.undo()
    assert libraries._validation({"zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"}}) == []
    (told,) = libraries._validation({"zero_optimization": {"stage": 2, "overlap_com": True}})
    assert "overlap_com" in told
