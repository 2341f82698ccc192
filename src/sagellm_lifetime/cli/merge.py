"""Command ``merge``: what several predictors have learned, in one checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sagellm_lifetime.cli.command_errors import CommandError
from sagellm_lifetime.cli.options import Json
from sagellm_lifetime.cli.output import listed, note, say, write_json
from sagellm_lifetime.cli.paths import check_checkpoint_path, check_json

if TYPE_CHECKING:
    from sagellm_lifetime.predictor.distinct import State


def merge(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(
            metavar="CHECKPOINT…",
            help="Checkpoints, or exported files, of predictors that learned from different "
            "completions.",
            show_default=False,
        ),
    ],
    *,
    output_path: Annotated[
        Path,
        typer.Option("--output-path", "-o", metavar="DIR", help="Where the merged one goes."),
    ],
    json: Json = None,
) -> None:
    """Merge what several predictors have learned into one checkpoint."""
    from sagellm_lifetime.predictor.distinct import distinct, load_state
    from sagellm_lifetime.predictor.merging import merge_predictors

    if len(checkpoints) < 2:
        raise CommandError("merge needs two checkpoints or more")
    target = check_checkpoint_path(output_path)
    check_json(json, target, *checkpoints)
    if target.resolve() in [path.resolve() for path in checkpoints]:
        raise CommandError(f"{target}: is merged itself, and would be replaced: name another -o")
    for i, path in enumerate(checkpoints):
        if path.resolve() in [other.resolve() for other in checkpoints[:i]]:
            raise CommandError(f"{path}: is given twice, and would count twice")
    states = [load_state(path) for path in checkpoints]
    _refuse_misfits(states)
    parts, notes = distinct(states)
    merged = merge_predictors([part.predictor for part in parts], [part.name for part in parts])
    for text in notes:
        note(text)
    merged.save(target)
    lessons = {state.name: state.predictor.lessons for state in states}
    if json is not None:
        result = {"predictor": merged.name, "merged": lessons, "completions": merged.lessons}
        write_json({**result, "checkpoint": str(target)}, json)
    if json != "-":
        counts = listed([f"{count:,}" for count in lessons.values()], "and")
        say(f"Merged {len(lessons)} {merged.name} predictors, of {counts} completions")
        say(f"  Completions:     {merged.lessons:,}")
        say(f"  Saved to:        {target}")


def _refuse_misfits(states: Sequence[State]) -> None:
    """Raise :class:`CommandError` for a state that cannot be merged with the first."""
    from sagellm_lifetime.predictor.merging import reason_against

    for state in states:
        reason = reason_against(state.predictor, states[0].predictor)
        if reason:
            raise CommandError(f"{state.name}: {reason}")
