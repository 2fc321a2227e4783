"""``quickllama info``: what a model or a document is, without loading weights."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from quickllama import _core, checkpoint
from quickllama.cli.terminal import print_json, tolerate_any_character
from quickllama.config import KV_DTYPE, MemoryConfig, ModelConfig
from quickllama.documents.document_file import checked_path, facts_of
from quickllama.documents.volume_file import is_document
from quickllama.documents.writing import write_safely
from quickllama.dtypes import kv_bytes
from quickllama.errors import Error
from quickllama.hub import locate

__all__ = ["info"]


def info(model: str, *, as_json: bool) -> int:
    """Describe the model at a path or by its name, or a document; returns the exit code."""
    if is_document(model):
        facts = facts_of(checked_path(model))
        _show(facts if as_json else {k: v for k, v in facts.items() if v is not None}, as_json)
    else:
        _show(_facts_of_model(model), as_json)
    return 0


def _facts_of_model(model: str) -> dict[str, Any]:
    path = locate(model)
    opened = checkpoint.open(path)
    config = ModelConfig.from_hf(opened.config)
    key_value_rows = 2 * config.num_hidden_layers * config.num_key_value_heads
    return {
        "path": str(path),
        "family": config.model_type,
        "parameters": config.parameters,
        "stored_as": opened.dtype,
        "matrices_stored_as": _names(opened.matrices),
        "dtype_stored_holds_them_as": _names(
            _core.held_as("stored", dtype) for dtype in opened.matrices
        ),
        "stored_bytes": _stored_bytes(path),
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "query_heads": config.num_attention_heads,
        "key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "vocabulary": config.vocab_size,
        "rope": f"{config.rope_type}, base {config.rope_theta:g}",
        "trained_context": config.max_position_embeddings,
        "chat_template": _has_chat_template(opened),
        "question_weight": MemoryConfig().resolved(config).question_weight,
        "key_value_bytes_per_token": key_value_rows * kv_bytes(KV_DTYPE, config.head_dim),
        "key_value_bytes_per_token_int8": key_value_rows * kv_bytes("int8", config.head_dim),
    }


def _show(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(facts)
        return
    tolerate_any_character()
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        write_safely(f"{name.replace('_', ' '):<{width}}  {_shown(value)}\n")


def _names(dtypes: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(dtypes))


def _has_chat_template(opened: checkpoint.Checkpoint) -> bool | None:
    """None if there is no tokenizer."""
    try:
        return opened.tokenizer().has_chat_template
    except Error:
        return None


def _stored_bytes(path: Path) -> int:
    """Bytes of the weight files."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))


def _shown(value: object) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)
