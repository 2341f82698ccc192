"""Print the structure of the package: files, lines and imports per folder, and import cycles.

    python dev/house.py [SRC]

``SRC`` is the ``src`` folder of any checkout, for a comparison of two. Imports inside functions and
under ``TYPE_CHECKING`` count.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import grimp

ROOT = "sagellm_lifetime"


def folder_of(module: str) -> str:
    """Return the first folder below the package, or ``(root)``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "(root)"


def modules_in_cycles(graph: grimp.ImportGraph) -> set[str]:
    """Return the modules that import themselves by way of others."""
    return {
        importer
        for importer in graph.modules
        for imported in graph.find_modules_directly_imported_by(importer)
        if graph.chain_exists(importer=imported, imported=importer)
    }


def main() -> None:
    """Print the tables."""
    source = Path(sys.argv[1] if len(sys.argv) > 1 else "src").resolve()
    sys.path.insert(0, str(source))
    graph = grimp.build_graph(ROOT, cache_dir=None)
    files, lines = Counter[str](), Counter[str]()
    for path in sorted((source / ROOT).rglob("*.py")):
        parts = path.relative_to(source / ROOT).parts
        folder = parts[0] if len(parts) > 1 else "(root)"
        files[folder] += 1
        lines[folder] += len(path.read_text().splitlines())
    edges = Counter[tuple[str, str]]()
    for importer in graph.modules:
        for imported in graph.find_modules_directly_imported_by(importer):
            edges[folder_of(importer), folder_of(imported)] += 1
    cyclic = modules_in_cycles(graph)
    print("| folder | files | lines | imports from |\n|---|---|---|---|")
    for folder in sorted(files):
        below = {b: n for (a, b), n in edges.items() if a == folder and b not in (folder, "(root)")}
        text = ", ".join(f"{b} {n}" for b, n in sorted(below.items()))
        print(f"| {folder} | {files[folder]} | {lines[folder]} | {text or '–'} |")
    short = sum(len(p.read_text().splitlines()) < 50 for p in (source / ROOT).rglob("*.py"))
    print(f"\n{files.total()} files, {lines.total()} lines, {short} files under 50 lines")
    print(f"{edges.total()} imports, {len(cyclic)} modules in cycles")
    for module in sorted(cyclic):
        print(f"  {module}")


if __name__ == "__main__":
    main()
