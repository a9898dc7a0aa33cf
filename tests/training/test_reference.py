"""Stored reference log-probabilities against TRL's second model, in this process."""

import pytest
from tiny import losses_of, metrics_of, train_here, train_task


@pytest.fixture(scope="module")
def online(tmp_path_factory, model_manifest, dpo_rows, template):
    """A run that holds both models."""
    return train_here(train_task(tmp_path_factory.mktemp("online") / "run", model_manifest, dpo_rows, template, "dpo"))


def test_stored_losses_are_the_online_losses(tmp_path, online, model_manifest, dpo_rows, dpo_reference, template):
    train_here(train_task(tmp_path / "run", model_manifest, dpo_rows, template, "dpo", dpo_reference))
    assert losses_of(tmp_path / "run") == pytest.approx(losses_of(online.parent), abs=1e-6)
    assert losses_of(tmp_path / "run")[0] == pytest.approx(0.693147, abs=1e-5)
    margins = [[line["rewards/margins"] for line in metrics_of(run)] for run in (tmp_path / "run", online.parent)]
    assert margins[0] == pytest.approx(margins[1], abs=1e-6)
