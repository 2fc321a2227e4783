"""What a GGUF file says as a HuggingFace checkpoint: configuration, names, rows, RoPE scaling."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import gguf
import gguf_files as files
import numpy as np
import pytest
from tiny_models import shapes

from quickllama import checkpoint
from quickllama.checkpoint.gguf import GGUFFile
from quickllama.checkpoint.gguf_checkpoint import GGUFCheckpoint
from quickllama.checkpoint.rope_factors import scaling_of_divisors
from quickllama.config import ModelConfig
from quickllama.errors import FileProblem, InvalidValue


@pytest.fixture
def save(tmp_path: Path) -> Callable[[bytes], Path]:
    """Writes a file and returns its path."""

    def write(data: bytes) -> Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(data)
        return path

    return write


def test_tiny_model(save: Callable[[bytes], Path]) -> None:
    model = checkpoint.open(save(files.changed()))
    assert model.config == {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 6,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    ModelConfig.from_hf(model.config)
    assert model.generation_config == {"bos_token_id": 1, "eos_token_id": 2}
    assert model.dtype == "q8_0"
    assert isinstance(model, GGUFCheckpoint)
    assert model.metadata["tokenizer.ggml.tokens"] == ["a", "é", "", "d", "e", "f"]
    found = {tensor.name: tensor for tensor in model.tensors()}
    assert {name: tensor.shape for name, tensor in found.items()} == dict(shapes(model.config))
    kinds = {"q8_0": np.uint8, "float16": np.float16, "bfloat16": np.uint16, "float32": np.float32}
    for tensor in found.values():
        assert tensor.data.dtype == kinds[tensor.dtype]
        assert tensor.data.flags.c_contiguous and not tensor.data.flags.writeable
        assert tensor.dtype == "q8_0" or tensor.data.shape == tensor.shape
    assert found["model.layers.0.mlp.down_proj.weight"].data.shape == (32, 64 // 32 * 34)


@pytest.mark.parametrize("alignment", [1, 2, 64, 4096])
@pytest.mark.parametrize("version", [2, 3])
def test_alignments_and_versions(
    save: Callable[[bytes], Path], alignment: int, version: int
) -> None:
    """What lies askew in the file is copied; the values are the same."""
    model = GGUFCheckpoint(save(files.changed()))
    plain = {tensor.name: tensor.data.copy() for tensor in model.tensors()}
    metadata = {"general.alignment": files.number(alignment), "x": files.number("odd")}
    data = files.changed(metadata, alignment=alignment, version=version)
    for tensor in GGUFCheckpoint(save(data)).tensors():
        assert tensor.data.flags.aligned and not tensor.data.flags.writeable
        np.testing.assert_array_equal(tensor.data, plain[tensor.name])


def to_gguf_order(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows as the converter orders them, one by one: pair i of a head becomes neighbours."""
    result = np.empty_like(rows)
    dim = len(rows) // heads
    for head in range(heads):
        for i in range(dim // 2):
            for j in range(2):
                result[head * dim + 2 * i + j] = rows[head * dim + i + j * dim // 2]
    return result


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_rows_of_q_and_k(save: Callable[[bytes], Path], architecture: str) -> None:
    biases = ("attn_q", "attn_k", "attn_v")
    tensors = files.tiny_tensors(biases)
    model = GGUFCheckpoint(save(files.assemble(files.tiny_metadata(architecture), tensors)))
    config = ModelConfig.from_hf(model.config)  # biases of q, k and v alone are Qwen2's
    assert config.model_type == "qwen2" and config.qkv_bias and not config.o_bias
    moved = 0
    for name, data, _, shape in model.tensors():
        parts = name.split(".")
        if parts[-2] not in ("q_proj", "k_proj", "v_proj"):
            continue
        stored = tensors[f"blk.0.attn_{parts[-2][0]}.{parts[-1]}"]
        original = np.frombuffer(stored.data, np.uint8).reshape(shape[0], -1)
        ours = data.reshape(shape[0], -1).view(np.uint8)
        if architecture == "llama" and parts[-2] != "v_proj":
            heads = files.HEADS if parts[-2] == "q_proj" else files.KV_HEADS
            ours = to_gguf_order(ours, heads)
            moved += 1
        np.testing.assert_array_equal(ours, original)
    assert moved == (4 if architecture == "llama" else 0)


def test_biases_and_separate_head(save: Callable[[bytes], Path]) -> None:
    parts = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    rng = np.random.default_rng(0)
    tensors = files.tiny_tensors(parts)
    tensors["output.weight"] = files.random_tensor(rng, (files.VOCAB, files.HIDDEN), 1)
    model = GGUFCheckpoint(save(files.assemble(files.tiny_metadata(), tensors)))
    config = ModelConfig.from_hf(model.config)
    assert config.qkv_bias and config.o_bias and config.mlp_bias
    assert not config.tie_word_embeddings
    expected = dict(shapes(model.config)) | {"lm_head.weight": (files.VOCAB, files.HIDDEN)}
    assert {tensor.name: tensor.shape for tensor in model.tensors()} == expected


def test_unknown_tensors_keep_their_names(save: Callable[[bytes], Path]) -> None:
    one = files.Stored((1,), 0, b"\0\0\0\0")
    names = ["blk.0.attn_qkv.weight", "blk.00.attn_norm.weight", "v.weight", "x", "é.weight"]
    model = GGUFCheckpoint(save(files.changed(tensors=dict.fromkeys(names, one))))
    assert {tensor.name for tensor in model.tensors()} >= set(names)


def test_metadata_that_becomes_configuration(save: Callable[[bytes], Path]) -> None:
    same = files.u32(files.ARRAY) + files.array(files.U32, files.u32(2), 1)
    model = GGUFCheckpoint(
        save(
            files.changed(
                {
                    "llama.attention.head_count_kv": same,
                    "llama.attention.sliding_window": files.number(64),
                    "llama.rope.freq_base": files.number(1e6),
                    "llama.rope.scaling.type": files.number("linear"),
                    "llama.rope.scaling.factor": files.number(2.0),
                    "llama.expert_count": files.number(0),
                    "tokenizer.ggml.bos_token_id": files.number(0xFFFFFFFF),
                    "tokenizer.ggml.eot_token_id": files.number(4),
                }
            )
        )
    )
    config = ModelConfig.from_hf(model.config)
    assert (config.model_type, config.sliding_window) == ("mistral", 64)
    assert (config.rope_type, config.rope_factor, config.rope_theta) == ("linear", 2, 1e6)
    assert config.eos_token_ids == (2, 4)
    assert "bos_token_id" not in model.config


# ---- RoPE divisors --------------------------------------------------------------------------


def written_divisors(
    theta: float, dim: int, factor: float, low: float, high: float, length: int
) -> np.ndarray:
    """Llama 3's divisors, one by one and in float32, as writers of GGUF files compute them."""
    result = []
    for i in range(0, dim, 2):
        frequency = np.float32(1) / np.float32(theta) ** np.float32(i / dim)
        wavelength = np.float32(2 * np.pi) / frequency
        if wavelength < length / high:
            result.append(1.0)
        elif wavelength > length / low:
            result.append(factor)
        else:
            smooth = (length / wavelength - low) / (high - low)
            result.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(result, np.float32)


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("factor", [8.0, 32.0])
@pytest.mark.parametrize("bounds", [(1.0, 4.0, 8192), (1.0, 4.0, 4096), (2.0, 8.0, 8192)])
def test_llama3_scaling_is_found(dim: int, factor: float, bounds: tuple[float, float, int]) -> None:
    divisors = written_divisors(500000.0, dim, factor, *bounds)
    rule = scaling_of_divisors(divisors, 500000.0)
    assert rule is not None and rule["rope_type"] == "llama3" and rule["factor"] == factor
    ratio = rule["original_max_position_embeddings"] / bounds[2]
    assert rule["low_freq_factor"] == pytest.approx(bounds[0] * ratio, rel=1e-3)
    assert rule["high_freq_factor"] == pytest.approx(bounds[1] * ratio, rel=1e-3)
    if bounds == (1.0, 4.0, 8192):
        assert (rule["low_freq_factor"], rule["high_freq_factor"]) == (1.0, 4.0)


def test_other_divisors() -> None:
    assert scaling_of_divisors(np.ones(32, np.float32), 1e4) is None
    linear = scaling_of_divisors(np.full(32, 4, np.float32), 1e4)
    assert linear == {"rope_type": "linear", "factor": 4}
    wrong = written_divisors(500000.0, 128, 8.0, 1.0, 4.0, 8192)
    wrong[40] *= 1.01
    for bad in (wrong, np.linspace(1, 8, 32, dtype=np.float32)):
        with pytest.raises(InvalidValue, match="do not follow"):
            scaling_of_divisors(bad, 500000.0)
    for value in (np.nan, np.inf, 0.5, -1):
        bad = np.ones(32, np.float32)
        bad[3] = value
        with pytest.raises(InvalidValue, match="finite numbers"):
            scaling_of_divisors(bad, 1e4)


def test_rope_freqs_in_a_file(save: Callable[[bytes], Path]) -> None:
    divisors = written_divisors(500000.0, files.HEAD_DIM, 8.0, 1.0, 4.0, 8192)
    theta = {"llama.rope.freq_base": files.number(500000.0)}
    tensor = files.Stored((files.HEAD_DIM // 2,), 0, divisors.tobytes())
    model = GGUFCheckpoint(save(files.changed(theta, {"rope_freqs.weight": tensor})))
    assert "rope_freqs.weight" not in {tensor.name for tensor in model.tensors()}
    config = ModelConfig.from_hf(model.config)
    assert (config.rope_type, config.rope_factor, config.rope_theta) == ("llama3", 8, 500000)
    assert (config.rope_low_freq_factor, config.rope_high_freq_factor) == (1, 4)
    assert config.rope_original_max_position == 8192
    short = files.Stored((1,), 0, b"\0\0\0\0")
    with pytest.raises(FileProblem, match="divisors"):
        GGUFCheckpoint(save(files.changed(tensors={"rope_freqs.weight": short})))


# ---- the real file --------------------------------------------------------------------------


def test_smollm2_configuration_and_names(smollm2_path: Path) -> None:
    model = checkpoint.open(smollm2_path)
    config = ModelConfig.from_hf(model.config)
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (576, 30, 49152)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (9, 3, 64)
    assert (config.rope_theta, config.rms_norm_eps) == (100000.0, 1e-5)
    assert config.tie_word_embeddings and config.rope_type == "default"
    assert model.dtype == "q4_1"
    assert model.config["eos_token_id"] == 2
    found = {tensor.name: tensor.shape for tensor in model.tensors()}
    assert found == dict(shapes(model.config))


def test_smollm2_opens_fast(smollm2_path: Path) -> None:
    opening, decoding = [], []
    for _ in range(5):
        begin = time.perf_counter()
        model = GGUFCheckpoint(smollm2_path)
        opening.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        tokens = model.metadata["tokenizer.ggml.tokens"]
        merges = model.metadata["tokenizer.ggml.merges"]
        decoding.append(time.perf_counter() - begin)
    assert (len(tokens), len(merges)) == (49152, 48900)
    assert min(opening) < 0.06
    assert min(decoding) < 0.12


@pytest.fixture(scope="module")
def gguf_reader(smollm2_path: Path) -> gguf.GGUFReader:
    """The gguf package's view of the file; it takes seconds."""
    return gguf.GGUFReader(smollm2_path)


def test_smollm2_metadata(smollm2_path: Path, gguf_reader: gguf.GGUFReader) -> None:
    metadata = GGUFFile(smollm2_path).metadata
    fields = {key: field for key, field in gguf_reader.fields.items() if key[:5] != "GGUF."}
    assert list(metadata) == list(fields)
    for key, field in fields.items():
        if len(field.data) > 1000 and field.types[1] == gguf.GGUFValueType.STRING:
            picks = [*range(0, len(field.data), 97), len(field.data) - 1]
            expected = [bytes(field.parts[field.data[i]]).decode() for i in picks]
            assert [metadata[key][i] for i in picks] == expected
        else:
            assert metadata[key] == field.contents()


def test_smollm2_bytes(smollm2_path: Path, gguf_reader: gguf.GGUFReader) -> None:
    """Every tensor has the bytes that the gguf package finds, rows of q and k in their order."""
    model = GGUFCheckpoint(smollm2_path)
    ours = list(model.tensors())
    assert len(ours) == len(gguf_reader.tensors) == 272
    for tensor, other in zip(ours, gguf_reader.tensors, strict=True):
        assert tensor.shape == tuple(int(n) for n in other.shape[::-1])
        assert tensor.dtype == {"F32": "float32"}.get(
            other.tensor_type.name, other.tensor_type.name.lower()
        )
        data = tensor.data
        if "attn_q." in other.name or "attn_k." in other.name:
            data = to_gguf_order(data, 9 if "attn_q" in other.name else 3)
        np.testing.assert_array_equal(data.view(np.uint8), np.asarray(other.data).view(np.uint8))
