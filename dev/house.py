"""Write ``docs/lab/house.md``: the structure of the package now and before, and its walks.

    python dev/house.py --before ../before/src [--output docs/lab/house.md]

``--before`` is the ``src`` folder of an older checkout (``git worktree add ../before c4bf5eb``).
Imports inside functions and under ``TYPE_CHECKING`` count. The walks (``walks.py``) run for real,
and those through an engine need vLLM.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

ROOT = "sagellm_lifetime"
HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "lab" / "house.md"
FIGURES = ("files", "lines", "under 50 lines", "imports", "modules in cycles")
TEXT = """# The structure of the package

{date}. {answer}

    git worktree add ../before {commit}
    python dev/house.py --before ../before/src

| | before | now |
|---|---|---|
{figures}

## Folders

A folder imports only from those below it (the order: [files](../reference/files.md)), and no module
imports itself by way of others, lazily or for types (`scripts/layering`).

| folder | files | lines | imports from |
|---|---|---|---|
{folders}

Before ({commit}):

| folder | files | lines | imports from |
|---|---|---|---|
{before}

## Walks

The functions of the package that are on the stack when the last one is called, outermost first
(`python dev/walks.py`). Nothing is left out.

{walks}
"""


def measure(source: Path) -> dict[str, Any]:
    """Return the figures of a checkout's ``src`` folder."""
    import grimp

    sys.path.insert(0, str(source))
    graph = grimp.build_graph(ROOT, cache_dir=None)
    files, lines, short = Counter[str](), Counter[str](), 0
    for path in sorted((source / ROOT).rglob("*.py")):
        parts = path.relative_to(source / ROOT).parts
        folder = parts[0] if len(parts) > 1 else "(package)"
        count = len(path.read_text().splitlines())
        files[folder] += 1
        lines[folder] += count
        short += count < 50
    edges = Counter[tuple[str, str]]()
    cyclic = set()
    for importer in graph.modules:
        for imported in graph.find_modules_directly_imported_by(importer):
            edges[folder_of(importer), folder_of(imported)] += 1
            if graph.chain_exists(importer=imported, imported=importer):
                cyclic.add(importer)
    rows = []
    for folder in sorted(files):
        below = [
            f"{other} {count}"
            for (own, other), count in sorted(edges.items())
            if own == folder and other not in (folder, "(package)")
        ]
        text = ", ".join(below) or "–"
        rows.append(f"| {folder} | {files[folder]} | {lines[folder]:,} | {text} |")
    counts = (files.total(), lines.total(), short, edges.total(), len(cyclic))
    return {"counts": dict(zip(FIGURES, counts, strict=True)), "rows": rows}


def folder_of(module: str) -> str:
    """Return the first folder below the package, or ``(package)``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 2 else "(package)"


def measured(source: Path) -> dict[str, Any]:
    """Return :func:`measure` of a checkout, in a process of its own: both have the same names."""
    code = (
        "import json, house, pathlib\n"
        f"print(json.dumps(house.measure(pathlib.Path({str(source)!r}))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, check=True
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def walks() -> str:
    """Return the walks as Markdown."""
    done = subprocess.run(
        [sys.executable, str(HERE / "walks.py")], capture_output=True, text=True, check=True
    )
    parts = []
    for block in done.stdout.strip().split("\n\n"):
        title, *hops = block.splitlines()
        chain = "\n".join(f"    {hop.strip()}" for hop in hops)
        parts.append(f"**{title[0].upper()}{title[1:]}** ({len(hops)} hops)\n\n{chain}")
    return "\n\n".join(parts)


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=PAGE)
    options = parser.parse_args()
    before, now = measured(options.before.resolve()), measured(HERE.parent / "src")
    commit = subprocess.run(
        ["git", "rev-parse", "--short=7", "HEAD"],
        cwd=options.before,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    old, new = before["counts"], now["counts"]
    answer = (
        f"{new['modules in cycles']} modules are in an import cycle ({old['modules in cycles']} "
        f"before), {new['under 50 lines']} files have under 50 lines ({old['under 50 lines']});\n"
        f"{new['files']} files, {new['lines']:,} lines ({old['files']} files, {old['lines']:,}), "
        "with longer docstrings and runnable examples."
    )
    page = TEXT.format(
        date=date.today().isoformat(),
        answer=answer,
        commit=commit,
        figures="\n".join(f"| {name} | {old[name]:,} | {new[name]:,} |" for name in FIGURES),
        folders="\n".join(now["rows"]),
        before="\n".join(before["rows"]),
        walks=walks(),
    )
    options.output.write_text(page)
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
