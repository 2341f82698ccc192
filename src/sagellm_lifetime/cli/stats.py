"""Command ``stats``: statistics of a predictor, in the form of the specification."""

from __future__ import annotations

import json as jsonlib
import os
import sys
import time
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer

from sagellm_lifetime.cli.command_errors import CommandError
from sagellm_lifetime.cli.options import Checkpoint, Json
from sagellm_lifetime.cli.output import note, number, say, write_json
from sagellm_lifetime.cli.paths import check_json, find_checkpoint

if TYPE_CHECKING:
    from urllib.error import HTTPError

PATH: Final = "/lifetime/stats"
KEY_VARIABLE: Final = "VLLM_API_KEY"
_TIMEOUT_S: Final = 5.0
_EVERY_S: Final = 1.0
_MAX_BYTES: Final = 1 << 20
_LONGEST_REASON: Final = 200
_RARE: Final = ("unpredicted", "capped", "beam_steps")
"""Counts whose lines are left out while they are 0."""
FEWEST_PAIRS: Final = 6
"""Least pairs for an interval; equal to that of ``evaluation.switchback``, which imports NumPy."""
_ACRONYMS: Final = {"lstm": "LSTM"}


def stats(
    *,
    checkpoint: Checkpoint = None,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help=f"A running engine; its {PATH} is asked.",
            show_default=False,
        ),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            metavar="KEY",
            help=f"Of the engine, if it has one; by default ${KEY_VARIABLE}, which other users of "
            "this machine cannot read.",
            show_default=False,
        ),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again every second, until interrupted.")
    ] = False,
    json: Json = None,
) -> None:
    """Show what a predictor has predicted and learned."""
    if engine is not None and checkpoint is not None:
        raise CommandError("choose one of --engine and --checkpoint")
    if watch and engine is None:
        raise CommandError("--watch needs --engine URL")
    if api_key is not None and engine is None:
        raise CommandError("--api-key needs --engine URL")
    check_json(json, checkpoint)
    key = os.environ.get(KEY_VARIABLE) if api_key is None else api_key
    if watch:
        _watch(str(engine), key, json)
    show(ask_engine(engine, key) if engine is not None else _of_checkpoint(checkpoint), json)


def _watch(url: str, key: str | None, json: str | None) -> NoReturn:
    """Show statistics every second, also after the server was restarted."""
    values: dict[str, Any] | None = ask_engine(url, key)
    while True:
        if values is not None:
            show(values, json, clear=sys.stdout.isatty())
            sys.stdout.flush()
        time.sleep(_EVERY_S)
        had_answered = values is not None
        try:
            values = ask_engine(url, key)
        except CommandError as error:
            values = None
            if had_answered:  # once, not every second
                note(f"{_plain(error)}: asking again until it answers")


def show(values: dict[str, Any], json: str | None, *, clear: bool = False) -> None:
    """Print statistics, on a cleared screen if ``clear``, and write them as JSON."""
    if json is not None:
        write_json(values, json)
    if json != "-":
        say(("\x1b[2J\x1b[H" if clear else "") + "\n".join(block(values)))


def _of_checkpoint(given: Path | None) -> dict[str, Any]:
    from sagellm_lifetime.predictor.checkpoint_file import read_checkpoint

    path = find_checkpoint(given)
    checkpoint = read_checkpoint(path)
    return {
        **checkpoint.metrics,
        "predictor": checkpoint.predictor,
        "training_data": checkpoint.summary,
        "checkpoint": str(path),
    }


def ask_engine(url: str, key: str | None = None) -> dict[str, Any]:
    """Return the metrics of a running engine.

    Args:
        url: URL of the server.
        key: API key of the engine; None or empty for none.

    Raises:
        CommandError: no engine answers at ``url``, or it refuses the key.
    """
    from urllib.error import HTTPError
    from urllib.parse import urlsplit
    from urllib.request import Request, urlopen

    address = url.rstrip("/") + PATH
    try:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise CommandError(f"{url}: not the address of an engine: use http://HOST:PORT")
        request = Request(address)
        if key:
            # A redirect to another server must not pass the key on.
            request.add_unredirected_header("Authorization", f"Bearer {_checked(key)}")
        with urlopen(request, timeout=_TIMEOUT_S) as answer:
            values = jsonlib.loads(answer.read(_MAX_BYTES))
    except HTTPError as error:
        raise CommandError(f"{address}: {_refusal(error, key)}") from error
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise CommandError(f"{address}: no engine answers there ({reason})") from error
    except (ValueError, RecursionError) as error:
        raise CommandError(f"{address}: does not answer with statistics: {error}") from error
    if not isinstance(values, dict):
        raise CommandError(f"{address}: does not answer with statistics")
    return values


