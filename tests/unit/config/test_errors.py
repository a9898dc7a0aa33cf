"""Every mistake in a configuration is one line that names the key, the value and what to do."""

import json
import re

import pytest

from post_training.config import load_file, resolve
from post_training.core.errors import ConfigError, UserError
from post_training.plan import make_plan

TEMPLATE = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": []}) + "\n")
    (tmp_path / "t.jinja").write_text(TEMPLATE)
    (tmp_path / "mine.py").write_text(
        "from post_training.data.transforms import register_transform\n"
        "@register_transform('one')\ndef one(row):\n    return row\n"
    )
    return {
        "model": {"from_scratch": {"corpus": ["a.jsonl"]}},
        "training": {"max_steps": 10},
        "data": {
            "chat_template": "t.jinja",
            "transform_modules": ["mine.py"],
            "datasets": [{"name": "a", "path": "a.jsonl", "transform": "one"}],
        },
        "sft": {"max_seq_length": 128},
    }


def error_of(config, *dotted) -> str:
    with pytest.raises(ConfigError) as caught:
        make_plan(resolve(config, {"set": list(dotted)}))
    text = str(caught.value)
    assert "\n" not in text and text.startswith("config error: ")
    return text


@pytest.mark.parametrize(
    "dotted,expected",
    [
        ("training.learning_rat=1", "training.learning_rat: unknown key. Did you mean 'learning_rate'?"),
        ("trainin.max_steps=1", "trainin: unknown key. Did you mean 'training'?"),
        ("sft.beta=1", "sft.beta: unknown key."),
        ("sft.training.max_step=1", "sft.training.max_step: unknown key. Did you mean 'max_steps'?"),
        ("data.datasets[0].transfrom=x", "data.datasets[0].transfrom: unknown key. Did you mean 'transform'?"),
        ("data.hygiene.deduplicate=exact", "config error: data.hygiene: is called data.filters now; rename it"),
        ("sft.data.hygiene={}", "config error: sft.data.hygiene: is called sft.data.filters now; rename it"),
        ("training.learning_rate=nan", "training.learning_rate: found nan, expected a finite number"),
        ("training.trainer_args={a: [1, .inf]}", "training.trainer_args.a[1]: found inf, expected a finite number"),
        ("training.trainer_args={a: [", "for values with spaces use a list: set='"),
        ("training.max_steps=many", "training.max_steps: found 'many', expected integer"),
        ("offline=perhaps", "offline: found 'perhaps', expected true or false"),
        ("logging.report_to=wandb", "logging.report_to: found 'wandb', expected a list"),
        ("logging.report_to=[wandbb]", "logging.report_to: found 'wandbb'. Did you mean 'wandb'?"),
        ("training.num_train_epochs=1", "found max_steps=10 and num_train_epochs=1.0; give exactly one of"),
        ("training.max_steps=null", "found none; give exactly one of max_steps"),
        ("training.max_steps=0", "training.max_steps: found 0, expected a number above 0"),
        (
            "data.datasets[0].transform=onne",
            "data.datasets[0].transform: no transform named 'onne'. Did you mean 'one'?",
        ),
        ("data.datasets[0].path=b.jsonl", "data.datasets[0].path: b.jsonl: no such file"),
        ("data.datasets[0].path=no;such", "neither a local file nor a Hugging Face dataset id"),
        ("data.datasets[0].weight=-1", "data.datasets[0].weight: found -1.0, expected 0 or more"),
        ("data.datasets[0].weight=0", "every weight is 0"),
        ("data.datasets[0].rows=0", "data.datasets[0].rows: found 0, expected 1 or more"),
        ("data.datasets[0].eval_split=none.jsonl", "datasets[0].eval_split: none.jsonl: no such file"),
        (
            "data.datasets[0].eval_split=test",
            "data.datasets[0].eval_split: found 'test', but local files are one split, train",
        ),
        ("data.datasets[0].eval_split=te st", "data.datasets[0].eval_split: 'te st': neither a local file"),
        ("data.datasets[0].split=test", "data.datasets[0].split: found 'test', but local files are one split, train"),
        ("data.eval_fraction=1", "data.eval_fraction: found 1.0, expected a share from 0 to below 1"),
        ("sft.overlong=cut", "sft.overlong: found 'cut'."),
        ("data.datasets[0].name=../x", "data.datasets[0].name: found '../x'; use letters"),
        ("data.datasets[4].path=x", "the list data.datasets has 1 entries, so index 4 does not exist"),
        ("data.chat_template=chatlm", "data.chat_template: no template named 'chatlm'."),
        ("data.chat_template=none.jinja", "data.chat_template: none.jinja: no such file"),
        (
            "data.transform_modules=[nowhere]",
            "data.transform_modules: 'nowhere': neither a .py file nor an importable module",
        ),
        ("method=ppo", "method: found 'ppo'. Did you mean 'dpo'?"),
        ("checkpointing.save_total_limit=1", "checkpointing.save_total_limit: found 1;"),
        ("model.dtype=bf16", "model.dtype: found 'bf16'."),
        (
            "accelerate.mixed_precision=fp16",
            "accelerate.mixed_precision: found 'fp16', but model.dtype bfloat16 needs 'bf16'",
        ),
        ("accelerate.rdzv_backend=c10d", "accelerate.rdzv_backend: found 'c10d'"),
        ("deepspeed.config_path=none.yaml", "deepspeed.config_path: none.yaml: no such file"),
        ("debug.override_existing=true", "debug.override_existing: true needs debug.enabled=true"),
        ("paths.output_base=a b", "paths.output_base: found 'a b'; use a path without spaces"),
        ("training.warmup_ratio=1.5", "training.warmup_ratio: found 1.5"),
        ("training.learning_rate=$HOME", "'$' in '$HOME' would be expanded"),
    ],
)
def test_one_line(config, dotted, expected):
    assert expected in error_of(config, dotted)


