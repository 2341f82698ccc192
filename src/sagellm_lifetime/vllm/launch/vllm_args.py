"""Parsing of vLLM's command line: its abbreviations, underscores and ``--config`` file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from sagellm_lifetime.core.errors import LifetimeError

_SHORTEST: Final = len("--spec")
"""Shortest abbreviation; a shorter one is ambiguous in vLLM."""
_SHORTER: Final = {"--host": len("--ho"), "--port": len("--por"), "--uds": len("--ud")}
"""Shortest abbreviations of options for which fewer characters are unambiguous."""
_CONFIG: Final = "--config"
_LONGEST: Final = 200
"""Characters of a value in an error."""
_SUFFIX: Final = re.compile(r"(\d+(?:\.\d+)?)([kmgt])", re.IGNORECASE)
_DECIMAL: Final = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY: Final = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class LaunchError(LifetimeError):
    """An engine that cannot be started with the given options."""


def unfolded(options: Sequence[str]) -> list[str]:
    """Return vLLM's options after those of a ``--config`` file, as the last one counts.

    Raises:
        LaunchError: if the file cannot be read, or is no list of options.
    """
    path = _config_file(options)
    if path is None:
        return list(options)
    import yaml  # a dependency of vLLM

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise LaunchError(f"--config {path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError, yaml.YAMLError):
        content = None
    if not isinstance(content, dict):
        raise LaunchError(f"--config {path}: not a YAML file of options and their values")
    words = []
    for name, value in content.items():
        if value is not False:
            words.append(f"--{name}")
        try:
            if isinstance(value, dict):
                words.append(json.dumps(value))
            elif not isinstance(value, bool):
                words += map(str, value if isinstance(value, list) else [value])
        except (TypeError, ValueError, RecursionError):  # a date in an object, a huge number
            raise LaunchError(f"--config {path}: {name} cannot be given as an option") from None
    return [*words, *options]


def _config_file(options: Sequence[str]) -> str | None:
    """Return the ``--config`` file as vLLM finds it; refuse one that vLLM does not read."""
    if any(option.startswith(f"{_CONFIG}=") for option in options):
        raise LaunchError(f"{_CONFIG}=FILE: vLLM does not read it; give it as two words")
    at = [i for i, option in enumerate(options) if option == _CONFIG]
    if not at:
        return None
    if len(at) > 1:
        raise LaunchError(f"{_CONFIG}: given {len(at)} times; vLLM reads one file")
    if at[0] + 1 == len(options):
        raise LaunchError(f"{_CONFIG}: needs a file")
    path = options[at[0] + 1]
    if Path(path).suffix not in (".yaml", ".yml"):
        raise LaunchError(f"{_CONFIG} {path}: not a YAML file by its name (.yaml, .yml)")
    return path


def json_option(words: Sequence[str], name: str) -> tuple[list[str], dict[str, Any]]:
    """Take an option with a JSON object out of the words, in all forms that vLLM accepts.

    The forms are ``NAME {…}``, ``NAME={…}``, ``NAME.KEY.KEY VALUE`` and ``NAME.KEY+ VALUE``; also
    several of them, of which vLLM would drop all but the last. A later word overrides an earlier
    one, and keys override a whole object.

    Returns:
        The other words, and the object, empty if the option is not given.

    Raises:
        LaunchError: if a value is missing, or is no JSON object.
    """
    rest: list[str] = []
    whole: dict[str, Any] = {}
    keys: dict[str, Any] = {}
    i = 0
    while i < len(words):
        option, mark, value = words[i].partition("=")
        head, dot, path = option.partition(".")
        if not (option.startswith("-") and is_option(head, name)):
            rest.append(words[i])
            i += 1
            continue
        if not mark:
            i += 1
            if i == len(words):
                raise LaunchError(f"{option}: needs a value")
            value = words[i]
        if dot:
            adds = path.endswith("+")
            nested: Any = value.split(",") if adds else _value(value)
            for key in reversed(path.removesuffix("+").split(".")):
                nested = {key: nested}
            _update(keys, nested)
        else:
            _update(whole, _object(name, value), adds=False)
        i += 1
    _update(whole, keys)
    return rest, whole


def has_keys(words: Sequence[str], name: str) -> bool:
    """Return True if a single key of an option's JSON object is given (``NAME.KEY``)."""
    heads = (word.partition("=")[0].partition(".") for word in words if word.startswith("-"))
    return any(dot and is_option(head, name) for head, dot, _ in heads)


def _object(name: str, text: str) -> dict[str, Any]:
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise LaunchError(f"{name}: not a JSON object: {text[:_LONGEST]}")
    return parsed


def _value(text: str) -> Any:
    """Return the value after ``NAME.KEY`` as vLLM parses it: JSON, a number like 8k, or text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    match = _SUFFIX.fullmatch(text.strip())
    if match is None:
        return text
    number, suffix = match.groups()
    try:
        if suffix in _DECIMAL:
            return int(float(number) * _DECIMAL[suffix])
        return int(number) * _BINARY[suffix] if number.isdecimal() else text
    except (ValueError, OverflowError):  # hundreds of digits
        return text


def _update(target: dict[str, Any], more: Mapping[str, Any], *, adds: bool = True) -> None:
    """Merge ``more`` into an object at every depth; with ``adds`` lists are concatenated."""
    for key, value in more.items():
        old = target.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            _update(old, value, adds=adds)
        elif adds and isinstance(value, list) and isinstance(old, list):
            target[key] = [*old, *value]
        else:
            target[key] = value


def list_option(words: Sequence[str], name: str) -> tuple[list[str], list[str]]:
    """Take an option with several values out of the words; its last occurrence counts.

    Returns:
        The other words, and the values.
    """
    rest: list[str] = []
    values: list[str] = []
    is_open = False
    for word in words:
        key, mark, value = word.partition("=")
        if word.startswith("-"):
            is_open = is_option(key, name)
            if is_open:
                values = [value] if mark else []
                is_open = not mark
                continue
        if is_open:
            values.append(word)
        else:
            rest.append(word)
    return rest, values


def option_of(options: Sequence[str], name: str) -> str | None:
    """Return the value of an option of vLLM at its last occurrence; ``None`` if not given."""
    given = None
    for i, option in enumerate(options):
        key, mark, value = option.partition("=")
        if is_option(key, name):
            given = value if mark else (options[i + 1] if i + 1 < len(options) else "")
    return given


def first_of(options: Sequence[str], names: Sequence[str]) -> str | None:
    """Return the name that occurs first, whole or as a key of its JSON (``NAME.KEY``)."""
    given = [option.partition("=")[0].partition(".")[0] for option in options]
    return next((name for key in given for name in names if is_option(key, name)), None)


def is_option(key: str, name: str) -> bool:
    """Return True if a word of the command line is this option or its abbreviation.

    vLLM itself refuses an ambiguous abbreviation.
    """
    key = plain(key)
    shortest = _SHORTER.get(name, _SHORTEST)
    return key == name or (len(key) >= shortest and name.startswith(key))


def plain(option: str) -> str:
    """Return an option with dashes for underscores up to the first dot, as in vLLM."""
    key, mark, value = option.partition("=")
    head, dot, path = key.partition(".")
    return head.replace("_", "-") + dot + path + mark + value
