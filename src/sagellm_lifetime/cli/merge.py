"""Command ``merge``: what several predictors have learned, in one checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from sagellm_lifetime.cli.command_errors import CommandError
from sagellm_lifetime.cli.options import Json
from sagellm_lifetime.cli.output import listed, note, say, write_json
from sagellm_lifetime.cli.paths import check_checkpoint_path, check_json

if TYPE_CHECKING:
    from sagellm_lifetime.predictor.base import Predictor

STARTED_FROM: Final = "started_from"
"""Key in the summary of a state that an engine learned: the digest of what it started from."""


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
    from sagellm_lifetime.predictor.checkpoint import load_predictor
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
    predictors = [load_predictor(path) for path in checkpoints]
    _refuse_copies(checkpoints, predictors)
    merged = merge_predictors(predictors, [str(path) for path in checkpoints])
    _note_common_start(predictors)
    merged.save(target)
    lessons = {str(path): one.lessons for path, one in zip(checkpoints, predictors, strict=True)}
    if json is not None:
        result = {"predictor": merged.name, "merged": lessons, "completions": merged.lessons}
        write_json({**result, "checkpoint": str(target)}, json)
    if json != "-":
        parts = listed([f"{count:,}" for count in lessons.values()], "and")
        say(f"Merged {len(lessons)} {merged.name} predictors, of {parts} completions")
        say(f"  Completions:     {merged.lessons:,}")
        say(f"  Saved to:        {target}")


def _refuse_copies(paths: list[Path], predictors: list[Predictor]) -> None:
    """Raise :class:`CommandError` if two states are equal, since copies would count twice.

    So would the parts of a merged one; of a common start :func:`_note_common_start` tells.
    """
    from sagellm_lifetime.predictor.merging import merged_states, state_digest

    seen: dict[str, Path] = {}
    for path, predictor in zip(paths, predictors, strict=True):
        digest = state_digest(predictor)
        if digest in seen and predictor.lessons:
            raise CommandError(
                f"{path}: holds the same as {seen[digest]}, and would count twice: leave one out"
            )
        seen[digest] = path
    holders = {digest: (path, "") for digest, path in seen.items()}
    for path, predictor in zip(paths, predictors, strict=True):
        start = str(predictor.summary.get(STARTED_FROM, ""))
        for digest in merged_states(predictor):
            other, their_start = holders.setdefault(digest, (path, start))
            if other != path and not (start and start == their_start):
                raise CommandError(
                    f"{path}: what was merged into it is in {other}, too, and would count twice"
                )


def _note_common_start(predictors: list[Predictor]) -> None:
    """Say if several states were learned from one checkpoint, which is in each of them."""
    starts = [start for one in predictors if (start := one.summary.get(STARTED_FROM))]
    if len(set(starts)) < len(starts):
        note("several of them started from one checkpoint: what that had learned counts in each")
