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
    "DOCUMENT_PROMPT",
    "PASSAGES_PROMPT",
    "POINTED_OUT",
    "QUESTION_LEAD",
    "SUFFIX",
    "TASK",
    "TEXT_LEAD",
    "ChatFrame",
    "PromptForm",
    "checked_question",
    "text_tokens",
]

TASK = "Read the text below and answer a question."
QUESTION_LEAD = "\n\nQuestion: "
TEXT_LEAD = "\n\nText: "
SUFFIX = "\n\nQuestion: {question}\nAnswer using only the text above."

DOCUMENT_PROMPT = TASK + TEXT_LEAD + "{text}" + SUFFIX
"""Of a document that is read before anyone asks."""
PASSAGES_PROMPT = TASK + QUESTION_LEAD + "{question}" + TEXT_LEAD + "{text}" + SUFFIX
"""The question before and after the text: the paper's way, and for passages that are read again."""
POINTED_OUT = "{passages}\n\nThe sentence that answers the question: {sentence}"
"""The text of such a prompt: a small model loses the answer among the sentences around it, unless
it is told where to look (docs/retrieval.md)."""

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
        ids = tokenizer.encode(self.head + words, add_special_tokens=False, parse_special=True)
        return ids if self.templated else [*tokenizer.prefix_ids, *ids]

    def tail_ids(self, tokenizer: Tokenizer) -> list[int]:
        """Ids of the frame's end."""
        return tokenizer.encode(self.tail, add_special_tokens=False, parse_special=True)


@dataclasses.dataclass(frozen=True)
class PromptForm:
    """A prompt's words before and after the text, with ``{question}`` where the question goes."""

    before: str
    after: str

    @classmethod
    def of(cls, template: object) -> PromptForm:
        """From a template such as :data:`DOCUMENT_PROMPT`: ``{text}`` once, ``{question}`` at least
        once after it. Raises InvalidType or InvalidValue."""
        if not isinstance(template, str):
            raise InvalidType(f"a prompt is a string, not {type(template).__name__}")
        parts = template.split("{text}")
        if len(parts) != 2 or "{question}" not in parts[1]:
            raise InvalidValue(
                "a prompt holds {text} once and {question} after it, as in "
                f"{DOCUMENT_PROMPT!r}; this one is {template!r}"
            )
        return cls(*parts)

    @property
    def asks_first(self) -> bool:
        """Whether the question stands before the text too, so that the text is read for it."""
        return "{question}" in self.before

    def prefix(
        self,
        tokenizer: Tokenizer,
        question: str | None = None,
        frame: ChatFrame | None = None,
    ) -> tuple[NDArray[np.int64], tuple[int, int] | None]:
        """Ids of everything before the text, and the (start, end) of the question in them;
        ``frame``: that of the chat template at an earlier time, if it tells the time."""
        frame = ChatFrame.of(tokenizer) if frame is None else frame
        words, first, rest = self.before.partition("{question}")
        ids = frame.prefix_ids(tokenizer, words)
        if not first:
            return np.array(ids, dtype=np.int64), None
        if question is None:
            raise InvalidValue("this prompt has the question before the text; read it with one")
        asked = tokenizer.encode(question, add_special_tokens=False, parse_special=False)
        lead = tokenizer.encode(
            rest.replace("{question}", question), add_special_tokens=False, parse_special=False
        )
        span = len(ids), len(ids) + len(asked)
        return np.array([*ids, *asked, *lead], dtype=np.int64), span

    def suffix(
        self, tokenizer: Tokenizer, question: str
    ) -> tuple[NDArray[np.int64], tuple[int, int]]:
        """Ids of everything after the text, and the (start, end) of the question in them."""
        start = self.after.index("{question}")
        words = self.after.replace("{question}", question)
        ids, offsets = tokenizer.encode_with_offsets(
            words, add_special_tokens=False, parse_special=False
        )
        inside = np.flatnonzero((offsets[:, 1] > start) & (offsets[:, 0] < start + len(question)))
        span = int(inside[0]), int(inside[-1]) + 1
        end = ChatFrame.of(tokenizer).tail_ids(tokenizer)
        return np.array([*ids, *end], dtype=np.int64), span


def checked_question(question: object) -> str:
    """``question`` without white space around it.

    Raises InvalidType or InvalidValue for a question that is no text or empty.
    """
    if not isinstance(question, str):
        raise InvalidType(f"a question is a string, not {type(question).__name__}")
    question = question.strip()
    if not question:
        raise InvalidValue("the question is empty; ask something")
    if any("\ud800" <= sign <= "\udfff" for sign in question):
        raise InvalidValue("the question holds bytes that are no text; give it in UTF-8")
    return question


def text_tokens(tokenizer: Tokenizer, text: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token ids int64 [n] of a text and their characters int64 [n, 2]; nothing in it is special."""
    ids, offsets = tokenizer.encode_with_offsets(
        text, add_special_tokens=False, parse_special=False
    )
    return np.asarray(ids, dtype=np.int64), np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
