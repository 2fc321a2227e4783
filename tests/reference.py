"""The executable specification: a Llama forward pass and the Q-LLM memory in plain NumPy.

Written to be read beside the paper (Li et al., COLING 2025, section 3), not to be fast: every
token's key, value and score is kept for ever, and what a token *is* (first token, in a block,
waiting) is a range of token numbers. Activations are float32; angles are computed in double.
The C core is held to this file by the tests.

Letters: m tokens of one execution chunk, N tokens read so far, n keys of one kind, H query heads,
G key/value heads, D head_dim, E hidden size, F intermediate size, V vocabulary, B blocks, P block
size, S tokens of the question.

    model = Reference(config, weights)                       # HuggingFace names, weights [out, in]
    session = model.session(memory={"mode": "qllm", "n_local": 96}, query_span=(5, 17))
    logits = session.feed(ids)                               # float32 [V], of the last token
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from reference_rope import Rope
from reference_rounding import ROUNDED, round_to_bfloat16

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Ids = Sequence[int] | NDArray[Any]
Span = tuple[int, int] | None  # [start, end) of the question, in token positions

MODES = ("full", "stream", "infinite", "infllm", "qllm")
UNBOUNDED = 1 << 40  # a window that no text outgrows


@dataclass(frozen=True)
class Memory:
    """Settings of the memory (the names of the authors' configuration files)."""

    mode: str = "qllm"
    n_init: int = 128  # first tokens, always seen
    n_local: int = 512  # sliding window: a query sees distances 0 .. n_local-1
    block_size: int = 64  # P
    topk: int = 8  # blocks looked up per layer and chunk
    repr_topk: int = 4  # tokens that represent a block, and the question
    exc_block_size: int = 512  # m, at most n_local
    lookup_interval: int = 1  # not in the paper: of single tokens, every so manieth looks up
    question_weight: float = 1.0  # the paper's beta
    keep_query_tokens: bool = False  # the paper's Q in M = [G, Q, R, L]; the authors' code: False
    mask: str = "exact"  # or "authors"
    kv_dtype: str = "float32"  # of keys and values: or "bfloat16", "int8"

    def __post_init__(self) -> None:
        if self.mode not in MODES or self.mask not in ("exact", "authors"):
            raise ValueError(f"unknown mode {self.mode!r} or mask {self.mask!r}")
        if self.kv_dtype not in ROUNDED:
            raise ValueError(f"unknown kv_dtype {self.kv_dtype!r}")
        if not 1 <= self.exc_block_size <= self.n_local and self.mode != "full":
            raise ValueError("exc_block_size must be 1 .. n_local")

    @property
    def has_blocks(self) -> bool:
        return self.mode in ("infllm", "qllm")

    def kept(self, x: Floats) -> Floats:
        """Keys or values [..., D] as they are after being kept."""
        return ROUNDED[self.kv_dtype](x)

    def kept_near(self, x: Floats) -> Floats:
        """The same for the window's rotated keys and the blocks' vectors: never in int8."""
        return x if self.kv_dtype == "float32" else round_to_bfloat16(x)


@dataclass(frozen=True)
class Shape:
    """The dimensions of a model, from its config (both dialects of HuggingFace)."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    sliding_window: int | None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        n_heads = int(config["num_attention_heads"])
        window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
        return cls(
            n_layers=int(config["num_hidden_layers"]),
            n_heads=n_heads,
            n_kv_heads=int(config.get("num_key_value_heads") or n_heads),
            head_dim=int(config.get("head_dim") or int(config["hidden_size"]) // n_heads),
            rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
            sliding_window=None if window is None else int(window),
        )


class Part(NamedTuple):
    """Keys of one kind, seen by the chunk's queries under one rotation."""

    queries: Floats  # [H, m, D]
    keys: Floats  # [G, n, D]
    values: Floats  # [G, n, D]
    visible: Bools  # [m, n]


def for_every_query_head(x: Floats, n_heads: int) -> Floats:
    """Grouped-query attention: [G, n, D] -> [H, n, D], a kv head serves its group."""
    return np.repeat(x, n_heads // x.shape[0], axis=0)


def joint_attention(parts: Sequence[Part]) -> tuple[Floats, list[Floats]]:
    """One softmax over the logits of all parts together (the authors' local and global attention).

    Returns the outputs [H, m, D], and for each part the probabilities [H, m, n].
    """
    n_heads, _, head_dim = parts[0].queries.shape
    logits: list[Floats] = []
    for part in parts:
        keys = for_every_query_head(part.keys, n_heads)
        product: Floats = (
            part.queries @ keys.transpose(0, 2, 1) * np.float32(head_dim**-0.5)
        )  # [H, m, n]
        logits.append(np.where(part.visible, product, np.float32(-np.inf)))
    everything = np.concatenate(logits, axis=-1)  # [H, m, all keys]; a query always sees itself
    weights: Floats = np.exp(everything - everything.max(axis=-1, keepdims=True))
    weights = weights / weights.sum(axis=-1, keepdims=True)
    cuts = np.cumsum([part.keys.shape[1] for part in parts])[:-1]
    probabilities: list[Floats] = np.split(weights, cuts, axis=-1)
    output: Floats = np.zeros_like(parts[0].queries)
    for part, probability in zip(parts, probabilities, strict=True):
        output = output + probability @ for_every_query_head(part.values, n_heads)
    return output, probabilities


def best(scores: Floats, count: int) -> tuple[Ints, float]:
    """The `count` highest of scores [n], the lower index first among equals; ascending.

    Also the margin: how far the last one chosen lies above the first one left, relative to the
    largest score, or to 1 if that is less; infinite where nothing was left to choose.
    """
    order = np.argsort(-scores, kind="stable")
    chosen, left = order[:count], order[count:]
    if not len(chosen) or not len(left):
        return np.sort(chosen), float("inf")
    gap = float(scores[chosen[-1]] - scores[left[0]])
    return np.sort(chosen), gap / max(float(np.abs(scores).max()), 1.0)


class LayerMemory:
    """What one layer remembers of one timeline, and its attention."""

    def __init__(self, shape: Shape, rope: Rope, memory: Memory) -> None:
        heads, kv_heads, dim = shape.n_heads, shape.n_kv_heads, shape.head_dim
        self.rope, self.memory = rope, memory
        self.window = memory.n_local
        if memory.mode == "full":
            self.window = shape.sliding_window or UNBOUNDED
        self.keys: Floats = np.zeros((kv_heads, 0, dim), np.float32)  # [G, N, D], un-rotated, exact
        self.values: Floats = np.zeros((kv_heads, 0, dim), np.float32)  # [G, N, D], as kept
        self.local_scores: Floats = np.zeros((heads, 0), np.float32)  # [H, N]
        self.vectors: Floats = np.zeros((0, heads, dim), np.float32)  # [B, H, D]
        self.init_end = 0  # tokens 0 .. init_end-1 are first tokens
        self.blocks_end = 0  # tokens init_end .. blocks_end-1 are in blocks; the rest is waiting
        self.kept: Ints | None = None  # the blocks that a single token looked up last
        self.question: Floats | None = None  # [H, D]
        self.question_queries: Floats = np.zeros((heads, 0, dim), np.float32)  # [H, S, D]
        self.margin = float("inf")  # of the closest choice made so far

    @property
    def length(self) -> int:
        return int(self.keys.shape[1])

    @property
    def waiting(self) -> int:
        return self.length - self.blocks_end

    def attend(
        self, queries: Floats, keys: Floats, values: Floats, span: Span
    ) -> tuple[Floats, Ints, Floats]:
        """One execution chunk: queries [H, m, D], keys and values [G, m, D], all un-rotated.

        Returns the outputs [H, m, D], the retrieved blocks, ascending, and all blocks' scores [B].
        """
        first = self.length  # of the chunk's tokens
        self.keys = np.concatenate([self.keys, keys], axis=1)
        self.values = np.concatenate([self.values, self.memory.kept(values)], axis=1)
        new_scores = np.zeros((queries.shape[0], queries.shape[1]), np.float32)
        self.local_scores = np.concatenate([self.local_scores, new_scores], axis=1)

        far_queries = self.rope.rotate_to(queries, self.memory.n_local - 1)  # [H, m, D]
        local = self.local_part(queries, first)
        retrieved, block_scores = self.lookup(far_queries, first)
        global_parts = [
            *self.first_token_parts(queries, first),
            *self.far_parts(far_queries, first, retrieved, span),
        ]
        output, probabilities = joint_attention([local, *global_parts])  # steps 3 and 4
        window = slice(self.length - local.keys.shape[1], None)
        self.local_scores[:, window] += probabilities[0].sum(axis=1)  # step 5

        if self.memory.mode == "qllm" and span is not None:
            self.remember_question(far_queries, first, span)
        if self.memory.has_blocks:
            self.absorb()
        return output, retrieved, block_scores

    # -- the keys that a chunk sees

    def local_part(self, queries: Floats, first: int) -> Part:
        """Step 1: the sliding window, at true relative positions."""
        start = max(first - self.window + 1, 0)  # the oldest that the first query sees
        positions = np.arange(start, self.length)
        query_positions = np.arange(first, self.length)
        distance = query_positions[:, None] - positions[None, :]  # [m, n]
        keys = self.rope.rotate(self.keys[:, start:], positions)
        full = self.memory.mode == "full"  # whose keys are kept like this, once
        return Part(
            self.rope.rotate(queries, query_positions),
            self.memory.kept(keys) if full else self.memory.kept_near(keys),
            self.values[:, start:],
            (distance >= 0) & (distance < self.window),
        )

    def first_token_parts(self, queries: Floats, first: int) -> Iterator[Part]:
        """Modes stream and infinite: the first tokens, for the queries whose window they have left.

        StreamingLLM puts them just before the window: key j at j, the query at n_local+n_init-1.
        LM-Infinite gives them one distance: keys un-rotated, the query at n_local-1.
        """
        if self.memory.mode not in ("stream", "infinite"):
            return
        n_init, n_local = self.memory.n_init, self.memory.n_local
        positions = np.arange(min(n_init, self.length))
        distance = np.arange(first, self.length)[:, None] - positions[None, :]  # [m, n]
        keys = self.keys[:, : len(positions)]
        if self.memory.mode == "stream":
            keys = self.rope.rotate(keys, positions)
            queries = self.rope.rotate_to(queries, n_local + n_init - 1)
        else:
            queries = self.rope.rotate_to(queries, n_local - 1)
        values = self.values[:, : len(positions)]
        yield Part(queries, self.memory.kept(keys), values, distance >= n_local)

    def far_parts(
        self, far_queries: Floats, first: int, retrieved: Ints, span: Span
    ) -> Iterator[Part]:
        """Step 3, infllm and qllm: retrieved blocks, first tokens, remainder, all n_local-1 away;
        with keep_query_tokens also those tokens of the question that lie in no retrieved block.

        The remainder are the oldest waiting tokens, which the window of the chunk's *last* query
        has left. An earlier query of the chunk may still see some of them locally: mask "exact"
        hides those from it here, mask "authors" (what their code does) lets it see them twice.
        """
        if not self.memory.has_blocks:
            return
        n_local, size = self.memory.n_local, self.memory.block_size
        remainder_end = self.blocks_end + max(self.waiting - n_local, 0)
        remainder = np.arange(self.blocks_end, remainder_end)
        in_blocks = (self.init_end + retrieved[:, None] * size + np.arange(size)).reshape(-1)
        question = np.setdiff1d(self.question_in_blocks(span), in_blocks)
        tokens = np.concatenate([in_blocks, np.arange(self.init_end), question, remainder])
        distance = np.arange(first, self.length)[:, None] - tokens[None, :]  # [m, n]
        visible = np.ones_like(distance, dtype=bool)
        if self.memory.mask == "exact":
            visible = distance >= n_local
        keys = self.memory.kept(self.keys[:, tokens])
        yield Part(far_queries, keys, self.values[:, tokens], visible)

    def question_in_blocks(self, span: Span) -> Ints:
        """The question's tokens that are neither first tokens nor waiting, if they are kept."""
        if not self.memory.keep_query_tokens or self.memory.mode != "qllm" or span is None:
            return np.arange(0)
        return np.arange(max(span[0], self.init_end), min(span[1], self.blocks_end))

    # -- lookup

    def lookup(self, far_queries: Floats, first: int) -> tuple[Ints, Floats]:
        """Step 2: one choice for all heads. No 1/sqrt(D), no mean over heads.

        With lookup_interval > 1 a single token may keep the choice of the single token before it.
        """
        wanted = far_queries.mean(axis=1)  # [H, D]
        scores = np.einsum("hd,bhd->b", wanted, self.vectors)
        if self.question is not None:
            beta = np.float32(self.memory.question_weight)
            scores = scores + beta * np.einsum("hd,bhd->b", self.question, self.vectors)
        single = far_queries.shape[1] == 1
        kept = self.kept if single and first % self.memory.lookup_interval else None
        if kept is not None and len(kept) == min(self.memory.topk, len(scores)):
            return kept, scores
        chosen, margin = best(scores, self.memory.topk)
        self.margin = min(self.margin, margin)
        self.kept = chosen if single else None
        return chosen, scores

    # -- what the chunk's end changes

    def absorb(self) -> None:
        """Step 6: the oldest become first tokens, then blocks; at least n_local go on waiting."""
        memory = self.memory
        if self.init_end < memory.n_init and self.waiting > memory.n_local:
            self.init_end += min(memory.n_init - self.init_end, self.waiting - memory.n_local)
            self.blocks_end = self.init_end
        while self.waiting - memory.block_size >= memory.n_local:
            vector = self.represent(self.blocks_end, self.blocks_end + memory.block_size)
            self.vectors = np.concatenate([self.vectors, vector[None]])
            self.blocks_end += memory.block_size

    def represent(self, start: int, end: int) -> Floats:
        """The vector [H, D] of a block: per query head the mean key of its repr_topk best."""
        heads = self.local_scores.shape[0]
        kept = self.memory.kept(self.keys[:, start:end])
        keys = for_every_query_head(kept, heads)  # [H, P, D]
        mean = self.mean_of_best(self.local_scores[:, start:end], keys)
        return self.memory.kept_near(mean)

    def remember_question(self, far_queries: Floats, first: int, span: tuple[int, int]) -> None:
        """Step 7: at the first chunk end with the span read and more than n_local waiting."""
        start, end = span
        inside = slice(max(start - first, 0), max(end - first, 0))
        queries = [self.question_queries, far_queries[:, inside]]
        self.question_queries = np.concatenate(queries, axis=1)
        if self.question is None and self.length >= end and self.waiting > self.memory.n_local:
            scores = self.local_scores[:, start:end]  # [H, S]
            self.question = self.mean_of_best(scores, self.question_queries)
            self.kept = None

    def mean_of_best(self, scores: Floats, vectors: Floats) -> Floats:
        """Per query head the mean of the repr_topk of vectors [H, n, D] with the best scores."""
        means = []
        for head_scores, head_vectors in zip(scores, vectors, strict=True):
            chosen, margin = best(head_scores, self.memory.repr_topk)
            self.margin = min(self.margin, margin)
            means.append(head_vectors[chosen].mean(axis=0))
        return np.stack(means)  # [H, D]

    def forget_question(self) -> None:
        self.question = None
        self.kept = None
        self.question_queries = self.question_queries[:, :0]


@dataclass(frozen=True)
class Record:
    """What one layer looked up for one execution chunk."""

    layer: int
    first_token: int
    n_tokens: int
    block_ids: NDArray[np.int32]  # ascending
    scores: Floats  # [B], of all blocks


class Reference:
    """A Llama-like decoder: config and weights by their HuggingFace names."""

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, NDArray[Any]]) -> None:
        self.config = dict(config)
        self.shape = Shape.of(config)
        self.rope = Rope(config, self.shape.head_dim)
        self.weights = {name: np.asarray(array, np.float32) for name, array in weights.items()}

    def session(self, memory: Mapping[str, Any], query_span: Span = None) -> Session:
        """A new timeline; memory holds keyword arguments of Memory."""
        return Session(self, Memory(**memory), query_span)

    def forward(self, ids: Ids) -> Floats:
        """Full causal attention: logits [T, V]."""
        return self.session({"mode": "full"}).feed(ids, all_logits=True)

    def embed(self, ids: Ints) -> Floats:
        return self.weights["model.embed_tokens.weight"][ids]  # [m, E]

    def linear(self, x: Floats, name: str) -> Floats:
        """x [m, in] -> [m, out]; the bias is added where the model has one."""
        y: Floats = x @ self.weights[f"{name}.weight"].T
        bias = self.weights.get(f"{name}.bias")
        return y if bias is None else y + bias

    def norm(self, x: Floats, name: str) -> Floats:
        """RMSNorm: x [m, E] -> [m, E]."""
        eps = np.float32(self.shape.rms_norm_eps)
        scale = 1 / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)
        y: Floats = x * scale * self.weights[f"{name}.weight"]
        return y

    def heads(self, x: Floats, name: str) -> Floats:
        """x [m, E] -> [heads, m, D]."""
        y = self.linear(x, name)
        return y.reshape(len(x), -1, self.shape.head_dim).transpose(1, 0, 2)

    def mlp(self, x: Floats, layer: str) -> Floats:
        """SwiGLU: x [m, E] -> [m, E]."""
        gate = self.linear(x, f"{layer}.mlp.gate_proj")  # [m, F]
        swish = gate / (1 + np.exp(-gate))
        return self.linear(swish * self.linear(x, f"{layer}.mlp.up_proj"), f"{layer}.mlp.down_proj")

    def logits(self, x: Floats) -> Floats:
        """x [m, E] -> [m, V]; without a head of its own, the embedding is the head."""
        tied = "lm_head.weight" not in self.weights or self.config.get("tie_word_embeddings", False)
        head = self.weights["model.embed_tokens.weight" if tied else "lm_head.weight"]
        logits: Floats = self.norm(x, "model.norm") @ head.T
        return logits


