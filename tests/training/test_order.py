"""What a step is trained on is what the mix says: rows in the order of its epochs, on any number of ranks."""

import pytest
from tiny import metrics_of, train_here, train_task, write_mix

from post_training.data.mixing.epochs import write_epochs
from post_training.data.view import open_rows
from post_training.launch import launcher
from post_training.training.step_samples import read_samples, row_digest, step_hash

BATCH, EPOCHS = 4, 1.5


@pytest.fixture(scope="module")
def rows(tmp_path_factory, sft_rows):
    """A mix of 14 rows: neither one epoch nor one and a half are full steps."""
    first = [{name: values.tolist() for name, values in open_rows(sft_rows)[index].items()} for index in range(14)]
    return write_mix(tmp_path_factory.mktemp("order"), first, packing=True)


@pytest.fixture(scope="module")
def expected(rows):
    write_epochs(rows, 24)
    opened = open_rows(rows, 24)
    digests = [row_digest(number, opened[number]) for number in range(24)]
    assert len(set(digests)) == 24
    return [(4, step_hash(digests[start : start + BATCH])) for start in range(0, 24, BATCH)]


def seen(run):
    return [(line["rows"], line["hash"]) for line in read_samples(run / "logs" / "samples.jsonl")]


def task_of(folder, model_manifest, rows, template, **changes):
    """ceil(14 rows x 1.5 / 4) = 6 steps, the last of them filled up."""
    length = {"training__max_steps": None, "training__num_train_epochs": EPOCHS}
    return train_task(folder, model_manifest, rows, template, **length, **changes)


@pytest.mark.parametrize("per_device", [1, 4])
def test_one_rank(tmp_path, model_manifest, rows, template, expected, per_device):
    task = task_of(tmp_path / "run", model_manifest, rows, template, training__per_device_train_batch_size=per_device)
    train_here(task)
    assert seen(task.directory) == expected
    assert metrics_of(task.directory)[-1]["epoch"] == round(24 / 14, 4)


@pytest.mark.slow
def test_two_ranks(tmp_path, model_manifest, rows, template, expected):
    task = task_of(
        tmp_path / "run", model_manifest, rows, template, accelerate__num_processes=2,
        training__per_device_train_batch_size=1, training__trainer_args={"dataloader_num_workers": 1},
    )  # fmt: skip
    assert launcher.run(task) == 0
    assert seen(task.directory) == expected
