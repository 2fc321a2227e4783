"""A model in a GGUF file: its metadata as a HuggingFace configuration, its tensors by their
HuggingFace names and in HuggingFace's order of rows.

Sources: ggml's docs/gguf.md for the keys; llama.cpp's converter and ``llama_model`` loader for
names, defaults and the order of rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from quickllama.checkpoint.gguf import GGUFFile, Metadata
from quickllama.checkpoint.rope_factors import linear_scaling, scaling_of_divisors
from quickllama.checkpoint.tensor import Checkpoint, Tensor, matrix_dtypes, view
from quickllama.errors import FileProblem, InvalidValue

if TYPE_CHECKING:
    from quickllama.tokenizer import Tokenizer

__all__ = ["GGUFCheckpoint"]

ROPE_FREQS = "rope_freqs.weight"

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NAME = re.compile(r"(?:blk\.(\d{1,6})\.)?(\w+)\.(weight|bias)", re.ASCII)

_REQUIRED = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}

# Keys of the architecture that are read below, or change no number.
_KNOWN = frozenset(
    (
        *_REQUIRED.values(),
        *("context_length", "vocab_size", "tensor_data_layout", "attention.head_count_kv"),
        *("attention.key_length", "attention.value_length", "attention.sliding_window"),
        *("rope.dimension_count", "rope.freq_base", "rope.scale_linear", "rope.scaling.type"),
        *("rope.scaling.factor", "rope.scaling.original_context_length"),
        "rope.scaling.finetuned",
    )
)
# Values at which a key changes nothing; any other is refused.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "logit_scale": (1,),
    "pooling_type": (0,),
    "rope.scaling.attn_factor": (1,),
    "use_parallel_residual": (False,),
}


class GGUFCheckpoint(Checkpoint):
    """One GGUF file of architecture ``llama`` (Mistral and SmolLM2 among them) or ``qwen2``.

    ``metadata`` is the file's own, by GGUF's keys. Raises FileProblem if the file is damaged,
    InvalidValue if it holds something that is not computed here; unknown tensors are passed on
    under their GGUF names, for the model to refuse.
    """

    metadata: Metadata

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = GGUFFile(path)
        self.metadata = self._file.metadata
        if self.metadata.get("split.count", 1) not in (0, 1):
            raise InvalidValue(
                f"{path} is one part of a model in {self.metadata['split.count']!r:.20} files; "
                "join them with llama-gguf-split --merge"
            )
        self._architecture = self.metadata.get("general.architecture")
        if self._architecture not in ("llama", "qwen2"):
            raise InvalidValue(
                f"{path} holds a model of architecture {self._architecture!r:.60}; 'llama' "
                "(Mistral and SmolLM2 among them) and 'qwen2' are computed here"
            )
        self.config = self._read_config()
        self.generation_config = {
            key: self.config[key] for key in ("bos_token_id", "eos_token_id") if key in self.config
        }
        tensors = self._file.tensors.values()
        self.matrices = matrix_dtypes((entry.dtype, entry.shape) for entry in tensors)
        self.dtype = next(iter(self.matrices), "float32")

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor once, one at a time, in the order of the file; rows of q and k that the
        file holds in another order are copied, everything else lies over the mapped file."""
        for name, entry in self._file.tensors.items():
            if name == ROPE_FREQS:
                continue
            data = view(self._file.bytes_of(name), entry.dtype, entry.shape)
            if self._architecture == "llama" and re.match(r"blk\.\d+\.attn_[qk]\.", name):
                data = self._reorder(name, data)
            yield Tensor(_hf_name(name), data, entry.dtype, entry.shape)
            self._file.release(name)

    @property
    def has_tokenizer(self) -> bool:
        """Whether there is a tokenizer."""
        return "tokenizer.ggml.model" in self.metadata

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the file's metadata."""
        from quickllama.tokenizer import Tokenizer

        # A copy, so that the decoded lists go when the tokenizer is built.
        return Tokenizer.from_gguf(self.metadata.copy())

    def _reorder(self, name: str, data: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Rows (of a bias: values) of q or k, from GGUF's order to HuggingFace's.

        RoPE turns pairs. For ``llama`` GGUF has a pair's rows side by side, HuggingFace has them
        D/2 apart: in each head, row 2i + j of the file is row i + j D/2 there (llama.cpp,
        ``LlamaModel.permute``). Rows are moved as raw bytes, whatever their format.
        """
        key = "num_attention_heads" if ".attn_q." in name else "num_key_value_heads"
        heads = self.config[key]
        if data.shape[0] % (2 * heads):
            raise FileProblem(
                f"{self.path}: tensor {name!r} has {data.shape[0]} rows, which {heads} heads of an "
                "even size cannot share"
            )
        half = data.shape[0] // (2 * heads)
        pairs = data.reshape((heads, half, 2, *data.shape[1:]))
        result = np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(data.shape)
        result.flags.writeable = False
        return result

    def _read_config(self) -> dict[str, Any]:
        """The keys of a HuggingFace ``config.json`` that say the same as the metadata."""
        self._refuse_foreign_keys()
        config: dict[str, Any] = {name: self._number(key) for name, key in _REQUIRED.items()}
        heads = config["num_attention_heads"]
        kv_heads = self._number("attention.head_count_kv", heads)
        for count in (heads, kv_heads, config["hidden_size"]):
            if type(count) is not int or count < 1:
                raise FileProblem(f"{self.path}: numbers of heads and sizes must be at least 1")
        config["num_key_value_heads"] = kv_heads
        head_dim = self._number("attention.key_length", config["hidden_size"] // heads)
        for key in ("attention.value_length", "rope.dimension_count"):
            if self._number(key, head_dim) != head_dim:
                raise InvalidValue(
                    f"{self.path}: {key} is {self._number(key)}, and heads have {head_dim} "
                    "dimensions; only the same number is computed here"
                )
        theta = self._number("rope.freq_base", 10000.0)
        config |= {"head_dim": head_dim, "rope_theta": theta, "vocab_size": self._vocab_size()}
        if (context := self._number("context_length", 0)) != 0:
            config["max_position_embeddings"] = context
        if (scaling := self._rope_scaling(theta, head_dim)) is not None:
            config["rope_scaling"] = scaling
        tensors = self._file.tensors
        config["tie_word_embeddings"] = "output.weight" not in tensors
        config |= self._family()
        config |= self._token_ids()
        return config

    def _refuse_foreign_keys(self) -> None:
        """Every key of the architecture must be read, neutral or harmless."""
        for key in self.metadata:
            prefix, _, name = key.partition(".")
            if prefix != self._architecture or name in _KNOWN:
                continue
            value = self.metadata[key]
            if name not in _NEUTRAL or value not in _NEUTRAL[name]:
                raise InvalidValue(
                    f"{self.path} has the metadata {key!r} = {value!r:.60}, which may change the "
                    "model's numbers and is not computed here; take a plain Llama, Mistral, "
                    "SmolLM2 or Qwen2 model"
                )

    def _number(self, name: str, default: int | float | None = None) -> int | float:
        """A number of the architecture's metadata, or one list that says the same for all layers.

        A float is the shortest decimal that the stored float32 comes from: 1e-05, as config.json
        has it, not 9.999999747378752e-06.
        """
        key = f"{self._architecture}.{name}"
        value = self.metadata.get(key, default)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]
        if isinstance(value, float):
            with np.errstate(over="ignore"):
                value = float(str(np.float32(value)))
        if value is None:
            raise FileProblem(f"{self.path} lacks the metadata {key!r}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidValue(
                f"{self.path}: {key} must be one number for all layers, not {value!r:.60}"
            )
        return value

    def _vocab_size(self) -> int:
        embedding = self._file.tensors.get("token_embd.weight")
        if embedding is None:
            raise FileProblem(f"{self.path} has no token_embd.weight: it is not a whole model")
        rows = embedding.shape[0]
        if self._number("vocab_size", rows) != rows:
            raise FileProblem(
                f"{self.path} says that the vocabulary has {self._number('vocab_size')} tokens, "
                f"and token_embd.weight has {rows} rows"
            )
        return rows

    def _rope_scaling(self, theta: float, head_dim: float) -> dict[str, Any] | None:
        prefix = f"{self._architecture}.rope."
        kind = self.metadata.get(prefix + "scaling.type")
        factor = "rope.scaling.factor"
        if prefix + "scaling.factor" not in self.metadata:
            factor = "rope.scale_linear"  # its older name
        linear = linear_scaling(kind, self._number(factor, 1.0))
        entry = self._file.tensors.get(ROPE_FREQS)
        if entry is None:
            return linear
        if entry.dtype != "float32" or entry.shape != (head_dim // 2,) or not theta > 0:
            raise FileProblem(
                f"{self.path}: {ROPE_FREQS} must hold {head_dim / 2:g} float32 divisors, not "
                f"{entry.dtype} of shape {entry.shape}"
            )
        divisors = view(self._file.bytes_of(ROPE_FREQS), entry.dtype, entry.shape)
        scaling = scaling_of_divisors(divisors, theta)
        if linear is not None and scaling is not None:
            raise InvalidValue(
                f"{self.path} has both RoPE scaling by {linear['factor']} and {ROPE_FREQS}, which "
                "is not computed here"
            )
        return scaling or linear

    def _family(self) -> dict[str, Any]:
        """model_type and what depends on it: biases, and the sliding window."""
        tensors = self._file.tensors
        window = self._number("attention.sliding_window", 0)
        qkv_bias = "blk.0.attn_q.bias" in tensors
        o_bias = "blk.0.attn_output.bias" in tensors
        if self._architecture == "qwen2" or (qkv_bias and not o_bias):
            if window:
                raise InvalidValue(
                    f"{self.path}: attention.sliding_window {window} is not computed for Qwen2, "
                    "as GGUF does not say for which layers it holds"
                )
            return {"model_type": "qwen2"}
        if window:
            return {"model_type": "mistral", "sliding_window": window}
        mlp_bias = "blk.0.ffn_up.bias" in tensors
        return {"model_type": "llama", "attention_bias": qkv_bias, "mlp_bias": mlp_bias}

    def _token_ids(self) -> dict[str, Any]:
        """bos_token_id, and eos_token_id: every token that ends an answer."""
        ids: dict[str, int] = {}
        for name in ("bos", "eos", "eot", "eom"):
            value = self.metadata.get(f"tokenizer.ggml.{name}_token_id")
            if value is None or value in (-1, 0xFFFFFFFF):  # none
                continue
            if type(value) is not int or not 0 <= value < self._vocab_size():
                raise FileProblem(
                    f"{self.path}: tokenizer.ggml.{name}_token_id must be a token of the "
                    f"vocabulary, below {self._vocab_size()}, not {value!r:.40}"
                )
            ids[name] = value
        result: dict[str, Any] = {"bos_token_id": ids["bos"]} if "bos" in ids else {}
        ends = list(dict.fromkeys(ids[name] for name in ("eos", "eot", "eom") if name in ids))
        if ends:
            result["eos_token_id"] = ends[0] if len(ends) == 1 else ends
        return result


def _hf_name(name: str) -> str:
    """HuggingFace's name of a GGUF tensor; a name that is not known stays as it is."""
    found = _NAME.fullmatch(name)
    if found is None:
        return name
    layer, part, kind = found.groups()
    if layer is None:
        return f"{_NAMES[part]}.{kind}" if part in _NAMES else name
    if part not in _LAYER_NAMES or layer != str(int(layer)):
        return name
    return f"model.layers.{layer}.{_LAYER_NAMES[part]}.{kind}"
