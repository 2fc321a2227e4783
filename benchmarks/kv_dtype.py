"""What rounding keys and values changes: logits and perplexity, and which passages are found.

    python benchmarks/needles/texts.py texts      # once: public texts, from Debian packages
    python benchmarks/kv_dtype.py logits --texts texts
    python benchmarks/kv_dtype.py ranks --texts texts

``logits`` reads a text with float32 weights several times side by side, in each chunk with keys and
values as float32 and rounded. ``ranks`` puts facts into texts (needles/) and ranks the pieces for
each question, without answers.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from needles.cases import Case, load_facts, make_case
from numpy.typing import NDArray
from questions import overlaps
from report import print_table

import quickllama as ql
from quickllama.documents.asking import rank_for

BEST = 8
TEXTS = ("handbook", "rust", "postgresql", "gimp")
MEMORIES = {
    "full attention": ql.MemoryConfig(mode="full"),
    "window 1k, look-ups": ql.MemoryConfig(mode="infllm"),
    "first tokens and window": ql.MemoryConfig(mode="infllm", topk=0),
}


def log_losses(logits: NDArray[np.float32], ids: NDArray[Any]) -> NDArray[np.float64]:
    """Minus the logarithms of the probabilities that rows [T, V] give to tokens ids [T]."""
    rows = logits.astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    chosen = rows[np.arange(len(rows)), ids]
    losses: NDArray[np.float64] = np.log(np.exp(rows).sum(axis=1)) - chosen
    return losses


def logits_row(
    model: ql.Model, ids: NDArray[Any], name: str, kv_dtypes: list[str]
) -> Iterator[list[str]]:
    """Rows of a table: ``ids`` read in chunks of 256 tokens by a session for each dtype."""
    sessions = {kv: model.session(MEMORIES[name], kv_dtype=kv) for kv in ["float32", *kv_dtypes]}
    losses: dict[str, list[NDArray[np.float64]]] = {kv: [] for kv in sessions}
    furthest = dict.fromkeys(kv_dtypes, 0.0)
    squares = dict.fromkeys(kv_dtypes, 0.0)
    for start in range(0, len(ids) - 1, 256):
        chunk = ids[start : start + 256]
        targets = ids[start + 1 : start + 257]
        exact = np.empty(0, np.float32)
        for kv, session in sessions.items():
            logits = session.feed(chunk, all_logits=True)
            losses[kv].append(log_losses(logits[: len(targets)], targets))
            if kv == "float32":
                exact = logits
                continue
            off = np.abs(logits - exact)
            furthest[kv] = max(furthest[kv], float(off.max()))
            squares[kv] += float((off.astype(np.float64) ** 2).mean()) * len(chunk)
    means = {kv: float(np.concatenate(found).mean()) for kv, found in losses.items()}
    for kv in kv_dtypes:
        worse = np.expm1(means[kv] - means["float32"])
        yield [
            *(name, f"{len(ids):,}", kv, f"{furthest[kv]:.2f}"),
            *(f"{np.sqrt(squares[kv] / len(ids)):.3f}", f"{np.exp(means['float32']):.3f}"),
            f"{100 * worse:+.2f} %",
        ]


def ranks_row(
    model: ql.Model, case: Case, reading: str, kv_dtype: str
) -> Iterator[tuple[str, bool, bool]]:
    """Of each question about one fact its kind, and whether the piece that holds it is the best one
    and among the best 8."""
    read = model.skim if reading == "skim" else model.read
    document = read(case.text, kv_dtype=kv_dtype)
    snapshot = document.snapshot()
    known = snapshot.skim or model.retrieval_heads
    if known is None:
        raise SystemExit("this model has no retrieval heads: calibrate it first")
    for question in case.questions:
        if question.kind not in ("lexical", "paraphrase"):
            continue
        suffix, span = snapshot.form.suffix(model.tokenizer, question.text)
        ranking = rank_for(snapshot.fork_whole(), snapshot, suffix, span, known.heads)
        bounds = ranking.grid.bounds
        pieces = [snapshot.characters(*bounds[piece].tolist()) for piece in ranking.best(BEST)]
        hits = [overlaps(piece, question.places[0]) for piece in pieces]
        yield question.kind, hits[0], any(hits)


def show_logits(options: argparse.Namespace) -> None:
    """Read and print."""
    model = ql.Model.from_pretrained("smollm2", dtype="float32", n_threads=options.threads)
    text = (options.texts / f"{options.names[0]}.txt").read_text("utf-8")
    ids = np.asarray(model.tokenizer.encode(text[: 8 * options.tokens]))[: options.tokens]
    heads = ["memory", "tokens", "keys and values", "largest difference", "root mean square"]
    rows = [row for name in MEMORIES for row in logits_row(model, ids, name, options.kv_dtype)]
    title = f"Logits against float32 keys and values, {options.names[0]}"
    print_table(title, [*heads, "perplexity, float32", "change"], rows)


def show_ranks(options: argparse.Namespace) -> None:
    """Read, rank and print, a line for each text as it comes."""
    model = ql.Model.from_pretrained("smollm2", dtype="bfloat16", n_threads=options.threads)
    facts = load_facts()
    rows = []
    for kv in options.kv_dtype:
        for reading in options.readings:
            found: dict[str, list[tuple[bool, bool]]] = {}
            for name in options.names:
                source = (options.texts / f"{name}.txt").read_text("utf-8")
                seed = [0, options.tokens, *name.encode()]  # as questions.py has it
                case = make_case(name, source, options.tokens, 3.6, facts, 10, seed)
                for kind, first, among in ranks_row(model, case, reading, kv):
                    found.setdefault(kind, []).append((first, among))
                counts = {kind: np.sum(hits, axis=0).tolist() for kind, hits in found.items()}
                print(f"{kv}, {reading}, up to {name}: {counts}", flush=True)
            for kind, hits in found.items():
                best, among = np.sum(hits, axis=0)
                rows.append([kv, reading, kind, f"{best} / {among} of {len(hits)}"])
    title = f"The piece that holds the answer is the best / among the best {BEST}"
    print_table(title, ["keys and values", "reading", "wording", "found"], rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("what", choices=["logits", "ranks"])
    add("--texts", type=Path, required=True, help="folder of texts.py")
    add("--names", nargs="+", default=list(TEXTS), help="texts of it; logits: the first one")
    add("--tokens", type=int, help="of a text (4,096 for logits, 16,000 for ranks)")
    add("--kv-dtype", nargs="+", default=["bfloat16", "int8"])
    add("--readings", nargs="+", default=["read", "skim"], choices=["read", "skim"])
    add("--threads", type=int)
    options = parser.parse_args()
    options.tokens = options.tokens or (4096 if options.what == "logits" else 16_000)
    show_logits(options) if options.what == "logits" else show_ranks(options)


if __name__ == "__main__":
    main()
