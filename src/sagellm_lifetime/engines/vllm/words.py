"""vLLM's command line, as far as we look at it: its abbreviations, underscores and file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sagellm_lifetime.core.errors import LifetimeError

_SHORTEST: Final = len("--spec")
"""Below it what is short for one of ours is short for several of vLLM's."""


class LaunchError(LifetimeError):
    """An engine that cannot be started as it was asked for."""


def unfolded(options: Sequence[str]) -> list[str]:
    """vLLM's options with those of a ``--config`` file, which come first: the last one counts.

    Raises:
        LaunchError: the file cannot be read, or is no list of options.
    """
    path = next((options[i + 1] for i, o in enumerate(options[:-1]) if o == "--config"), None)
    if path is None:
        return list(options)
    import yaml  # vLLM needs it, too

    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise LaunchError(f"--config {path}: cannot be read ({error.strerror})") from None
    except (ValueError, yaml.YAMLError):
        found = None
    if not isinstance(found, dict):
        raise LaunchError(f"--config {path}: not a YAML file of options and their values")
    words = []
    for name, value in found.items():
        if value is not False:
            words.append(f"--{name}")
        if isinstance(value, dict):
            words.append(json.dumps(value))
        elif not isinstance(value, bool):
            words += map(str, value if isinstance(value, list) else [value])
    return [*words, *options]


def option_of(options: Sequence[str], name: str) -> str | None:
    """What an option of vLLM is given, the last time it comes; ``None`` where it does not."""
    found = None
    for i, option in enumerate(options):
        key, mark, value = option.partition("=")
        if is_option(key, name):
            found = value if mark else (options[i + 1] if i + 1 < len(options) else "")
    return found


def first_of(options: Sequence[str], names: Sequence[str]) -> str | None:
    """Which of the names comes first, whole or as one key of its JSON (``NAME.KEY``)."""
    given = [option.partition("=")[0].partition(".")[0] for option in options]
    return next((name for key in given for name in names if is_option(key, name)), None)


def is_option(key: str, name: str) -> bool:
    """Whether a word of the command line is this option, or short for it.

    What is short for several vLLM refuses by itself, so it does not matter which it is here.
    """
    key = plain(key)
    return key == name or (len(key) >= _SHORTEST and name.startswith(key))


def plain(option: str) -> str:
    """vLLM takes underscores for dashes."""
    key, mark, value = option.partition("=")
    return key.replace("_", "-") + mark + value
