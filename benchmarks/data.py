"""From a JSON Lines file to rows to train on: this project beside TRL and beside the tokenizers library alone.

    python benchmarks/data.py [--rows 4000] [--repeats 2] [--real FOLDER] [--json FILE]

Every system is a process of its own with empty caches, and they take turns, so the ratios of a turn see the same machine.
`ours` is the chain of data stages (download, transform, tokenise, mix) with its checks on; `TRL` is SFTTrainer's own
preparation saved to disk, and DPOTrainer's for pairs. Rows, tokenizer, chat template and length are the same.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from measure import Measured, folder_bytes, measure

LENGTH = 2048


def ours(corpus: Path, folder: Path, processes: int, kind: str, engine: str) -> None:
    """In a process of its own: every data stage."""
    from post_training.config import resolve
    from post_training.plan import make_plan
    from post_training.plan.make import make

    if engine == "tokenizers":
        from importlib.metadata import PackageNotFoundError

        from post_training.data import tokenize

        def absent() -> str:
            raise PackageNotFoundError("fastokens")

        tokenize.fastokens_name = absent  # type: ignore[assignment]
    method = "dpo" if kind == "pairs" else "sft"
    config = {
        "method": method,
        "offline": True,
        "model": {"name_or_path": str(folder.parent / "model")},
        "training": {"max_steps": 1},
        "data": {
            "datasets": [
                {"name": "chats", "path": str(corpus), "transform": "preference" if kind == "pairs" else "messages"}
            ],
            "num_proc": processes,
        },
        "paths": {"output_base": str(folder)},
        method: {"max_seq_length": LENGTH, "init_from": "base"},
    }
    plan = make_plan(resolve(config))
    print(make(plan, plan.mixed[method]))


def trl(corpus: Path, folder: Path, processes: int, kind: str) -> None:
    """In a process of its own: TRL's preparation, saved."""
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from post_training.data import registry

    tokenizer = AutoTokenizer.from_pretrained(folder.parent / "model")
    tokenizer.chat_template = registry.chat_template_text("chatml")
    model = AutoModelForCausalLM.from_pretrained(folder.parent / "model")
    shared = {
        "output_dir": str(folder / "trl"), "max_length": LENGTH, "dataset_num_proc": processes, "bf16": False,
        "use_cpu": True, "report_to": "none", "gradient_checkpointing": False, "activation_checkpointing": False,
    }  # fmt: skip
    rows = load_dataset("json", data_files=str(corpus), split="train")
    if kind == "pairs":
        from trl.trainer.dpo_config import DPOConfig
        from trl.trainer.dpo_trainer import DPOTrainer

        trainer: Any = DPOTrainer(model=model, args=DPOConfig(**shared), train_dataset=rows, processing_class=tokenizer)
        data = trainer.train_dataset.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"])
    else:
        from trl.trainer.sft_config import SFTConfig
        from trl.trainer.sft_trainer import SFTTrainer

        args = SFTConfig(**shared, packing=True, assistant_only_loss=True)
        trainer = SFTTrainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer)
        data = trainer.train_dataset
    data.save_to_disk(folder / "rows")
    tokens = sum(
        len(ids) for name in data.column_names if name.endswith("_ids") for ids in data.with_format("arrow")[:][name]
    )
    print(json.dumps({"rows": len(data), "tokens": tokens}))