class Session:
    """One timeline of a model."""

    def __init__(self, model: Reference, memory: Memory, query_span: Span) -> None:
        self.model = model
        self.memory = memory
        self.query_span = query_span  # in positions of the session
        layers = range(model.shape.n_layers)
        self.layers = [LayerMemory(model.shape, model.rope, memory) for _ in layers]
        self.trace: list[Record] = []

    def __len__(self) -> int:
        return self.layers[0].length

    def feed(self, ids: Ids, all_logits: bool = False, query_span: Span = None) -> Floats:
        """Reads ids [T], cut from their own start into execution chunks. Logits [V], or [T, V].

        `query_span`, in positions of this call, is a new question; an old one is forgotten at once.
        """
        tokens: Ints = np.asarray(ids, np.int64).reshape(-1)
        self.check_span(len(tokens), query_span)
        if query_span is not None:
            self.query_span = (query_span[0] + len(self), query_span[1] + len(self))
            for layer in self.layers:
                layer.forget_question()
        size = self.memory.exc_block_size
        hidden = [self.chunk(tokens[i : i + size]) for i in range(0, len(tokens), size)]
        if all_logits:
            return np.concatenate([self.model.logits(rows) for rows in hidden])
        last: Floats = self.model.logits(hidden[-1][-1:])[0]
        return last

    def check_span(self, n_tokens: int, new_span: Span) -> None:
        if n_tokens == 0:
            raise ValueError("feed needs at least one token")
        if new_span is not None:
            if not 0 <= new_span[0] < new_span[1] <= n_tokens:
                raise ValueError(f"query_span {new_span} is not inside this call's {n_tokens}")
        elif self.query_span is not None and self.memory.mode == "qllm":
            end = len(self) + n_tokens
            if self.memory.n_local < end < self.query_span[1]:
                raise ValueError("more than n_local tokens would wait before the question is read")

    def chunk(self, ids: Ints) -> Floats:
        """One execution chunk through all layers: ids [m] -> hidden states [m, E]."""
        model, first = self.model, len(self)
        x = model.embed(ids)  # [m, E]
        for i, memory in enumerate(self.layers):
            name = f"model.layers.{i}"
            normed = model.norm(x, f"{name}.input_layernorm")
            attended, block_ids, scores = memory.attend(
                model.heads(normed, f"{name}.self_attn.q_proj"),  # [H, m, D]
                model.heads(normed, f"{name}.self_attn.k_proj"),  # [G, m, D]
                model.heads(normed, f"{name}.self_attn.v_proj"),  # [G, m, D]
                self.query_span,
            )
            joined = attended.transpose(1, 0, 2).reshape(len(ids), -1)  # [m, H*D]
            x = x + model.linear(joined, f"{name}.self_attn.o_proj")
            x = x + model.mlp(model.norm(x, f"{name}.post_attention_layernorm"), name)
            self.trace.append(Record(i, first, len(ids), block_ids.astype(np.int32), scores))
        return x

    def fork(self) -> Session:
        """A second timeline with the same past; its own trace starts here."""
        other = Session(self.model, self.memory, self.query_span)
        other.layers = [copy.copy(layer) for layer in self.layers]
        for layer in other.layers:
            layer.local_scores = layer.local_scores.copy()  # the only array changed in place
        return other

    def block_vectors(self, layer: int) -> Floats:
        """[B, H*D]"""
        vectors = self.layers[layer].vectors
        return vectors.reshape(len(vectors), self.model.shape.n_heads * self.model.shape.head_dim)

    def question_vector(self, layer: int) -> Floats:
        """[H*D]. Raises ValueError while no question is set."""
        question = self.layers[layer].question
        if question is None:
            raise ValueError("no question is set yet")
        return question.reshape(-1)

    @property
    def margin(self) -> float:
        """The closest call among all choices made so far, relative to the scores compared: below
        about 1e-4 another correct float32 implementation may choose otherwise."""
        return min(layer.margin for layer in self.layers)
