import json
import shutil
import stat

import pytest
from tiny import TEMPLATE, export_task, train_here, train_task

from post_training import models
from post_training.core.errors import UserError
from post_training.release import export


def read(path):
    return json.loads(path.read_text())


def test_an_export_is_what_inference_programs_expect(exported, tokenizer):
    folder = models.folder(exported)
    assert folder == exported.parent
    weights = sorted(path.name for path in folder.glob("*.safetensors"))
    assert weights == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert read(folder / "model.safetensors.index.json")["metadata"]["total_size"] > 0
    config, generation = read(folder / "config.json"), read(folder / "generation_config.json")
    assert (config["use_cache"], config["dtype"]) == (True, "float32")
    assert (generation["eos_token_id"], generation["pad_token_id"]) == (
        [tokenizer.eos_token_id],
        tokenizer.pad_token_id,
    )
    assert not [key for key in generation if key.startswith("_")]
    described = read(folder / "tokenizer_config.json")
    assert described["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not {"is_local", "local_files_only"} & set(described)
    assert (folder / "chat_template.jinja").read_text() == TEMPLATE
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o644}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert not list(folder.parent.glob(".*"))


def test_the_manifest_says_what_was_checked(exported):
    checks = read(exported)["checks"]
    assert checks["tensors"] == 2 * 9 + 3
    assert checks["prompt"].startswith("<|im_start|>user\n")
    assert checks["answer"].endswith("<|im_end|>")


def test_provenance_goes_back_to_the_base_model(exported, trained, model_manifest, sft_rows):
    provenance = read(exported.parent / "provenance.json")
    run, base, rows = (path.parent.name for path in (trained, model_manifest, sft_rows))
    assert set(provenance["stages"]) == {f"{run}/model", run, base, rows}
    assert provenance["root"] == f"{run}/model"
    assert provenance["stages"][run]["steps"] == 6
    assert provenance["stages"][f"{run}/model"]["versions"]["torch"] and provenance["packages"]["torch"]
    weights = [file for file in provenance["stages"][f"{run}/model"]["files"] if file["path"].endswith(".safetensors")]
    assert len(weights) == 3 and all(file["sha256"] for file in weights)


def test_it_loads_and_answers(exported):
    from transformers import pipeline

    chat = pipeline("text-generation", model=str(exported.parent))
    answer = chat([{"role": "user", "content": "1 and 2?"}], max_new_tokens=8, do_sample=False)
    assert answer[0]["generated_text"][-1]["role"] == "assistant"


@pytest.mark.parametrize("damage", ["weights", "never stops"])
def test_a_failed_check_leaves_no_manifest_and_no_model(tmp_path, trained, sft_rows, monkeypatch, damage):
    output = tmp_path / "run" / "model" / "manifest.json"
    output.parent.mkdir(parents=True)
    if damage == "weights":
        make_portable = export.make_portable

        def spoil(folder):
            from safetensors.torch import load_file, save_file

            make_portable(folder)
            path = sorted(folder.glob("*.safetensors"))[-1]
            tensors = {name: tensor + 1e-3 for name, tensor in load_file(path).items()}
            save_file(tensors, path, metadata={"format": "pt"})

        monkeypatch.setattr(export, "make_portable", spoil)
        message = r"model\.layers\.1\.\S+ differs from the tensor that was trained"
    else:
        monkeypatch.setattr(
            export, "generate", lambda model, prompts, stop, pad, budget, **_: [[5] * budget] * len(prompts)
        )
        message = "the exported model never stops: 17 answers of 64 tokens"
    with pytest.raises(UserError, match=message):
        export.run(export_task(trained, sft_rows, output))
    assert not output.exists()
    assert not list(output.parent.iterdir())


def test_an_export_that_ends_only_in_some_samples_says_so(monkeypatch, exported, sft_rows, capsys):
    from post_training.console.made import made

    def answers(model, prompts, stop, pad, budget, **sampling):
        return [[5] * budget] * (len(prompts) - 3 * bool(sampling)) + [[5, stop[0]]] * (3 * bool(sampling))

    monkeypatch.setattr(export, "generate", answers)
    for lora, hint in (
        (None, "inside the chat template's"),
        ({"r": 4}, "set model.lora.trainable_tokens"),
        ({"trainable_tokens": ["a"]}, "generation markers"),
    ):
        checks = export.verify(exported.parent, sft_rows, {"trust_remote_code": False, "lora": lora})
        assert checks["stopped"] == "sampled, 3 of 16"
        (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("export: warning"))
        assert "with greedy decoding an answer does not end by itself" in line and hint in line
    facts = json.loads(exported.read_text())
    told = exported.with_name("told.json")
    told.write_text(json.dumps(facts | {"checks": facts["checks"] | {"stopped": checks["stopped"]}}))
    assert made(told).endswith("with greedy decoding an answer does not end by itself (sampled, 3 of 16)")
    told.unlink()


def test_an_incomplete_checkpoint_is_not_exported(tmp_path, trained, sft_rows):
    shutil.copytree(trained.parent, tmp_path / "run", ignore=shutil.ignore_patterns("model"))
    copied = tmp_path / "run" / "manifest.json"
    (tmp_path / "run" / read(copied)["final_checkpoint"] / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"is incomplete \(tokenizer.json is missing\)"):
        export.run(export_task(copied, sft_rows, tmp_path / "run" / "model" / "manifest.json"))


def test_an_export_has_the_training_dtype(tmp_path, model_manifest, dpo_rows, template):
    trained = train_here(
        train_task(
            tmp_path / "run", model_manifest, dpo_rows, template, "dpo", model__dtype="bfloat16", training__max_steps=2
        )
    )
    output = tmp_path / "run" / "model" / "manifest.json"
    try:
        export.run(export_task(trained, dpo_rows, output))
    except UserError as error:  # two DPO steps from random weights need not teach it to stop
        assert "never stops" in str(error)
        folder = tmp_path / "run" / ".model.unfinished"
    else:
        folder = output.parent
    assert read(folder / "config.json")["dtype"] == "bfloat16"


def test_short_prompt_is_the_shortest_exchange(sft_rows, dpo_rows, tokenizer):
    prompt, answer = export.short_prompt(sft_rows)
    assert tokenizer.decode(prompt).endswith("<|im_start|>assistant\n")
    assert tokenizer.decode(answer).endswith("<|im_end|>")
    prompt, answer = export.short_prompt(dpo_rows)
    assert tokenizer.decode(prompt).endswith("<|im_start|>assistant\n")