def floor(corpus: Path, folder: Path, processes: int) -> None:
    """In a process of its own: the tokenizers library on texts that are rendered already, ids thrown away."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if processes > 1 else "false"
    os.environ["RAYON_NUM_THREADS"] = str(processes)
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder.parent / "model" / "tokenizer.json"))
    texts = [json.loads(line) for line in corpus.with_suffix(".texts").open(encoding="utf-8")]
    for start in range(0, len(texts), 1000):
        tokenizer.encode_batch_fast(texts[start : start + 1000], add_special_tokens=False)


def render(corpus: Path, model: Path) -> None:
    """The texts of the floor."""
    from post_training.data import registry
    from post_training.data.tokens.chat_template import ChatTemplate, special_tokens

    template = ChatTemplate(registry.chat_template_text("chatml"), special_tokens(model))
    with corpus.open(encoding="utf-8") as lines, corpus.with_suffix(".texts").open("w", encoding="utf-8") as out:
        for line in lines:
            out.write(json.dumps(template.render(json.loads(line)["messages"])[0]) + "\n")


class Turns:
    """Systems that take turns on one corpus."""

    def __init__(self, work: Path, repeats: int) -> None:
        self.work, self.repeats = work, repeats
        self.found: dict[str, list[Measured]] = {}
        self.last: dict[str, Path] = {}

    def take(self, systems: dict[str, list[str]], corpus: Path) -> None:
        """Every system once a turn, in another order each time."""
        names = list(systems)
        for turn in range(self.repeats):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                folder = self.work / name.replace(" ", "-")
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                command = [sys.executable, __file__, "--child", *systems[name], str(corpus), str(folder)]
                home = {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
                measured = measure(command, home)
                self.found.setdefault(name, []).append(measured)
                self.last[name] = folder
                print(f"  {name}: {measured.seconds:.2f} s, {measured.peak_bytes / 1e9:.2f} GB", flush=True)

    def ratio(self, slow: str, fast: str) -> list[float]:
        """Seconds of one over those of the other, turn by turn."""
        return [a.seconds / b.seconds for a, b in zip(self.found[slow], self.found[fast], strict=True)]


def run(rows: int, repeats: int, real: Path | None) -> dict[str, Any]:
    """Print ratios; returns all numbers."""
    from corpus import write_corpus
    from prepared import model_folder

    results: dict[str, Any] = {"rows": rows}
    with tempfile.TemporaryDirectory(prefix="benchmark-data-") as name:
        work = Path(name)
        tiny = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        results["tokenizer"] = (model_folder(work / "model", **tiny) / "name.txt").read_text()
        print(f"{rows:,} rows, tokenizer {results['tokenizer']}, length {LENGTH}", flush=True)
        corpus, few = work / "chats.jsonl", work / "few.jsonl"
        write_corpus(corpus, rows, real)
        write_corpus(few, max(rows // 8, 100), real)
        render(corpus, work / "model")
        turns = Turns(work, repeats)
        turns.take(
            {
                "ours 2": ["ours", "2", "chats", "any"],
                "TRL 2": ["trl", "2", "chats"],
                "ours 1": ["ours", "1", "chats", "any"],
                "TRL 1": ["trl", "1", "chats"],
                "ours 1 tokenizers": ["ours", "1", "chats", "tokenizers"],
                "floor 1": ["floor", "1"],
            },
            corpus,
        )
        small = Turns(work, repeats)
        small.take({"ours 1": ["ours", "1", "chats", "any"], "ours 2": ["ours", "2", "chats", "any"]}, few)
        # `take` left the small ones there: once more the large one, to look at what it wrote.
        again = Turns(work, 1)
        again.take({"ours 2": ["ours", "2", "chats", "any"]}, corpus)
        for label, slow, fast in (
            ("seconds of TRL / ours, 1 process", "TRL 1", "ours 1"),
            ("seconds of TRL / ours, 2 processes", "TRL 2", "ours 2"),
            ("rate of ours without the fast engine / tokenizers alone", "floor 1", "ours 1 tokenizers"),
        ):
            results[label] = report(label, turns.ratio(slow, fast))
        marginal = {
            count: [
                a.seconds - b.seconds
                for a, b in zip(turns.found[f"ours {count}"], small.found[f"ours {count}"], strict=True)
            ]
            for count in (1, 2)
        }
        label = "scaling from 1 to 2 processes, beyond start-up"
        results[label] = report(label, [one / two for one, two in zip(marginal[1], marginal[2], strict=True)])
        for system in ("ours 1", "ours 2", "TRL 1", "TRL 2"):
            peak = max(measured.peak_bytes for measured in turns.found[system])
            results[f"peak GB of {system}"] = round(peak / 1e9, 3)
            print(f"peak memory of {system}: {peak / 1e9:.2f} GB", flush=True)
        results |= of_the_mix(
            again.last["ours 2"], turns.last["TRL 2"], json.loads(turns.found["TRL 2"][-1].output.splitlines()[-1])
        )
        pairs = work / "pairs.jsonl"
        write_corpus(pairs, max(rows // 2, 100), real, pairs=True)
        turns.take({"ours pairs": ["ours", "2", "pairs", "any"], "TRL pairs": ["trl", "2", "pairs"]}, pairs)
        label = "pairs: seconds of TRL / ours, 2 processes"
        results[label] = report(label, turns.ratio("TRL pairs", "ours pairs"))
    results |= packing()
    return results


def of_the_mix(folder: Path, theirs: Path, told: dict[str, int]) -> dict[str, Any]:
    """Disk, packing, opening and collating of what was made."""
    import torch
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    from post_training.data.collate import as_fast
    from post_training.data.view import open_rows

    (path,) = (folder / "data" / "mixed").glob("*/manifest.json")
    facts = json.loads(path.read_text())
    tokens = facts["tokens"]
    found: dict[str, Any] = {"tokens": tokens, "packing efficiency": facts["packing_efficiency"]}
    found["packing efficiency of TRL"] = round(told["tokens"] / (told["rows"] * LENGTH), 5)
    for name in ("transformed", "tokenized", "mixed"):
        found[f"bytes a token, {name}"] = round(folder_bytes(folder / "data" / name) / tokens, 3)
    found["bytes a token of TRL, rows"] = round(folder_bytes(theirs / "rows") / told["tokens"], 3)
    found["bytes a token of TRL, cache"] = round(folder_bytes(theirs / "hf") / told["tokens"], 3)
    found["bytes that ours leaves in the HF cache"] = folder_bytes(folder / "hf")
    seconds = []
    for _ in range(9):
        started = time.perf_counter()
        rows = open_rows(path)
        seconds.append(time.perf_counter() - started)
    found["milliseconds to open"] = round(1000 * float(np.median(seconds)), 2)
    torch.set_num_threads(1)
    slow = DataCollatorForLanguageModeling(0, padding_free=True)
    fast = as_fast(slow)
    rates: dict[str, list[float]] = {"ours": [], "TRL": []}
    lists = [{name: values.tolist() for name, values in rows[index].items()} for index in range(min(len(rows), 64))]
    for _ in range(9):
        started, count = time.perf_counter(), 0
        for index in range(min(len(rows), 512)):
            count += fast([rows[index]])["input_ids"].numel()
        rates["ours"].append(count / (time.perf_counter() - started))
        started, count = time.perf_counter(), 0
        for row in lists:
            count += slow([row])["input_ids"].numel()
        rates["TRL"].append(count / (time.perf_counter() - started))
    found["million tokens a second, reading and collating"] = round(float(np.median(rates["ours"])) / 1e6, 1)
    found["million tokens a second, TRL collating"] = round(float(np.median(rates["TRL"])) / 1e6, 1)
    for name, value in found.items():
        print(f"{name}: {value}", flush=True)
    return found


def packing() -> dict[str, Any]:
    """Best-fit packing of lengths like those of real chats."""
    from post_training.data.mixing.packing import best_fit

    found = {}
    for count in (100_000, 1_000_000):
        lengths = np.clip(np.random.default_rng(0).lognormal(5.6, 0.8, count).astype(np.int64), 1, LENGTH)
        seconds = []
        for _ in range(5):
            started = time.perf_counter()
            _, starts = best_fit(lengths, LENGTH)
            seconds.append(time.perf_counter() - started)
        efficiency = lengths.sum() / ((len(starts) - 1) * LENGTH)
        found[f"seconds to pack {count:,} documents"] = round(float(np.median(seconds)), 4)
        print(f"packing {count:,} documents: {np.median(seconds):.3f} s, efficiency {efficiency:.5f}", flush=True)
    return found


def report(label: str, values: list[float]) -> dict[str, Any]:
    """Print a ratio with its spread."""
    print(f"{label}: {np.median(values):.2f} ({min(values):.2f}-{max(values):.2f})", flush=True)
    return {"median": round(float(np.median(values)), 3), "all": [round(value, 3) for value in values]}


def child(words: list[str]) -> None:
    """One system: its name, its settings, the corpus and a folder of its own."""
    system, *settings, corpus, folder = words
    call = {"ours": ours, "trl": trl, "floor": floor}[system]
    call(Path(corpus), Path(folder), int(settings[0]), *settings[1:])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2:])
        sys.exit()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--real", type=Path, default=None, help="folder of JSON Lines files whose sentences are used")
    parser.add_argument("--json", type=Path, default=None, help="write all numbers there")
    options = parser.parse_args()
    numbers = run(options.rows, options.repeats, options.real)
    if options.json:
        options.json.write_text(json.dumps(numbers, indent=1) + "\n")
