"""Stages of the models that a pipeline starts from: from the Hub, a local folder, or built here."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from post_training.config.names import recorded_as
from post_training.core.adapters import adapter_files, base_of, is_adapter_folder
from post_training.core.errors import ConfigError, require
from post_training.core.fingerprint import digest, slug
from post_training.core.locate import TOKENIZER_FILES, data_files, model_files, model_folder
from post_training.data import registry
from post_training.models import hub_kernel
from post_training.plan.files import Files
from post_training.plan.stage import Stage


@dataclass(frozen=True)
class ModelStages:
    """Adds models to a plan."""

    add: Callable[[Stage], Stage]
    files: Files

    def model(self, model: dict[str, Any], offline: bool, key: str, chat_template: str = "chatml") -> Stage:
        """The starting model as a folder on this machine; a new one's tokenizer has the template's tokens."""
        path, scratch = model["name_or_path"], model["from_scratch"]
        named = f"{key}.name_or_path" if key == "model" else key
        if (path is None) == (scratch is None):
            both = "both are given" if path is not None else "neither is given"
            raise ConfigError("model.name_or_path", f"give either it or model.from_scratch; {both}")
        runtime: dict[str, Any] = {"offline": offline, "trust_remote_code": model["trust_remote_code"]}
        if scratch is not None:
            corpus_key = "model.from_scratch.corpus"
            corpus = [file for path in scratch["corpus"] for file in data_files(path, corpus_key) or []]
            require(bool(corpus), corpus_key, "no file; the tokenizer needs text to be trained on")
            trained_on = {
                "vocab_size": scratch["vocab_size"],
                "special_tokens": new_tokens(chat_template),
                "corpus": [sha for _, sha in self.files.digests(recorded_as(scratch["corpus"]), corpus, corpus_key)],
            }
            weights = {part: scratch[part] for part in ("model_type", "config", "seed")}
            config = {"tokenizer": digest(trained_on), "weights": weights, **trained_on}
            runtime["corpus"] = [str(file) for file in corpus]
            return self.add(Stage("build_model", f"scratch-{scratch['model_type']}", config, runtime=runtime))
        folder = model_folder(path, named)
        if folder is None:
            hub = {"name_or_path": path, "revision": model["revision"] or "main"}
            config = {"hub": hub, "tokenizer": digest(hub)}
            stage = self.add(Stage("download_model", slug(path), config, runtime=runtime))
            if offline:
                self.files.note_hub("model", path, named, stage)
            return stage
        if is_adapter_folder(folder):
            return self._merged(folder, model, offline, named)
        files = self.files.digests(path, model_files(folder), named, root=folder)
        config = {"sha256": files, "tokenizer": digest([row for row in files if Path(row[0]).name in TOKENIZER_FILES])}
        runtime["folder"] = str(folder)
        return self.add(Stage("download_model", slug(folder.name), config, runtime=runtime))

    def kernel(self, view: dict[str, Any]) -> dict[str, Stage]:
        """The kernel of the Hub that `model.attn_implementation` names, by the name of an input; none for what is built in."""
        name = hub_kernel.parse(view["model"]["attn_implementation"])
        if name is None:
            return {}
        # A container has a PyTorch of its own. It decides which builds are fetched, not which kernel it is.
        every = bool(view["slurm"]["container"]["image"])
        label = slug(name.repository) + "-all-builds" * every
        config = {"hub": {"name_or_path": name.repository, "revision": name.revision}}
        runtime = {"offline": view["offline"], "every_build": every}
        stage = self.add(Stage("download_kernel", label, config, runtime=runtime))
        if view["offline"]:
            self.files.note_hub("kernel", name.repository, hub_kernel.KEY, stage)
        return {"kernel": stage}

    def _merged(self, folder: Path, model: dict[str, Any], offline: bool, key: str) -> Stage:
        """Adapters in the weights of the model that they were trained on, which may be adapters again."""
        base = self.model(model | base_of(folder, key), offline, key)
        files = self.files.digests(model["name_or_path"], adapter_files(folder, key), key, root=folder)
        own = [row for row in files if row[0] in TOKENIZER_FILES]
        tokenizer = digest(own) if any(name == "tokenizer.json" for name, _ in own) else base.config["tokenizer"]
        runtime = {"folder": str(folder), "trust_remote_code": model["trust_remote_code"], "max_shard_size": "5GB"}
        config = {"sha256": files, "tokenizer": tokenizer}
        return self.add(Stage("merge_adapter", slug(folder.resolve().name), config, {"base": base}, runtime))


def model_label(model: dict[str, Any]) -> str:
    """Short name of the starting model, safe as a path."""
    if model["from_scratch"] is not None:
        return f"scratch-{slug(model['from_scratch']['model_type'])}"
    folder = model_folder(model["name_or_path"], "model.name_or_path")
    return slug(folder.resolve().name if folder else model["name_or_path"])


def new_tokens(chat_template: str) -> dict[str, str | list[str]]:
    """Control tokens of a tokenizer that is trained for a template: by name, and the others."""
    require(
        chat_template != registry.OWN_TEMPLATE,
        "data.chat_template",
        f"found {chat_template!r}, but a tokenizer that model.from_scratch trains has no template of its own; name one",
    )
    tokens = registry.template_tokens(registry.chat_template_text(chat_template))
    if tokens is None:  # a file of the user's that declares none: those of ChatML
        tokens = registry.template_tokens(registry.chat_template_text("chatml"))
        assert tokens is not None
    used = {*tokens.needed, *tokens.named.values()}
    pad = next(token for token in ("<|endoftext|>", "<|pad|>") if token not in used)
    return {"pad_token": pad, **tokens.named, "others": [t for t in tokens.needed if t not in tokens.named.values()]}
