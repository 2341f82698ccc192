"""``python -m live.start engine start …``: our command, with the benchmark's scheduler.

It is ours or vLLM's own, as the command says, with a log (:mod:`live.watched`). The command itself
refuses another scheduler, as it should, so its last step is changed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sagellm_lifetime.cli.main import main
from sagellm_lifetime.vllm.launch import server as launch

SCHEDULER = "live.watched.scheduler"
_command = launch.command


def command(model: str, settings: Any, options: Sequence[str]) -> list[str]:
    """vLLM's command line, with another ``--scheduler-cls``."""
    line = _command(model, settings, options)
    if "--scheduler-cls" in line:
        line[line.index("--scheduler-cls") + 1] = SCHEDULER
        return line
    return [*line, "--scheduler-cls", SCHEDULER]


if __name__ == "__main__":
    launch.command = command
    main()
