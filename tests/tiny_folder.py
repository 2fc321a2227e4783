"""A whole tiny model as HuggingFace keeps it: config.json, safetensors, a byte-level tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file
from tiny_models import random_weights
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

SPECIAL = ["<|bos|>", "<|user|>", "<|end|>"]
TEMPLATE = (
    "{% for m in messages %}<|user|>{{ m['content'] | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\nANSWER:' }}{% endif %}"
)
CONFIG = {
    "model_type": "llama",
    "vocab_size": 256 + len(SPECIAL),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "eos_token_id": 258,
}


def byte_tokenizer() -> Tokenizer:
    """One token for each byte, and the special ones."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: index for index, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    return tokenizer


def write_folder(
    folder: Path, *, seed: int = 5, template: str | None = TEMPLATE, **config: Any
) -> Mapping[str, Any]:
    """Write the model into ``folder``; returns its configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    merged = {**CONFIG, **config}
    (folder / "config.json").write_text(json.dumps(merged))
    save_file(random_weights(merged, seed), folder / "model.safetensors")
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|end|>", "bos_token": "<|bos|>"}
    if template is not None:
        settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return merged
