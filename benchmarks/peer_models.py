"""The measured model in the formats that peers read, made from one GGUF file."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

GGUF_TYPES = {"float32": "F32", "bfloat16": "BF16", "q8_0": "Q8_0", "q4_1": "Q4_1"}


def for_transformers(model: Path, folder: Path) -> Path:
    """A HuggingFace folder with float32 weights; ``model`` itself if it is one. transformers
    converts to its dtype when it loads."""
    if model.is_dir():
        return model
    core = importlib.import_module("quickllama._core")
    checkpoint = importlib.import_module("quickllama.checkpoint").open(model)
    target = folder / "transformers"
    target.mkdir()
    (target / "config.json").write_text(json.dumps(checkpoint.config), "utf-8")
    weights = {}
    for name, data, dtype, shape in checkpoint.tensors():
        count = 1
        for size in shape:
            count *= size
        weights[name] = core.decode(data, dtype, count).reshape(shape)
    save = importlib.import_module("safetensors.numpy").save_file
    save(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


def for_llamacpp(model: Path, dtype: str, folder: Path) -> Path:
    """A GGUF file with matrices of ``dtype`` (a key of :data:`GGUF_TYPES`), made from the one
    given; ``model`` itself for ``"stored"``."""
    if dtype == "stored":
        return model
    gguf = importlib.import_module("gguf")
    reader = gguf.GGUFReader(model)
    target = folder / f"{dtype}.gguf"
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        if field.name in ("general.file_type", "general.alignment"):
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    kind = getattr(gguf.GGMLQuantizationType, GGUF_TYPES[dtype])
    plain = gguf.GGMLQuantizationType.F32
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        held = kind if values.ndim > 1 else plain
        packed = gguf.quantize(values, held)
        writer.add_tensor(tensor.name, packed, raw_dtype=None if held is plain else held)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