def _checked(key: str) -> str:
    """Return an API key if it can be sent in a header.

    Raises:
        CommandError: it cannot; the message does not repeat the key.
    """
    try:
        key.encode("latin-1")
    except UnicodeEncodeError:
        raise CommandError("the API key has characters that HTTP cannot send") from None
    if not key.isprintable():
        raise CommandError("the API key has a line break or another control character")
    return key


def _refusal(error: HTTPError, key: str | None) -> str:
    """Return the meaning of an HTTP error, with the server's own reason if it gives one."""
    if error.code == HTTPStatus.UNAUTHORIZED:
        if key:
            return "refuses this API key"
        return f"wants an API key: set {KEY_VARIABLE}, or give --api-key KEY"
    try:
        body = jsonlib.loads(error.read(_MAX_BYTES))
        reason = body["error"] if isinstance(body, dict) else None
    except (OSError, HTTPException, ValueError, KeyError, RecursionError):
        reason = None  # the page of another server
    if isinstance(reason, str) and reason:
        return f"answers {error.code}: {_plain(reason)[:_LONGEST_REASON]}"
    return f"answers {error.code}: is lifetime prediction on in this engine?"


def block(values: dict[str, Any]) -> list[str]:
    """Return the lines of the specification, then the lines of all further statistics."""
    name = _plain(values.get("predictor", "n/a"))
    lines = [
        "Lifetime Predictor Statistics:",
        f"  Predictor Type: {_ACRONYMS.get(name, name.capitalize())}",
        f"  Total Predictions: {_shown(values, 'total_predictions', 'd')}",
        f"  MAE: {_shown(values, 'mae', '.1f', ' tokens')}",
        f"  10% Accuracy: {_shown(values, 'accuracy_within_10_percent', '.1%')}",
        f"  Avg Confidence: {_shown(values, 'avg_confidence', '.2f')}",
    ]
    trained = values.get("training_data")
    if isinstance(trained, dict) and trained.get("rows"):
        rows, censored = (_shown(trained, key, ",.0f") for key in ("rows", "censored"))
        lines.append(f"  Trained Rows: {rows} ({censored} censored)")
        lengths = trained.get("length_quantiles")
        if isinstance(lengths, dict):
            text = ", ".join(f"{_percent(q)} {_shown(lengths, q, ',.0f')}" for q in lengths)
            lines.append(f"  Trained Lengths: {text} tokens")
        if "held_out_loss" in trained:
            lines.append(f"  Held-out Loss: {_shown(trained, 'held_out_loss', '.4f')}")
    more = {
        "completions": ("Completions", "d"),
        "censored": ("Censored", "d"),
        "capped": ("Capped, not Scored", "d"),
        "running": ("Running", "d"),
        "unpredicted": ("Unpredicted", "d"),
        "beam_steps": ("Beam Search Steps", "d"),
        "lessons": ("Completions Learned", "d"),
        "seconds_per_token": ("Seconds per Token", ".4g"),
    }
    lines += [
        f"  {label}: {_shown(values, key, form)}"
        for key, (label, form) in more.items()
        if key in values and (values[key] or key not in _RARE)
    ]
    lines += _drift(values.get("drift"))
    lines += _of_engine(values)
    if "checkpoint" in values:
        lines.append(f"  Checkpoint: {_plain(values['checkpoint'])}")
    return lines


def _drift(drift: Any) -> list[str]:
    """Return the lines about workloads that changed."""
    if not isinstance(drift, dict) or "changes" not in drift:
        return []
    counts = [f"{_shown(drift, key, 'd')} {key}" for key in ("changes", "returns")]
    lines = [f"  Drift: {', '.join(counts)}"]
    models = drift.get("models")
    for name, found in models.items() if isinstance(models, dict) else ():
        if isinstance(found, dict):
            numbers = (_shown(found, key, "d") for key in ("generation", "completions"))
            lines.append(
                "    {}: generation {}, {} completions since".format(
                    _plain(name) or "(no model named)", *numbers
                )
            )
    return lines


