"""What a stage is about to read, compared with what the manifests of its inputs say: sizes, then sha256, smallest files first.

A stage that reads its inputs whole hashes them whole, on every core. One that maps them, such as a training, hashes
`AT_ONCE_BYTES` before it begins; a training hashes the rest in a thread of its launcher while the ranks work.
"""

import os
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from post_training.core import manifest
from post_training.core.errors import UserError
from post_training.core.fingerprint import file_sha256
from post_training.core.stages import STAGES
from post_training.core.task import Task

AT_ONCE_BYTES = 4 << 30
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


@dataclass(frozen=True)
class Expected:
    """A file as a manifest lists it."""

    path: Path
    bytes: int
    sha256: str | None
    made_with: Path
    """The manifest."""

    def check_size(self) -> None:
        """Raises UserError for a file that is missing or has another size."""
        try:
            found = self.path.stat().st_size
        except OSError as error:
            raise self._wrong(f"cannot be read ({error.strerror})") from None
        if found != self.bytes:
            raise self._wrong(f"has {found:,} bytes, not {self.bytes:,}")

    def check_content(self) -> None:
        """Raises UserError for a file with other content."""
        try:
            found = file_sha256(self.path)
        except OSError as error:
            raise self._wrong(f"cannot be read ({error.strerror})") from None
        if self.sha256 not in (None, found):
            raise self._wrong(f"was changed after it was written: sha256 {found[:12]}, not {str(self.sha256)[:12]}")

    def _wrong(self, problem: str) -> UserError:
        return UserError(f"{self.path}: {problem}, as {self.made_with} says; delete that manifest to make it again")


def check(task: Task) -> list[Expected]:
    """Check the inputs of a stage; returns the files whose content was left out, largest last.

    Raises:
        UserError: for the first file that is missing or not as its manifest says.
    """
    reads = STAGES[task.stage].reads
    if reads == "few":
        return []
    whole: list[Expected] = []
    mapped: list[Expected] = []
    later: list[Expected] = []
    for name, path in task.inputs.items():
        all_of_it = reads == "whole" or (task.stage == "tokenize" and name == "rows")
        (whole if all_of_it else mapped).extend(_expected(task, name, path))
    for file in (*whole, *mapped):
        file.check_size()
    mapped.sort(key=lambda file: file.bytes)
    room = AT_ONCE_BYTES
    for file in mapped:
        room -= file.bytes
        (whole if room >= 0 else later).append(file)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for _ in pool.map(Expected.check_content, dict.fromkeys(whole)):
            pass
    return later


class Beside:
    """Checks files one after the other in a thread, with the least priority; `problem` is the first one, if any."""

    def __init__(self, files: Iterable[Expected]) -> None:
        self.problem: str | None = None
        self._thread = threading.Thread(target=self._check, args=(list(files),), daemon=True, name="inputs")
        self._thread.start()

    def wait(self) -> None:
        """Until all are checked."""
        self._thread.join()

    def _check(self, files: list[Expected]) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        for file in files:
            try:
                file.check_content()
            except UserError as error:
                self.problem = str(error)
                return


def _expected(task: Task, name: str, path: Path) -> list[Expected]:
    """The files that a stage reads of one input: of a trained run its last checkpoint, of a mix its shards, too."""
    found = manifest.read(path)
    if "checksum" in found and manifest.checksum(found) != found["checksum"]:
        raise UserError(f"{path}: was changed after it was written; delete it to run its stage again")
    files = [*found.get("files", []), *found.get("shards", [])]
    if last := found.get("final_checkpoint"):
        files = [file for file in files if Path(file["path"]).is_relative_to(last)]
    if task.stage == "tokenize" and name == "model":  # of which it needs the tokenizer
        files = [file for file in files if not file["path"].endswith(_WEIGHTS)]
    return [
        Expected(path.parent / file["path"], file["bytes"], file.get("sha256"), path)
        for file in files
        if "bytes" in file
    ]
