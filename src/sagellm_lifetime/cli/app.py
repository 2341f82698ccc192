"""The commands in one typer app; one file per command."""

from __future__ import annotations

from typing import Annotated

import typer

from sagellm_lifetime.cli.assess import assess
from sagellm_lifetime.cli.command_errors import guarded
from sagellm_lifetime.cli.convert import convert
from sagellm_lifetime.cli.demo import demo
from sagellm_lifetime.cli.doctor import doctor
from sagellm_lifetime.cli.engine import app as engine
from sagellm_lifetime.cli.evaluate import evaluate
from sagellm_lifetime.cli.export import export
from sagellm_lifetime.cli.merge import merge
from sagellm_lifetime.cli.options import LifetimeCommand
from sagellm_lifetime.cli.predict import predict
from sagellm_lifetime.cli.replay import replay
from sagellm_lifetime.cli.stats import stats
from sagellm_lifetime.cli.train import train

HELP = "Predict how many more tokens running sequences will generate."

app = typer.Typer(
    name="lifetime",
    help=HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        from sagellm_lifetime import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def lifetime(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Predict how many more tokens running sequences will generate."""


_COMMANDS = (
    *(demo, assess, train, evaluate, predict, stats, export, convert, merge, replay),
    doctor,
)
for _command in _COMMANDS:
    app.command(cls=LifetimeCommand)(guarded(_command))
app.add_typer(engine)
