"""The one home of the question-and-answer prompt: its words, its token ids, its positions.

The question stands before and after the text, as in the paper (section 4.1): the first one is the
question of the memory, the second one is what the model answers. Prefix, question, text and suffix
are tokenised apart, so that the tokens of the text do not depend on what stands around it; only the
chat template's own words may stand for special tokens.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from quickllama.errors import InvalidType, InvalidValue

if TYPE_CHECKING:
    from quickllama.tokenizer import Tokenizer

__all__ = [
    "QUESTION_LEAD",
    "SUFFIX",
    "TASK",
    "TEXT_LEAD",
    "ChatFrame",
    "Prompt",
    "question_prompt",
    "text_tokens",
]

TASK = "Read the text below and answer a question."
QUESTION_LEAD = "\n\nQuestion: "
TEXT_LEAD = "\n\nText: "
SUFFIX = "\n\nQuestion: {question}\nAnswer using only the text above."

_PLAIN_END = "\n\nAnswer:"  # where there is no chat template
_PLACE = "\ue000the user's words\ue001"  # private-use characters: in no template


@dataclasses.dataclass(frozen=True)
class ChatFrame:
    """What stands around the user's words: the rendered chat template, or the plain form."""

    head: str
    tail: str
    templated: bool

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> ChatFrame:
        """The frame of ``tokenizer``'s chat template. Raises InvalidValue if the template does not
        show the user's words exactly once."""
        if not tokenizer.has_chat_template:
            return cls("", _PLAIN_END, False)
        messages = [{"role": "user", "content": _PLACE}]
        rendered = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        head, *tails = rendered.split(_PLACE)
        if len(tails) != 1:
            raise InvalidValue(
                f"the model's chat template shows the user's words {len(tails)} times, not once, "
                "so that no text can be put there"
            )
        return cls(head, tails[0], True)

    def prefix_ids(self, tokenizer: Tokenizer, words: str) -> list[int]:
        """Ids of the frame's beginning and of our own ``words`` right after it."""
        return tokenizer.encode(
            self.head + words, add_special_tokens=not self.templated, parse_special=True
        )

    def suffix_ids(self, tokenizer: Tokenizer, words: str) -> list[int]:
        """Ids of ``words``, in which nothing is special, and of the frame's end."""
        own = tokenizer.encode(words, add_special_tokens=False, parse_special=False)
        end = tokenizer.encode(self.tail, add_special_tokens=False, parse_special=True)
        return own + end


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt and where things stand in it.

    ``ids``: int64 [T]. ``query_span``: (start, end) of the first question's tokens.
    ``text_start``: position of the text's first token. ``offsets``: int64 [n, 2], the characters
    [start, end) of each of the text's n tokens, in the text.
    """

    ids: NDArray[np.int64]
    query_span: tuple[int, int]
    text_start: int
    offsets: NDArray[np.int64]

    def characters(self, start: int, end: int) -> tuple[int, int] | None:
        """The characters of the text that the prompt's tokens [start, end) cover, None if they
        lie outside the text."""
        first = max(start - self.text_start, 0)
        last = min(end - self.text_start, len(self.offsets))
        if first >= last:
            return None
        return int(self.offsets[first, 0]), int(self.offsets[last - 1, 1])


def question_prompt(
    tokenizer: Tokenizer,
    question: str,
    text_ids: NDArray[np.int64],
    offsets: NDArray[np.int64],
) -> Prompt:
    """The prompt for ``question`` about a text that was tokenised once with :func:`text_tokens`.

    Raises InvalidType or InvalidValue for a question that is no text or empty.
    """
    if not isinstance(question, str):
        raise InvalidType(f"a question is a string, not {type(question).__name__}")
    question = question.strip()
    if not question:
        raise InvalidValue("the question is empty; ask something")
    if any("\ud800" <= sign <= "\udfff" for sign in question):
        raise InvalidValue("the question holds bytes that are no text; give it in UTF-8")
    frame = ChatFrame.of(tokenizer)
    prefix = frame.prefix_ids(tokenizer, TASK + QUESTION_LEAD)
    asked = tokenizer.encode(question, add_special_tokens=False, parse_special=False)
    lead = tokenizer.encode(TEXT_LEAD, add_special_tokens=False, parse_special=False)
    suffix = frame.suffix_ids(tokenizer, SUFFIX.format(question=question))
    front = np.array([*prefix, *asked, *lead], dtype=np.int64)
    return Prompt(
        ids=np.concatenate([front, text_ids, np.array(suffix, dtype=np.int64)]),
        query_span=(len(prefix), len(prefix) + len(asked)),
        text_start=len(front),
        offsets=offsets,
    )


def text_tokens(tokenizer: Tokenizer, text: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token ids int64 [n] of a text and their characters int64 [n, 2]; nothing in it is special.

    Raises InvalidValue if there is nothing in it.
    """
    if not text.strip():
        raise InvalidValue("the text is empty; there is nothing to read")
    ids, offsets = tokenizer.encode_with_offsets(
        text, add_special_tokens=False, parse_special=False
    )
    return np.asarray(ids, dtype=np.int64), np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
