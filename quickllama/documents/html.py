"""Answers and documents as notebooks show them: HTML without scripts or outside resources.

Colours are those of the page, so that it can be light or dark. Everything that is not from here is
escaped by the template's autoescape.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from quickllama.documents.answer import Answer, Passage

if TYPE_CHECKING:
    from jinja2 import Template

    from quickllama.documents.document import Document

__all__ = ["answer_html", "document_html"]

EXCERPT = 280
"""Characters of a document that are shown."""

_STYLES = {
    "box": "max-width: 52em; line-height: 1.45; border-left: 3px solid #888; padding-left: 1em",
    "large": "font-size: 115%; white-space: pre-wrap",
    "faint": "opacity: 0.75; font-size: 90%",
    "list": "margin: 0.8em 0 0 0; padding-left: 1.6em",
    "quote": "margin: 0.2em 0 0.9em 0; padding: 0; border: none; color: inherit; "
    "white-space: pre-wrap",
    "mark": "background: rgba(255, 190, 0, 0.35); color: inherit",
}

_ANSWER = """\
<div class="quickllama-answer" style="{{ box }}">
<div style="{{ faint }}">{{ answer.question }}</div>
<div style="{{ large }}"><b>{{ answer.text }}</b></div>
<div style="{{ faint }}">{{ facts }}</div>
{%- for note in answer.notes %}
<div style="{{ faint }}"><i>Note: {{ note }}</i></div>
{%- endfor %}
{%- if passages %}
<ol style="{{ list }}">
{%- for place, before, sentence, after in passages %}
<li><span style="{{ faint }}">{{ place }}</span>
<blockquote style="{{ quote }}">{{ before }}
{%- if sentence %}<mark style="{{ mark }}">{{ sentence }}</mark>{% endif %}
{{- after }}</blockquote></li>
{%- endfor %}
</ol>
{%- endif %}
</div>
"""

_DOCUMENT = """\
<div class="quickllama-document" style="{{ box }}">
<div style="{{ large }}"><b>{{ title }}</b></div>
<div style="{{ faint }}">{{ facts }}</div>
<blockquote style="{{ quote }}; {{ faint }}">{{ excerpt }}</blockquote>
</div>
"""


@cache
def _template(source: str) -> Template:
    from jinja2 import Environment

    return Environment(autoescape=True).from_string(source)


def answer_html(answer: Answer) -> str:
    """The question, the answer, what is known about it, and its passages with the sentence that
    matters most marked."""
    facts = [f"{answer.seconds:.1f} s"]
    if answer.confidence is not None:
        facts.insert(0, f"confidence {answer.confidence:.2f}")
    html = _template(_ANSWER).render(
        _STYLES,
        answer=answer,
        facts=" · ".join(facts),
        passages=[_passage(passage, answer.retrieval) for passage in answer.evidence],
    )
    return _sendable(html)


def _passage(passage: Passage, retrieval: str) -> tuple[str, str, str, str]:
    """Where it is from, and its text before, in and after the sentence that matters most."""
    score = f"score {passage.score:.2f}"
    if retrieval == "paper":
        score = f"in {100 * passage.score:.0f} % of the look-ups"
    place = f"characters {passage.start:,}–{passage.end:,} · {score}"
    if passage.layers:
        place += f" · {len(passage.layers)} layer{'' if len(passage.layers) == 1 else 's'}"
    start, end = passage.sentence or (passage.end, passage.end)
    start, end = start - passage.start, end - passage.start
    return place, passage.text[:start].lstrip(), passage.text[start:end], passage.text[end:]


def document_html(document: Document) -> str:
    """Title, size, memory, and how the text begins."""
    text = document.text
    facts = [f"{len(document):,} tokens", f"{document.nbytes / 2**20:,.0f} MiB in memory"]
    facts.append("skimmed" if document.skimmed else f"mode {document.memory.mode}")
    if document.question is not None:
        facts.append(f"read for: {document.question}")
    html = _template(_DOCUMENT).render(
        _STYLES,
        title="Untitled document" if document.title is None else document.title,
        facts=" · ".join(facts),
        excerpt=text[:EXCERPT] + ("…" if len(text) > EXCERPT else ""),
    )
    return _sendable(html)


def _sendable(html: str) -> str:
    """Halves of surrogate pairs, which a file's name can hold, shown as question marks: notebooks
    send UTF-8."""
    return html.encode("utf-8", "replace").decode("utf-8")
