"""The size of a model from its `config.json` alone: built without memory, on torch's meta device."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from post_training.core.errors import UserError, brief
from post_training.models.parts import Parts


@dataclass(frozen=True)
class ModelShape:
    """What memory and speed depend on. Sizes in elements."""

    model_type: str
    parameters: int
    embedding: int
    """Of the input embedding, which a step looks up and does not multiply by."""
    tied: bool
    layers: int
    hidden: int
    intermediate: int
    """Of the feed-forward part that one token goes through (of all its experts together)."""
    heads: int
    head_size: int
    key_value_heads: int
    vocabulary: int
    max_positions: int | None
    """Longest document that the model has positions for; None = unlimited or unknown."""
    idle_parameters: int = 0
    """Parameters of experts that a token does not go through."""
    has_head: bool = True
    """Whether there is an output embedding; a reward model has one output in its place."""
    parts: Parts = field(default_factory=Parts)
    """Its modules."""

    @property
    def embeddings(self) -> int:
        """Parameters of the input embedding, and of an output embedding that is another one."""
        return self.embedding * (2 if self.has_head and not self.tied else 1)

    @property
    def largest_layer(self) -> int:
        """Parameters of one of the equal layers."""
        return (self.parameters - self.embeddings) // max(self.layers, 1)

    def adapter_parameters(self, r: int, targets: Any) -> int:
        """Parameters of LoRA adapters: two matrices beside each linear layer, r x inputs and outputs x r."""
        linear = self.parts.linear
        return r * sum(linear.get(name, 0) for name in (linear if targets == "all-linear" else targets))

    @classmethod
    def of(
        cls, folder: Path, trust_remote_code: bool = False, model_class: str = "AutoModelForCausalLM"
    ) -> "ModelShape":
        """Of a model folder, as a class of Transformers trains it. Raises UserError where that cannot build it."""
        import torch
        import transformers

        auto_model: Any = getattr(transformers, model_class)
        auto_config: Any = transformers.AutoConfig

        try:
            config = auto_config.from_pretrained(folder, trust_remote_code=trust_remote_code)
            with torch.device("meta"):
                config.num_labels = 1  # of a reward model
                model = auto_model.from_config(config, trust_remote_code=trust_remote_code)
        except Exception as error:  # of Transformers, an architecture's own checks, or code that comes with the model
            raise UserError(_not_built(folder, model_class.removeprefix("AutoModelFor"), error)) from None
        text: Any = config.get_text_config()
        intermediate: Any = getattr(text, "moe_intermediate_size", None) or getattr(text, "intermediate_size", None)
        inputs, head = model.get_input_embeddings().weight, model.get_output_embeddings()
        parts = Parts.of(model)
        heads = int(getattr(text, "num_attention_heads", 1) or 1)
        hidden = int(text.hidden_size)
        experts, used = _experts(text)
        feed_forward = int(intermediate or 4 * hidden)
        layers = int(text.num_hidden_layers)
        return cls(
            model_type=str(config.model_type),
            parameters=sum(p.numel() for p in model.parameters()),
            embedding=inputs.numel(),
            tied=head is not None and bool(getattr(text, "tie_word_embeddings", False)),
            layers=layers,
            hidden=hidden,
            intermediate=feed_forward * used,
            heads=heads,
            head_size=int(getattr(text, "head_dim", None) or hidden // heads),
            key_value_heads=int(getattr(text, "num_key_value_heads", None) or heads),
            vocabulary=int(text.vocab_size),
            max_positions=_positions(text),
            has_head=head is not None,
            parts=parts,
            idle_parameters=3 * layers * hidden * feed_forward * (experts - used),
        )


def _not_built(folder: Path, what: str, error: Exception) -> str:
    """Why a model cannot be built, in one line with what to do."""
    plain = isinstance(error, ValueError | OSError | ImportError)
    said, kind = brief(error), "" if plain else f"{type(error).__name__}: "
    if "custom code which must be executed" in said:
        said, kind = "it is code of its own; read it, and set model.trust_remote_code=true", ""
    elif said.startswith("Unrecognized configuration class"):
        named = said.partition("models.")[2].partition(".")[0]
        remedy = "name a text model, whose config.json is that of a causal language model"
        said, kind = f"Transformers has no class for {named}; {remedy}", ""
    return f"{folder}: cannot be built as a model ({what}): {kind}{said}"


def _positions(text: Any) -> int | None:
    """Positions with the stretching that the configuration asks for (YaRN and the like)."""
    positions = getattr(text, "max_position_embeddings", None)
    if positions is None:
        return None
    rope = getattr(text, "rope_parameters", None) or {}
    original = rope.get("original_max_position_embeddings") if isinstance(rope, dict) else None
    return max(int(positions), int(original * rope.get("factor", 1.0))) if original else int(positions)


def _experts(text: Any) -> tuple[int, int]:
    """Experts of a layer, and how many of them a token goes through; 1 and 1 for a dense model."""
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    every = next((getattr(text, name) for name in names if getattr(text, name, None)), 1)
    used = getattr(text, "num_experts_per_tok", None) or 1
    return (int(every), int(used)) if every > 1 else (1, 1)