def _of_engine(values: dict[str, Any]) -> list[str]:
    """Return the lines that only a running engine has."""
    lines = [
        f"  {label}: {_plain(values[key])}"
        for key, label in (("mode", "Mode"), ("policy", "Policy"), ("breaker", "Circuit Breaker"))
        if key in values
    ]
    if lines and values.get("breaker_reason"):
        lines[-1] += f" ({_plain(values['breaker_reason'])})"
    lines += _wrong(values)
    decisions = values.get("decisions")
    if isinstance(decisions, dict):
        for decision, pair in decisions.items():
            if isinstance(pair, list) and len(pair) == 2:
                made, differing = (_shown({"n": n}, "n", "d") for n in pair)
                lines.append(
                    f"  Shadow {_plain(decision).title()}s: {made}, about {differing} differing"
                )
        lines += _done(decisions)
    lines += _switchback(values.get("switchback"))
    lines += _outlook(values.get("outlook"))
    if values.get("learning") is True:
        ends = ("taken", "on_the_way", "dropped", "lost")
        counts = [f"{_shown(values, f'lessons_{e}', 'd')} {e.replace('_', ' ')}" for e in ends]
        lines.append(f"  Learning: {', '.join(counts)}")
        if values.get("weights_accepted") or values.get("weights_refused"):
            counts = [f"{_shown(values, f'weights_{e}', 'd')} {e}" for e in ("accepted", "refused")]
            lines.append(f"  New Weights: {', '.join(counts)}")
        if values.get("learner_restarts"):
            lines.append(f"  Learner Restarts: {_shown(values, 'learner_restarts', 'd')}")
        if values.get("learner_trouble"):
            lines.append(f"  Learner Trouble: {_plain(values['learner_trouble'])}")
        lines += _fleet(values)
    spent, steps, lasted = (
        _float(values.get(key)) for key in ("overhead_seconds", "steps", "step_seconds")
    )
    if spent is not None and steps and lasted:
        lines.append(f"  Overhead: {1e6 * spent / steps:.0f} µs a step ({spent / lasted:.2%})")
    if "recorded" in values:
        counts = [f"{_shown(values, 'record_lost', 'd')} lost"]
        for key, label in (("record_waiting", "waiting"), ("record_replaced", "values left out")):
            if values.get(key):
                counts.append(f"{_shown(values, key, 'd')} {label}")
        lines.append(f"  Recorded: {_shown(values, 'recorded', 'd')} ({', '.join(counts)})")
    return lines


def _done(decisions: dict[str, Any]) -> list[str]:
    """Return the lines about what act did, and what vLLM's own decisions cost in shadow."""
    lines = []
    act, shadow = decisions.get("act"), decisions.get("shadow")
    if isinstance(act, dict) and (act.get("admissions") or act.get("preemptions")):
        count = {key: _shown(act, key, ",.0f") for key in act}
        overtaken, waited = _float(act.get("overtaken")), _float(act.get("overtaken_seconds"))
        mean = f"{waited / overtaken:.1f}" if overtaken and waited is not None else "0"
        longest = _shown(act, "longest_overtaken_seconds", ".1f")
        lines += [
            "  Act Admissions: {}, {} before an earlier one".format(
                count.get("admissions", "n/a"), count.get("admissions_reordered", "n/a")
            ),
            f"  Act Overtaken: {count.get('overtaken', 'n/a')}, "
            f"by {mean} s on average, {longest} s at most",
            "  Act Preemptions: {}, {} not vLLM's choice".format(
                count.get("preemptions", "n/a"), count.get("preemptions_differing", "n/a")
            ),
        ]
    for label, part in (("Act", act), ("Shadow", shadow)):
        if isinstance(part, dict) and (
            part.get("recomputed_tokens") or part.get("held_back_block_seconds")
        ):
            held = _shown(part, "held_back_block_seconds", ",.0f")
            would = "would be held back" if label == "Shadow" else "held back"
            lines.append(
                f"  {label} Costs: {_shown(part, 'recomputed_tokens', ',.0f')} tokens recomputed, "
                f"{held} block-seconds {would}"
            )
    return lines


