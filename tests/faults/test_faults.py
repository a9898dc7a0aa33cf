import pytest
from harness import run


@pytest.mark.slow
def test_killed_at_twenty_moments_nothing_is_lost(tmp_path):
    assert run(kills=20, seed=1, folder=tmp_path)
