"""Stored reference log-probabilities against TRL's second model, and what a damaged or wrong reference does."""

import itertools
import json
import shutil

import numpy as np
import pytest
from tiny import compute_reference, losses_of, metrics_of, reference_task, train_here, train_task, view_of

from post_training.core.errors import UserError
from post_training.methods.dpo import reference
from post_training.methods.dpo.reference import FILE, missing_shards, read_shard, shard_path, shards, write_array
from post_training.training import reference_rank


@pytest.fixture(scope="module")
def online(tmp_path_factory, model_manifest, dpo_rows, template):
    """A run that holds both models."""
    return train_here(train_task(tmp_path_factory.mktemp("online") / "run", model_manifest, dpo_rows, template, "dpo"))


def logps(manifest):
    return np.load(manifest.parent / FILE)


def test_stored_losses_are_the_online_losses(tmp_path, online, model_manifest, dpo_rows, dpo_reference, template):
    train_here(train_task(tmp_path / "run", model_manifest, dpo_rows, template, "dpo", dpo_reference))
    assert losses_of(tmp_path / "run") == pytest.approx(losses_of(online.parent), abs=1e-6)
    assert losses_of(tmp_path / "run")[0] == pytest.approx(0.693147, abs=1e-5)
    margins = [[line["rewards/margins"] for line in metrics_of(run)] for run in (tmp_path / "run", online.parent)]
    assert margins[0] == pytest.approx(margins[1], abs=1e-6)


def test_stored_values_are_trls_own(dpo_reference, model_manifest, dpo_rows, template, tmp_path):
    """TRL's `precompute_ref_log_probs`, on the same pairs as a dataset of its own, in batches of another size."""
    from datasets import Dataset
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    from post_training.data.view import open_rows
    from post_training.models import folder
    from post_training.training.run import load_model, load_tokenizer

    class Stock(DPOTrainer):
        def _prepare_dataset(self, dataset, *_, **__):
            return dataset

    pairs = open_rows(dpo_rows).distinct()
    dataset = Dataset.from_list(
        [{name: np.asarray(ids).tolist() for name, ids in pairs[i].items()} for i in range(len(pairs))]
    )
    args = DPOConfig(
        output_dir=str(tmp_path), precompute_ref_log_probs=True, precompute_ref_batch_size=5, bf16=False, use_cpu=True,
        report_to="none", activation_checkpointing=False, gradient_checkpointing=False,
    )  # fmt: skip
    view = view_of(template, "dpo")
    model = load_model(folder(model_manifest), view)
    tokenizer = load_tokenizer(folder(model_manifest), view)
    trainer = Stock(model=model, args=args, train_dataset=dataset, processing_class=tokenizer)
    names = ("ref_chosen_logps", "ref_rejected_logps")
    expected = np.stack([np.array(trainer.train_dataset[name]) for name in names], axis=1)
    assert logps(dpo_reference) == pytest.approx(expected, abs=1e-5)


def test_a_killed_stage_goes_on_with_the_shards_that_are_missing(
    tmp_path, model_manifest, dpo_rows, dpo_reference, template, monkeypatch, capsys
):
    task = reference_task(tmp_path / "stage", model_manifest, dpo_rows, template)
    written = []

    def write_three(path, array):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path)
        write_array(path, array)

    monkeypatch.setattr(reference_rank, "write_array", write_three)
    with pytest.raises(KeyboardInterrupt):
        reference_rank.reference_rank(task)
    assert [shard_path(task.directory, shard) for shard in shards(64)[:3]] == written
    before = [path.stat().st_mtime_ns for path in written]
    # The second was cut off by a full disk, say.
    written[1].write_bytes(written[1].read_bytes()[:-4])
    assert missing_shards(task.directory, 64) == [shards(64)[1], *shards(64)[3:]]
    monkeypatch.undo()
    capsys.readouterr()
    monkeypatch.setattr(reference, "remove_folder", lambda folder: None)
    manifest = compute_reference(task)
    after = [path.stat().st_mtime_ns for path in written]
    assert "reference: 64 pairs, 16 of them done before" in capsys.readouterr().out
    assert (after[0], after[2]) == (before[0], before[2]) and after[1] != before[1]
    assert np.array_equal(logps(manifest), logps(dpo_reference))
    told = json.loads(manifest.read_text())
    assert (told["rows_in"], told["rows_out"], len(told["probes"])) == (64, 64, 8)


def test_shards_cover_every_pair_once():
    for documents in (1, 7, 8, 9, 511, 512, 513, 100_000, 1_000_003):
        found = shards(documents)
        assert found[0][0] == 0 and found[-1][1] == documents
        assert all(one[1] == other[0] for one, other in itertools.pairwise(found))
        assert max(stop - start for start, stop in found) <= 512


def test_a_shard_with_a_nan_is_missing(tmp_path):
    write_array(shard_path(tmp_path, (0, 8)), np.full((8, 2), np.nan, dtype=np.float32))
    assert read_shard(tmp_path, (0, 8)) is None


