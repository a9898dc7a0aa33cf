"""What planning reads from disk, each thing once however many runs are planned."""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from post_training.core.errors import ConfigError, require
from post_training.core.fingerprint import FileHashes
from post_training.core.locate import folder_sha256, in_hub_cache
from post_training.data import registry
from post_training.data.registry import TransformSource
from post_training.plan.stage import Stage

Check = Callable[[Path], Any]


class Files:
    """Hashes of data and models, sources of transforms, texts of templates."""

    def __init__(self, base: Path, recorded: Mapping[str, Any]) -> None:
        self.hashes = FileHashes(base / ".file_hashes.json")
        self._base = base
        self._recorded = recorded
        self._missing: dict[str, str] = {}
        self._transforms: dict[tuple[str, ...], TransformSource] = {}
        self._templates: dict[str, str] = {}
        self._checked: dict[tuple[Check, Path], str] = {}

    def digests(self, path: str, files: list[Path], key: str, root: Path | None = None) -> list[list[str]]:
        """`[[name, sha256], ...]` of the local files that a path means, named below `root`, else by their last part.

        Raises ConfigError for `key` where there is no file, which would make any two inputs the same one, and where
        `recorded_files` says something else of `path`, its name there.
        """
        problem = f"{path}: no file in it decides what it is; name a folder with files that can be read"
        require(bool(files), key, problem)
        found = [[str(file.relative_to(root)) if root else file.name, self.hashes(file)] for file in files]
        wanted = self._recorded.get(path)
        if wanted is not None and (differs := _difference(wanted, found)):
            raise ConfigError(
                key,
                f"{path}: {differs}; put back what the model was made from, or take this path out of recorded_files",
            )
        return found

    def transform(self, name: str, modules: list[str], key: str) -> TransformSource:
        """The transform of that name; `key` is the configuration key that an error names."""
        wanted = (name, *modules)
        if wanted not in self._transforms:
            self._transforms[wanted] = registry.find_transform(name, modules, key)
        return self._transforms[wanted]

    def chat_template(self, name: str) -> str:
        """The text of a template."""
        if name not in self._templates:
            self._templates[name] = registry.chat_template_text(name)
        return self._templates[name]

    def checked(self, path: Path, check: Check) -> str:
        """sha256 of a file, or of all that a folder holds, which `check` raises for if it cannot be used."""
        if (check, path) not in self._checked:
            check(path)
            self._checked[check, path] = folder_sha256(path, self.hashes) if path.is_dir() else self.hashes(path)
        return self._checked[check, path]

    def note_hub(self, kind: str, hub_id: str, key: str, download: Stage) -> None:
        """Note a `model`, `dataset` or `kernel` that only the network can give: neither downloaded yet nor in the Hub's cache."""
        if not (in_hub_cache(kind, hub_id) or (self._base / download.manifest).is_file()):
            self._missing.setdefault(f"{kind} {hub_id}", key)

    def check_offline(self) -> None:
        """Refuse, all in one line, what was noted while `offline` is true."""
        if self._missing:
            found = ", ".join(f"{what} ({key})" for what, key in self._missing.items())
            kernel = " download_kernel" if any(what.startswith("kernel ") for what in self._missing) else ""
            raise ConfigError(
                "offline",
                f"true, but {found} {'is' if len(self._missing) == 1 else 'are'} not on this machine; where there is internet, "
                f"type the same command with --until download download_model{kernel} --config offline=false, or give local paths",
            )


def _difference(wanted: list[list[str]], found: list[list[str]]) -> str:
    """In what files are not as recorded; empty where they are."""
    had, have = (Counter((name, sha) for name, sha in files) for files in (wanted, found))
    lost, new = (dict(list(left)) for left in (had - have, have - had))
    changes = [
        f"{name} has other content than recorded (sha256 {new[name][:12]}, not {sha[:12]})"
        if name in new
        else f"{name} is missing"
        for name, sha in lost.items()
    ]
    return ", ".join([*changes, *(f"{name} is not among the recorded ones" for name in new if name not in lost)])
