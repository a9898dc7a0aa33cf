"""Files with faults through all data stages, for seconds of what `make fuzz` does for minutes (see tests/fuzz.py)."""

import pytest
from fuzz import Fuzzer, fuzz
from fuzz_rows import FORMATS


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory):
    return Fuzzer(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_goes_in_or_is_refused_in_a_line_and_the_counts_add_up(fuzzer, name):
    ran = fuzzer.ran
    fuzz(fuzzer, name, 0, 12, shrink=False)
    assert fuzzer.ran - ran >= 10
