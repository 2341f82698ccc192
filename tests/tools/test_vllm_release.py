"""What a new release of vLLM changes, told from files that stand for releases."""

import zipfile
from pathlib import Path

import pytest
import vllm_release
from vllm_release import Release, main, missing, missing_imports, overridden, report

from sagellm_lifetime.vllm.compat.interface import PARTS, SCHEDULER
from sagellm_lifetime.vllm.compat.v0_29 import ATTRIBUTES as OLD
from sagellm_lifetime.vllm.compat.v0_31 import ATTRIBUTES as NEW


def write_release(folder, differing=NEW, change=str):
    """Write a release that has just what is needed, after ``change`` was made to each file."""
    texts = {}
    for part in PARTS:
        attributes = part.attributes + (differing if part is SCHEDULER else ())
        lines = [f"class {part.name}:", *(f"    {name}: int" for name in part.fields)]
        lines += ["    def __init__(self):", "        self.nothing = None"]
        lines += [f"        self.{name} = None" for name in attributes]
        for name, wanted in part.methods.items():
            lines += [f"    def {name}({', '.join(('self', *wanted))}):", "        return 1"]
        texts.setdefault(part.module, []).append("\n".join(lines))
    for module, classes in texts.items():
        file = folder / f"{module.replace('.', '/')}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(change("\n".join(classes)))
    return folder


@pytest.fixture(autouse=True)
def _no_imports(monkeypatch, request):
    """The files that stand for a release have only what the interface names."""
    if "imports" not in request.node.name:
        monkeypatch.setattr(vllm_release, "missing_imports", lambda release: ())


@pytest.fixture
def old(tmp_path):
    return write_release(tmp_path / "old")


@pytest.mark.parametrize("differing", [OLD, NEW])
def test_nothing_is_missing_where_a_file_of_ours_fits(tmp_path, differing):
    release = Release.read(str(write_release(tmp_path, differing)))
    assert list(missing(release)) == []


def test_what_is_missing_is_named(tmp_path):
    def change(text):
        text = text.replace("self.running =", "self.active =").replace(
            "class KVCacheBlock", "class B"
        )
        text = text.replace(
            "def _free_request_blocks(self, request)", "def _free_all(self, request)"
        )
        text = text.replace("def schedule(self, throttle_prefills)", "def schedule(self, *, now=1)")
        return text.replace("    req_id: int", "    name: int")

    release = Release.read(str(write_release(tmp_path, (), change)))
    assert list(missing(release)) == [
        "Scheduler.schedule takes (now), not (throttle_prefills)",
        "Scheduler._free_request_blocks is gone",
        "Scheduler.running is gone",
        *(f"Scheduler.{name} is gone" for name in NEW),
        "vllm.v1.core.kv_cache_utils.KVCacheBlock is gone",
        "NewRequestData.req_id is gone",
    ]


def test_signatures_and_sources_of_what_we_override(tmp_path, old):
    def change(text):
        text = text.replace("def shutdown(self)", "def shutdown(self) -> None")
        return text.replace(
            "(self, request):\n        return 1", "(self, request):\n        return 2", 1
        )

    new = write_release(tmp_path / "new", change=change)
    names, signatures, sources = report(*(Release.read(str(each)) for each in (new, old)))
    assert names == []
    assert signatures == ["Scheduler.shutdown(self) -> None, was (self)"]
    assert [line for line in sources if line[0] in "+-"] == [
        *("--- old/add_request", "+++ new/add_request", "-return 1", "+return 2")
    ]


def test_a_method_of_ours_that_is_never_called_is_named(tmp_path, old):
    new = write_release(
        tmp_path / "new", change=lambda text: text.replace("def add_request", "def enqueue")
    )
    _, signatures, _ = report(*(Release.read(str(each)) for each in (new, old)))
    assert signatures == ["Scheduler.add_request is gone; ours is never called"]


def test_the_command(tmp_path, old, capsys):
    assert main([str(old), "--against", str(old)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "== Missing: none",
        "== Signatures of overridden methods: none",
        "== Source of overridden methods: none",
    ]
    wheel = tmp_path / "vllm-0.34.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in old.rglob("*.py"):
            text = file.read_text().replace("def add_request(", "def add_request(self, at, ")
            archive.writestr(str(file.relative_to(old)), text.replace("at, self", "at"))
        archive.writestr("vllm-0.34.0.dist-info/METADATA", "Version: 0.34.0")
        archive.writestr("vllm/_C.abi3.so", b"compiled")
    extract = ["--extract", str(tmp_path / "python")]
    assert main([str(wheel), "--against", str(old), *extract]) == 1
    names = [file.name for file in (tmp_path / "python").rglob("*") if file.is_file()]
    assert {"METADATA", "scheduler.py", "request.py"} <= set(names)
    assert "_C.abi3.so" not in names
    assert "Scheduler.add_request takes (at, request), not (request)" in capsys.readouterr().out


def test_what_is_no_release(tmp_path, old, capsys, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.whl").write_text("no wheel")
    monkeypatch.setattr(vllm_release, "_download", _no_such_version)
    for place, told in (("empty", "no Python files"), ("text.whl", "not a wheel"), ("9.9", "pip")):
        place = str(tmp_path / place) if place != "9.9" else place  # noqa: PLW2901
        assert main([place, "--against", str(old)]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert told in said
        assert said.count("\n") == 1


def _no_such_version(version, folder):
    raise vllm_release.ReleaseError(f"{version}: pip finds none")


def test_imports_that_a_release_lacks(tmp_path):
    ours = tmp_path / "ours"
    ours.mkdir()
    (ours / "a.py").write_text(
        "from vllm.a import B, C\nfrom vllm.gone import D\nfrom vllm.b import part\n"
    )
    theirs = tmp_path / "vllm"
    (theirs / "b").mkdir(parents=True)
    (theirs / "a.py").write_text("class B:\n    pass\n")
    (theirs / "b" / "part.py").write_text("")
    (theirs / "b" / "__init__.py").write_text("")
    release = Release.read(str(tmp_path))
    assert list(missing_imports(release, ours)) == ["vllm.a.C is gone", "vllm.gone is gone"]


@pytest.mark.usefixtures("vllm")
def test_the_installed_vllm_lacks_nothing_of_interface_and_imports():
    import vllm

    release = Release.read(str(Path(vllm.__file__).parents[1]))
    assert list(missing_imports(release)) == []
    assert list(missing(release)) == []
    scheduler = release.class_of(SCHEDULER.module, SCHEDULER.name)
    assert {"schedule", "add_request", "update_from_output"} <= set(overridden(scheduler))
