"""What rounding keys and values changes: logits and perplexity of an ordinary text.

    python benchmarks/texts.py texts      # once: public texts, from Debian packages
    python benchmarks/kv_dtype.py texts/handbook.txt

The text is read with float32 weights by several sessions side by side, with keys and values as
float32 and rounded. What it changes in answers: ``quickllama eval``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from report import print_table

import quickllama as ql

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


def logits_rows(
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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("text", type=Path)
    add("--tokens", type=int, default=4096, help="read from its beginning")
    add("--kv-dtype", nargs="+", default=["bfloat16", "int8"])
    add("--threads", type=int)
    options = parser.parse_args()
    model = ql.Model.from_pretrained("smollm2", dtype="float32", n_threads=options.threads)
    text = options.text.read_text("utf-8")[: 8 * options.tokens]
    ids = np.asarray(model.tokenizer.encode(text))[: options.tokens]
    heads = ["memory", "tokens", "keys and values", "largest difference", "root mean square"]
    rows = [row for name in MEMORIES for row in logits_rows(model, ids, name, options.kv_dtype)]
    title = f"Logits against float32 keys and values, {options.text.name}"
    print_table(title, [*heads, "perplexity, float32", "change"], rows)


if __name__ == "__main__":
    main()
