"""What planning reads from disk, each thing once however many runs are planned. Light."""

from pathlib import Path

from post_training import registry
from post_training.fingerprint import FileHashes
from post_training.registry import TransformSource


class Files:
    """Hashes of data and models, sources of transforms, texts of templates."""

    def __init__(self, base: Path) -> None:
        self.hashes = FileHashes(base / ".file_hashes.json")
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
