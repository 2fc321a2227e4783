"""Generation: read a prompt through a session, then one token after the other.

:func:`generate` is what ``Model.generate`` calls. Its parts serve other callers too:
:class:`ReadingPlan` and :func:`read` bring a prompt into a session, :func:`iter_tokens` goes on
from there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quickllama import checks
from quickllama.arrays import token_ids
from quickllama.config import GenerationConfig, MemoryConfig
from quickllama.errors import InvalidType, InvalidValue, warn
from quickllama.progress import Progress, checked_progress, showing
from quickllama.sampling import Sampler

if TYPE_CHECKING:
    from quickllama._core import Session
    from quickllama.model import Model
    from quickllama.tokenizer import Tokenizer

__all__ = ["Progress", "ReadingPlan", "Streamer", "generate", "iter_tokens", "options_from", "read"]


class Streamer(Protocol):
    """What transformers' TextStreamer is: gets the prompt, then each token, then the end."""

    def put(self, value: Any) -> None:
        """``value``: int64, the prompt [1, T] first, then tokens [1]."""

    def end(self) -> None:
        """No token follows."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """Tokens [start, end) of a prompt, fed in one call; ``question`` counts from ``start``."""

    start: int
    end: int
    question: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class ReadingPlan:
    """How a prompt is fed: all but its last token at multiples of ``exc_block_size``, then the last
    token alone.

    ``opening_span`` is the question if it can be given to the session at once: it is read no later
    than the chunk that fills the window. A later question goes with the pieces that hold it, in one
    call; only if it ends with the prompt's last token, that token comes with them.
    """

    pieces: tuple[Piece, ...]
    opening_span: tuple[int, int] | None

    @classmethod
    def of(
        cls, n_tokens: int, memory: MemoryConfig, query_span: tuple[int, int] | None = None
    ) -> ReadingPlan:
        """The plan for a prompt of ``n_tokens`` tokens with its question at ``query_span``."""
        step, body = memory.exc_block_size, n_tokens - 1
        ends = [*range(step, body, step), *([body] if body else []), n_tokens]
        starts = [0, *ends[:-1]]
        pieces = [Piece(start, end) for start, end in zip(starts, ends, strict=True)]
        if query_span is None:
            return cls(tuple(pieces), None)
        filled = next((end for end in ends if end > memory.n_local), n_tokens)
        if query_span[1] <= filled:
            return cls(tuple(pieces), query_span)
        first = next(i for i, piece in enumerate(pieces) if piece.end > query_span[0])
        last = next(i for i, piece in enumerate(pieces) if piece.end >= query_span[1])
        start = pieces[first].start
        question = (query_span[0] - start, query_span[1] - start)
        pieces[first : last + 1] = [Piece(start, pieces[last].end, question)]
        return cls(tuple(pieces), None)


def read(
    session: Session, ids: NDArray[np.int64], plan: ReadingPlan, progress: Progress | None = None
) -> NDArray[np.float32]:
    """Feed ``ids`` [T] by ``plan``; the logits [V] after the last token."""
    logits = None
    for piece in plan.pieces:
        part = ids[piece.start : piece.end]
        if piece.question is None:
            logits = session.feed(part)
        else:
            logits = session.feed(part, query_span=piece.question)
        if progress is not None:
            progress(piece.end, len(ids))
    if logits is None:
        raise InvalidValue("there is nothing to read; give at least one token")
    return logits


def iter_tokens(
    session: Session,
    logits: NDArray[np.float32],
    options: GenerationConfig,
    *,
    prompt: NDArray[np.int64],
    eos_token_ids: Sequence[int] = (),
    tokenizer: Tokenizer | None = None,
) -> Iterator[int]:
    """Token after token, from the ``logits`` [V] that follow what ``session`` has read.

    Ends after ``options.max_new_tokens`` tokens, after a token of ``eos_token_ids`` (which is given
    too), or when the new text holds one of ``options.stop_strings``. ``prompt`` counts for the
    repetition penalty. A token is fed only when the next one is asked for, so the last one is not
    in the session. Raises InvalidValue if logits are NaN or infinite, naming the position.
    """
    sampler = Sampler(options, logits.size, prompt)
    stops = StopStrings(options.stop_strings or (), tokenizer)
    for left in reversed(range(options.max_new_tokens)):
        _check_logits(logits, len(session) - 1)
        token = sampler.choose(logits)
        yield token
        if not left or token in eos_token_ids or stops.reached(token):
            return
        logits = session.feed([token])


def _check_logits(logits: NDArray[np.float32], position: int) -> None:
    if np.isfinite(logits.max()):  # NaN would be the maximum
        return
    kind = "NaN" if np.isnan(logits).any() else "infinite"
    raise InvalidValue(
        f"the logits at position {position} are {kind}, so that no token can be chosen; the "
        "model's weights hold NaN or infinite values, or the numbers overflowed"
    )


class StopStrings:
    """Watches the text of new tokens for strings that end it."""

    def __init__(self, strings: str | Sequence[str], tokenizer: Tokenizer | None) -> None:
        self._strings = [strings] if isinstance(strings, str) else list(strings)
        self._tail = ""
        if not self._strings:
            return
        if tokenizer is None:
            raise InvalidValue("stop_strings need the model's tokenizer, and it has none")
        from quickllama.tokenizer.stream import TextStream

        self._stream = TextStream(tokenizer, skip_special_tokens=False)
        self._kept = max(len(string) for string in self._strings) - 1

    def reached(self, token: int) -> bool:
        """Whether the text holds one of the strings once ``token`` is there."""
        if not self._strings:
            return False
        text = self._tail + self._stream.push([token])
        self._tail = text[-self._kept :] if self._kept else ""
        return any(string in text for string in self._strings)


def options_from(settings: dict[str, Any], others: Sequence[str] = ()) -> GenerationConfig:
    """GenerationConfig from keyword arguments: ``generation_config``, or the defaults, with the
    others in place of its fields.

    Raises InvalidType for an unknown one, naming the nearest known; ``others`` are known too. Warns
    about settings of the distribution when nothing is drawn from it.
    """
    base = settings.pop("generation_config", None)
    base = GenerationConfig() if base is None else base
    if not isinstance(base, GenerationConfig):
        raise InvalidType(
            f"generation_config is a quickllama.GenerationConfig, not {type(base).__name__}; "
            "options of another one are given by name: max_new_tokens=..."
        )
    fields = {field.name: field.default for field in dataclasses.fields(GenerationConfig)}
    for name in settings:
        if name not in fields:
            known = [*fields, "generation_config", *others]
            raise InvalidType(
                f"there is no option {name!r}"
                f"{checks.nearest(name, known) or '; it has ' + ', '.join(known)}"
            )
    options = dataclasses.replace(base, **settings)
    if not options.do_sample:
        shaping = ("temperature", "top_k", "top_p", "min_p", "seed")
        unused = [name for name in shaping if getattr(options, name) not in (fields[name], 0)]
        if unused:
            warn(
                f"{', '.join(unused)} without do_sample=True changes nothing: the best token is "
                "taken each time"
            )
    return options


def memory_for(memory: MemoryConfig | None, query_span: tuple[int, int] | None) -> MemoryConfig:
    """``memory``, or window 1k: qllm with a question, infllm without one."""
    if memory is None:
        return MemoryConfig(mode="infllm" if query_span is None else "qllm")
    memory = MemoryConfig.checked(memory)
    if memory.mode == "qllm" and query_span is None:
        raise InvalidValue(
            "mode 'qllm' needs query_span, the token positions (start, end) of the question in the "
            "prompt; without a question take mode 'infllm'"
        )
    return memory


def check_span(span: object, n_tokens: int, memory: MemoryConfig) -> tuple[int, int]:
    """``span`` if it lies inside the prompt and the question fits into the window."""
    start, end = checks.token_span("query_span", span)
    if end > n_tokens:
        raise InvalidValue(
            f"query_span ({start}, {end}) lies outside the prompt, which has {n_tokens} tokens"
        )
    if memory.mode == "qllm":
        check_question_length(end - start, memory)
    return start, end


def check_question_length(n_tokens: int, memory: MemoryConfig) -> None:
    """Raise InvalidValue if a question of ``n_tokens`` tokens does not fit into the window."""
    if n_tokens > memory.n_local:
        raise InvalidValue(
            f"the question has {n_tokens} tokens, more than the window's n_local "
            f"{memory.n_local}; ask a shorter one or take a larger window"
        )


def generate(
    model: Model,
    input_ids: object,
    options: GenerationConfig,
    *,
    memory: MemoryConfig | None = None,
    query_span: tuple[int, int] | None = None,
    kv_dtype: str | None = None,
    streamer: Streamer | None = None,
    progress: bool | Progress | None = None,
) -> NDArray[np.int64]:
    """See :meth:`quickllama.Model.generate`."""
    ids, rank = token_ids(input_ids, model.config.vocab_size)
    memory = memory_for(memory, query_span)
    if query_span is not None:
        query_span = check_span(query_span, len(ids), memory)
    if memory.mode != "qllm":
        query_span = None  # the other modes know no question
    for method in ("put", "end"):
        if streamer is not None and not callable(getattr(streamer, method, None)):
            raise InvalidType(
                "streamer must have put(ids) and end(), like transformers' TextStreamer; "
                f"{type(streamer).__name__} has no {method}"
            )
    progress = checked_progress(progress)
    tokenizer = model.tokenizer if options.stop_strings else None
    plan = ReadingPlan.of(len(ids), memory, query_span)
    new: list[int] = []
    try:
        if streamer is not None:
            streamer.put(ids[np.newaxis].copy())
        if options.max_new_tokens:
            session = model.session(memory, query_span=plan.opening_span, kv_dtype=kv_dtype)
            with showing(progress, "reading") as show:
                logits = read(session, ids, plan, show)
            tokens = iter_tokens(
                session,
                logits,
                options,
                prompt=ids,
                eos_token_ids=options.ends(model.eos_token_ids),
                tokenizer=tokenizer,
            )
            for token in tokens:
                new.append(token)
                if streamer is not None:
                    streamer.put(np.array([token], dtype=np.int64))
    finally:
        if streamer is not None:
            streamer.end()
    result = np.concatenate([ids, np.array(new, dtype=np.int64)])
    return result[np.newaxis] if rank == 2 else result
