"""Opening a model: folders with one file or shards, GGUF files, and what is said when it fails."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import gguf_files
import numpy as np
import pytest
import safetensors.numpy
from tiny_models import shapes

from quickllama import checkpoint
from quickllama.checkpoint.mapped_file import MappedFile, parse_json, read_json
from quickllama.config import ModelConfig
from quickllama.errors import FileProblem, InvalidType

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "tie_word_embeddings": True,
    "torch_dtype": "float16",
}
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def weights() -> dict[str, np.ndarray]:
    """Tensors for CONFIG: matrices in float16, norms in float32."""
    rng = np.random.default_rng(0)
    return {
        name: rng.standard_normal(shape).astype(np.float32 if len(shape) == 1 else np.float16)
        for name, shape in shapes(CONFIG)
    }


def save_shards(folder: Path, parts: dict[str, dict[str, np.ndarray]], **index: str) -> None:
    """Shards and their index; ``index``: changes to it."""
    for name, tensors in parts.items():
        safetensors.numpy.save_file(tensors, folder / name)
    table = {tensor: name for name, tensors in parts.items() for tensor in tensors} | index
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": table}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a config.json and nothing else."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def check(model: checkpoint.Checkpoint) -> None:
    """The tensors are those of ``weights()``."""
    expected = weights()
    found = {tensor.name: tensor for tensor in model.tensors()}
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name].data, values)
        assert found[name].dtype == values.dtype.name
        assert found[name].shape == values.shape


@pytest.mark.parametrize("name", [SINGLE, "weights.safetensors"])
def test_one_file(folder: Path, name: str) -> None:
    safetensors.numpy.save_file(weights(), folder / name)
    model = checkpoint.open(str(folder))
    assert model.path == folder
    assert model.config == CONFIG
    assert model.generation_config == {}
    assert model.dtype == "float16"
    ModelConfig.from_hf(model.config)
    check(model)


def test_shards(folder: Path) -> None:
    items = list(weights().items())
    parts = {f"model-0000{i + 1}-of-00003.safetensors": dict(items[i::3]) for i in range(3)}
    save_shards(folder, parts)
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    model = checkpoint.open(folder)
    assert model.generation_config == {"eos_token_id": [1, 2]}
    check(model)


def test_a_whole_file_comes_before_an_index(folder: Path) -> None:
    safetensors.numpy.save_file(weights(), folder / SINGLE)
    (folder / INDEX).write_text("{")
    check(checkpoint.open(folder))


def test_a_link_to_a_file_elsewhere(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The hub's cache is made of links."""
    blob = tmp_path_factory.mktemp("blobs") / "0123"
    safetensors.numpy.save_file(weights(), blob)
    (folder / SINGLE).symlink_to(blob)
    check(checkpoint.open(folder))


@pytest.mark.parametrize(
    "name",
    [
        *("../model.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..\\b.safetensors"),
        *("C:b.safetensors", ".safetensors", "pytorch_model.bin", "", "a\0.safetensors"),
    ],
)
def test_shards_outside_the_folder(folder: Path, name: str) -> None:
    save_shards(folder, {"a.safetensors": weights()}, **{"model.norm.weight": name})
    with pytest.raises(FileProblem, match="plain name of a safetensors file"):
        checkpoint.open(folder)


@pytest.mark.parametrize(
    ("index", "text"),
    [
        ({"x": "b.safetensors"}, r"names b\.safetensors, which is not in the folder"),
        ({"x": "a" * 300 + ".safetensors"}, "not in the folder"),
        ({"x": "a.safetensors"}, r"says that a\.safetensors holds 'x', and it does not"),
        ({"x": 5}, "plain name"),
        ({"x": ["a.safetensors"]}, "plain name"),
    ],
)
def test_lying_index(folder: Path, index: dict[str, Any], text: str) -> None:
    save_shards(folder, {"a.safetensors": weights()}, **index)
    with pytest.raises(FileProblem, match=text):
        checkpoint.open(folder)


def test_a_tensor_in_two_shards(folder: Path) -> None:
    one = {"model.norm.weight": np.ones(8, np.float32)}
    save_shards(folder, {"a.safetensors": weights(), "b.safetensors": one})
    with pytest.raises(FileProblem, match=r"in both a\.safetensors and b\.safetensors"):
        checkpoint.open(folder)


