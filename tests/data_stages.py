"""A tokenizer of 600 entries, and the data stages called by hand, one after the other."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tiny import task
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from post_training.core.fingerprint import file_sha256
from post_training.core.task import Task
from post_training.data import download, mix, registry, tokenize, transform

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CORPUS = [
    "user\n\nassistant\n\n\n\nHow many are there?\n\n  There are 12 of them.\r\n",
    "\n\n\n  def f(x):\n    return x\n\n\tdone\n",
    "naïve café, Größe, 日本語の文章です。日本 👩‍👩‍👧 👍🏽 Привет, мир!",
    "The answer is four. The question was two and two.",
]


def train_bpe(folder: Path) -> Path:
    """A byte-level BPE tokenizer whose merges cross line ends and split emoji, in a model folder."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[PAD, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 20, trainer)
    return save_model_folder(folder, tokenizer)


def save_model_folder(folder: Path, tokenizer: Tokenizer) -> Path:
    """What the data stages look for in a model's folder; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": PAD}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text("{}")
    return folder


class Stages:
    """The data stages in one folder; each method runs a stage and returns its manifest's path."""

    def __init__(self, base: Path, model: Path) -> None:
        self.base = base
        self.model = self.base / "models" / "tiny" / "manifest.json"
        self.model.parent.mkdir(parents=True)
        self.model.write_text(json.dumps({"stage": "build_model", "fingerprint": "0", "folder": str(model)}))

    def task(self, stage: str, name: str, config: Any, runtime: Any = None, inputs: Any = None) -> Task:
        return task(stage, config, runtime or {}, inputs or {}, self.base / "data" / stage / name / "manifest.json")

    def download(self, *files: Path, name: str = "d") -> Path:
        """`files` may be given whole, as they stand on disk."""
        config = {"sha256": [file_sha256(file) for file in files]}
        return self.run(download, self.task("download", name, config, {"files": [str(f) for f in files]}))

    def transform(
        self, *files: Path, transform_name: str = "messages", rows: str = "messages", name: str = "d", **runtime: Any
    ) -> Path:
        arguments, last_turn = runtime.pop("arguments", {}), runtime.pop("last_turn", "trim")
        asked = runtime.pop("slice", None)
        source = runtime.pop("source", None) or registry.transform_names([])[transform_name].file
        config = {"transform": transform_name, "arguments": arguments, "source": "0", "rows": rows}
        config |= {"slice": asked, "last_turn": last_turn}
        runtime = {"file": str(source), "max_reject_fraction": 0.05, "strict": False} | runtime
        inputs = {"raw": self.download(*files, name=name)}
        return self.run(transform, self.task("transform", name, config, runtime, inputs))

    def tokenize(
        self,
        rows: Path,
        *,
        shape: str = "messages",
        template: str = "chatml",
        name: str = "d",
        num_proc: int | None = 1,
        model: Path | None = None,
        **settings: Any,
    ) -> Path:
        text = template if "{" in template else registry.chat_template_text(template)
        config = {"chat_template": text, "rows": shape, "special_tokens_in_content": "encode_as_text"} | settings
        inputs = {"rows": rows, "model": model or self.model}
        runtime = {"num_proc": num_proc, "max_reject_fraction": config.pop("max_reject_fraction", 1.0)}
        return self.run(tokenize, self.task("tokenize", name, config, runtime, inputs))

    def mix(self, tokenized: dict[str, Path], *, name: str = "m", shape: str = "messages", **config: Any) -> Path:
        """`weights` by name, or `amounts` by name as `{"rows": 5}`; an input `eval:<name>` is held out."""
        weights, amounts = config.pop("weights", {}), config.pop("amounts", {})
        runtime = config.pop("runtime", {})
        packing = {"packing": shape == "messages", "overlong": "drop", "eval_fraction": 0.0}
        config = {"seed": 42, "max_seq_length": 128, "rows": shape} | packing | config
        config["datasets"] = [
            {"name": n, **amounts.get(n, {"weight": weights.get(n, 1.0)})} for n in tokenized if n[:5] != "eval:"
        ]
        return self.run(mix, self.task("mix", name, config, runtime, tokenized))

    def run(self, module: Any, task: Task) -> Path:
        module.run(task)
        return task.output

    def tokens_of(
        self,
        rows: Iterable[dict[str, Any]],
        shape: str = "messages",
        name: str = "d",
        transform: str | None = None,
        **kwargs: Any,
    ) -> Path:
        """Rows in their final shape -> tokenised."""
        file = self.base / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        transformed = self.transform(file, transform_name=transform or shape, rows=shape, name=name)
        return self.tokenize(transformed, shape=shape, name=name, **kwargs)