def copy_of(manifest, folder):
    shutil.copytree(manifest.parent, folder)
    return folder / "manifest.json"


def refused(tmp_path, reference, model_manifest, dpo_rows, template, **changes) -> str:
    with pytest.raises(UserError) as caught:
        train_here(train_task(tmp_path / "run", model_manifest, dpo_rows, template, "dpo", reference, **changes))
    assert not (tmp_path / "run" / "manifest.json").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_values_of_another_model_stop_the_run_at_step_0(tmp_path, dpo_reference, model_manifest, dpo_rows, template):
    other = copy_of(dpo_reference, tmp_path / "other")
    write_array(other.parent / FILE, logps(dpo_reference) + np.float32(0.05))
    error = refused(tmp_path, other, model_manifest, dpo_rows, template)
    assert str(other) in error and "the policy has taken no step, but its log-probabilities differ" in error
    assert "expected 0.693147" in error and not list((tmp_path / "run" / "checkpoints").glob("*"))


@pytest.mark.parametrize("damage", ["number", "order", "tokens", "file"])
def test_values_of_other_pairs_are_refused_before_the_first_step(
    tmp_path, dpo_reference, model_manifest, dpo_rows, template, damage
):
    other = copy_of(dpo_reference, tmp_path / "other")
    path = other.parent / FILE
    if damage == "number":
        write_array(path, logps(dpo_reference)[:-1])
    elif damage == "order":
        write_array(path, logps(dpo_reference)[::-1])
    elif damage == "tokens":
        told = json.loads(other.read_text())
        told["probes"]["0"] = "0" * 64
        other.write_text(json.dumps(told))
    else:
        path.write_bytes(path.read_bytes()[:100])
    error = refused(tmp_path, other, model_manifest, dpo_rows, template)
    expected = {
        "number": "has values of 63 pairs, the mix has 64",
        "order": "the policy has taken no step",
        "tokens": "was computed on other pairs than the mix has (pair 0 differs)",
        "file": "cannot be read",
    }
    assert expected[damage] in error and str(other.parent) in error


def test_another_reference_model_is_not_held_to_the_start(
    tmp_path, dpo_reference, model_manifest, exported, dpo_rows, template
):
    """Its loss at step 0 is not ln 2, and it is the loss that TRL has with that model beside the policy."""
    stored = compute_reference(reference_task(tmp_path / "stage", exported, dpo_rows, template))
    told = json.loads(stored.read_text())
    told["inputs"]["model"]["fingerprint"] = "1" * 64
    stored.write_text(json.dumps(told))
    train_here(train_task(tmp_path / "run", model_manifest, dpo_rows, template, "dpo", stored, training__max_steps=2))
    online = train_task(tmp_path / "online", model_manifest, dpo_rows, template, "dpo", training__max_steps=2)
    online.inputs["reference_model"] = exported
    online.spec["inputs"]["reference_model"] = "1" * 64
    train_here(online)
    assert losses_of(tmp_path / "run") == pytest.approx(losses_of(tmp_path / "online"), abs=1e-6)
    assert losses_of(tmp_path / "run")[0] != pytest.approx(0.693147, abs=1e-4)


def test_a_loss_without_a_reference_holds_one_model(tmp_path, model_manifest, dpo_rows, template, monkeypatch):
    from trl.trainer import dpo_trainer

    monkeypatch.setattr(dpo_trainer, "create_model_from_path", None)  # TRL would load the second model with it
    task = train_task(tmp_path / "run", model_manifest, dpo_rows, template, "dpo", dpo__loss_type="sft")
    task.runtime["pipeline"]["dpo"]["reference"] = "stored"
    train_here(task)
    assert losses_of(tmp_path / "run")[0] > losses_of(tmp_path / "run")[-1]


@pytest.mark.parametrize(
    "changes",
    [
        {"dpo__loss_type": ["sigmoid", "sft", "ipo"], "dpo__loss_weights": [1.0, 0.2, 0.5]},
        {"training__trainer_args": {"ld_alpha": 0.5, "f_divergence_type": "js_divergence"}},
        {"training__trainer_args": {"use_weighting": True}},
        {"model__dtype": "bfloat16"},
    ],
    ids=["several", "ld_alpha", "weighting", "bfloat16"],
)
def test_options_train_the_same_with_a_stored_reference(tmp_path, model_manifest, dpo_rows, template, changes):
    changes = {"training__max_steps": 3, **changes}
    stored = compute_reference(reference_task(tmp_path / "stage", model_manifest, dpo_rows, template, **changes))
    train_here(train_task(tmp_path / "stored", model_manifest, dpo_rows, template, "dpo", stored, **changes))
    train_here(train_task(tmp_path / "online", model_manifest, dpo_rows, template, "dpo", **changes))
    # In bfloat16 the sums depend on how a batch is padded, and pairs stand in other batches here than there.
    tolerance = 5e-3 if "model__dtype" in changes else 1e-6
    assert losses_of(tmp_path / "stored") == pytest.approx(losses_of(tmp_path / "online"), abs=tolerance)
