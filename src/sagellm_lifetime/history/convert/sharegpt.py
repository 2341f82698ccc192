"""ShareGPT conversations as vLLM's benchmarks read them: a JSON list (or JSONL) of
``{"id": ..., "conversations": [{"from": "human", "value": ...}, {"from": "gpt", ...}, ...]}``.

Every answer becomes a row; its prompt is all text before it, as a server gets it. Answers
are what the model generated: a ``function_call``, too (LLaMA-Factory's form), while an
``observation`` or a ``tool`` is input. A role that is not known makes its conversation bad: whether
it was generated is unknown. An answer without text is kept with the length 0, and noted.
Counting tokens takes the model's tokenizer, which is not here: a message's own ``token_count`` is
used where there is one, else an estimate: runs of up to 10 Latin letters, 3 digits or 2 signs, and
every other character by itself. On English chat that is within 10 % of cl100k for four answers in
five.

Texts are dropped unless ``keep_content`` is set.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from sagellm_lifetime.core.errors import HistoryError
from sagellm_lifetime.core.wording import counted
from sagellm_lifetime.history.checks import is_plain
from sagellm_lifetime.history.files import kind_of
from sagellm_lifetime.history.findings import Findings, left_out
from sagellm_lifetime.history.jsonl import without_surrogates
from sagellm_lifetime.history.read import ADVICE, History, OnBadRows
from sagellm_lifetime.history.records import Broken, json_errors
from sagellm_lifetime.history.schema import HISTORY_SCHEMA, MAX_COUNT
from sagellm_lifetime.history.streams import open_unpacked

_PIECES = re.compile(r"[A-Za-z]{1,10}|[0-9]{1,3}|[!-/:-@\[-`{-~]{1,2}|[^\x00-\x7f]")
_ANSWERS = {"gpt", "chatgpt", "bing", "bard", "assistant", "model", "function_call"}
_INPUTS = {"human", "user", "system", "observation", "tool", "function", "function_response"}
_NO_QUESTIONS = {"system"}


def estimate_tokens(text: str) -> int:
    """Return about how many tokens ``text`` has; 0 for an empty one."""
    return sum(1 for _ in _PIECES.finditer(text))


def read(source: str, *, keep_content: bool, on_bad_rows: OnBadRows) -> History:
    """Return the answers of a file of conversations."""
    path, findings = Path(source), Findings()
    rows: list[dict[str, Any]] = []
    cut = 0
    try:
        for place, conversation in _conversations(path):
            try:
                if isinstance(conversation, Broken):
                    raise ValueError(conversation.why)
                answers, unasked = _answers(conversation, findings, keep_content=keep_content)
                findings.rows += len(answers)
                cut += unasked
                rows += answers
            except ValueError as error:
                findings.kinds["malformed"] += 1
                findings.add_problem(str(path), f"{place}: {error}")
    except OSError as error:
        raise HistoryError(f"{path}: {error.strerror or 'cannot be read'}") from error
    except UnicodeDecodeError as error:
        raise HistoryError(f"{path}: not UTF-8 text: save the file as UTF-8") from error
    if findings.bad and on_bad_rows != "skip":
        raise findings.error(str(path), advice=ADVICE)
    if not rows:
        raise HistoryError(f"{path}: no answer in it: expected conversations with gpt messages")
    content = ("prompt_text", "output_text") if keep_content else ()
    names = ("request_id", "model", "session_id", "turn", "prompt_length", "actual_length")
    empty = sum(1 for row in rows if row["actual_length"] == 0)
    if empty:
        findings.add_note(f"{counted(empty, 'answer')} without text, kept with the length 0")
    if cut:
        findings.left_out["answers before any question, whose prompt is unknown"] = cut
        findings.add_note(f"left out: {left_out(findings)}")
    return History(
        pl.DataFrame(rows, schema={n: HISTORY_SCHEMA[n] for n in (*names, *content)}),
        findings.bad,
        [f"{name} {problem}" for name, problem in findings.problems],
        dict(findings.kinds.most_common()),
        notes=list(findings.notes),
        left_out=dict(findings.left_out),
    )


def _conversations(path: Path) -> Iterator[tuple[str, Any]]:
    with open_unpacked(path) as stream:
        if kind_of(path) == "jsonl":
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield f"line {number}", _line(line.decode("utf-8-sig"))
            return
        value = _parsed(path, stream.read().decode("utf-8-sig"))
    if not isinstance(value, list):
        raise HistoryError(f"{path}: expected a JSON list of conversations")
    for number, item in enumerate(value, start=1):
        yield f"conversation {number}", item


def _line(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return Broken("is not JSON")


def _parsed(path: Path, text: str) -> Any:
    if not text.strip():
        raise HistoryError(f"{path}: the file is empty")
    with json_errors(path, "a list of conversations"):
        return json.loads(text)


def _answers(
    conversation: Any, findings: Findings, *, keep_content: bool
) -> tuple[list[dict[str, Any]], int]:
    """Return the rows of one conversation, and how many answers come before any question.

    Raises:
        ValueError: it is damaged; the message describes how and quotes nothing.
    """
    if not isinstance(conversation, dict) or not isinstance(
        messages := conversation.get("conversations"), list
    ):
        raise ValueError("has no list 'conversations'")
    identity, model = (
        None if value is None else without_surrogates(str(value), key, findings.add_note)
        for key in ("id", "model")
        for value in [conversation.get(key)]
    )
    before, turn, unasked, prompt = 0, 0, 0, None
    rows = []
    for message in messages:
        if not isinstance(message, dict) or not isinstance(text := message.get("value"), str):
            raise ValueError("a message has no text 'value'")
        role = _role(message.get("from"))
        length = _length(message, text)
        # Cut conversations may open with an answer: its question is unknown, so it is no row.
        if role in _ANSWERS and prompt is not None:
            row = {"session_id": identity, "turn": turn, "model": model or None}
            row["request_id"] = None if identity is None else f"{identity}#{turn}"
            row |= {"prompt_length": before, "actual_length": length}
            if keep_content:
                texts = {"prompt_text": prompt, "output_text": text}
                row |= {n: without_surrogates(t, n, findings.add_note) for n, t in texts.items()}
            rows.append(row)
            turn += 1
        elif role in _ANSWERS:
            unasked += 1
        elif role in _INPUTS - _NO_QUESTIONS:
            prompt = text
        before += length
    return rows, unasked


def _role(value: Any) -> str:
    role = value.strip().lower() if isinstance(value, str) else ""
    if role not in _ANSWERS | _INPUTS:
        shown = f"the role {role!r}, which is unknown" if is_plain(role) else "no known role"
        raise ValueError(f"a message has {shown} (answers are {', '.join(sorted(_ANSWERS))})")
    return role


def _length(message: dict[str, Any], text: str) -> int:
    count = message.get("token_count")
    if count is None:
        return estimate_tokens(text)
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= MAX_COUNT:
        raise ValueError("a token_count is not a whole number from 0 to 10^8")
    return count
