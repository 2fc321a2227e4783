"""Settings of models, memory and generation: the only home of defaults.

MemoryConfig.window("1k", mode="infllm", topk=16)
ModelConfig.from_hf(json.load(open("config.json")))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypedDict

from quickllama import checks
from quickllama.errors import InvalidType, InvalidValue
from quickllama.hf_config import read_config

__all__ = [
    "KV_DTYPE",
    "MODES",
    "WINDOWS",
    "AskOptions",
    "GenerationConfig",
    "GenerationOptions",
    "MemoryConfig",
    "ModelConfig",
]

KV_DTYPE = "bfloat16"
"""How a session keeps keys and values unless told otherwise."""

MODES = ("full", "stream", "infinite", "infllm", "qllm")
"""Plain causal attention; sinks and window (StreamingLLM); the same un-rotated (LM-Infinite);
blocks retrieved by the current tokens (InfLLM); ... and by the question (Q-LLM)."""

WINDOWS: Mapping[str, Mapping[str, int]] = {
    "512": {"n_local": 256, "block_size": 64, "topk": 4, "exc_block_size": 256},
    "1k": {"n_local": 512, "block_size": 64, "topk": 8, "exc_block_size": 512},
    "2k": {"n_local": 1024, "block_size": 128, "topk": 8, "exc_block_size": 512},
}
"""The settings of the paper's experiments (authors' config files), all with n_init 128 and
repr_topk 4."""

_DEFAULT_WINDOW = WINDOWS["1k"]

# Llama 3 has 128,256 entries in its vocabulary; fine-tuned ones add a few.
_LLAMA3_VOCABULARY = range(128_256, 128_256 + 256)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes and constants of a Llama-family model, by their HuggingFace names.

    ``head_dim`` and the number of key/value heads may differ from what the hidden size suggests.
    ``sliding_window`` (tokens, 0: none) holds in mode ``full``; the memory modes replace it.
    ``max_position_embeddings`` and ``eos_token_ids`` do not change the forward pass.

    Raises InvalidType or InvalidValue for sizes that do not fit together.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_type: str = "default"
    rope_factor: float = 1.0
    rope_low_freq_factor: float = 1.0
    rope_high_freq_factor: float = 4.0
    rope_original_max_position: int = 8192
    sliding_window: int = 0
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    model_type: str = "llama"
    max_position_embeddings: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        put = object.__setattr__
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "rope_original_max_position",
        ):
            put(self, name, checks.integer(name, getattr(self, name), 1))
        put(self, "sliding_window", checks.integer("sliding_window", self.sliding_window, 0))
        for name in ("rms_norm_eps", "rope_theta", "rope_factor", "rope_low_freq_factor"):
            put(self, name, checks.number(name, getattr(self, name), above=0))
        high = checks.number("rope_high_freq_factor", self.rope_high_freq_factor, above=0)
        put(self, "rope_high_freq_factor", high)
        checks.choice("rope_type", self.rope_type, ("default", "linear", "llama3"))
        for name in ("qkv_bias", "o_bias", "mlp_bias", "tie_word_embeddings"):
            checks.flag(name, getattr(self, name))
        if self.max_position_embeddings is not None:
            positions = checks.integer("max_position_embeddings", self.max_position_embeddings, 1)
            put(self, "max_position_embeddings", positions)
        self._check_together()

    def _check_together(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise InvalidValue(
                f"num_attention_heads {self.num_attention_heads} must be a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise InvalidValue(f"head_dim must be even for RoPE, not {self.head_dim}")
        if self.rope_type == "llama3" and self.rope_high_freq_factor <= self.rope_low_freq_factor:
            raise InvalidValue(
                f"rope_high_freq_factor {self.rope_high_freq_factor:g} must be greater than "
                f"rope_low_freq_factor {self.rope_low_freq_factor:g}"
            )

    @classmethod
    def from_hf(
        cls, config: Mapping[str, Any], *, ignore_config_keys: Collection[str] = ()
    ) -> ModelConfig:
        """From the keys of a HuggingFace ``config.json``, either dialect.

        Computed: model_type ``llama`` (also when absent), ``mistral`` and ``qwen2``; RoPE
        ``default``, ``linear``, ``llama3``; one sliding window for all layers; biases. Every key
        that would change the numbers otherwise, and every unknown one that is not listed in
        ``ignore_config_keys``, raises InvalidValue naming it. A size that is missing raises
        MissingKey.
        """
        if not isinstance(config, Mapping):
            raise InvalidType(
                f"a configuration is a table of keys as in config.json, not {type(config).__name__}"
            )
        if isinstance(ignore_config_keys, str):
            raise InvalidType("ignore_config_keys is a list of names, not a string")
        return cls(**read_config(config, ignore_config_keys))

    @property
    def is_llama3(self) -> bool:
        """Whether this is a Llama 3.x: model_type llama with its vocabulary of 128,256 tokens
        (fine-tuned models: up to 255 more). Decides the default ``question_weight``."""
        return self.model_type == "llama" and self.vocab_size in _LLAMA3_VOCABULARY

    @property
    def parameters(self) -> int:
        """Number of weights, tied ones counted once."""
        e, f, d = self.hidden_size, self.intermediate_size, self.head_dim
        q, kv = self.num_attention_heads * d, self.num_key_value_heads * d
        layer = 2 * e * q + 2 * e * kv + 3 * e * f + 2 * e
        layer += self.qkv_bias * (q + 2 * kv) + self.o_bias * e + self.mlp_bias * (2 * f + e)
        heads = 1 if self.tie_word_embeddings else 2
        return self.num_hidden_layers * layer + heads * self.vocab_size * e + e

    def core(self) -> dict[str, int | float | str | bool]:
        """The table that the core is given: everything that changes the numbers."""
        outside = ("model_type", "max_position_embeddings", "eos_token_ids")
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in outside
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """How a session remembers what has left its window; sizes in tokens, except ``topk`` (blocks).

    * ``mode``: one of ``full``, ``stream``, ``infinite``, ``infllm``, ``qllm`` (:data:`MODES`).
    * ``n_init``: first tokens, always attended; ``n_local``: the sliding window.
    * ``block_size``: tokens of a memory block; ``topk``: blocks retrieved per layer and chunk
      (0: none); ``repr_topk``: tokens that represent a block, and the question.
    * ``exc_block_size``: most tokens of an execution chunk, at most ``n_local``.
    * ``lookup_interval``: while tokens come one at a time, blocks are looked up at the first of
      them and at positions that are multiples of this; those between attend to the blocks chosen
      last. 1: at every token, as in the paper; more makes writing after long texts faster.
    * ``question_weight``: the paper's β (section 3.2). None: 4 for Llama 3, else 1, as in the
      paper's experiments; a session's model decides.
    * ``keep_query_tokens``: in mode ``qllm``, attend to the question's tokens in every chunk,
      wherever they lie, as the paper says; False: as the published code, only while they are
      first tokens, in the window, or in a block that is retrieved.
    * ``mask``: ``exact`` attends to every key once; ``authors`` is the published code, in which
      every query of a chunk sees all keys that leave the window during the chunk.

    The defaults are window 1k. Raises InvalidType or InvalidValue.
    """

    mode: str = "qllm"
    n_init: int = 128
    n_local: int = _DEFAULT_WINDOW["n_local"]
    block_size: int = _DEFAULT_WINDOW["block_size"]
    topk: int = _DEFAULT_WINDOW["topk"]
    repr_topk: int = 4
    exc_block_size: int = _DEFAULT_WINDOW["exc_block_size"]
    lookup_interval: int = 1
    question_weight: float | None = None
    keep_query_tokens: bool = False
    mask: str = "exact"

    def __post_init__(self) -> None:
        put = object.__setattr__
        checks.choice("mode", self.mode, MODES)
        checks.choice("mask", self.mask, ("exact", "authors"))
        for name, low in (
            ("n_init", 0),
            ("n_local", 1),
            ("block_size", 1),
            ("topk", 0),
            ("repr_topk", 1),
            ("exc_block_size", 1),
            ("lookup_interval", 1),
        ):
            put(self, name, checks.integer(name, getattr(self, name), low))
        checks.flag("keep_query_tokens", self.keep_query_tokens)
        if self.exc_block_size > self.n_local:
            raise InvalidValue(
                f"exc_block_size {self.exc_block_size} must be at most n_local {self.n_local}: a "
                "chunk has to fit into the window; lower the one or raise the other"
            )
        if self.repr_topk > self.block_size:
            raise InvalidValue(
                f"repr_topk {self.repr_topk} must be at most block_size {self.block_size}: the "
                "tokens that represent a block come from the block"
            )
        if self.question_weight is not None:
            weight = checks.number("question_weight", self.question_weight, low=0)
            put(self, "question_weight", weight)

    @classmethod
    def window(cls, name: str, **settings: Any) -> MemoryConfig:
        """The settings of the paper's window ``"512"``, ``"1k"`` or ``"2k"``; ``settings`` are
        fields that take precedence. Raises InvalidValue for another name, InvalidType for an
        unknown field."""
        key = name.lower() if isinstance(name, str) else name
        checks.choice("window", key, tuple(WINDOWS))
        fields = [field.name for field in dataclasses.fields(cls)]
        for field in settings:
            if field not in fields:
                raise InvalidType(
                    f"MemoryConfig has no setting {field!r}{checks.nearest(field, fields)}"
                )
        return cls(**{**WINDOWS[key], **settings})

    @staticmethod
    def checked(value: object) -> MemoryConfig:
        """``value``. Raises InvalidType if it is something else."""
        if not isinstance(value, MemoryConfig):
            raise InvalidType(
                "memory must be a MemoryConfig, for instance MemoryConfig.window('1k'), "
                f"not {value!r}"
            )
        return value

    @classmethod
    def skim(cls) -> MemoryConfig:
        """The memory of :meth:`quickllama.Model.skim`: first tokens and the window of ``"512"``."""
        return cls.window("512", mode="stream")

    def resolved(self, model: ModelConfig) -> MemoryConfig:
        """The same with ``question_weight`` decided for ``model``: 4 for Llama 3, else 1."""
        if self.question_weight is not None:
            return self
        return dataclasses.replace(self, question_weight=4.0 if model.is_llama3 else 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How tokens are chosen, in transformers' words; neutral values switch a step off.

    * ``max_new_tokens``: at most so many; ``eos_token_id``: the ids that end the answer (None:
      the model's own, empty: none); ``stop_strings``: texts that end it.
    * ``do_sample``: draw from the distribution (else the best token), after
      ``repetition_penalty`` (which also holds without sampling), ``temperature``, ``top_k`` (0:
      all), ``top_p`` and ``min_p``, in this order.
    * ``seed``: of the draws; None: another one each time.

    Raises InvalidType or InvalidValue.
    """

    max_new_tokens: int = 256
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    eos_token_id: int | Iterable[int] | None = None
    stop_strings: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "max_new_tokens", checks.integer("max_new_tokens", self.max_new_tokens, 0))
        checks.flag("do_sample", self.do_sample)
        # Without sampling the temperature is not used, and 0 is a common way to say so.
        coldest = {"above": 0.0} if self.do_sample else {"low": 0.0}
        put(self, "temperature", checks.number("temperature", self.temperature, **coldest))
        put(self, "top_k", checks.integer("top_k", self.top_k, 0))
        put(self, "top_p", checks.number("top_p", self.top_p, above=0, high=1))
        put(self, "min_p", checks.number("min_p", self.min_p, low=0, high=1))
        penalty = checks.number("repetition_penalty", self.repetition_penalty, low=0.01, high=100)
        put(self, "repetition_penalty", penalty)
        if self.seed is not None:
            put(self, "seed", checks.integer("seed", self.seed, 0, 2**63 - 1))
        put(self, "eos_token_id", self._eos())
        put(self, "stop_strings", self._stops())

    def ends(self, usual: tuple[int, ...]) -> tuple[int, ...]:
        """The tokens that end an answer; ``usual``: the model's own."""
        own: Any = self.eos_token_id  # a tuple since it was checked
        return usual if own is None else tuple(own)

    def _eos(self) -> tuple[int, ...] | None:
        value = self.eos_token_id
        if value is None:
            return None
        several = isinstance(value, Iterable) and not isinstance(value, str | bytes)
        values: Any = value if several else [value]
        return tuple(checks.integer("eos_token_id", item, 0) for item in values)

    def _stops(self) -> tuple[str, ...]:
        value = self.stop_strings
        if value is None:
            return ()
        if isinstance(value, bytes) or not isinstance(value, Iterable):
            raise InvalidType(f"stop_strings must be a string or strings, not {value!r}")
        values = [value] if isinstance(value, str) else list(value)
        for item in values:
            if not isinstance(item, str):
                raise InvalidType(f"stop_strings must be strings, not {item!r}")
            if not item:
                raise InvalidValue("stop_strings holds an empty string, which would stop at once")
        return tuple(values)


class GenerationOptions(TypedDict, total=False):
    """The fields of :class:`GenerationConfig` as keyword arguments, and ``generation_config``: one
    of those, whose fields they take the place of."""

    generation_config: GenerationConfig
    max_new_tokens: int
    do_sample: bool
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int | None
    eos_token_id: int | Iterable[int] | None
    stop_strings: str | Sequence[str] | None


class AskOptions(GenerationOptions, total=False):
    """What a document may be asked with besides: see :meth:`quickllama.Document.ask`."""

    history: Sequence[str] | None
    retrieval: str | None
    use: str | None
    passages: int | None
    neighbours: int | None
    always_answer: bool
