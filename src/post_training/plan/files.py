"""What planning reads from disk, each thing once however many runs are planned. Light."""

from pathlib import Path

from post_training import registry
from post_training.errors import ConfigError
from post_training.fingerprint import FileHashes
from post_training.locate import in_hub_cache
from post_training.plan.stage import Stage
from post_training.registry import TransformSource


class Files:
    """Hashes of data and models, sources of transforms, texts of templates."""

    def __init__(self, base: Path) -> None:
        self.hashes = FileHashes(base / ".file_hashes.json")
        self._base = base
        self._missing: dict[str, str] = {}
        self._transforms: dict[tuple[str, ...], TransformSource] = {}
        self._templates: dict[str, str] = {}

    def transform(self, name: str, modules: list[str], key: str) -> TransformSource:
        """The transform of that name; `key` is the configuration key to blame."""
        wanted = (name, *modules)
        if wanted not in self._transforms:
            self._transforms[wanted] = registry.find_transform(name, modules, key)
        return self._transforms[wanted]

    def chat_template(self, name: str) -> str:
        """The text of a template."""
        if name not in self._templates:
            self._templates[name] = registry.chat_template_text(name)
        return self._templates[name]

    def note_hub(self, kind: str, hub_id: str, key: str, download: Stage) -> None:
        """Note a `model` or `dataset` that only the network can give: neither downloaded yet nor in the Hub's cache."""
        if not (in_hub_cache(kind, hub_id) or (self._base / download.manifest).is_file()):
            self._missing.setdefault(f"{kind} {hub_id}", key)

    def check_offline(self) -> None:
        """Refuse, all in one line, what was noted while `offline` is true."""
        if self._missing:
            found = ", ".join(f"{what} ({key})" for what, key in self._missing.items())
            raise ConfigError(
                "offline",
                f"true, but {found} {'is' if len(self._missing) == 1 else 'are'} not on this machine; where there is internet, "
                "type the same command with --until download download_model --config offline=false, or give local paths",
            )
