"""The line that an engine core logs at its start: what predicts and decides, and its limits."""

from __future__ import annotations

from pathlib import Path

from sagellm_lifetime.core.wording import counted
from sagellm_lifetime.vllm.settings import LiveSettings, StartMode


def startup_line(
    settings: LiveSettings,
    predictor: str | None,
    lessons: int,
    mode: StartMode,
    folder: Path | None,
) -> str:
    """Return one line on the engine core's prediction.

    Args:
        settings: of the engine.
        predictor: name of the predictor; ``None`` without prediction.
        lessons: completions that it stands on.
        mode: from the first step on.
        folder: for statistics and what is learned; ``None`` for none.

    >>> startup_line(LiveSettings(learn=True), "survival", 0, "shadow", Path("runs/engine-0"))
    'lifetime prediction: predictor survival (0 completions), learning; policy lifetime in mode \
shadow; state runs/engine-0; limits 5 % of a step or 2 ms, 1 s a call'
    """
    parts = ["no predictor"]
    if predictor is not None:
        learning = "learning" if settings.learn else "not learning"
        parts = [
            f"predictor {predictor} ({counted(lessons, 'completion')}), {learning}",
            f"policy {settings.policy} in mode {mode}",
        ]
    parts.append(f"state {folder}" if folder is not None else "no state folder")
    if settings.record:
        parts.append(f"record {settings.record}")
    if settings.client_from:
        parts.append(f"clients from {settings.client_from}")
    if predictor is not None:
        share, floor_ms = 100.0 * settings.share, 1000.0 * settings.floor_s
        parts.append(
            f"limits {share:g} % of a step or {floor_ms:g} ms, {settings.limit_s:g} s a call"
        )
    return f"lifetime prediction: {'; '.join(parts)}"
