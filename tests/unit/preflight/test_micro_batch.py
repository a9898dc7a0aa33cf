"""`training.per_device_train_batch_size: auto`: what is decided, and what cannot be."""

import pytest

from post_training.core.devices import USABLE, Device
from post_training.core.errors import ConfigError
from post_training.core.format import GIB
from post_training.preflight import memory, micro_batch, resources


@pytest.fixture
def automatic(subject_of):
    def make(gib, **changes):
        settings = {"training__effective_batch_size": 96, "training__per_device_train_batch_size": "auto"} | changes
        return subject_of(ranks=2, gpu=Device("a test", gib and int(gib * GIB)), **settings)

    return make


@pytest.mark.parametrize("checkpointing", [True, False])
def test_the_largest_that_divides_and_fits(automatic, checkpointing):
    found = []
    for gib in (25, 28, 32, 48, 96, 500):
        subject = automatic(gib, training__gradient_checkpointing=checkpointing)
        limit = 0.9 * USABLE * gib * GIB
        needed = {}
        for size in (1, 2, 4, 8, 16):  # 48 rows of a device: 32 does not divide them
            with_size = micro_batch.with_number(subject, size)
            needed[size] = memory.needed_bytes(with_size, memory.predict(with_size).peak)
        if needed[1] > limit:
            continue
        number = micro_batch.largest(subject)
        assert needed[number] <= limit and all(needed[size] > limit for size in needed if size > number)
        assert resources.memory_check(micro_batch.with_number(subject, number)).verdict == "ok"
        found.append(number)
    assert found == sorted(found) and len(set(found)) > 1 and found[-1] == 16


def test_where_not_one_row_fits_or_nothing_is_known(automatic):
    with pytest.raises(
        ConfigError, match=r"not one row of the longest fits into 10\.0 GiB of the a test: it needs .*lower sft"
    ):
        micro_batch.largest(automatic(10))
    with pytest.raises(ConfigError, match=r"the memory of the GPUs is not known; name them with slurm\.gpu_model"):
        micro_batch.largest(automatic(None))


def test_a_gpu_has_what_is_printed_on_it():
    driver = Device("NVIDIA H100 80GB HBM3", int(79.1 * GIB))
    assert micro_batch.memory_bytes(driver) == 80 * GIB
    assert micro_batch.memory_bytes(Device("another", 7)) == 7
    assert micro_batch.memory_bytes(Device("CPU", 7)) == 7
