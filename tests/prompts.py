"""The prompt of the paper's way, put together independently of documents."""

from __future__ import annotations

from typing import Any

import numpy as np

from quickllama.prompt import PASSAGES_PROMPT, PromptForm, text_tokens


def paper_prompt(tokenizer: Any, question: str, text: str) -> tuple[Any, tuple[int, int]]:
    """Ids int64 [T] of the question, the text, and the question again; and where the first question
    stands."""
    form = PromptForm.of(PASSAGES_PROMPT)
    prefix, span = form.prefix(tokenizer, question)
    assert span is not None
    inside = text_tokens(tokenizer, text)[0]
    return np.concatenate([prefix, inside, form.suffix(tokenizer, question)[0]]), span
