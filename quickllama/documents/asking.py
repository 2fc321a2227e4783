"""How a document's question is answered: rank passages, then read the answer from them."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from quickllama import checks
from quickllama.config import GenerationConfig, MemoryConfig
from quickllama.documents.answer import NOT_FOUND, Answer, Passage, Span, merge, sentences, widen
from quickllama.documents.judgement import FEWEST_PIECES, Asked, Opening, judge
from quickllama.documents.names import named
from quickllama.documents.passages import retrieved_passages
from quickllama.documents.reply import Reply, replying
from quickllama.documents.retrieval import (
    Grid,
    Ranking,
    all_heads,
    centred_queries,
    rank_pieces,
    strongest,
)
from quickllama.errors import InvalidType, InvalidValue
from quickllama.generation import (
    Piece,
    ReadingPlan,
    check_question_length,
    options_from,
    read,
)
from quickllama.prompt import (
    DOCUMENT_PROMPT,
    PASSAGES_PROMPT,
    POINTED_OUT,
    PromptForm,
    checked_question,
    text_tokens,
)

if TYPE_CHECKING:
    from quickllama._core import Session
    from quickllama.documents.head_store import SkimHeads
    from quickllama.model import Model

__all__ = [
    "USES",
    "Asking",
    "Snapshot",
    "answering",
    "heads_of",
    "hear_question",
    "read_by_memory",
    "sought",
]

USES = {"reread": None, "reposition": None, "memory": 16}
"""Ways to use a ranking, and how many of the best pieces each takes; None: those that stand out."""

_OPTIONS = ("stream", "history", "retrieval", "use", "passages", "neighbours", "always_answer")


@dataclasses.dataclass(frozen=True)
class Asking:
    """A question with everything that was decided about it."""

    question: str
    history: tuple[str, ...]  # questions before it, which tell what it is about
    retrieval: str  # heads; paper: the memory's own lookups, whatever they are
    use: str
    passages: int | None  # None: those that stand out
    neighbours: int
    always_answer: bool
    options: GenerationConfig

    @classmethod
    def of(
        cls,
        question: str,
        read_for: str | None,
        memory: MemoryConfig,
        *,
        skimmed: bool,
        history: Sequence[str] | None,
        retrieval: str | None,
        use: str | None,
        passages: int | None,
        neighbours: int | None,
        always_answer: bool,
        options: dict[str, Any],
    ) -> Asking:
        """Check what the caller wants against what the document's memory can."""
        blocks = memory.mode in ("infllm", "qllm") or skimmed
        if skimmed:
            _check_skimmed(retrieval, use)
        if retrieval is None:
            retrieval = "heads" if blocks and read_for is None else "paper"
        else:
            checks.choice("retrieval", retrieval, ("heads", "paper"))
            if retrieval == "heads" and not blocks:
                raise InvalidValue(
                    f"retrieval 'heads' ranks memory blocks, and mode {memory.mode!r} keeps none; "
                    "read the document in mode 'infllm' or 'qllm'"
                )
            if retrieval == "paper" and (memory.mode != "qllm" or not memory.topk):
                raise InvalidValue(
                    "retrieval 'paper' needs a document read in mode 'qllm' with topk > 0: "
                    "model.read(text, memory=MemoryConfig())"
                )
        if retrieval == "paper" and (use, passages, neighbours) != (None, None, None):
            raise InvalidValue(
                "use, passages and neighbours belong to retrieval 'heads'; by the paper the "
                "memory's topk says how many blocks each layer looks up"
            )
        if retrieval == "paper" and history:
            raise InvalidValue(
                "history belongs to retrieval 'heads', which finds passages by it; here the "
                "question alone is read"
            )
        history = () if history is None else history
        if isinstance(history, str) or not isinstance(history, Sequence):
            raise InvalidType(f"history is a list of questions, not {type(history).__name__}")
        history = tuple(checked_question(earlier) for earlier in history)
        use = "reread" if use is None else checks.choice("use", use, tuple(USES))
        return cls(
            question,
            history,
            retrieval,
            use,
            USES[use] if passages is None else checks.integer("passages", passages, 0),
            0 if neighbours is None else checks.integer("neighbours", neighbours, 0),
            always_answer,
            options_from(options, _OPTIONS),
        )


