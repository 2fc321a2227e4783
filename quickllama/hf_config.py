"""What the keys of a HuggingFace ``config.json`` mean: computed, harmless, or refused by name.

Two dialects are read: ``rope_theta`` with ``rope_scaling`` (``type`` or ``rope_type``) and
``rope_parameters``; ``torch_dtype`` and ``dtype`` alike. Defaults of absent keys are those of the
model families in transformers. A key that changes the numbers is either computed or refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from quickllama.checks import flag, integer, nearest, number
from quickllama.errors import InvalidType, InvalidValue, MissingKey

__all__ = ["FAMILIES", "read_config"]


@dataclasses.dataclass(frozen=True)
class Family:
    """What differs between the families; the forward pass itself is the same."""

    models: str
    architectures: tuple[str, ...]
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)


FAMILIES: Mapping[str, Family] = {
    "llama": Family(
        "Llama 1 to 3.x, SmolLM 1 and 2, TinyLlama, CodeLlama, Vicuna, Yi, DeepSeek LLM",
        ("LlamaForCausalLM", "LLaMAForCausalLM", "LlamaModel"),
    ),
    "mistral": Family(
        "Mistral 7B and kin, Zephyr",
        ("MistralForCausalLM", "MistralModel"),
        {"sliding_window": 4096},
    ),
    "qwen2": Family(
        "Qwen 1.5, 2 and 2.5 (dense), QwQ, DeepSeek-R1-Distill-Qwen",
        ("Qwen2ForCausalLM", "Qwen2Model"),
        {"sliding_window": 4096, "max_window_layers": 28},
    ),
}

_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)

# Computed, or looked at, below.
_READ = frozenset(
    (
        *_SIZES,
        *("model_type", "architectures", "num_key_value_heads", "head_dim", "rms_norm_eps"),
        *("rope_theta", "rope_scaling", "rope_parameters", "tie_word_embeddings"),
        *("attention_bias", "mlp_bias", "sliding_window", "use_sliding_window"),
        *("max_window_layers", "layer_types", "max_position_embeddings", "eos_token_id"),
    )
)

# Values at which a key changes nothing; any other is refused.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "alibi": (False,),
    "attention_chunk_size": (None,),
    "attention_multiplier": (None,),
    "attn_logit_softcapping": (None,),
    "clip_qkv": (None,),
    "compression_config": (None,),
    "dual_chunk_attention_config": (None,),
    "embedding_multiplier": (None, 1),
    "final_logit_softcapping": (None,),
    "head_bias": (False,),
    "hidden_act": (None, "silu", "swish"),
    "hidden_activation": (None, "silu", "swish"),
    "is_causal": (None, True),
    "is_encoder_decoder": (False,),
    "lm_head_bias": (False,),
    "logit_scale": (None, 1),
    "logits_scaling": (None, 1),
    "no_rope_layers": (None, []),
    "num_experts": (None, 0),
    "num_experts_per_tok": (None, 0),
    "num_local_experts": (None, 0, 1),
    "partial_rotary_factor": (None, 1),
    "pruned_heads": (None, {}),
    "qk_norm": (None, False),
    "quantization_config": (None,),
    "query_pre_attn_scalar": (None,),
    "residual_multiplier": (None, 1),
    "rope_interleaved": (None, False),
    "rotary_pct": (None, 1),
    "sliding_window_pattern": (None,),
    "use_alibi": (False,),
    "use_mrope": (None, False),
    "use_qk_norm": (None, False),
}

# Nothing here changes a number of the forward pass: names, training, and generation settings of old
# files. Keys that start with an underscore are harmless too.
_HARMLESS_KEYS = """
    name_or_path auto_map torch_dtype dtype transformers_version transformers.js_config
    keys_to_ignore_at_inference unsloth_version unsloth_fixed is_llama_config onnx

    attention_dropout attention_probs_dropout_prob attn_pdrop embd_pdrop resid_pdrop dropout
    hidden_dropout hidden_dropout_prob residual_dropout embedding_dropout classifier_dropout
    initializer_range initializer_factor pretraining_tp gradient_checkpointing neftune_noise_alpha
    use_cache use_bfloat16 use_flash_attn tf_legacy_loss torchscript tie_encoder_decoder
    output_attentions output_hidden_states return_dict chunk_size_feed_forward is_decoder
    cross_attention_hidden_size xla_device attn_implementation

    max_sequence_length max_length model_max_length seq_length seq_len n_ctx
    original_max_position_embeddings tokenizer_class tokenizer_model_max_length padding_side

    bos_token_id pad_token_id unk_token_id sep_token_id cls_token_id mask_token_id
    decoder_start_token_id image_token_id im_start_token_id im_end_token_id prefix

    id2label label2id num_labels problem_type finetuning_task task_specific_params

    do_sample temperature top_k top_p typical_p min_length num_beams num_beam_groups
    num_return_sequences early_stopping repetition_penalty length_penalty diversity_penalty
    no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids begin_suppress_tokens
    suppress_tokens forced_bos_token_id forced_eos_token_id remove_invalid_values
    exponential_decay_length_penalty output_scores return_dict_in_generate max_new_tokens
    """
_HARMLESS = frozenset(_HARMLESS_KEYS.split())

_ROPE_KEY_LIST = """
    type rope_type rope_theta factor low_freq_factor high_freq_factor
    original_max_position_embeddings partial_rotary_factor attention_factor
    """
_ROPE_KEYS = frozenset(_ROPE_KEY_LIST.split())


def read_config(config: Mapping[str, Any], ignore: Collection[str] = ()) -> dict[str, Any]:
    """The fields of ModelConfig from the keys of a ``config.json``; sizes are not yet checked.

    ``ignore`` names keys that the caller declares harmless. Raises InvalidValue for a key that
    would change the numbers and is not computed, and for an unknown one; MissingKey for a size
    that is not there.
    """
    given = {key: value for key, value in config.items() if key not in ignore}
    model_type, family = _family(given)
    _refuse_foreign_keys(given)
    missing = [key for key in _SIZES if given.get(key) is None]
    if missing:
        raise MissingKey(
            f"the model's configuration lacks {', '.join(missing)}; a complete config.json of a "
            "Llama, Mistral or Qwen2 model has them"
        )
    qwen2 = model_type == "qwen2"
    bias = False if model_type == "mistral" else _flag(given, "attention_bias", False)
    if (qwen2 or model_type == "mistral") and "attention_bias" in given:
        raise InvalidValue(
            f"attention_bias is not a key of {model_type} models: its projections of queries, keys "
            f"and values {'always' if qwen2 else 'never'} have biases; remove the key"
        )
    heads = given["num_attention_heads"]
    kv_heads = given.get("num_key_value_heads")
    return {
        **{key: given[key] for key in _SIZES},
        "model_type": model_type,
        "num_key_value_heads": heads if kv_heads is None else kv_heads,
        "head_dim": _head_dim(given),
        "rms_norm_eps": given.get("rms_norm_eps", 1e-6),
        **_rope(given),
        "sliding_window": _sliding_window(given, model_type, family),
        "qkv_bias": True if qwen2 else bias,
        "o_bias": False if qwen2 else bias,
        "mlp_bias": _mlp_bias(given, model_type),
        "tie_word_embeddings": _flag(given, "tie_word_embeddings", False),
        "max_position_embeddings": given.get("max_position_embeddings"),
        "eos_token_ids": _eos(given),
    }


def _family(config: Mapping[str, Any]) -> tuple[str, Family]:
    model_type = config.get("model_type") or "llama"
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        known = "; ".join(f"{name!r} ({entry.models})" for name, entry in FAMILIES.items())
        raise InvalidValue(f"model_type {model_type!r} is not computed here; these are: {known}")
    architectures = config.get("architectures") or ()
    if not isinstance(architectures, list | tuple):
        raise InvalidType(f"architectures must be a list of names, not {architectures!r}")
    for architecture in architectures:
        if architecture not in family.architectures:
            raise InvalidValue(
                f"architectures holds {architecture!r}, which is not computed here; for model_type "
                f"{model_type!r} it may be {' or '.join(family.architectures)}"
            )
    return str(model_type), family


def _refuse_foreign_keys(config: Mapping[str, Any]) -> None:
    """Every key must be read, neutral, harmless or private."""
    for key, value in config.items():
        if not isinstance(key, str):
            raise InvalidType(f"the keys of a configuration are strings, not {key!r}")
        if key in _NEUTRAL:
            if not any(_same(value, neutral) for neutral in _NEUTRAL[key]):
                allowed = " or ".join(repr(neutral) for neutral in _NEUTRAL[key])
                raise InvalidValue(
                    f"{key} = {_short(value)} changes the model's numbers and is not computed "
                    f"here; only {allowed} is"
                )
        elif key not in _READ and key not in _HARMLESS and not key.startswith("_"):
            raise InvalidValue(
                f"the configuration has a key that is not known here, {key!r} = {_short(value)}, "
                f"and it may change the model's numbers{nearest(key, _READ)}; if it does not, "
                f"remove it or pass ignore_config_keys=[{key!r}]"
            )


def _same(value: Any, neutral: Any) -> bool:
    """Equal, without True passing for 1."""
    return bool(value == neutral) and isinstance(value, bool) == isinstance(neutral, bool)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _flag(config: Mapping[str, Any], key: str, default: bool) -> bool:
    value = config.get(key)
    return default if value is None else flag(key, value)


def _mlp_bias(config: Mapping[str, Any], model_type: str) -> bool:
    bias = _flag(config, "mlp_bias", False)
    if bias and model_type != "llama":
        raise InvalidValue(f"mlp_bias is not a key of {model_type} models; remove it")
    return bias


def _head_dim(config: Mapping[str, Any]) -> Any:
    if config.get("head_dim") is not None:
        return config["head_dim"]
    hidden = integer("hidden_size", config["hidden_size"], 1)
    heads = integer("num_attention_heads", config["num_attention_heads"], 1)
    if hidden % heads:
        raise InvalidValue(
            f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}, and the "
            "configuration has no head_dim; give one"
        )
    return hidden // heads


def _sliding_window(config: Mapping[str, Any], model_type: str, family: Family) -> int:
    """The window of mode ``full``, one for all layers; 0: none."""
    window = config.get("sliding_window", family.defaults.get("sliding_window"))
    layers = integer("num_hidden_layers", config["num_hidden_layers"], 1)
    kinds = config.get("layer_types")
    explicit_llama = config.get("model_type") == "llama"
    if explicit_llama and (window or config.get("use_sliding_window")):
        raise InvalidValue(
            "sliding_window is not a key of llama models, which attend to everything; remove it, "
            "or give model_type 'mistral'"
        )
    if model_type == "qwen2" or "use_sliding_window" in config:
        if not _flag(config, "use_sliding_window", False):
            window = None
        elif kinds is None:  # layers from max_window_layers on have the window
            first = integer(
                "max_window_layers",
                config.get("max_window_layers", family.defaults.get("max_window_layers", 0)),
                0,
            )
            kinds = ["full_attention"] * min(first, layers)
            kinds += ["sliding_attention"] * (layers - len(kinds))
    if kinds is not None:
        window = _one_window(kinds, layers, window)
    return 0 if window is None else integer("sliding_window", window, 0)


def _one_window(kinds: Any, layers: int, window: Any) -> Any:
    """``window`` if all layers slide, None if none does."""
    if not isinstance(kinds, list | tuple) or len(kinds) != layers:
        raise InvalidValue(f"layer_types must name one kind for each of the {layers} layers")
    unknown = [kind for kind in kinds if kind not in ("full_attention", "sliding_attention")]
    if unknown:
        raise InvalidValue(f"layer_types holds {unknown[0]!r}, which is not computed here")
    if len(set(kinds)) > 1:
        raise InvalidValue(
            "sliding_window holds for some layers only (layer_types, or use_sliding_window with "
            "max_window_layers), which is not computed here"
        )
    if kinds[0] == "sliding_attention" and not window:
        raise InvalidValue("layer_types says sliding_attention, and sliding_window gives no size")
    return window if kinds[0] == "sliding_attention" else None


def _eos(config: Mapping[str, Any]) -> tuple[int, ...]:
    value = config.get("eos_token_id")
    if value is None:
        return ()
    values = value if isinstance(value, list | tuple) else [value]
    return tuple(integer("eos_token_id", item, 0) for item in values)


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields rope_* of ModelConfig, from either dialect."""
    source, scaling = _rope_table(config)
    theta = config.get("rope_theta")
    inner = scaling.get("rope_theta")
    if theta is not None and inner is not None and theta != inner:
        raise InvalidValue(
            f"rope_theta is {theta} and {source}['rope_theta'] is {inner}; remove one of the two"
        )
    theta = inner if theta is None else theta
    kind = scaling.get("rope_type", scaling.get("type")) or "default"
    if kind not in ("default", "linear", "llama3"):
        raise InvalidValue(
            f"{source} asks for rope type {kind!r}, which is not computed here; "
            "'default', 'linear' and 'llama3' are"
        )
    for key, value in scaling.items():
        if key not in _ROPE_KEYS:
            raise InvalidValue(f"{source} has the key {key!r}, which is not computed here")
        if key in ("partial_rotary_factor", "attention_factor") and value not in (None, 1):
            raise InvalidValue(f"{source}[{key!r}] = {value!r} is not computed here; only 1 is")
    fields: dict[str, Any] = {"rope_type": kind, "rope_theta": 10000.0 if theta is None else theta}
    if kind == "default":
        if scaling.get("factor") not in (None, 1):
            raise InvalidValue(
                f"{source} has a factor, {scaling['factor']!r}, but no rope_type that uses it"
            )
        return fields
    names = {"factor": "rope_factor"}
    if kind == "llama3":
        names["low_freq_factor"] = "rope_low_freq_factor"
        names["high_freq_factor"] = "rope_high_freq_factor"
        names["original_max_position_embeddings"] = "rope_original_max_position"
    for key, field in names.items():
        if scaling.get(key) is None:
            raise MissingKey(f"{source} of rope type {kind!r} lacks {key!r}")
        fields[field] = scaling[key]
    return fields


def _rope_table(config: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The table that describes RoPE, and the name of the key that holds it."""
    old, new = config.get("rope_scaling"), config.get("rope_parameters")
    if old and new and old != new:
        raise InvalidValue("rope_scaling and rope_parameters are both given and differ; keep one")
    source, scaling = ("rope_parameters", new) if new else ("rope_scaling", old or {})
    if not isinstance(scaling, Mapping):
        raise InvalidType(f"{source} must be a table of keys, not {scaling!r}")
    if any(isinstance(value, Mapping) for value in scaling.values()):
        raise InvalidValue(f"{source} differs between layers, which is not computed here")
    if scaling.get("rope_theta") is not None:
        number(f"{source}['rope_theta']", scaling["rope_theta"], above=0)
    return source, scaling
