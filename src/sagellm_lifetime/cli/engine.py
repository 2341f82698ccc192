"""The group ``engine``; one file per command."""

from __future__ import annotations

import typer

from sagellm_lifetime.cli.fetch import fetch
from sagellm_lifetime.cli.guard import guarded

engine = typer.Typer(name="engine")


@engine.callback(invoke_without_command=True)
def _engine(context: typer.Context) -> None:
    """Models and engines to run them."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


engine.command()(guarded(fetch))
