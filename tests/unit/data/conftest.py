"""The data stages, and what they made."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from data_stages import Stages, train_bpe
from tiny import as_read
from tokenizers import Tokenizer

SHARED = Path(__file__).resolve().parents[3] / ".." / "shared" / "data"


@pytest.fixture(scope="session")
def bpe_folder(tmp_path_factory: Any) -> Path:
    return train_bpe(tmp_path_factory.mktemp("bpe"))


@pytest.fixture(scope="session")
def bpe(bpe_folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(bpe_folder / "tokenizer.json"))


@pytest.fixture
def stages(tmp_path: Path, bpe_folder: Path) -> Stages:
    return Stages(tmp_path, bpe_folder)


@pytest.fixture(scope="module")
def module_stages(tmp_path_factory: Any, bpe_folder: Path) -> Stages:
    return Stages(tmp_path_factory.mktemp("stages"), bpe_folder)


@pytest.fixture(scope="session")
def read() -> Callable[[Path], dict[str, Any]]:
    """The content of a manifest."""
    return lambda path: json.loads(path.read_text())


@pytest.fixture(scope="session")
def tokens() -> Callable[[Path], list[dict[str, Any]]]:
    """The rows of a tokenised dataset, of all its shards in order."""

    def rows(manifest: Path) -> list[dict[str, Any]]:
        found = []
        for entry in json.loads(manifest.read_text())["files"]:
            if not entry["path"].endswith(".arrow"):
                continue
            with pa.ipc.open_file(str(manifest.parent / entry["path"])) as reader:
                found += as_read(reader.read_all().to_pylist())
        return found

    return rows


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the real data."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data: {SHARED} is absent")
    return SHARED