@pytest.mark.parametrize("name", ["a/b", "..", "a..b", "a;b", "$(x)", "a b", "-a", ".a", "", "data", "x" * 200])
def test_run_name(config, name):
    config["run_name"] = name
    assert ("run_name: has 200 characters" if len(name) == 200 else "run_name: found") in error_of(config)


def test_tokens_need_packing(config):
    text = error_of(config, "training.max_steps=null", "training.num_training_tokens=1000", "sft.packing=false")
    assert "training.num_training_tokens: found 1000; works for SFT with packing only; set sft.packing=true" in text


def test_model_is_given_once(config):
    assert "both are given" in error_of(config, "model.name_or_path=org/model")
    assert "neither is given" in error_of(config, "model.from_scratch=null")


def test_offline_names_all_that_is_not_there(config):
    dotted = [
        "model.from_scratch=null",
        "model.name_or_path=org/model",
        "data.datasets[0].path=org/data",
        "offline=true",
    ]
    text = error_of(config, *dotted)
    assert (
        "offline: true, but model org/model (model.name_or_path), dataset org/data (sft.data.datasets[0].path) are not on "
        "this machine; where there is internet, type the same command with --until download download_model --config "
        "offline=false, or give local paths"
    ) in text


def test_local_model_that_is_not_there(config):
    assert "model.name_or_path: ./no: no such folder" in error_of(
        config, "model.from_scratch=null", "model.name_or_path=./no"
    )


def test_same_template_and_model_along_the_chain(config):
    config["dpo"] = {"data": {"datasets": [{"name": "p", "path": "a.jsonl", "transform": "one"}]}}
    text = error_of(config, "method=dpo", "dpo.data.chat_template=other.jinja")
    assert "dpo.data.chat_template: differs from sft's" in text


def test_dpo_losses_by_name(config):
    config["dpo"] = {}
    assert "dpo.loss_type: no loss named 'sigmod'. Did you mean 'sigmoid'?" in error_of(
        config, "method=dpo", "dpo.loss_type=sigmod"
    )


@pytest.mark.parametrize("text", ["- a\n", "a: [", "\x00"])
def test_a_file_that_is_no_configuration(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "c.yaml"))):
        load_file(tmp_path / "c.yaml")


@pytest.mark.parametrize("amounts", [{"rows": 5, "tokens": 5}, {"rows": 5, "weight": 0.5}, {"tokens": 5, "weight": 2}])
def test_one_amount_a_dataset(config, amounts):
    config["data"]["datasets"][0] |= amounts
    assert "give one of weight, rows and tokens" in error_of(config, "training.max_steps=10")
