"""Settings: what config.json files mean, what is refused, and the defaults."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from quickllama import Error, InvalidType, InvalidValue, MissingKey
from quickllama.config import WINDOWS, GenerationConfig, MemoryConfig, ModelConfig
from quickllama.cpu import thread_count
from quickllama.dtypes import held_dtype, kv_dtype_name

SMALL = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}

SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pad_token_id": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
    "transformers_version": "4.42.3",
    "use_cache": True,
    "vocab_size": 49152,
}

LLAMA32 = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "eos_token_id": [128001, 128008, 128009],
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}

QWEN25 = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


def test_absent_keys_have_the_defaults_of_transformers() -> None:
    config = ModelConfig.from_hf(SMALL)
    assert (config.num_key_value_heads, config.head_dim) == (4, 16)
    assert (config.rms_norm_eps, config.rope_theta, config.rope_type) == (1e-6, 10000, "default")
    assert not (config.qkv_bias or config.o_bias or config.mlp_bias or config.tie_word_embeddings)
    assert config.sliding_window == 0
    assert config.model_type == "llama"


def test_smollm2() -> None:
    config = ModelConfig.from_hf(SMOLLM2)
    assert (config.head_dim, config.num_key_value_heads, config.rope_theta) == (64, 3, 100000)
    assert config.eos_token_ids == (2,)
    assert config.parameters == 134_515_008  # as its model card counts
    assert not config.is_llama3


def test_llama32_in_both_dialects() -> None:
    config = ModelConfig.from_hf(LLAMA32)
    assert (config.rope_type, config.rope_factor, config.rope_low_freq_factor) == ("llama3", 32, 1)
    assert (config.rope_high_freq_factor, config.rope_original_max_position) == (4, 8192)
    assert config.eos_token_ids == (128001, 128008, 128009)
    assert config.parameters == 1_235_814_400
    newer = {k: v for k, v in LLAMA32.items() if k not in ("rope_theta", "rope_scaling")}
    newer["rope_parameters"] = {**LLAMA32["rope_scaling"], "rope_theta": 500000.0}
    newer["dtype"] = newer.pop("torch_dtype")
    assert ModelConfig.from_hf(newer) == config


def test_old_spelling_of_linear_scaling() -> None:
    config = ModelConfig.from_hf({**SMALL, "rope_scaling": {"type": "linear", "factor": 2.5}})
    assert (config.rope_type, config.rope_factor) == ("linear", 2.5)


def test_qwen2_has_biases_and_no_window_unless_it_uses_one() -> None:
    config = ModelConfig.from_hf(QWEN25)
    assert (config.qkv_bias, config.o_bias, config.sliding_window) == (True, False, 0)
    everywhere = {**QWEN25, "use_sliding_window": True, "max_window_layers": 0}
    assert ModelConfig.from_hf(everywhere).sliding_window == 32768
    nowhere = {**QWEN25, "use_sliding_window": True, "max_window_layers": 24}
    assert ModelConfig.from_hf(nowhere).sliding_window == 0
    with pytest.raises(InvalidValue, match="max_window_layers"):
        ModelConfig.from_hf({**QWEN25, "use_sliding_window": True})
    kinds = ["sliding_attention"] * 24
    listed = {**QWEN25, "use_sliding_window": True, "layer_types": kinds}
    assert ModelConfig.from_hf(listed).sliding_window == 32768
    with pytest.raises(InvalidValue, match="layer_types"):
        ModelConfig.from_hf({**listed, "layer_types": [*kinds[:-1], "full_attention"]})


def test_mistral_window() -> None:
    mistral = {**SMALL, "model_type": "mistral"}
    assert ModelConfig.from_hf({**mistral, "sliding_window": 32}).sliding_window == 32
    assert ModelConfig.from_hf({**mistral, "sliding_window": None}).sliding_window == 0
    assert ModelConfig.from_hf(mistral).sliding_window == 4096  # as transformers says


def test_llama_biases() -> None:
    config = ModelConfig.from_hf({**SMALL, "attention_bias": True, "mlp_bias": True})
    assert config.qkv_bias and config.o_bias and config.mlp_bias


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "yarn"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, "dynamic"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "longrope"),
        ({"rope_scaling": {"factor": 4.0}}, "factor"),
        ({"rope_scaling": {"type": "linear", "factor": 2, "beta_fast": 32}}, "beta_fast"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1]}}, "mrope"),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}}, "rope_theta"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rope_parameters"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"model_type": "gemma"}, "gemma"),
        ({"model_type": ["llama"]}, "model_type"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequence"),
        ({"is_causal": False}, "is_causal"),
        ({"num_local_experts": 8}, "num_local_experts"),
        ({"attention_chunk_size": 8192}, "attention_chunk_size"),
        ({"no_rope_layers": [1, 0]}, "no_rope_layers"),
        ({"model_type": "llama", "sliding_window": 64}, "sliding_window"),
        ({"model_type": "mistral", "attention_bias": True}, "attention_bias"),
        ({"model_type": "qwen2", "mlp_bias": True}, "mlp_bias"),
        ({"a_new_idea": 3}, "a_new_idea"),
    ],
)
def test_keys_that_change_the_numbers_are_refused_by_name(
    changes: dict[str, object], named: str
) -> None:
    with pytest.raises(InvalidValue, match=named):
        ModelConfig.from_hf({**SMALL, **changes})


def test_unknown_keys_can_be_allowed() -> None:
    config = ModelConfig.from_hf({**SMALL, "a_new_idea": 3}, ignore_config_keys=["a_new_idea"])
    assert config == ModelConfig.from_hf(SMALL)
    with pytest.raises(InvalidValue, match="did you mean 'rope_theta'"):
        ModelConfig.from_hf({**SMALL, "rope_teta": 3})


@pytest.mark.parametrize("name", SMALL)
def test_sizes_must_be_there(name: str) -> None:
    with pytest.raises(MissingKey, match=name):
        ModelConfig.from_hf({key: value for key, value in SMALL.items() if key != name})


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"vocab_size": 0}, InvalidValue, "vocab_size"),
        ({"vocab_size": 2**31}, InvalidValue, "vocab_size"),
        ({"hidden_size": "64"}, InvalidType, "hidden_size"),
        ({"hidden_size": True}, InvalidType, "hidden_size"),
        ({"num_hidden_layers": -1}, InvalidValue, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, InvalidValue, "num_key_value_heads"),
        ({"head_dim": 15}, InvalidValue, "head_dim"),
        ({"hidden_size": 66}, InvalidValue, "head_dim"),
        ({"rms_norm_eps": 0}, InvalidValue, "rms_norm_eps"),
        ({"rms_norm_eps": math.nan}, InvalidValue, "rms_norm_eps"),
        ({"rope_theta": -1}, InvalidValue, "rope_theta"),
        ({"rope_theta": "10000"}, InvalidType, "rope_theta"),
        ({"tie_word_embeddings": 1}, InvalidType, "tie_word_embeddings"),
        ({"rope_scaling": {"type": "linear"}}, MissingKey, "factor"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, InvalidValue, "rope_factor"),
        ({"rope_scaling": 7}, InvalidType, "rope_scaling"),
        ({"eos_token_id": "two"}, InvalidType, "eos_token_id"),
    ],
)
def test_wrong_sizes(changes: dict[str, object], error: type[Error], named: str) -> None:
    with pytest.raises(error, match=named):
        ModelConfig.from_hf({**SMALL, **changes})


def test_the_core_gets_its_keys_in_plain_types() -> None:
    core = ModelConfig.from_hf({**SMALL, "rope_theta": np.float32(500), "head_dim": 8.0}).core()
    kinds = {name: type(value) for name, value in core.items()}
    assert list(kinds.values()).count(int) == 9
    assert kinds["rope_theta"] is float and kinds["head_dim"] is int
    assert set(core) == {
        *SMALL,
        *("num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta", "rope_type"),
        *("rope_factor", "rope_low_freq_factor", "rope_high_freq_factor"),
        *("rope_original_max_position", "sliding_window", "qkv_bias", "o_bias", "mlp_bias"),
        "tie_word_embeddings",
    }


def test_memory_defaults_are_window_1k() -> None:
    memory = MemoryConfig()
    assert memory == MemoryConfig.window("1k")
    assert (memory.mode, memory.n_init, memory.repr_topk, memory.mask) == ("qllm", 128, 4, "exact")
    assert memory.lookup_interval == 1


@pytest.mark.parametrize(
    ("name", "n_local", "block_size", "topk", "exc"),
    [("512", 256, 64, 4, 256), ("1k", 512, 64, 8, 512), ("2K", 1024, 128, 8, 512)],
)
def test_windows(name: str, n_local: int, block_size: int, topk: int, exc: int) -> None:
    memory = MemoryConfig.window(name, mode="infllm", n_init=7)
    found = (memory.n_local, memory.block_size, memory.topk, memory.exc_block_size)
    assert found == (n_local, block_size, topk, exc)
    assert (memory.mode, memory.n_init, memory.repr_topk) == ("infllm", 7, 4)
    assert name.lower() in WINDOWS


def test_question_weight_depends_on_the_model() -> None:
    llama3, other = ModelConfig.from_hf(LLAMA32), ModelConfig.from_hf(SMOLLM2)
    assert MemoryConfig().resolved(llama3).question_weight == 4
    assert MemoryConfig().resolved(other).question_weight == 1
    assert MemoryConfig(question_weight=0).resolved(llama3).question_weight == 0
    more_tokens = dataclasses.replace(llama3, vocab_size=128_264)
    assert more_tokens.is_llama3
    assert not dataclasses.replace(llama3, vocab_size=128_000).is_llama3
    assert not ModelConfig.from_hf(QWEN25).is_llama3


@pytest.mark.parametrize(
    ("settings", "error", "named"),
    [
        ({"mode": "qlm"}, InvalidValue, "did you mean 'qllm'"),
        ({"mode": None}, InvalidType, "mode"),
        ({"mask": "none"}, InvalidValue, "mask"),
        ({"exc_block_size": 513}, InvalidValue, "exc_block_size 513 must be at most n_local 512"),
        ({"n_local": 100}, InvalidValue, "exc_block_size"),
        ({"lookup_interval": 0}, InvalidValue, "lookup_interval"),
        ({"lookup_interval": 1.5}, InvalidType, "lookup_interval"),
        ({"repr_topk": 0}, InvalidValue, "repr_topk"),
        ({"repr_topk": 65}, InvalidValue, "repr_topk"),
        ({"n_init": -1}, InvalidValue, "n_init"),
        ({"block_size": 0}, InvalidValue, "block_size"),
        ({"topk": -1}, InvalidValue, "topk"),
        ({"topk": 2.5}, InvalidType, "topk"),
        ({"keep_query_tokens": 1}, InvalidType, "keep_query_tokens must be True or False"),
        ({"question_weight": -0.5}, InvalidValue, "question_weight"),
        ({"question_weight": math.inf}, InvalidValue, "question_weight"),
        ({"question_weight": "1"}, InvalidType, "question_weight"),
    ],
)
def test_memory_checks(settings: dict[str, object], error: type[Error], named: str) -> None:
    with pytest.raises(error, match=named):
        MemoryConfig(**settings)  # type of each checked at the wall


def test_memory_extremes_are_legal() -> None:
    memory = MemoryConfig(n_init=0, topk=0, n_local=1, exc_block_size=1, block_size=1, repr_topk=1)
    assert memory.topk == 0
    with pytest.raises(InvalidValue, match="window"):
        MemoryConfig.window("4k")
    with pytest.raises(InvalidType, match="did you mean 'topk'"):
        MemoryConfig.window("1k", top_k=3)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"max_new_tokens": -1}, InvalidValue),
        ({"max_new_tokens": "5"}, InvalidType),
        ({"temperature": -1.0}, InvalidValue),
        ({"temperature": 0.0, "do_sample": True}, InvalidValue),
        ({"temperature": math.nan}, InvalidValue),
        ({"top_p": 0.0}, InvalidValue),
        ({"top_p": 1.5}, InvalidValue),
        ({"top_k": -1}, InvalidValue),
        ({"min_p": 2}, InvalidValue),
        ({"repetition_penalty": 0}, InvalidValue),
        ({"seed": -1}, InvalidValue),
        ({"eos_token_id": "2"}, InvalidType),
        ({"stop_strings": [3]}, InvalidType),
        ({"stop_strings": [""]}, InvalidValue),
        ({"do_sample": 1}, InvalidType),
    ],
)
def test_generation_checks(settings: dict[str, object], error: type[Error]) -> None:
    with pytest.raises(error, match=next(iter(settings))):
        GenerationConfig(**settings)


def test_generation_values_become_plain() -> None:
    options = GenerationConfig(eos_token_id=np.int64(3), stop_strings="end", temperature=0)
    assert options.eos_token_id == (3,) and options.stop_strings == ("end",)
    assert GenerationConfig(eos_token_id=[]).eos_token_id == ()


def test_names_of_formats() -> None:
    assert [held_dtype(name) for name in ("f32", "bf16", "int8")] == [
        "float32",
        "bfloat16",
        "int8",
    ]
    assert [kv_dtype_name(name) for name in ("bf16", "int8")] == ["bfloat16", "int8"]
    for names in (held_dtype, kv_dtype_name):
        with pytest.raises(InvalidValue, match="not kept"):
            names("f16")
        with pytest.raises(InvalidValue, match="did you mean 'float32'"):
            names("flot32")
        with pytest.raises(InvalidType, match="'float32'"):
            names(np.float32)
    with pytest.raises(InvalidValue, match="must be 'float32', 'bfloat16' or 'int8', not 'q4'"):
        kv_dtype_name("q4")


def test_threads_are_bounded() -> None:
    assert thread_count(64) == 64
    assert 1 <= thread_count() <= 64
    for wrong in (0, 65):
        with pytest.raises(InvalidValue, match="n_threads"):
            thread_count(wrong)
    with pytest.raises(InvalidType, match="n_threads"):
        thread_count("2")
