"""The engine `transformers`: sampled answers in padded batches, each from a random generator of its own."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from post_training.core.errors import DataError
from post_training.data.tokens.chat_template import resolve_template
from post_training.models.conversation import conversation_ids, own_template
from post_training.models.files import stop_tokens
from post_training.models.loading import answers_that_fit, halving, load_for_inference, load_tokenizer, longest_input
from post_training.on_policy.answers import prompt_digest
from post_training.on_policy.decoding import decode

Ids = list[int]


@dataclass(frozen=True)
class Request:
    """One answer that is wanted."""

    prompt: list[dict[str, Any]]
    """Messages, the user's last."""
    tools: Any
    """In OpenAI's form; None without."""
    stream: str
    """What its random numbers follow from: prompt and sample."""


@dataclass(frozen=True)
class Answer:
    """One answer."""

    text: str
    tokens: int
    ended: bool
    """Whether with a stop token, and not cut by `max_new_tokens`."""


class Engine:
    """A model that answers.

    Args:
        model: in evaluation mode.
        tokenizer: of the model.
        template: text of the chat template.
        sampling: `temperature`, `top_p`, `top_k`, `max_new_tokens`, `seed`.
    """

    at_a_time: int | None = None
    """Answers of a batch; None = as the configuration says."""

    def __init__(self, model: Any, tokenizer: Any, template: str, sampling: dict[str, Any]) -> None:
        self.model, self.tokenizer, self.template, self.sampling = model, tokenizer, template, sampling
        self.max_new_tokens = int(sampling["max_new_tokens"])
        self._ids: dict[str, Ids] = {}
        self.stop = stop_tokens(tokenizer, template)
        self.longest = longest_input(model)

    @classmethod
    def load(cls, folder: Path, template: str | None, sampling: dict[str, Any], trust_remote_code: bool) -> "Engine":
        """The model of a folder. `template` None is the tokenizer's own; raises DataError where it has none."""
        tokenizer = load_tokenizer(folder, trust_remote_code)
        text = own_template(tokenizer) if template is None else resolve_template(template, folder)
        if not text:
            raise DataError(
                f"generate.model: the tokenizer in {folder} has no chat template to ask it in; choose another model"
            )
        return cls(load_for_inference(folder, trust_remote_code=trust_remote_code), tokenizer, text, sampling)

    def prompt_ids(self, prompt: list[dict[str, Any]], tools: Any = None) -> Ids:
        """The prompt as the model reads it, once however many answers it gets. Raises DataError where the template refuses it."""
        key = prompt_digest(prompt, tools)
        if key not in self._ids:
            self._ids[key] = self._encoded(prompt, tools)
        return self._ids[key]

    def _encoded(self, prompt: list[dict[str, Any]], tools: Any) -> Ids:
        return conversation_ids(self.tokenizer, prompt, self.template, tools, add_generation_prompt=True)

    def length(self, prompt: list[dict[str, Any]], tools: Any = None) -> int | None:
        """Tokens of a prompt; None where no full answer stays within the model's positions."""
        size = len(self.prompt_ids(prompt, tools))
        return size if size + self.max_new_tokens <= self.longest else None

    def answers(self, requests: list[Request]) -> list[Answer]:
        """One batch, in parts where the GPU's memory asks for it. Raises UserError where not even one answer fits."""
        longest = max(len(self.prompt_ids(one.prompt, one.tools)) for one in requests) + self.max_new_tokens
        size = min(len(requests), answers_that_fit(self.model, longest))
        parts = (requests[start : start + size] for start in range(0, len(requests), size))
        return [answer for part in parts for answer in halving(part, self._answers, "generate")]

    def _answers(self, requests: list[Request]) -> list[Answer]:
        prompts, pad = [self.prompt_ids(one.prompt, one.tools) for one in requests], self.tokenizer.pad_token_id
        draws = None
        if self.sampling["temperature"]:
            streams = [request.stream for request in requests]
            draws = np.stack([uniforms(self.sampling["seed"], stream, self.max_new_tokens) for stream in streams])
        found = decode(self.model, prompts, self.stop, pad, self.filters(), draws, self.max_new_tokens)
        texts = self.tokenizer.batch_decode(found, skip_special_tokens=True)
        return [Answer(text.strip(), len(ids), ids[-1] in self.stop) for text, ids in zip(texts, found, strict=True)]

    def filters(self) -> list[Any]:
        """Transformers' own logits processors before the draw."""
        from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

        temperature, top_k, top_p = (self.sampling[name] for name in ("temperature", "top_k", "top_p"))
        chosen: list[Any] = [TemperatureLogitsWarper(float(temperature))] if temperature not in (0, 1) else []
        chosen += [TopKLogitsWarper(top_k)] if top_k else []
        return chosen + ([TopPLogitsWarper(top_p)] if top_p < 1 else [])


def uniforms(seed: int, stream: str, count: int) -> npt.NDArray[np.float64]:
    """`count` numbers in [0, 1), float64, of a generator of this answer alone."""
    return np.random.Generator(np.random.Philox(key=stream_seed(seed, stream, 16))).random(count)


def stream_seed(seed: int, stream: str, size_bytes: int = 4) -> int:
    """The seed of one answer, below 2 ** (8 * size_bytes - 1)."""
    digest = hashlib.blake2b(f"{seed} {stream}".encode(), digest_size=size_bytes).digest()
    return int.from_bytes(digest, "little") >> 1