def _check_skimmed(retrieval: str | None, use: str | None) -> None:
    for name, value, only in (("retrieval", retrieval, "heads"), ("use", use, "reread")):
        if value is not None and value != only:
            raise InvalidValue(
                f"{name} {value!r} needs values and blocks, which a skimmed document does not "
                f"keep: {only!r} is what it can; use model.read() for the others"
            )


class Snapshot:
    """A document at one moment; shared by all who ask it then, each of whom works on a fork.

    ``session``: its timeline, which is never fed again. ``rest``: int64 [n], what else the document
    holds. ``offsets``: int64 [tokens of the text, 2]. ``span``: the question that the text is read
    for, if it lies in ``rest``. ``skim``: the heads that it was skimmed with; None: it was read.
    """

    def __init__(
        self,
        session: Session,
        rest: NDArray[np.int64],
        text: str,
        offsets: NDArray[np.int64],
        text_start: int,
        memory: MemoryConfig,
        form: PromptForm,
        span: Span | None = None,
        skim: SkimHeads | None = None,
    ) -> None:
        self.session = session
        self.rest = rest
        self.text = text
        self.offsets = offsets
        self.text_start = text_start
        self.memory = memory
        self.form = form
        self.span = span
        self.skim = skim
        self._lock = threading.Lock()
        self._whole: Session | None = None
        self._opening: Opening | None = None

    def fork(self, *, scores: bool = False) -> Session:
        """A timeline that has read the whole chunks, and keeps a record of its lookups, with the
        ``scores`` of all blocks or without."""
        with self._lock:
            return self.session.fork(trace=True if scores else "choices")

    def fork_whole(self) -> Session:
        """A timeline that has read everything; the first one to ask reads the rest for all."""
        with self._lock:
            if self._whole is None:
                whole = self.session.fork()
                if len(self.rest):
                    whole.read(self.rest, query_span=self.span)
                self._whole = whole
            return self._whole.fork()

    def opening(self, model: Model) -> Opening:
        """What questions about any passage begin with; the first one to ask reads it for all."""
        with self._lock:
            if self._opening is None:
                self._opening = Opening(model, self.session.kv_dtype)
            return self._opening

    @property
    def grid(self) -> Grid:
        """The pieces of the text."""
        end = self.text_start + len(self.offsets)
        return Grid(self.text_start, end, self.memory.n_init, self.memory.block_size)

    @property
    def starts(self) -> NDArray[np.int64]:
        """The first character of each piece: int64 [n]."""
        return np.asarray(self.offsets[self.grid.bounds[:, 0] - self.text_start, 0])

    def characters(self, begin: int, end: int) -> Span:
        """The characters of the text's tokens at [begin, end) of the timeline."""
        inside = self.offsets[begin - self.text_start : end - self.text_start]
        return int(inside[:, 0].min()), int(inside[:, 1].max())

    def tokens(self, start: int, end: int) -> Span:
        """The tokens [begin, end) of the timeline that hold the text's characters [start, end)."""
        begin = np.searchsorted(self.offsets[:, 1], start, side="right")
        stop = np.searchsorted(self.offsets[:, 0], end, side="left")
        return self.text_start + int(begin), self.text_start + int(stop)

    def span_of(self, first: int, last: int) -> Span:
        """The characters of the pieces ``first`` ... ``last``, grown to whole sentences."""
        bounds = self.grid.bounds
        return widen(self.text, *self.characters(int(bounds[first, 0]), int(bounds[last, 1])))

    def passage(self, piece: int) -> str:
        """The text of a piece, grown to whole sentences."""
        start, end = self.span_of(piece, piece)
        return self.text[start:end]


