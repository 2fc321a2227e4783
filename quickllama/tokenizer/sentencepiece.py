"""The merges of a SentencePiece BPE vocabulary, which stores scores instead.

SentencePiece (google/sentencepiece, `bpe_model.cc`) always merges the pair of neighbours whose
result has the highest score, the leftmost among equals. `tokenizers` takes a fixed order of merges.
Both give the same as long as no two tokens have the same score, but for runs of one character:
Llama's runs of spaces all have one score. Their merges are ordered so that a run grows from the
left, and the order is tried on runs of all lengths that matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

from quickllama.errors import InvalidValue

__all__ = ["sentencepiece_merges"]

LONGEST_TRIED_RUN = 80
_ADVICE = "this vocabulary cannot be built exactly; use a folder with tokenizer.json instead"

Merge = tuple[str, str]


def _pairs(token: str, scores: Mapping[str, float]) -> list[Merge]:
    halves = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
    return [(left, right) for left, right in halves if left in scores and right in scores]


def _merged_run(count: int, priority: Callable[[int, int], float | None]) -> list[int]:
    """The lengths into which a run falls, when the pair of least priority merges first."""
    parts = [1] * count
    while True:
        known = []
        for place in range(len(parts) - 1):
            value = priority(parts[place], parts[place + 1])
            if value is not None:
                known.append((value, place))
        if not known:
            return parts
        place = min(known)[1]
        parts[place : place + 2] = [parts[place] + parts[place + 1]]


def _check_runs(character: str, scores: Mapping[str, float], merges: Sequence[Merge]) -> None:
    """Refuse if runs of the character would be merged differently than by the scores."""
    lengths = {len(token): score for token, score in scores.items() if set(token) == {character}}
    ranks: dict[tuple[int, int], float] = {}
    for rank, (left, right) in enumerate(merges):
        if set(left + right) == {character}:
            ranks[len(left), len(right)] = rank

    def by_score(left: int, right: int) -> float | None:
        score = lengths.get(left + right)
        return None if score is None else -score

    def by_rank(left: int, right: int) -> float | None:
        return ranks.get((left, right))

    for count in range(2, min(2 * max(lengths) + 2, LONGEST_TRIED_RUN)):
        if _merged_run(count, by_score) != _merged_run(count, by_rank):
            raise InvalidValue(
                f"the tokens that repeat {character!r} have equal scores, and no order of merges "
                f"gives what those do: {_ADVICE}"
            )


def sentencepiece_merges(scores: Mapping[str, float], order: Mapping[str, int]) -> list[Merge]:
    """The merges, best first: every pair of tokens that makes a token.

    ``scores`` has the tokens that merging may give and single characters (no control, unknown or
    byte tokens, which SentencePiece never merges to); ``order`` their ids. Raises InvalidValue if
    no order of merges is exact: equal scores of tokens that are not runs of one character, or a
    token with a character that is no token itself.
    """
    characters = {token for token in scores if len(token) == 1}
    merges: list[Merge] = []
    runs: set[str] = set()
    tokens = sorted((-score, order[token], token) for token, score in scores.items())
    for _, group in groupby(tokens, key=lambda entry: entry[0]):
        equal = [token for _, _, token in group if len(token) > 1]
        for token in equal:
            if not characters.issuperset(token):
                odd = next(character for character in token if character not in characters)
                raise InvalidValue(
                    f"the token {token!r} has the character {odd!r}, which is none: {_ADVICE}"
                )
        found = [pair for token in equal for pair in _pairs(token, scores)]
        if len(equal) > 1:
            if len(set("".join(equal))) > 1:
                raise InvalidValue(
                    f"the tokens {equal[0]!r} and {equal[1]!r} have equal scores: {_ADVICE}"
                )
            runs.add(equal[0][0])
            # The longest left part first: a run is finished before the next one begins.
            found.sort(key=lambda pair: (-len(pair[0]), len(pair[1])))
        else:
            found.sort(key=lambda pair: (order[pair[0]], order[pair[1]]))
        merges.extend(found)
    for character in runs:
        _check_runs(character, scores, merges)
    return merges
