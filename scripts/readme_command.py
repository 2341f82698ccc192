"""Print one of the README's two commands, as it is written there.

    python3 scripts/readme_command.py 1

The commands are the first two ``sh`` blocks below the heading "Two commands".
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"


def commands(text: str) -> list[str]:
    """Return the ``sh`` blocks between the heading "Two commands" and the next heading."""
    section = re.search(r"^## Two commands\n(.*?)(?=^#)", text, re.M | re.S)
    return re.findall(r"^```sh\n(.*?)^```", section[1], re.M | re.S) if section else []


def main() -> None:
    """Print the command whose number was given."""
    found = commands(README.read_text(encoding="utf-8"))
    if len(found) != 2:
        sys.exit(f"README.md has {len(found)} commands below 'Two commands', not 2")
    print(found[int(sys.argv[1]) - 1], end="")


if __name__ == "__main__":
    main()
