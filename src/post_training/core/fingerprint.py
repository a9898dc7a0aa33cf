"""Content identity: canonical JSON, hashes of files, names that are safe as paths."""

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from post_training.core.secrets import mask

# Below this a file is hashed at every start; above, its hash is kept with size and mtime, so that
# planning stays fast and a dry run of a small pipeline writes nothing at all.
CACHED_ABOVE_BYTES = 8 << 20
LONGEST_NAME = 100
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def canonical(value: Any) -> str:
    """JSON with sorted keys: equal values give equal text, however they were written."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """sha256 (hex) of a JSON value."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def is_safe_name(name: str) -> bool:
    """Whether a name can be one path component: letters, digits, `.`, `_`, `-`; 1 to 100; not hidden."""
    return bool(_SAFE.fullmatch(name)) and ".." not in name and len(name) <= LONGEST_NAME


def slug(text: str) -> str:
    """A safe name that still reads like the text: `org/model` -> `org--model`."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", text.strip("/").replace("/", "--")).strip("-._")
    return re.sub(r"\.\.+", ".", safe)[:60].strip("-._") or "unnamed"


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def file_xxh3(path: Path) -> str:
    """XXH3 of 128 bits (hex) of a file's bytes: several times as fast as sha256, and no protection against intent."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, xxhash.xxh3_128).hexdigest()  # type: ignore[arg-type]


class FileHashes:
    """sha256 of files by content, with large files' results kept in one small JSON file.

    A kept result is used while path, size, mtime and inode are the same: `touch` costs one more
    read and changes nothing.
    """

    def __init__(self, store: Path) -> None:
        self.store = store
        self._known: dict[str, list[Any]] | None = None
        self._seen: dict[tuple[Any, ...], str] = {}

    def __call__(self, path: Path) -> str:
        """sha256 (hex) of a file, read only when it may have changed."""
        stat = path.stat()
        seen = (path, stat.st_size, stat.st_mtime_ns, stat.st_ino)
        if seen not in self._seen:
            self._seen[seen] = file_sha256(path) if stat.st_size < CACHED_ABOVE_BYTES else self._kept(path, stat)
        return self._seen[seen]

    def _kept(self, path: Path, stat: os.stat_result) -> str:
        key, stamp = str(path.resolve()), [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        if self._known is None:
            try:
                self._known = json.loads(self.store.read_text())
            except (OSError, ValueError):
                self._known = {}
        entry = self._known.get(key)
        if entry and entry[:3] == stamp:
            return str(entry[3])
        result = file_sha256(path)
        self._known[key] = [*stamp, result]
        write_atomically(self.store, json.dumps(self._known))
        return result


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the name `path` once it is complete."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("wb") as file:
            yield file
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError say which file it is about: those of a write to an open file do not."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def write_atomically(path: Path, text: str) -> None:
    """Write a small text file so that it is complete or absent, also after a power cut. Secrets are masked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with naming(path):
            # Not mkstemp, whose files are private whatever the umask lets others read.
            with open(unfinished, "x", encoding="utf-8") as file:
                file.write(mask(text))
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
