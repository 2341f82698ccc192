"""Plug-in for ``sage``: entry point group ``sage.cli.plugins``.

Two packages bring the command: ``isage`` passes its argparse sub-parsers, ``isage-cli`` its typer
app. Nothing heavy is imported here, and nothing is raised: an exception would take ``sage`` down.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, Final

GROUP: Final = "llm"
NAME: Final = "lifetime"
ENGINE: Final = "engine"
GROUP_HELP: Final = "LLM serving: sageLLM"
HELPS: Final = {
    NAME: "Predict how many more tokens running sequences will generate",
    ENGINE: "Serve a model with lifetime prediction",
}


def register(target: Any) -> None:
    """Add ``llm lifetime`` and ``llm engine`` to a ``sage`` program.

    Args:
        target: argparse's sub-parsers action (``isage``) or a ``typer.Typer`` (``isage-cli``).
    """
    try:
        if isinstance(target, argparse._SubParsersAction):
            _register_argparse(target)
        else:
            _register_typer(target)
    except Exception as error:  # noqa: BLE001 - `sage` must go on after any error
        print(f"warning: sage llm lifetime is not available: {error}", file=sys.stderr)


# -- isage: argparse -------------------------------------------------------------------------


class _PassThroughParser(argparse.ArgumentParser):
    """Parser that passes every argument on to typer, ``--help`` included."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        namespace = argparse.Namespace() if namespace is None else namespace
        namespace.lifetime_command = str(self.prog).split()[-1]
        namespace.lifetime_args = list(args or ())
        namespace._handler = _handle
        return namespace, []


def _handle(args: argparse.Namespace) -> int:
    from sagellm_lifetime.cli.main import run

    if args.lifetime_command == ENGINE:
        return run([ENGINE, *args.lifetime_args], f"sage {GROUP}")
    return run(args.lifetime_args, f"sage {GROUP} {NAME}")


def _register_argparse(target: argparse._SubParsersAction[Any]) -> None:
    group = target.choices.get(GROUP)
    if group is None:
        group = target.add_parser(GROUP, help=GROUP_HELP, description=GROUP_HELP)
        group.set_defaults(_handler=_show_help(group))
    below = _subparsers(group)
    usual, below._parser_class = below._parser_class, _PassThroughParser
    try:
        for name, text in HELPS.items():
            if name not in below.choices:
                below.add_parser(name, help=text, add_help=False)
    finally:
        below._parser_class = usual


def _subparsers(parser: argparse.ArgumentParser) -> argparse._SubParsersAction[Any]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return action
    return parser.add_subparsers(dest=f"{GROUP}_command", metavar="COMMAND")


def _show_help(parser: argparse.ArgumentParser) -> Any:
    def show(_args: argparse.Namespace) -> int:
        parser.print_help()
        return 0

    return show


# -- isage-cli: typer ------------------------------------------------------------------------


def _register_typer(target: Any) -> None:
    import typer

    from sagellm_lifetime.cli.app import HELP as SUMMARY
    from sagellm_lifetime.cli.app import app
    from sagellm_lifetime.cli.engine import app as engine

    if not isinstance(target, typer.Typer):
        raise TypeError(f"a {type(target).__name__} takes no commands")
    groups: Sequence[Any] = target.registered_groups
    for group in reversed(groups):  # of two with one name typer shows the later
        if _name(group) == GROUP and group.typer_instance is not None:
            llm = group.typer_instance
            break
    else:
        llm = typer.Typer(name=GROUP, help=GROUP_HELP, no_args_is_help=True)
        target.add_typer(llm, name=GROUP)
    taken = {_name(existing) for existing in llm.registered_groups}
    if NAME not in taken:
        llm.add_typer(app, name=NAME, help=SUMMARY)
    if ENGINE not in taken:
        llm.add_typer(engine, name=ENGINE)


def _name(group: Any) -> Any:
    """Return the name of a group, given where it is added or by its own app."""
    own = group.typer_instance.info.name if group.typer_instance is not None else None
    return group.name if isinstance(group.name, str) else own
