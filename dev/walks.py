"""Print the calls by which data goes through the package, as they happen.

    python dev/walks.py

Each walk is run for real, on a small workload, and the stack of this package's functions is printed
when the last function of the walk is reached: one hop a line. The walks through an engine need
vLLM.
"""

from __future__ import annotations

import io
import logging
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from types import FrameType
from typing import Any


def _name(frame: FrameType) -> str | None:
    path = Path(frame.f_code.co_filename)
    if "sagellm_lifetime" not in path.parts or frame.f_code.co_name.startswith("<"):
        return None
    parts = path.with_suffix("").parts
    module = ".".join(parts[parts.index("sagellm_lifetime") + 1 :])
    return f"{module}: {frame.f_code.co_qualname}"


def walk(run: Callable[[], Any], last: str, through: str = "") -> list[str]:
    """Return the stack, outermost first, when a function whose name ends with ``last`` is called.

    Args:
        run: does the work.
        last: end of the name of the function.
        through: text that some function on the stack must have in its name.

    Raises:
        RuntimeError: it is never called.
    """
    stacks: list[list[str]] = []

    def on_event(frame: FrameType, event: str, _argument: Any) -> None:
        if event != "call" or stacks:
            return
        name = _name(frame)
        if name is None or not name.endswith(last):
            return
        stack: list[str] = []
        outer: FrameType | None = frame
        while outer is not None:
            if (step := _name(outer)) is not None:
                stack.append(step)
            outer = outer.f_back
        if through in " ".join(stack):
            stacks.append(stack[::-1])

    sys.setprofile(on_event)
    try:
        run()
    finally:
        sys.setprofile(None)
    if not stacks:
        raise RuntimeError(f"{last} was never called")
    return stacks[0]


def main() -> None:
    """Print the walks."""
    from sagellm_lifetime import PredictionRequest, create_predictor, write_history
    from sagellm_lifetime.cli.main import run as command
    from sagellm_lifetime.workloads import generate

    logging.disable()
    history = generate("chat", 400, seed=1)
    folder = Path(tempfile.mkdtemp())
    write_history(history, folder / "log.parquet")

    def complete() -> None:
        predictor = create_predictor("lstm", hidden_size=8, num_layers=1)
        for i in range(40):
            predictor.predict(PredictionRequest(i, list(range(20)), 20, None))
            predictor.update(i, 40 + i, 1.0)

    def train() -> None:
        arguments = [
            "train",
            "--predictor-type",
            "survival",
            "--data-path",
            str(folder / "log.parquet"),
        ]
        command([*arguments, "--output-path", str(folder / "model")], "lifetime")

    def replay() -> None:
        from sagellm_lifetime.evaluation.dataset import Dataset
        from sagellm_lifetime.replay.experiment import Experiment, ExperimentSettings

        settings = ExperimentSettings(
            policies=("lifetime",), load="overload", blocks=400, max_requests=200
        )
        Experiment(Dataset.read(folder / "log.parquet"), settings).run()

    walks: list[tuple[Any, ...]] = [
        ("a completion to new weights", complete, "Trainer.step"),
        ("new weights to the network that serves", complete, "Session.load"),
        ("a history file to a checked table", train, "validate: validate_file"),
        ("a history file to what was learned", train, "ResidualLife.learn_many"),
        ("what was learned to a checkpoint", train, "write_checkpoint"),
        ("a trace to a step of vLLM's scheduler", replay, "LifetimeMixin.schedule"),
        ("a request to its hazards", replay, "SurvivalModel.hazards", "LifetimeMixin"),
        ("memory that runs out to a victim", replay, "eviction_order"),
    ]
    for title, run, *functions in walks:
        print(f"\n{title}")
        try:
            with redirect_stdout(io.StringIO()):
                stack = walk(run, *functions)
        except (RuntimeError, ImportError) as error:
            print(f"  – {error}")
            continue
        for hop in stack:
            print(f"  {hop}")


if __name__ == "__main__":
    main()