def test_a_tensor_that_the_index_does_not_name(folder: Path) -> None:
    tensors = weights()
    save_shards(folder, {"a.safetensors": tensors})
    tensors["extra"] = np.ones(1, np.float32)
    safetensors.numpy.save_file(tensors, folder / "a.safetensors")
    with pytest.raises(FileProblem, match=r"holds 'extra', which .* does not name"):
        checkpoint.open(folder)


@pytest.mark.parametrize("text", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_an_index_of_another_form(folder: Path, text: str) -> None:
    (folder / INDEX).write_text(text)
    with pytest.raises(FileProblem, match=r"weight_map|not an object"):
        checkpoint.open(folder)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ((), r"no model\.safetensors; a folder as"),
        (("pytorch_model.bin",), r"only pytorch_model\.bin, which can run code"),
        (("pytorch_model-00001-of-00002.bin",), "save_pretrained writes safetensors"),
        (("consolidated.00.pth",), r"only consolidated\.00\.pth"),
        (("model.Q4_1.gguf",), r"give the GGUF file itself: .*Q4_1\.gguf"),
        (("adapter_model.safetensors",), "merge it into its base model"),
        (("a.safetensors", "b.safetensors"), "holds 2 safetensors files and no"),
        ((SINGLE,), "is empty"),
    ],
)
def test_folders_without_a_model(folder: Path, names: tuple[str, ...], text: str) -> None:
    for name in names:
        (folder / name).touch()
    with pytest.raises(FileProblem, match=text):
        checkpoint.open(folder)


def test_paths_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match=r"has no config\.json; a folder as"):
        checkpoint.open(tmp_path)
    (tmp_path / "model.gguf").write_bytes(gguf_files.changed())
    with pytest.raises(FileProblem, match="give the GGUF file itself"):
        checkpoint.open(tmp_path)
    with pytest.raises(FileProblem, match="no file or folder"):
        checkpoint.open(tmp_path / "nothing")
    with pytest.raises(FileProblem, match="no file or folder"):
        checkpoint.open("a\0b")
    with pytest.raises(FileProblem, match="no file or folder"):
        checkpoint.open("a" * 5000)
    with pytest.raises(InvalidType, match="not int"):
        checkpoint.open(5)
    (tmp_path / SINGLE).touch()
    with pytest.raises(FileProblem, match="give its folder"):
        checkpoint.open(tmp_path / SINGLE)


def test_a_gguf_file_of_any_name(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(gguf_files.changed())
    assert checkpoint.open(tmp_path / "weights").dtype == "q8_0"


def test_a_pipe_does_not_hang(folder: Path) -> None:
    os.mkfifo(folder / SINGLE)
    os.mkfifo(folder / "model.gguf")
    for path in (folder, folder / "model.gguf"):
        with pytest.raises(FileProblem, match="not a regular file"):
            checkpoint.open(path)
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    with pytest.raises(FileProblem, match="is a folder"):
        checkpoint.open(folder)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"{", "valid JSON"),
        (b"[1]", "a JSON list, not an object"),
        (b"null", "not an object"),
        (b'"\xfc"', r"not UTF-8 text \(byte 1\)"),
        (b"\xff\xfe{\0}\0", "not UTF-8"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "'c' stands there twice"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a": ' + b"1" * 10_000 + b"}", "valid JSON"),
    ],
)
def test_bad_json(folder: Path, text: bytes, sentence: str) -> None:
    with pytest.raises(FileProblem, match=sentence):
        parse_json(text, "it")
    for name in ("config.json", "generation_config.json"):
        safetensors.numpy.save_file(weights(), folder / SINGLE)
        (folder / name).write_bytes(text)
        with pytest.raises(FileProblem, match=sentence):
            checkpoint.open(folder)


def test_large_json_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(FileProblem, match="too many for a JSON file"):
        read_json(path)


def test_a_mapped_file_is_read_only(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"abc")
    data = MappedFile(path).bytes
    path.unlink()
    assert data.tobytes() == b"abc"
    with pytest.raises(ValueError, match="read-only"):
        data[0] = 1


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_released_pages_leave_memory_and_stay_valid(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(range(256)) * (1 << 18))
    file = MappedFile(path)
    before = resident()
    total = int(file.bytes.sum(dtype=np.int64))
    read = resident()
    file.release(5, len(file.bytes))
    assert read - before > 60 << 20
    assert resident() - before < 16 << 20
    assert int(file.bytes.sum(dtype=np.int64)) == total
    for begin, end in ((0, 0), (1 << 26, 1 << 26), ((1 << 26) - 1, 1 << 26), (4096, 4096)):
        file.release(begin, end)
