"""The verdict of an assessment: its parts, its words and its JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sagellm_lifetime.assessment.engine import Engine
from sagellm_lifetime.assessment.objective import Objective
from sagellm_lifetime.assessment.predictor_choice import PredictorChoice
from sagellm_lifetime.assessment.replay_part import ReplayPart
from sagellm_lifetime.assessment.words import (
    headline,
    loads_text,
    rate_words,
    switch_on,
    without_prediction,
)


@dataclass(frozen=True, eq=False)
class Verdict:
    """The answer to "would it help my service, and what do I switch on?".

    Attributes:
        source: the log.
        rows: rows of the log.
        predictor: the best predictor on the log.
        engine: the engine that it was replayed on.
        objective: what counts as served.
        replay: what the policies do; None without vLLM.
        why_no_replay: the reason then.
        reading: what reading the log skipped, left out or assumed.
        options: of the command ``train``, that the log is to be read with.
    """

    source: str
    rows: int
    predictor: PredictorChoice
    engine: Engine
    objective: Objective
    replay: ReplayPart | None
    why_no_replay: str = ""
    reading: Mapping[str, Any] = field(default_factory=dict)
    options: Sequence[str] = ()

    def headline(self) -> str:
        """Return the answer in one or two sentences."""
        if self.replay is None:
            return f"Whether it pays on your engine is not known: {self.why_no_replay}."
        return headline(self.replay, self.objective)

    def says(self) -> list[str]:
        """Return the verdict as paragraphs: answer, each load, predictor, engine."""
        predictor = f"Predictor: {self.predictor.says()}"
        return [self.headline(), *self.says_of_loads(), predictor, *self._setting()]

    def says_of_loads(self) -> list[str]:
        """Return what each load changes, and what of that needs no prediction, as paragraphs."""
        if self.replay is None:
            return []
        return [text for text in (loads_text(self.replay), without_prediction(self.replay)) if text]

    def _setting(self) -> list[str]:
        """Return the engine and how the log was replayed, a paragraph."""
        if self.replay is None:
            return []
        replay = self.replay
        windows = replay.windows
        text = (
            f"{'. '.join(self.engine.how)}. Replayed through vLLM {replay.version}'s scheduler, "
            f"{windows} window{'s' if windows > 1 else ''} of {replay.requests:,} to "
            f"{2 * replay.requests:,} requests that the predictor had not seen, the first quarter "
            "and the last tenth of each left out."
        )
        if windows > 1:
            text += " Ranges are those of the windows."
        if replay.rate is not None:
            text += (
                " The load 1 x is the mean of the part of the log that is replayed, "
                f"{rate_words(replay.rate)}"
            )
            if replay.peak is not None:
                text += f"; its busiest stretch (a 24th of it) has {replay.peak:.1f} times that"
            text += "."
        if replay.left_out:
            text += (
                f" {replay.left_out:,} of {replay.of:,} requests do not fit into this engine and "
                "are left out."
            )
        return [text + "".join(f" Note: {note}." for note in replay.notes)]

    def commands(self, program: str = "sagellm-lifetime") -> list[str]:
        """Return the command lines that switch it on, in shadow first, with comments."""
        return switch_on(self.replay, self.predictor.name, self.source, program, self.options)

    def to_json(self, program: str = "sagellm-lifetime") -> dict[str, Any]:
        """Return the verdict for ``--json``; ``program`` is the name of the commands in it."""
        return {
            "verdict": self.headline(),
            "says": self.says(),
            "commands": self.commands(program),
            "log": {"source": self.source, "rows": self.rows, **dict(self.reading)},
            "predictor": self.predictor.to_json(),
            "engine": self.engine.to_json(),
            "objective": self.objective.to_json(),
            "replay": None if self.replay is None else self.replay.to_json(),
            "why_no_replay": self.why_no_replay or None,
        }
