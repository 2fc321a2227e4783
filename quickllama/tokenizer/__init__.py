"""Text to token ids and back, for HuggingFace folders and GGUF files, by `tokenizers`."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, overload

import numpy as np
import numpy.typing as npt
import tokenizers

from quickllama.chat import ChatTemplate
from quickllama.errors import InvalidType, InvalidValue
from quickllama.tokenizer.backend import Backend, TokenizerSource
from quickllama.tokenizer.cuts import (
    SPACE,
    AddedTokens,
    CutRule,
    Piece,
    cut_text,
    last_cut,
    tried_cut,
)
from quickllama.tokenizer.folder import folder_source, object_source
from quickllama.tokenizer.gguf import gguf_source
from quickllama.tokenizer.stream import MAX_ID, TextStream, check_ids

__all__ = ["TextStream", "Tokenizer", "checked_text"]

# Long enough to cost nothing, short enough that one piece takes some megabytes.
PIECE_CHARACTERS = 1 << 16
_IN_NO_VOCABULARY = "\U0010fffd"
TRIED_CHARACTERS = 1 << 12  # of a growing text without a safe place

_SURROGATE = re.compile("[\ud800-\udfff]")

Ids = Sequence[int] | npt.NDArray[np.integer[Any]]


def checked_text(text: object, before: int = 0) -> str:
    """A text to encode. Raises InvalidType, or InvalidValue for half of a character, whose place
    counts the characters ``before`` the text."""
    if not isinstance(text, str):
        raise InvalidType(
            f"a text to encode should be a str, but is {type(text).__name__}; "
            "decode bytes first, and encode several texts one by one"
        )
    found = None if text.isascii() else _SURROGATE.search(text)
    if found is not None:
        raise InvalidValue(
            f"the text has half of a surrogate pair (U+{ord(found.group()):04X}) at character "
            f"{before + found.start():,}, which is "
            "no character of Unicode; read the file with errors='replace' or the right encoding"
        )
    return text


class Tokenizer:
    """Text to token ids and back; used by any number of threads at once.

    Built on first use: making one reads only the small files or the metadata. Use
    :meth:`from_folder`, :meth:`from_gguf` or :meth:`from_tokenizers`. Texts are never changed,
    shortened, or cleaned up: decoding what was encoded gives the text again, as far as the model's
    tokenizer allows.
    """

    def __init__(self, source: TokenizerSource) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._built: Backend | None = None
        self._added = AddedTokens(())
        self._reachable: frozenset[int] | None = None
        self._template: ChatTemplate | None = None
        self._vocab_size: int | None = None
        self._digest: str | None = None

    @classmethod
    def from_folder(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """The tokenizer of a HuggingFace folder.

        Reads tokenizer.json, and where they are there tokenizer_config.json,
        special_tokens_map.json, chat_template.jinja or chat_template.json, and the end tokens of
        generation_config.json or config.json.

        Raises FileProblem for a missing or broken file, InvalidType or InvalidValue for wrong
        contents (of tokenizer.json: at the first use).
        """
        if not isinstance(path, str | os.PathLike):
            raise InvalidType(f"from_folder takes a path, not {type(path).__name__}")
        return cls(folder_source(path))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, object] | str | os.PathLike[str]) -> Tokenizer:
        """The tokenizer of a GGUF file, from its path or its metadata: GGUF keys to Python values
        (arrays as sequences).

        Known are byte-level BPE with the pre-tokenizers listed in ``quickllama/tokenizer/gguf.py``,
        and SentencePiece BPE with byte tokens. Raises InvalidValue, InvalidType or MissingKey,
        naming the key, for anything else.
        """
        if isinstance(metadata, str | os.PathLike):
            from quickllama.checkpoint import GGUFCheckpoint

            return GGUFCheckpoint(Path(metadata)).tokenizer()
        if not isinstance(metadata, Mapping):
            raise InvalidType(
                "from_gguf takes a path, or the metadata of a GGUF file as a mapping, not "
                f"{type(metadata).__name__}"
            )
        return cls(gguf_source(metadata))

    @classmethod
    def from_tokenizers(cls, tokenizer: object) -> Tokenizer:
        """A copy of a ``tokenizers.Tokenizer``, or of a fast tokenizer of transformers with its
        chat template and end token. Raises InvalidType for anything else, and InvalidValue as
        :meth:`from_folder`."""
        return cls(object_source(tokenizer))

    # -- encoding ----------------------------------------------------------------------------------
    # -------------------

    def encode(
        self, text: str, add_special_tokens: bool = True, *, parse_special: bool = True
    ) -> list[int]:
        """The token ids of a text of any length.

        ``add_special_tokens`` puts what the model's tokenizer puts around a text (often a beginning
        of sequence). ``parse_special``: whether special tokens written in the text, such as
        ``<|im_end|>``, become those tokens. The default is that they do, as in HuggingFace; pass
        False for text from outside, so that it cannot end a turn. Tokens that are added but not
        special are found in either case.

        Raises InvalidType if ``text`` is no str, InvalidValue if it has lone surrogates.
        """
        text = checked_text(text)
        backend = self._backend()
        ids: list[int] = []
        for piece, encoding in self._encode_pieces(backend, text, parse_special):
            ids.extend(encoding.ids)
            del piece
        return [*backend.prefix, *ids, *backend.suffix] if add_special_tokens else ids

    def encode_with_offsets(
        self, text: str, add_special_tokens: bool = True, *, parse_special: bool = True
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """The token ids of a text, and the characters that each comes from.

        Returns ``ids`` int32 [T] and ``offsets`` int64 [T, 2]: token t is ``text[offsets[t,
        0]:offsets[t, 1]]``, in characters. Tokens that are parts of one character all have that
        character; special tokens that were added have an empty span at the start or the end.
        Options and errors as in :meth:`encode`.
        """
        text = checked_text(text)
        backend = self._backend()
        before = backend.prefix if add_special_tokens else ()
        after = backend.suffix if add_special_tokens else ()
        ids = [np.array(before, dtype=np.int32)]
        offsets = [np.zeros((len(before), 2), dtype=np.int64)]
        for piece, encoding in self._encode_pieces(backend, text, parse_special):
            ids.append(np.array(encoding.ids, dtype=np.int32))
            spans = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2) + piece.start
            if piece.dropped_space and len(spans):
                spans[0, 0] = piece.start - 1
                if encoding.tokens[0] == SPACE:
                    spans[0, 1] = piece.start
            offsets.append(spans)
        ids.append(np.array(after, dtype=np.int32))
        offsets.append(np.full((len(after), 2), len(text), dtype=np.int64))
        return np.concatenate(ids), np.concatenate(offsets)

    def _encode_pieces(
        self, backend: Backend, text: str, parse_special: bool
    ) -> Iterator[tuple[Piece, Any]]:
        for piece in cut_text(text, backend.cuts, self._added, PIECE_CHARACTERS):
            # The encoder holds this switch as a setting; one thread at a time, piece by piece.
            with self._lock:
                backend.encoder.encode_special_tokens = not parse_special
                encoding = backend.encoder.encode(piece.text, add_special_tokens=False)
            if not parse_special:
                self._refuse_reached(backend, encoding.ids)
            yield piece, encoding

    def _refuse_reached(self, backend: Backend, ids: Sequence[int]) -> None:
        """Refuse special tokens that plain text gives in a badly made vocabulary."""
        if self._reachable is None:
            self._reachable = self._special_in_text(backend)
        if not self._reachable:
            return
        reached = self._reachable.intersection(ids)
        if reached:
            raise InvalidValue(
                f"the text gives the special token {backend.encoder.id_to_token(min(reached))!r}, "
                "which this "
                "tokenizer cannot tell from text; encode it with parse_special=True if that is "
                "meant"
            )

    def _special_in_text(self, backend: Backend) -> frozenset[int]:
        """The special tokens that their own strings give although special tokens are not looked
        for."""
        special = {
            index: token.content
            for index, token in backend.encoder.get_added_tokens_decoder().items()
            if token.special and token.content != self.special_tokens.get("unk_token")
        }
        with self._lock:
            backend.encoder.encode_special_tokens = True
            # Of a sign that is in no vocabulary: what is not known is no special token's string.
            unknown = backend.encoder.encode(_IN_NO_VOCABULARY, add_special_tokens=False).ids
            return frozenset(
                index
                for index, content in special.items()
                if index in backend.encoder.encode(content, add_special_tokens=False).ids
                and index not in unknown
            )

    # -- decoding ----------------------------------------------------------------------------------
    # -------------------

    def decode(self, ids: Ids | int, skip_special_tokens: bool = True) -> str:
        """The text of token ids (list of int, or an integer array [T] or [1, T]).

        Bytes that are no UTF-8 become U+FFFD. Ids beyond the vocabulary, which models with padded
        embeddings can produce, have no text. Raises InvalidType or InvalidValue for what is no row
        of ids.
        """
        text: str = self._backend().encoder.decode(check_ids(ids), skip_special_tokens)
        return text

    def stream(self, skip_special_tokens: bool = True) -> TextStream:
        """A new :class:`TextStream`: text for ids that come one by one, never splitting a
        character."""
        return TextStream(self, skip_special_tokens)

    def id_to_token(self, index: int) -> str | None:
        """The string of a token as the vocabulary writes it, or None if there is no such id."""
        if isinstance(index, bool) or not isinstance(index, int | np.integer):
            raise InvalidType(f"a token id is a whole number, not {index!r}")
        if not 0 <= index <= MAX_ID:
            raise InvalidValue(f"a token id should be from 0 to {MAX_ID}, but is {index}")
        token: str | None = self._backend().encoder.id_to_token(index)
        return token

    def token_to_id(self, token: str) -> int | None:
        """The id of a token as the vocabulary writes it (special tokens as they are), or None."""
        index: int | None = self._backend().encoder.token_to_id(checked_text(token))
        return index

    # -- chat --------------------------------------------------------------------------------------
    # -------------------

    @property
    def has_chat_template(self) -> bool:
        """Whether the model comes with a chat template."""
        return bool(self._source.chat_template)

    @property
    def chat_template(self) -> ChatTemplate:
        """The model's chat template. Raises InvalidValue if it has none or if it cannot be
        compiled."""
        if self._template is None:
            self._template = ChatTemplate(self._source.chat_template)
        return self._template

    @overload
    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = ...,
        tokenize: Literal[True] = ...,
        **variables: Any,
    ) -> list[int]: ...

    @overload
    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = ...,
        *,
        tokenize: Literal[False],
        **variables: Any,
    ) -> str: ...

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tokenize: bool = True,
        **variables: Any,
    ) -> list[int] | str:
        """A conversation as the model was trained to read it: token ids, or with ``tokenize=False``
        the text.

        ``messages`` are mappings with "role" and "content". ``add_generation_prompt`` ends with the
        beginning of the assistant's turn. Further ``variables`` (``tools``, ``documents``, ...) are
        handed to the template. Special tokens written in the contents become special tokens, as in
        transformers: to keep a document's text apart, render with ``tokenize=False`` around a
        marker, and encode the parts with ``add_special_tokens=False``.

        Raises InvalidValue if there is no chat template, or it refuses or breaks; InvalidType for
        wrong messages.
        """
        text = self.chat_template.render(
            messages,
            add_generation_prompt=add_generation_prompt,
            **{**self.special_tokens, **variables},
        )
        return self.encode(text, add_special_tokens=False) if tokenize else text

    # -- what the tokenizer is
    # ----------------------------------------------------------------------------------------

    @property
    def special_tokens(self) -> dict[str, str]:
        """The strings of ``bos_token``, ``eos_token``, ``unk_token`` and ``pad_token``, as far as
        there are any."""
        return dict(self._source.special_names)

    @property
    def special_ids(self) -> frozenset[int]:
        """The ids of all special tokens, which :meth:`decode` leaves out."""
        added = self._backend().encoder.get_added_tokens_decoder()
        return frozenset(index for index, token in added.items() if token.special)

    @property
    def bos_token_id(self) -> int | None:
        """The id of the beginning of a sequence, or None."""
        return self._special_id("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        """The id of the end of a sequence as the tokenizer's file gives it, or None; see
        :attr:`eos_token_ids`."""
        return self._special_id("eos_token")

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """All ids that end a generation: the end of a sequence and, where the files name them, the
        ends of a turn."""
        end = self.eos_token_id
        return self._source.end_ids if end is None else self._source.end_ids | {end}

    @property
    def vocab_size(self) -> int:
        """One more than the highest id, added tokens included. A model's embedding may have more
        rows."""
        if self._vocab_size is None:
            vocabulary = self._backend().encoder.get_vocab(with_added_tokens=True)
            self._vocab_size = 1 + max(vocabulary.values(), default=-1)
        return self._vocab_size

    def _special_id(self, name: str) -> int | None:
        if name in self._source.special_ids:
            return self._source.special_ids[name]
        token = self._source.special_names.get(name)
        return None if token is None else self.token_to_id(token)

    @property
    def prefix_ids(self) -> tuple[int, ...]:
        """The ids that ``add_special_tokens=True`` puts before a text."""
        return self._backend().prefix

    @property
    def cut_rule(self) -> CutRule:
        """Where this tokenizer's texts may be cut; long texts are encoded in pieces by it."""
        return self._backend().cuts

    def last_cut(self, text: str) -> tuple[int, int] | None:
        """The last place where a text that may still go on can be cut: (end, next), or None.

        ``text[:end]`` gives the same tokens whatever follows; what follows begins at ``next``.
        Where that is one later, the space between belongs to the first token of what follows. In a
        long text that has no place of which that is known, it is one where it was tried.
        """
        found = last_cut(text, self._backend().cuts, self._added)
        if found is None and len(text) >= TRIED_CHARACTERS:
            return tried_cut(text, lambda part: self.encode(part, False, parse_special=False))
        return found

    @property
    def is_byte_level(self) -> bool:
        """Whether each token stands for a byte string by itself, whatever its neighbours are."""
        return self._backend().byte_level

    @property
    def digest(self) -> str:
        """16 hex digits: tokenizers in which they are equal give the same ids, and have the same
        chat template."""
        if self._digest is None:
            self._digest = self._compute_digest()
        return self._digest

    def _compute_digest(self) -> str:
        backend = self._backend()
        rest = (backend.prefix, backend.suffix, backend.cuts, self._source.chat_template)
        words = f"{backend.encoder.to_str()}{rest!r}"
        return hashlib.sha256(words.encode("utf-8")).hexdigest()[:16]

    def _backend(self) -> Backend:
        """The vocabulary, built at the first call."""
        with self._lock:
            if self._built is None:
                built = self._source.build()
                added = built.encoder.get_added_tokens_decoder().values()
                self._added = AddedTokens(token.content for token in added)
                self._built = built
            return self._built

    def to_tokenizers(self) -> tokenizers.Tokenizer:
        """A copy as a ``tokenizers.Tokenizer``, for code that is written for HuggingFace; ``save``
        writes its tokenizer.json. It puts nothing around a text."""
        backend = self._backend()
        with self._lock:
            return tokenizers.Tokenizer.from_str(backend.encoder.to_str())

    def __repr__(self) -> str:
        size = "not built yet" if self._built is None else f"{self.vocab_size} tokens"
        return f"<quickllama.Tokenizer, {size}>"

    def __reduce__(self) -> NoReturn:
        raise InvalidType(
            "a Tokenizer cannot be pickled or copied (threads share one); make another one from "
            "its files, or send to_tokenizers().to_str()"
        )

    def __len__(self) -> int:
        """The same as :attr:`vocab_size`."""
        return self.vocab_size
