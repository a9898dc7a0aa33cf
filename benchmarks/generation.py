"""Answers a second of the engine of `generate`, and of plain padded `model.generate` calls on the same prompts.

The peer samples with Transformers' own sampler, its prompts in the order of the file, at the batch size that is best for it; the
engine at the same batch sizes. Both in turns, so that a busy machine hits both; ratios are of the medians.

    python benchmarks/generation.py --model outputs/demo/model --prompts config/demo/sft_heldout.jsonl
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from post_training.data import registry
from post_training.models.loading import generate as padded_generate
from post_training.on_policy.engine import Engine, Request
from post_training.on_policy.generate import batches_of

SIZES = (32, 64, 128, 256)


def seconds(work: Callable[[], int]) -> tuple[float, float, int]:
    """Elapsed seconds, CPU seconds, and tokens."""
    started, cpu = time.perf_counter(), time.process_time()
    tokens = work()
    return time.perf_counter() - started, time.process_time() - cpu, tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument(
        "--prompts", type=Path, required=True, help="JSON Lines with `messages`, asked up to the last user turn"
    )
    parser.add_argument("--n", type=int, default=2)
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": options.max_new_tokens, "seed": 0}
    engine = Engine.load(options.model, registry.chat_template_text("chatml"), sampling, False)
    prompts = [json.loads(line)["messages"][:-1] for line in options.prompts.read_text().splitlines()]
    ids = [engine.prompt_ids(prompt) for prompt in prompts for _ in range(options.n)]

    def peer(size: int) -> int:
        tokens = 0
        for start in range(0, len(ids), size):
            batch, settings = (
                ids[start : start + size],
                {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0},
            )
            pad, stop = engine.tokenizer.pad_token_id, engine.stop
            found = padded_generate(engine.model, batch, stop, pad, options.max_new_tokens, **settings)
            engine.tokenizer.batch_decode(found, skip_special_tokens=True)
            tokens += sum(map(len, found))
        return tokens

    def ours(size: int) -> int:
        lengths = [engine.length(prompt) for prompt in prompts]
        batches = batches_of(lengths, options.n, size)
        requests = [
            [Request(prompts[place], None, f"{place} {sample}") for place, sample in batch] for batch in batches
        ]
        return sum(answer.tokens for batch in requests for answer in engine.answers(batch))

    measured: dict[tuple[str, int], list[tuple[float, float, int]]] = {}
    for _ in range(options.rounds):
        for size in SIZES:
            for name, work in (("generate", peer), ("engine", ours)):
                measured.setdefault((name, size), []).append(seconds(lambda work=work, size=size: work(size)))
    best: dict[str, dict[str, float]] = {"elapsed": {}, "CPU": {}}
    for (name, size), found in measured.items():
        line = []
        for place, clock in enumerate(best):
            rates = [one[2] / one[place] for one in found]
            middle = statistics.median(rates)
            best[clock][name] = max(best[clock].get(name, 0.0), middle)
            line.append(f"{middle:,.0f} tokens a second of {clock} time ({min(rates):,.0f} to {max(rates):,.0f})")
        print(f"{name}, {size} at a time: {'; '.join(line)}", flush=True)
    for clock, own in best.items():
        print(f"ratio of the best, {clock} time: {own['engine'] / own['generate']:.2f}", flush=True)


if __name__ == "__main__":
    main()
