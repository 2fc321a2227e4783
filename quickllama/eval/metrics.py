"""What an answer is worth, by the definitions of the benchmarks; each function's docstring says
whose. All give 0 to 1."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Collection, Sequence

from quickllama.errors import MissingPackage

__all__ = [
    "classification",
    "code_similarity",
    "exact_match",
    "first_number",
    "in_words",
    "number_share",
    "only_label",
    "rouge",
    "share_inside",
    "token_f1",
]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_RETRIEVAL_SIGNS = str.maketrans(dict.fromkeys("\n:\"'.,?!{}", " "))


def normalised(text: str) -> str:
    """Lower case, without punctuation and articles, single spaces: SQuAD's way (Rajpurkar et al.,
    2016), which LongBench and ∞-Bench share."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, expected: Sequence[str]) -> float:
    """Whether the answer is one of ``expected``, both :func:`normalised` (SQuAD)."""
    return float(normalised(answer) in {normalised(one) for one in expected})


def token_f1(answer: str, expected: Sequence[str]) -> float:
    """The best harmonic mean of precision and recall over words, :func:`normalised` (SQuAD;
    LongBench's and ∞-Bench's questions)."""
    given = Counter(normalised(answer).split())
    best = 0.0
    for one in expected:
        wanted = Counter(normalised(one).split())
        common = (given & wanted).total()
        if common:
            best = max(best, 2 * common / (given.total() + wanted.total()))
    return best


def rouge(answer: str, expected: Sequence[str], kind: str = "rougeL") -> float:
    """The best F-measure of ROUGE, ``rougeL`` or by sentences ``rougeLsum`` (Lin, 2004), as the
    library rouge-score has it, without stemming. Raises MissingPackage where it is not installed.

    ∞-Bench uses this library. LongBench uses another one, whose ROUGE-L joins the sentences' common
    subsequences, so that its values differ a little.
    """
    try:
        from rouge_score import rouge_scorer
    except ModuleNotFoundError:
        raise _missing("rouge-score", "summaries are scored") from None
    scorer = rouge_scorer.RougeScorer([kind])
    return max((float(scorer.score(one, answer)[kind].fmeasure) for one in expected), default=0.0)


def code_similarity(answer: str, expected: Sequence[str]) -> float:
    """How alike the answer's first line of code and ``expected`` are: twice the length of what they
    share by insertions and deletions, by their lengths (LongBench's ``lcc`` and ``repobench-p``;
    lines with a backquote, ``#`` or ``//`` are no code). Raises MissingPackage without rapidfuzz.
    """
    try:
        from rapidfuzz import fuzz
    except ModuleNotFoundError:
        raise _missing("rapidfuzz", "lines of code are compared") from None
    lines = answer.lstrip("\n").split("\n")
    code = next((x for x in lines if not any(sign in x for sign in ("`", "#", "//"))), "")
    # LongBench's library rounds to whole percents.
    return max((round(fuzz.ratio(code, one)) / 100 for one in expected), default=0.0)


def _missing(library: str, what: str) -> MissingPackage:
    return MissingPackage(
        f'{what} by {library}, which is not installed: pip install "quickllama[eval]"'
    )


def classification(answer: str, expected: Sequence[str], classes: Collection[str]) -> float:
    """One, divided by how many of ``classes`` the answer names, if the right one is among them;
    classes that are a part of the right one's name do not count (LongBench's ``trec``)."""
    best = 0.0
    for right in expected:
        named = [x for x in classes if x in answer and (x == right or x not in right)]
        if right in named:
            best = max(best, 1 / len(named))
    return best


def number_share(answer: str, right: str) -> float:
    """The share of the answer's whole numbers that are ``right`` (LongBench's counting and passage
    retrieval)."""
    numbers = re.findall(r"\d+", answer)
    return numbers.count(right) / len(numbers) if numbers else 0.0


def first_number(answer: str, expected: Sequence[str]) -> float:
    """Whether the first run of digits is one of ``expected`` (∞-Bench's passkeys and number
    strings)."""
    found = re.search(r"[0-9]+", answer)
    return float(found is not None and found[0] in expected)


def in_words(answer: str, expected: Sequence[str]) -> float:
    """Whether one of ``expected`` is a word of the answer (∞-Bench's key-value retrieval)."""
    words = answer.translate(_RETRIEVAL_SIGNS).split()
    return float(any(one in words for one in expected))


def share_inside(answer: str, expected: Sequence[str]) -> float:
    """The share of ``expected`` that the answer holds, whatever the case (RULER's retrieval,
    tracking and word tasks)."""
    low = answer.lower()
    return sum(one.lower() in low for one in expected) / len(expected) if expected else 0.0


def only_label(answer: str, right: str, labels: Collection[str], question: str) -> float:
    """Whether the first sentence of the answer names ``right`` and no other of ``labels``; those
    that the question names do not count (BABILong)."""
    said = answer.lower().split(".")[0]
    for end in ("<context>", "<example>"):
        said = said.split(end)[0]
    known = {label.lower() for label in labels} | {right.lower()}
    named = {label for label in known if label in said and label not in question.lower()}
    return float(named == {right.lower()})
