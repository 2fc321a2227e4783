"""Documents: a text read once into a memory, and asked many times.

book = model.read(text, progress=True)
answer = book.ask("Where was the treasure buried?")
answer.text, answer.evidence
"""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from importlib.util import find_spec
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self, Unpack

import numpy as np
from numpy.typing import NDArray

from quickllama import checks
from quickllama.arrays import token_ids
from quickllama.config import AskOptions, GenerationOptions, MemoryConfig
from quickllama.documents.answer import Answer, AnswerStream, Span
from quickllama.documents.asking import Asking, Snapshot, answering
from quickllama.documents.growing_text import GrowingText
from quickllama.documents.keeping import Keeper, Reading
from quickllama.documents.relevance import relevance_of
from quickllama.documents.source import Source, parts_of
from quickllama.documents.writing import write_safely, writer
from quickllama.errors import Busy, FileProblem, InvalidType, InvalidValue, MissingPackage
from quickllama.generation import Progress, check_span
from quickllama.progress import showing
from quickllama.prompt import PromptForm, checked_question

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from quickllama.documents.head_store import SkimHeads
    from quickllama.model import Model

__all__ = ["Document", "Source"]

_SLAB = 1 << 16  # characters given to the tokenizer at a time


class Document:
    """A text in a model's memory. Made by :meth:`quickllama.Model.read` or
    :meth:`quickllama.Model.skim`.

    Any number of threads may ask at the same time; :meth:`append` lets them wait. What the document
    holds (``text``, ``len``, ``nbytes``, ``repr``) can be looked at meanwhile. The timeline holds
    whole execution chunks only: what comes after the last one (as ids; the last characters, whose
    tokens are not certain yet, as text) is read by a fork when someone asks. So the same text gives
    the same bits however it arrived (with tokenizers that are not known, and in texts without safe
    places to cut, as far as ``tokenizer/cuts.py`` can try).

    A document in a file keeps it to itself until :meth:`close`, or until nothing refers to the
    document any more; ``with model.read(...) as book:`` closes it at the end.

    Attributes: ``model``, ``memory`` (:class:`MemoryConfig`), ``title``, ``question`` (that the
    text was read for, or None), ``skimmed`` (whether only what finding passages needs was
    computed).
    """

    def __init__(
        self,
        model: Model,
        memory: MemoryConfig,
        form: PromptForm,
        title: str | None = None,
        question: str | None = None,
        kv_dtype: str | None = None,
        skim: SkimHeads | None = None,
    ) -> None:
        self.model = model
        self.memory = memory
        self.title = title
        self.question = question
        self._form = form
        self._lock = threading.Lock()
        self._owner: int | None = None  # the thread that holds the lock
        self._text = GrowingText(model.tokenizer)
        self._prefix, span = form.prefix(model.tokenizer, question)
        self._span = span if memory.mode == "qllm" else None  # the question, in the prefix
        if self._span is not None:
            check_span(self._span, len(self._prefix), memory)
        self._skim = skim
        heads = None if skim is None else skim.heads
        self._session = model.session(memory, kv_dtype=kv_dtype, skim_heads=heads)
        self._current: Snapshot | None = None
        self._complete = False  # nothing that was to be read is missing
        self._closed = False
        self._keeper: Keeper | None = None
        self._notes: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The text; of token ids, what they decode to. While it grows: what has arrived."""
        return self._text.text

    @property
    def skimmed(self) -> bool:
        """Whether only what finding passages needs was computed."""
        return self._skim is not None

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the document holds: keys, values, text and its tokens' places. While
        a chunk is computed: keys and values of those before."""
        return self._session.nbytes + self._text.nbytes

    def __len__(self) -> int:
        """Tokens of the text, those that are not in the timeline yet included."""
        return self._text.n_tokens

    def __repr__(self) -> str:
        title = "" if self.title is None else f" {self.title!r}"
        return (
            f"<quickllama.Document{title}, {len(self)} tokens, {self.nbytes / 2**20:.1f} MiB, "
            f"{'skimmed' if self.skimmed else f'mode {self.memory.mode}'}"
            f"{', closed' if self._closed else ''}>"
        )

    def append(self, more: Source, progress: bool | Progress | None = None) -> None:
        """Read on: the same as if the text had been read with ``more`` behind it.

        ``more`` and ``progress``: as in :meth:`quickllama.Model.read`. After Ctrl-C or an error,
        the document holds what had arrived, and what of it was not computed is with the next call,
        be it :meth:`ask`. A document that was
        read with ``store`` grows in its file; one that was loaded grows in memory, and is saved
        anew with :meth:`save`. Raises InvalidType or InvalidValue, and FileProblem if the file
        cannot be written; Busy in ``progress`` and in ``more`` of an append to the same document,
        as do :meth:`ask` and :meth:`save`; InvalidValue once the document is closed, as they do.
        """
        bar = showing(progress, "reading", held=lambda: self.nbytes)
        with self._alone(), self._kept(), bar as show:
            self._current = None
            for _ in self._arrivals(more):
                self._feed_full_chunks(show)
            self._feed_full_chunks(show)
            self._text.settle()
            if show is not None:
                known = len(self._prefix) + len(self._text)
                show(known, known)
            self._complete = True

    @contextmanager
    def _alone(self, *, closing: bool = False) -> Iterator[None]:
        """One thread at a time; others wait. What it calls itself, such as ``progress``, cannot."""
        if self._lock.locked() and self._owner == threading.get_ident():
            raise Busy(
                "this thread is reading into the document, or copies it, and has called the code "
                "that asks, saves, appends or closes; do that once it is done (text, len(), nbytes "
                "and repr() work meanwhile)"
            )
        with self._lock:
            if self._closed and not closing:
                raise InvalidValue(
                    "the document is closed; read its text again, or load its file with "
                    "model.load_document(path)"
                )
            if not closing:
                self._text.check_tokenizer(self.model.tokenizer)
            self._owner = threading.get_ident()
            try:
                yield
            finally:
                self._owner = None

    def ask(
        self,
        question: str | None = None,
        *,
        stream: bool | Callable[[str], object] | None = None,
        history: Sequence[str] | None = None,
        retrieval: str | None = None,
        use: str | None = None,
        passages: int | None = None,
        neighbours: int | None = None,
        always_answer: bool = False,
        **options: Unpack[GenerationOptions],
    ) -> Answer:
        """Answer a question about the text.

        * ``question``: None: the one that the text was read for.
        * ``stream``: True: print the answer as it comes; or called with each piece of its text.
          :meth:`stream` gives the pieces to a loop.
        * ``history``: questions of the conversation so far, such as the last two. Passages are
          sought by all of them, so that this one may say "it"; only this one is answered.
        * ``retrieval``: ``"heads"``: one ranking of passages by retrieval heads; ``"paper"``:
          blocks per layer by the published score, for a document read in mode qllm. None: heads, or
          the memory's own way for a document read with a question or in a mode without blocks.
        * ``use`` of the ranking: ``"reread"`` (default): the best passages are read again as
          ordinary text, with the question before and after them, and at their end the sentence of
          the best one that the heads point at most (not if it has but one, nor with a ``prompt=``
          of one's own); ``"reposition"``: their keys and values are put directly before the
          question; ``"memory"``: they are the blocks that every layer attends to.
        * ``passages``: how many blocks; None: the best one, and up to three more that come close to
          it (others confuse a small model); in the memory 16. ``neighbours``: blocks at each side
          of them; None: 0.
        * ``always_answer``: answer even if nothing in the text stands out; otherwise the answer is
          then "Not found in the document.".
        * ``options``: ``max_new_tokens`` and the other fields of :class:`GenerationConfig`.

        Raises InvalidType or InvalidValue, and Busy in what :meth:`append` calls.
        """
        write = writer(stream)
        pieces = self.stream(
            question,
            history=history,
            retrieval=retrieval,
            use=use,
            passages=passages,
            neighbours=neighbours,
            always_answer=always_answer,
            **options,
        )
        with closing(pieces):  # also where an exception is kept, and all that it refers to
            for piece in pieces:
                if write is not None:
                    write(piece)
            if stream is True:
                write_safely("\n")
            return pieces.answer

    def stream(self, question: str | None = None, **options: Unpack[AskOptions]) -> AnswerStream:
        """The answer while it comes: iterate over the pieces of its text, then take ``answer``.

            for piece in (pieces := book.stream("Where was the treasure buried?")):
                print(piece, end="", flush=True)
            pieces.answer.evidence

        Arguments are those of :meth:`ask`, and are checked at once; the document is asked as it
        stands now. Passages are sought, and tokens computed, only while the next piece is waited
        for, and no more of them once the iteration is given up. Until then it keeps a copy of the
        window, and the document's file. The answer's ``seconds`` count from the first piece's being
        asked for, and hold what is done with the pieces meanwhile. Raises what :meth:`ask` raises.
        """
        if "stream" in options:
            raise InvalidType("stream() gives the pieces itself; ask(stream=) hands them on")
        if question is None:
            if self.question is None:
                raise InvalidValue("the document was read without a question; ask one")
            question = self.question
        asking = Asking.of(
            checked_question(question),
            self.question,
            self.memory,
            skimmed=self.skimmed,
            history=options.pop("history", None),
            retrieval=options.pop("retrieval", None),
            use=options.pop("use", None),
            passages=options.pop("passages", None),
            neighbours=options.pop("neighbours", None),
            always_answer=checks.flag("always_answer", options.pop("always_answer", False)),
            options=dict(options),
        )
        return AnswerStream(self._answering(self._snapshot(), asking))

    def _answering(self, snapshot: Snapshot, asking: Asking) -> Generator[str, None, Answer]:
        answer = yield from answering(self.model, snapshot, asking)
        notes = (*answer.notes, *self._notes)
        led = asking.retrieval == "paper" and self.memory.mode == "qllm"
        if led and self.question not in (None, asking.question):
            notes += ("the text was read for another question, which led its memory",)
        return dataclasses.replace(answer, notes=notes)

    # In a file ------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the document to a file, whole or not at all, for
        :meth:`quickllama.Model.load_document`.

        It replaces a document of that name. Others may ask and append meanwhile: what is saved is
        what the document held at the call. Raises FileProblem if the file cannot be written, is no
        document, or the disk has no room; Busy if another document is being read into it, and in
        what :meth:`append` calls; InvalidValue if reading was interrupted.
        """
        from quickllama.documents.document_file import checked_path, save_document

        where = checked_path(path)
        with self._alone():
            if not self._complete:
                raise InvalidValue(
                    "reading this document was interrupted; append('') reads the rest, then it can "
                    "be saved"
                )
            if self._keeper is not None and self._keeper.holds(where):
                self._keeper.finish(self._reading())
                return
            now = dataclasses.replace(
                self._reading(), session=self._session.fork(), text=self._text.copy()
            )
        save_document(now, where)

    def close(self) -> None:
        """Give up the memory of keys and values, and the file, which others may open then.

        ``text`` and ``len`` stay. Answers that other threads are being given are not disturbed; the
        file is free once they have them. Nothing more happens the second time. Raises Busy in what
        :meth:`append` calls.
        """
        with self._alone(closing=True):
            self._closed = True
            self._current = None
            self._session = self.model.session(MemoryConfig(mode="full"))  # empty: no window
            if self._keeper is not None:
                self._keeper.file.close()
                self._keeper = None

    def __reduce__(self) -> NoReturn:
        raise InvalidType(
            "a Document cannot be pickled or copied; save(path) it, and take "
            "model.load_document(path) where it is wanted"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _reading(self) -> Reading:
        """What it consists of, for those who write it to a file."""
        return Reading(
            model=self.model,
            session=self._session,
            text=self._text,
            prefix=self._prefix,
            memory=self.memory,
            form=self._form,
            title=self.title,
            question=self.question,
            skim=self._skim,
            complete=self._complete,
        )

    def _goes_on(self, prefix: NDArray[np.int64], text: GrowingText, complete: bool) -> None:
        """Its session stands where another one stood; so do the tokens before its text, and the
        text, of which nothing is missing if it is ``complete``.

        The prefix may be other tokens than today's: there are chat templates that tell the date.
        """
        if self._span is not None:
            later = len(prefix) - len(self._prefix)
            start, end = self._span[0] + later, self._span[1] + later
            if start < 0 or not np.array_equal(prefix[start:], self._prefix[self._span[0] :]):
                raise InvalidValue("its question stands elsewhere than in this model's prompt")
            self._span = start, end
        self._prefix = prefix
        self._text = text
        self._complete = complete

    def _keep(self, keeper: Keeper) -> None:
        """From now on, what is read goes to a file."""
        self._keeper = keeper

    def _add_note(self, note: str) -> None:
        """A note for every answer."""
        self._notes = (*self._notes, note)

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """What is read within stands in the file at the end, also after Ctrl-C and errors."""
        try:
            yield
        except BaseException:
            if self._keeper is not None:
                with suppress(FileProblem, MemoryError):  # of which the first problem tells
                    self._keeper.commit(self._reading())
            raise
        if self._keeper is not None:
            self._keeper.finish(self._reading())

    # Views ----------------------------------------------------------------------------------------

    def plot_retrieval(
        self, answers: Answer | Sequence[Answer], *, all_layers: bool = False
    ) -> Figure:
        """A picture of where answers come from: for each one a heat map of how far every block
        stands out, as in the paper, with the evidence marked and numbered, and below it a strip
        that shows where in the text it lies.

        The question of each answer is asked again for it, as far as finding passages goes. After
        retrieval by heads, a row is one of the heads that ranked the blocks, and the strip is the
        mean over the rows; with ``all_layers`` a row is the mean over all query heads of a layer.
        By the paper, rows are all layers: the scores of the lookup for the answer's first token;
        the strip is the share of the layers that chose the block. In long texts a column of the
        heat map is the best of several blocks.

        Returns a new matplotlib Figure: ``figure.savefig(path)``; notebooks show it. Raises
        MissingPackage without matplotlib; InvalidType for what is no answer; InvalidValue for
        answers about another text, where nothing was looked up, and for all layers of a skimmed
        text.
        """
        if find_spec("matplotlib") is None:
            raise MissingPackage(
                "pictures are drawn by matplotlib, which is not installed; "
                'pip install "quickllama[plot]"'
            )
        from quickllama.documents.plot import plot_relevance

        given: Any = answers
        asked = list(given) if isinstance(given, Iterable) else [given]
        snapshot, wide = self._snapshot(), checks.flag("all_layers", all_layers)
        return plot_relevance([relevance_of(self.model, snapshot, one, wide) for one in asked])

    def _repr_html_(self) -> str:
        from quickllama.documents.html import document_html

        return document_html(self)

    # What asking starts from ----------------------------------------------------------------------

    def _snapshot(self) -> Snapshot:
        """The document as it stands now, with a fork of its timeline. Raises InvalidValue if it is
        empty, and Busy in what :meth:`append` calls."""
        with self._alone():
            if self._current is None:
                if len(self._pending()) >= self.memory.exc_block_size:  # append was interrupted
                    with self._kept():
                        self._feed_full_chunks(None)
                ids, spans = self._text.tail()
                if not len(self._text) and not len(ids):
                    raise InvalidValue("the document is empty; append some text first")
                offsets = np.concatenate([self._text.offsets(), spans])
                rest = np.concatenate([self._pending(), ids])
                self._current = Snapshot(
                    session=self._session.fork(),
                    rest=rest,
                    text=self._text.text,
                    offsets=offsets,
                    text_start=len(self._prefix),
                    memory=self.memory,
                    form=self._form,
                    span=self._unheard(),
                    skim=self._skim,
                )
            return self._current

    # Growing --------------------------------------------------------------------------------------

    def _pending(self) -> NDArray[np.int64]:
        """Certain tokens that the timeline does not hold yet: int64 [n]."""
        done = len(self._session)
        return np.concatenate(
            [self._prefix[done:], self._text.ids(max(done - len(self._prefix), 0))]
        )

    def _arrivals(self, source: Source) -> Iterator[None]:
        """Take ``source`` in, part after part."""
        for part in parts_of(source):
            if not isinstance(part, str):
                ids, _ = token_ids(part, self.model.vocab_size, "the token ids to read")
                self._complete = False
                self._text.add_ids(ids)
                yield
                continue
            for start in range(0, len(part), _SLAB):
                self._complete = False
                self._text.add(part[start : start + _SLAB])
            yield

    def _unheard(self) -> Span | None:
        """The question, unless the session knows where it is: from its first chunk on."""
        return None if len(self._session) else self._span

    def _feed_full_chunks(self, show: Progress | None) -> None:
        step = self.memory.exc_block_size
        # The question is read in one call, or to its end if that call was interrupted.
        asked = 0 if self._span is None else -(-self._span[1] // step) * step
        pending = self._pending()
        done = begin = len(self._session)
        total = begin + len(pending)
        if show is not None:
            show(done, total)
        while (end := max(done + step, asked)) <= total:
            self._session.read(pending[done - begin : end - begin], query_span=self._unheard())
            done = end
            if self._keeper is not None:
                self._keeper.after_chunk(self._reading())
            if show is not None:
                show(done, total)
