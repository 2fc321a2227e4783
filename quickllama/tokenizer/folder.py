"""A tokenizer from a HuggingFace folder: tokenizer.json and the small files beside it."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, processors

from quickllama.checkpoint.mapped_file import read_json
from quickllama.errors import FileProblem, InvalidType, InvalidValue
from quickllama.tokenizer.backend import Backend, TokenizerSource, known_cut_rule

__all__ = ["folder_source", "object_source"]

SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")
PROBE = "a"  # encoded with and without special tokens, to see what is put around it


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as problem:
        raise FileProblem(f"{path} is not UTF-8 text; download it again") from problem
    except OSError as problem:
        raise FileProblem(f"{path} cannot be read: {problem.strerror or problem}") from problem


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one if there is no such file."""
    return read_json(path) if path.exists() else {}


def _content(value: object, path: Path, name: str) -> str | None:
    """The string of a special token, which is written as a string, as an object with ``content``,
    or as null."""
    if isinstance(value, dict):
        value = value.get("content")
    if value is None or isinstance(value, str):
        return value
    raise InvalidType(
        f"{name} in {path} should be a string or an object with 'content', but is "
        f"{type(value).__name__}"
    )


def _special_names(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens' strings; tokenizer_config.json wins over special_tokens_map.json."""
    older = _read_object(folder / "special_tokens_map.json")
    found: dict[str, str] = {}
    for name in SPECIAL_NAMES:
        file_name, values = "tokenizer_config.json", config
        if name not in config:
            file_name, values = "special_tokens_map.json", older
        content = _content(values.get(name), folder / file_name, name)
        if content is not None:
            found[name] = content
    return found


def _end_ids(folder: Path) -> frozenset[int]:
    """``eos_token_id`` of generation_config.json, else of config.json: an integer or a list of
    them."""
    for file_name in ("generation_config.json", "config.json"):
        value = _read_object(folder / file_name).get("eos_token_id")
        if value is None:
            continue
        values = value if isinstance(value, list) else [value]
        if not all(type(entry) is int and entry >= 0 for entry in values):
            raise InvalidValue(
                f"eos_token_id in {folder / file_name} should be a token id or a list of them, but "
                f"is {value!r}"
            )
        return frozenset(values)
    return frozenset()


def _named_templates(value: object, path: Path) -> str | dict[str, str] | None:
    """A chat template as configurations hold it: a string, a list of ``{"name", "template"}``, or
    null."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, dict):
        value = [{"name": name, "template": template} for name, template in value.items()]
    if isinstance(value, list):
        named = {}
        for entry in value:
            if not isinstance(entry, dict) or not isinstance(entry.get("template"), str):
                break
            named[str(entry.get("name"))] = entry["template"]
        else:
            return named or None
    raise InvalidType(
        f"chat_template in {path} should be a string or a list of objects with 'name' and "
        "'template'"
    )


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | dict[str, str] | None:
    """The newest form wins, as in transformers: chat_template.jinja, chat_template.json,
    tokenizer_config.json."""
    alone = folder / "chat_template.jinja"
    if alone.exists():
        named = {"default": _read_text(alone)}
        for other in sorted((folder / "additional_chat_templates").glob("*.jinja")):
            named[other.stem] = _read_text(other)
        return named if len(named) > 1 else named["default"]
    older = folder / "chat_template.json"
    if older.exists():
        return _named_templates(_read_object(older).get("chat_template"), older)
    return _named_templates(config.get("chat_template"), folder / "tokenizer_config.json")


def _late_tokens(config: Mapping[str, Any], path: Path) -> Iterator[tuple[int, AddedToken]]:
    """The tokens of ``added_tokens_decoder``, by id: ``{"128000": {"content": ..., "special": true,
    ...}}``."""
    table = config.get("added_tokens_decoder") or {}
    if not isinstance(table, dict):
        raise InvalidType(f"added_tokens_decoder in {path} should be an object of ids and tokens")
    for key in sorted(table, key=lambda text: (len(text), text)):
        entry = table[key]
        if not key.isdecimal() or not isinstance(entry, dict):
            raise InvalidValue(f"added_tokens_decoder in {path} has a wrong entry {key!r}")
        content = _content(entry, path, f"added_tokens_decoder[{key!r}]")
        if content is None:
            raise InvalidValue(f"added_tokens_decoder[{key!r}] in {path} has no 'content'")
        flags = ("special", "lstrip", "rstrip", "normalized", "single_word")
        yield int(key), AddedToken(content, **{name: bool(entry.get(name)) for name in flags})


def _add_late_tokens(encoder: Tokenizer, config: Mapping[str, Any], path: Path) -> None:
    """Tokens that tokenizer_config.json has and tokenizer.json has not."""
    for index, token in _late_tokens(config, path):
        known = encoder.token_to_id(token.content)
        if known is None:
            encoder.add_tokens([token])
            known = encoder.token_to_id(token.content)
        if known != index:
            raise InvalidValue(
                f"{path} gives the token {token.content!r} the id {index}, but tokenizer.json "
                f"makes it {known}; "
                "the two files are not of one tokenizer"
            )


def _around(
    encoder: Tokenizer, config: Mapping[str, Any], names: Mapping[str, str]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that the post-processor puts before and after a text.

    For Llama's own classes ``add_bos_token`` and ``add_eos_token`` of tokenizer_config.json win, as
    in transformers (``LlamaTokenizerFast.update_post_processor``).
    """
    plain = encoder.encode(PROBE, add_special_tokens=False).ids
    full = encoder.encode(PROBE, add_special_tokens=True).ids
    start = next((i for i in range(len(full)) if full[i : i + len(plain)] == plain), len(full))
    if start == len(full):
        raise InvalidValue(
            "the post-processor in tokenizer.json changes the tokens of a text instead of adding "
            "to them, "
            "which is not supported"
        )
    prefix, suffix = tuple(full[:start]), tuple(full[start + len(plain) :])
    if str(config.get("tokenizer_class", "")).startswith("Llama"):
        for key, name in (("add_bos_token", "bos_token"), ("add_eos_token", "eos_token")):
            wanted = config.get(key)
            if not isinstance(wanted, bool):
                continue
            index = encoder.token_to_id(names.get(name, ""))
            ids = (index,) if wanted and index is not None else ()
            prefix, suffix = (ids, suffix) if name == "bos_token" else (prefix, ids)
    return prefix, suffix


def _merged_strings(model: Mapping[str, Any]) -> Iterator[str]:
    for merge in model.get("merges", ()):
        yield merge.replace(" ", "") if isinstance(merge, str) else "".join(merge)


def _build(folder: Path, config: Mapping[str, Any], names: Mapping[str, str]) -> Backend:
    path = folder / "tokenizer.json"
    text = _read_text(path)
    try:
        encoder = Tokenizer.from_str(text)
    except Exception as problem:  # the library raises the bare class
        raise FileProblem(
            f"{path} is not a tokenizer that the `tokenizers` library reads ({problem}); download "
            "it again, or update "
            "the library"
        ) from problem
    encoder.no_truncation()
    encoder.no_padding()
    _add_late_tokens(encoder, config, folder / "tokenizer_config.json")
    prefix, suffix = _around(encoder, config, names)
    # What it adds is known now; with this one, offsets keep the space before a word.
    encoder.post_processor = processors.ByteLevel(trim_offsets=False)
    document = json.loads(text)
    cuts = known_cut_rule(
        document["model"],
        document.get("normalizer"),
        document.get("pre_tokenizer"),
        _merged_strings(document["model"]),
    )
    decoder = document.get("decoder") or {}
    return Backend(encoder, cuts, prefix, suffix, byte_level=decoder.get("type") == "ByteLevel")


def folder_source(path: str | os.PathLike[str]) -> TokenizerSource:
    """Read the small files of a HuggingFace folder; tokenizer.json itself is read by ``.build()``.

    Raises FileProblem for a missing or broken file, InvalidType or InvalidValue for wrong contents.
    """
    folder = Path(path)
    if not (folder / "tokenizer.json").is_file():
        raise FileProblem(
            f"{folder} has no tokenizer.json, from which the tokenizer is built (tokenizer.model "
            "alone is not read); "
            "save the tokenizer with a fast class of transformers into this folder"
        )
    config = _read_object(folder / "tokenizer_config.json")
    names = _special_names(folder, config)
    return TokenizerSource(
        build=lambda: _build(folder, config, names),
        chat_template=_chat_template(folder, config),
        special_names=names,
        end_ids=_end_ids(folder),
    )


def object_source(tokenizer: object) -> TokenizerSource:
    """Of a ``tokenizers.Tokenizer``, or of a fast tokenizer of transformers, through the files that
    it writes. Raises InvalidType for anything else."""
    save = getattr(tokenizer, "save_pretrained", None)
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(tokenizer, Tokenizer):
            tokenizer.save(f"{folder}/tokenizer.json")
        elif callable(save) and hasattr(tokenizer, "backend_tokenizer"):
            save(folder)
        else:
            raise InvalidType(
                "a tokenizers.Tokenizer or a fast tokenizer of transformers can be taken, not "
                f"{type(tokenizer).__name__}"
            )
        source = folder_source(folder)
        built = source.build()
    return dataclasses.replace(source, build=lambda: built)