def sought(question: str, history: Sequence[str]) -> str:
    """What passages are sought by."""
    return "\n".join([*history, question])


def hear_question(
    session: Session, asked: NDArray[np.int64], span: Span, heads: Any
) -> NDArray[np.float32]:
    """Feed the tokens ``asked`` up to the end of the question at ``span``; the question's centred
    queries, float32 [heads, T, D]."""
    queries = session.listen(asked[: span[1]], heads)[:, span[0] :]
    return centred_queries(session, heads, queries)


@dataclasses.dataclass(frozen=True)
class _Heard:
    """A question's queries, float32 [heads, T, D], in a fork of a document, and the ranking by
    them."""

    snapshot: Snapshot
    session: Session
    queries: NDArray[np.float32]
    ranking: Ranking

    def sentence(self, start: int, end: int) -> Span | None:
        """The sentence of the text's characters [start, end) that the heads point at most; None if
        there is but one."""
        found = sentences(self.snapshot.text, start, end)
        if len(found) < 2:
            return None
        runs = [self.snapshot.tokens(*span) for span in found]
        return found[strongest(self.session, self.ranking, self.queries, runs)]

    def words(self, piece: int) -> str:
        """That sentence of a piece's passage, or all of it."""
        span = self.snapshot.span_of(piece, piece)
        return self.snapshot.text[slice(*(self.sentence(*span) or span))]


def answering(model: Model, snapshot: Snapshot, asking: Asking) -> Generator[str, None, Answer]:
    """The answer's text piece by piece, and the answer: by retrieval heads, or by the memory's own
    lookups."""
    started = time.perf_counter()
    if asking.retrieval == "paper":
        return (yield from _by_memory(model, snapshot, asking, started))
    heads, notes, rule = heads_of(model, snapshot)
    words = sought(asking.question, asking.history)
    suffix, span = snapshot.form.suffix(model.tokenizer, words)
    if snapshot.skim is None:  # else the window is small, and nothing depends on it
        check_question_length(span[1] - span[0], snapshot.memory)
    session = snapshot.fork_whole()
    queries = hear_question(session, suffix, span, heads)
    ranking = rank_pieces(session, heads, queries, snapshot.grid)
    ranking = dataclasses.replace(ranking, named=named(words, snapshot.text, snapshot.starts))
    heard = _Heard(snapshot, session, queries, ranking)
    asked = Asked(snapshot.opening(model), words)
    judgement = judge(heard.ranking, lambda piece: asked.bond(heard.words(piece)))
    ranking = judgement.ranking
    evidence = [
        dataclasses.replace(passage, sentence=heard.sentence(passage.start, passage.end))
        for passage in evidence_of(snapshot, ranking, asking)
    ]
    confidence = None
    if rule is not None and len(ranking.scores) >= FEWEST_PIECES:
        confidence = rule.confidence(judgement.features)
    if rule is not None and confidence is not None and confidence < rule.threshold:
        notes.append(
            f"no passage stands out (confidence {confidence:.2f}, {rule.threshold:.2f} needed)"
        )
        if not asking.always_answer:
            yield NOT_FOUND
            refused = Reply(NOT_FOUND, [], "stop", time.perf_counter())
            return _answer(asking, refused, started, notes, confidence, evidence, ranking)
    suffix, _ = snapshot.form.suffix(model.tokenizer, asking.question)
    if asking.use == "reread":
        session, logits, prompt = _reread(model, snapshot, asking, evidence)
    elif asking.use == "reposition":
        session, logits, prompt = _reposition(model, session, snapshot, ranking, asking, suffix)
    else:
        session, logits, prompt = _remember(snapshot, ranking, asking, suffix)
    reply = yield from replying(model, session, logits, prompt, asking.options)
    return _answer(asking, reply, started, notes, confidence, evidence, ranking)


