"""Every method's loss with the output layer that a GPU runs, against the torch branch that a CPU runs."""

import numpy as np
import pytest
from tiny import compute_reference, losses_of, reference_task, train_here, train_task

SETTINGS = {"sft": {}, "dpo": {}, "kto": {"training__per_device_train_batch_size": 4}}
STEPS = {"training__max_steps": 3, "checkpointing__save_steps": 3}


@pytest.mark.parametrize("method", SETTINGS)
def test_losses(tmp_path, request, model_manifest, rows_of, template, device, method):
    def losses(name):
        given = (tmp_path / name, model_manifest, rows_of[method], template, method)
        return losses_of(train_here(train_task(*given, **STEPS, **SETTINGS[method])).parent)

    if device == "cuda":
        pytest.skip("test_gpu_runs.py compares with the CPU itself")
    expected = losses("torch")
    request.getfixturevalue("triton_head")
    assert losses("triton") == pytest.approx(expected, rel=1e-5)


def test_the_stored_reference(tmp_path, model_manifest, dpo_rows, template, dpo_reference, device, triton_head):
    if device == "cuda":
        pytest.skip("test_gpu_runs.py compares with the CPU itself")
    found = compute_reference(reference_task(tmp_path / "dpo-triton", model_manifest, dpo_rows, template))
    one, other = (np.load(path.parent / "logps.npy") for path in (found, dpo_reference))
    assert np.allclose(one, other, rtol=1e-5)