def _switchback(experiment: Any) -> list[str]:
    """Return the lines about a switchback: what runs, and each effect with its interval."""
    if not isinstance(experiment, dict):
        return []
    state = f"{_plain(experiment.get('arm'))} now" if experiment.get("running") else "ended"
    period = _shown(experiment, "period_s", ",.0f", " s")
    lines = [f"  Switchback: {state}, blocks of {period}, {_shown(experiment, 'pairs', 'd')} pairs"]
    found = experiment.get("effects")
    for name, effect in found.items() if isinstance(found, dict) else ():
        if not isinstance(effect, dict):
            continue
        off, act, change = (_short(effect, key) for key in ("off", "act", "difference"))
        bounds = [_short(effect, key, "+") for key in ("low", "high")]
        interval = f"95 % {bounds[0]} to {bounds[1]}"
        if "n/a" in bounds:
            interval = f"an interval needs {FEWEST_PAIRS} pairs"
        lines.append(
            f"    {_plain(name).replace('_', ' ')}: off {off}, act {act} "
            f"{_plain(effect.get('unit', ''))}; difference {change} ({interval})"
        )
    return lines


def _outlook(outlook: Any) -> list[str]:
    """Return the line about what is still to do, and when a place is free."""
    if not isinstance(outlook, dict):
        return []
    parts = []
    for state in ("running", "waiting"):
        tokens = outlook.get(f"{state}_tokens")
        if isinstance(tokens, dict):
            expected, most = (_shown(tokens, key, ",.0f") for key in ("expected", "p90"))
            parts.append(f"{expected} tokens of what is {state} (p90 {most})")
    parts.append(f"a place within {_shown(outlook, 'retry_after_s', 'd')} s (p90)")
    return [f"  Outlook: {', '.join(parts)}"]


def _fleet(values: dict[str, Any]) -> list[str]:
    """Return the lines about other replicas; none for an engine without a fleet."""
    lines = []
    if values.get("fleet_published") or values.get("fleet_failures"):
        counts = [
            f"{_shown(values, 'fleet_replicas', 'd')} other replicas",
            f"{_shown(values, 'fleet_lessons', 'd')} of their completions in use",
            f"{_shown(values, 'fleet_failures', 'd')} exchanges failed",
        ]
        lines.append(f"  Fleet: {', '.join(counts)}")
    if values.get("fleet_trouble"):
        lines.append(f"  Fleet Trouble: {_plain(values['fleet_trouble'])}")
    return lines


def _wrong(values: dict[str, Any]) -> list[str]:
    """Return a line for each fault of the engine."""
    lines = []
    faults = values.get("faults")
    if isinstance(faults, dict) and any(faults.values()):
        counts = [f"{_plain(k)} {_shown(faults, k, 'd')}" for k, n in faults.items() if n]
        lines.append(f"  Faults: {', '.join(counts)}")
    if values.get("cannot_act"):
        lines.append(f"  Cannot Act: {_plain(values['cannot_act'])}")
    if values.get("stale"):
        lines.append(f"  Silent Engine Cores: {_shown(values, 'stale', 'd')}")
    unreadable = values.get("unreadable")
    if isinstance(unreadable, list) and unreadable:
        lines.append(f"  Unreadable Statistics: {'; '.join(map(_plain, unreadable))}")
    return lines


def _shown(values: dict[str, Any], key: str, form: str, unit: str = "") -> str:
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "n/a"
    if form == "d":
        form = ".0f"
    try:
        text = number(value, form)
    except OverflowError:  # a whole number that no float can hold
        return "n/a"
    return "n/a" if text == "–" else text + unit


def _short(values: dict[str, Any], key: str, sign: str = "") -> str:
    """Return a number with three digits, or in whole thousands and units from 1,000 on."""
    value = _float(values.get(key))
    return _shown(values, key, f"{sign}{',.0f' if value and abs(value) >= 999.5 else '.3g'}")


def _float(value: Any) -> float | None:
    """Return ``value`` as a float, or None if it is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _percent(level: str) -> str:
    """Return the level of a quantile in per cent.

    >>> _percent("0.5")
    '50%'
    """
    try:
        return f"{float(level):.0%}"
    except ValueError:
        return _plain(level)


def _plain(text: Any) -> str:
    """Return text on one line, without control characters."""
    return "".join(letter for letter in str(text) if letter.isprintable())
