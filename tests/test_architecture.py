"""docs/reference/files.md names every file, so that nobody looks for one in vain."""

import re
from pathlib import Path

import sagellm_lifetime

SOURCE = Path(sagellm_lifetime.__file__).parent
PAGE = Path(__file__).parents[1] / "docs" / "reference" / "files.md"

WHOLE = "the package itself"


def named():
    """The names in backticks under the heading of each package."""
    parts = re.split(r"^## (.+)$", PAGE.read_text(), flags=re.MULTILINE)
    return {
        package: set(re.findall(r"`([^`]+)`", text))
        for package, text in zip(parts[1::2], parts[2::2], strict=True)
    }


def test_every_file_is_named_and_no_other():
    packages, missing, seen = named(), [], set()
    for path in sorted(SOURCE.rglob("*.py")):
        inner = path.relative_to(SOURCE).as_posix()
        package = max((p for p in packages if inner.startswith(p + "/")), key=len, default=WHOLE)
        rest = inner.removeprefix(package + "/")
        names = {rest, rest.split("/")[0] + "/"} & packages.get(package, set())
        seen |= {(package, name) for name in names}
        if path.name != "__init__.py" and not names:
            missing.append(inner)
    assert not missing
    files = re.compile(r"[a-z_]+(\.py|/)")
    gone = {
        (package, name)
        for package, names in packages.items()
        for name in names
        if files.fullmatch(name)
    } - seen
    assert not gone