def _answer(
    asking: Asking,
    reply: Reply,
    started: float,
    notes: Sequence[str],
    confidence: float | None,
    evidence: list[Passage],
    ranking: Ranking | None = None,
) -> Answer:
    return Answer(
        asking.question,
        reply.text,
        reply.tokens,
        time.perf_counter() - started,
        reply.first_at - started,
        (*notes, *reply.notes(asking.options)),
        confidence,
        evidence,
        asking.retrieval,
        reply.finish_reason,
        asking.history,
        ranking,
    )


def heads_of(model: Model, snapshot: Snapshot) -> tuple[Any, list[str], Any]:
    """The heads to listen to, what to say about them, and the rule for "not found"."""
    known = snapshot.skim or model.retrieval_heads
    if known is not None:
        return known.heads, [], known.found
    note = (
        "no retrieval heads are known for this model: passages are ranked by all of its heads, "
        "which finds fewer; run model.calibrate() once"
    )
    return all_heads(model.n_layers, model.n_heads), [note], None


# The ranking as passages --------------------------------------------------------------------------


def _chosen(ranking: Ranking, asking: Asking) -> list[int]:
    """The pieces to answer from, best first."""
    return ranking.standing_out() if asking.passages is None else ranking.best(asking.passages)


def _groups(ranking: Ranking, asking: Asking) -> list[list[int]]:
    """Runs of pieces: the best ones with their neighbours, best run first."""
    chosen = _chosen(ranking, asking)
    around = asking.neighbours
    spans = merge(
        ((max(p - around, 0), min(p + around + 1, len(ranking.scores))) for p in chosen), gap=0
    )
    runs = [list(range(*span)) for span in spans]
    place = {piece: rank for rank, piece in enumerate(chosen)}
    return sorted(runs, key=lambda run: min(place.get(piece, len(place)) for piece in run))


def evidence_of(snapshot: Snapshot, ranking: Ranking, asking: Asking) -> list[Passage]:
    """The best passages as text, grown to whole sentences, adjacent ones merged, best first."""
    found: dict[Span, list[int]] = {}
    for run in _groups(ranking, asking):
        span = snapshot.span_of(run[0], run[-1])
        if span[1] > span[0]:
            found.setdefault(span, []).extend(run)
    passages = []
    for start, end in merge(found):
        run = [p for span, run in found.items() if start <= span[0] < end for p in run]
        score = float(ranking.scores[run].max())
        layers = ranking.layers(run, len(_chosen(ranking, asking)))
        passages.append(Passage(start, end, snapshot.text[start:end], score, layers))
    return sorted(passages, key=lambda passage: (-passage.score, passage.start))


# Uses of the ranking ------------------------------------------------------------------------------

Ready = tuple["Session", NDArray[np.float32], NDArray[np.int64]]
"""A session that has read a prompt, the logits after it, and the prompt's ids."""


def _reread(model: Model, snapshot: Snapshot, asking: Asking, evidence: list[Passage]) -> Ready:
    """Read the passages again as ordinary text in a short prompt, the best one last. The package's
    own prompt points out its sentence that the heads point at most; others are left as they are."""
    form = snapshot.form
    words = "\n\n".join(passage.text for passage in reversed(evidence))
    if form == PromptForm.of(DOCUMENT_PROMPT):
        form = PromptForm.of(PASSAGES_PROMPT)
        if evidence and evidence[0].sentence is not None:
            sentence = snapshot.text[slice(*evidence[0].sentence)]
            words = POINTED_OUT.format(passages=words, sentence=sentence)
    prefix, _ = form.prefix(model.tokenizer, asking.question)
    suffix, _ = form.suffix(model.tokenizer, asking.question)
    inside, _ = text_tokens(model.tokenizer, words)
    ids = np.concatenate([prefix, inside, suffix])
    memory = MemoryConfig(mode="full")
    session = model.session(memory, kv_dtype=snapshot.session.kv_dtype)
    return session, read(session, ids, ReadingPlan.of(len(ids), memory)), ids


