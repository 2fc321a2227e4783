"""Answers that come piece by piece: the same as whole ones, several at a time, given up halfway."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_document import MEMORY, PAPER, QUESTION, TEXT, same
from test_document_file import loaded_model, read
from tokenizers import normalizers

import quickllama as ql
from quickllama.documents import reply
from quickllama.documents.answer import NOT_FOUND, AnswerStream
from quickllama.documents.head_store import FEATURES, FoundRule


@pytest.fixture(scope="module")
def model(folder: Path) -> ql.Model:
    return loaded_model(folder)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens that were chosen so far, whoever takes them."""
    tokens: list[int] = []
    iter_tokens = reply.iter_tokens

    def counted(*given: Any, **named: Any) -> Iterator[int]:
        for token in iter_tokens(*given, **named):
            tokens.append(token)
            yield token

    monkeypatch.setattr(reply, "iter_tokens", counted)
    return tokens


@pytest.mark.parametrize(
    ("memory", "options"),
    [
        (MEMORY, {}),
        (MEMORY, {"use": "memory", "passages": 2, "history": ["Wer?"]}),
        (PAPER, {"retrieval": "paper"}),
    ],
)
def test_pieces_make_up_the_answer(
    model: ql.Model, memory: ql.MemoryConfig, options: dict[str, Any]
) -> None:
    document = model.read(TEXT, memory=memory)
    pieces = document.stream(QUESTION, max_new_tokens=20, **options)
    texts = list(pieces)
    assert len(texts) > 1 and all(texts)
    assert "".join(texts).strip() == pieces.answer.text
    assert same(pieces.answer, document.ask(QUESTION, max_new_tokens=20, **options))
    assert list(pieces) == [] and pieces.answer is pieces.answer


def test_what_is_not_found_is_said_in_one_piece(model: ql.Model) -> None:
    document = model.read(TEXT, memory=MEMORY)
    heads = model.retrieval_heads
    assert heads is not None
    never = FoundRule((0.0,) * len(FEATURES), -9.0, 0.5)
    model.retrieval_heads = dataclasses.replace(heads, found=never)
    try:
        pieces = document.stream(QUESTION)
        assert list(pieces) == [NOT_FOUND] and not pieces.answer.found
    finally:
        model.retrieval_heads = heads


def test_two_answers_at_a_time(model: ql.Model) -> None:
    """Of the document as it stood when they were asked for."""
    document, questions = model.read(TEXT, memory=MEMORY), (QUESTION, "Wo ist Viktor?")
    alone = [document.ask(question, max_new_tokens=12) for question in questions]
    both = [document.stream(question, max_new_tokens=12) for question in questions]
    document.append("Etwas anderes. " * 40)
    texts: list[list[str]] = [[], []]
    while taken := [(i, piece) for i, one in enumerate(both) if (piece := next(one, None))]:
        for i, piece in taken:
            texts[i].append(piece)
    assert ["".join(text).strip() for text in texts] == [answer.text for answer in alone]
    assert all(same(one.answer, answer) for one, answer in zip(both, alone, strict=True))


def test_the_rest_of_an_answer_comes_with_it(model: ql.Model, computed: list[int]) -> None:
    document = model.read(TEXT, memory=MEMORY)
    whole = document.ask(QUESTION, max_new_tokens=12)
    del computed[:]
    pieces = document.stream(QUESTION, max_new_tokens=12)
    assert not computed
    next(pieces)
    assert 0 < len(computed) < 12
    assert same(pieces.answer, whole) and len(computed) == len(whole.tokens)


def test_an_answer_is_given_up(model: ql.Model, path: Path, computed: list[int]) -> None:
    document = read(model, store=path)
    pieces = document.stream(QUESTION, max_new_tokens=40)
    next(pieces)
    done = len(computed)
    document.close()
    with pytest.raises(ql.Busy):  # it is being answered from
        read(model, store=path)
    pieces.close()
    assert list(pieces) == [] and len(computed) == done < 40
    with pytest.raises(ql.InvalidValue, match="given up before its end"):
        _ = pieces.answer
    read(model, store=path).close()


def test_what_a_function_raises_ends_the_answer(
    model: ql.Model, path: Path, computed: list[int]
) -> None:
    document = read(model, store=path)

    def stop(piece: str) -> None:
        raise ConnectionError(piece)

    with pytest.raises(ConnectionError) as kept:
        document.ask(QUESTION, stream=stop, max_new_tokens=40)
    assert 0 < len(computed) < 40
    assert document.ask(QUESTION, max_new_tokens=2).tokens
    document.close()
    read(model, store=path).close()  # though the exception is kept
    assert kept.traceback


def test_another_thread_does_not_wait_for_an_answer(model: ql.Model) -> None:
    def during() -> Iterator[str]:
        for use in (lambda: next(pieces), lambda: pieces.answer):
            with pytest.raises(ql.Busy, match="another thread waits"):
                use()
        yield "one"
        pieces.close()  # ends it, once the piece is there
        yield "two"
        yield "three"

    pieces = AnswerStream(during())
    assert list(pieces) == ["one", "two"]
    with pytest.raises(ql.InvalidValue, match="given up"):
        _ = pieces.answer


def test_a_document_keeps_to_its_tokenizer(folder: Path, path: Path) -> None:
    model = loaded_model(folder)
    own = model.tokenizer
    document = model.read(TEXT, memory=MEMORY)
    other = own.to_tokenizers()
    other.normalizer = normalizers.Lowercase()
    model.tokenizer = other
    for use in (
        lambda: document.ask(QUESTION),
        lambda: document.stream(QUESTION),
        lambda: document.append("x"),
        lambda: document.save(path),
    ):
        with pytest.raises(ql.InvalidValue, match="another tokenizer than when"):
            use()
    document.close()
    assert "closed" in repr(document)
    model.tokenizer = own.to_tokenizers()  # the same again
    model.read(TEXT, memory=MEMORY).ask(QUESTION, max_new_tokens=1)


def test_what_is_wrong_is_said_before_anything_is_taken(model: ql.Model) -> None:
    document = model.read(TEXT, memory=MEMORY)
    cases: tuple[dict[str, Any], ...] = ({"use": "a"}, {"max_tokens": 3}, {"stream": True})
    with pytest.raises(ql.InvalidType, match="did you mean 'stream'"):
        document.ask(QUESTION, steam=True)
    for wrong in cases:
        with pytest.raises(ql.Error, match=next(iter(wrong))):
            document.stream(QUESTION, **wrong)
    with pytest.raises(ql.InvalidValue, match="without a question"):
        document.stream()
    document.close()
    with pytest.raises(ql.InvalidValue, match="is closed"):
        document.stream(QUESTION)


def test_the_names_of_the_package(model: ql.Model) -> None:
    assert set(ql.__all__) <= set(dir(ql))
    assert isinstance(model.read(TEXT, memory=MEMORY).stream(QUESTION), AnswerStream)