def _reposition(
    model: Model,
    session: Session,
    snapshot: Snapshot,
    ranking: Ranking,
    asking: Asking,
    suffix: NDArray[np.int64],
) -> Ready:
    """Put the passages' keys and values directly before the question, after the first tokens."""
    bounds = ranking.grid.bounds
    spans = [(0, min(max(snapshot.text_start, snapshot.memory.n_init), snapshot.grid.end))]
    if asking.passages == 0:
        spans = [(0, snapshot.text_start)]
    spans += [(int(bounds[run[0], 0]), int(bounds[run[-1], 1])) for run in _groups(ranking, asking)]
    spans = [span for span in merge(spans, gap=0) if span[1] > span[0]]
    if spans:
        excerpt = session.excerpt(np.array(spans, dtype=np.int64))
    else:  # a prompt that begins with the text, of which nothing is wanted
        excerpt = model.session(MemoryConfig(mode="full"), kv_dtype=session.kv_dtype)
    return excerpt, _feed_suffix(excerpt, suffix), suffix


def _remember(
    snapshot: Snapshot, ranking: Ranking, asking: Asking, suffix: NDArray[np.int64]
) -> Ready:
    """Let every layer attend to the passages' blocks; what lies in the window is seen anyway."""
    session = snapshot.fork_whole()
    blocks = {ranking.grid.block(piece) for run in _groups(ranking, asking) for piece in run}
    session.pin(sorted(block for block in blocks if 0 <= block < session.n_blocks))
    return session, _feed_suffix(session, suffix), suffix


def _feed_suffix(session: Session, suffix: NDArray[np.int64]) -> NDArray[np.float32]:
    if len(suffix) > 1:
        session.feed(suffix[:-1])
    return session.feed(suffix[-1:])


def _by_memory(
    model: Model, snapshot: Snapshot, asking: Asking, started: float
) -> Generator[str, None, Answer]:
    """The memory's own way: the paper's lookups, or none in modes without blocks."""
    memory = snapshot.memory
    session, logits, ids = read_by_memory(model, snapshot, asking.question)
    answer_at = len(session) - 1
    reply = yield from replying(model, session, logits, ids, asking.options)
    lookups = (record for record in session.trace if record.first_token >= answer_at)
    found = retrieved_passages(
        lookups, snapshot.text, snapshot.offsets, snapshot.text_start, memory
    )
    notes = []
    if memory.mode not in ("infllm", "qllm"):
        notes.append(f"mode {memory.mode!r} looks nothing up: there is no evidence")
    elif not found:
        notes.append("nothing was looked up: the text fits into the window, or topk is 0")
    return _answer(asking, reply, started, notes, None, found)


def read_by_memory(
    model: Model, snapshot: Snapshot, question: str, *, scores: bool = False
) -> Ready:
    """A fork that has read the document and ``question`` the memory's own way; its trace has the
    blocks chosen, and all ``scores`` if they are wanted."""
    memory = snapshot.memory
    suffix, span = snapshot.form.suffix(model.tokenizer, question)
    session = snapshot.fork(scores=scores)
    ids = np.concatenate([snapshot.rest, suffix])
    if memory.mode == "qllm":
        check_question_length(span[1] - span[0], memory)
    later = snapshot.span
    if memory.mode == "qllm" and not snapshot.form.asks_first:
        later = span[0] + len(snapshot.rest), span[1] + len(snapshot.rest)
    plan = ReadingPlan.of(len(ids), memory, later)
    if later is not None and plan.opening_span is not None:
        # The plan of a session's beginning; this one has begun long ago.
        body = max(len(ids) - 1, later[1])
        last = (Piece(body, len(ids)),) if body < len(ids) else ()
        plan = ReadingPlan((Piece(0, body, later), *last), None)
    return session, read(session, ids, plan), ids
