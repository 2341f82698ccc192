"""The examples in docstrings run, and print what they say."""

import doctest
import importlib
import io
from pathlib import Path

import pytest

import sagellm_lifetime

SOURCE = Path(sagellm_lifetime.__file__).parent
WITH_EXAMPLES = sorted(
    ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in SOURCE.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_of(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    said = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, name):
        runner.run(test, out=said.write)
    results = runner.summarize(verbose=False)
    assert results.failed == 0, said.getvalue()
    assert results.attempted > 0, f"{name} has examples that doctest does not find"


def test_every_public_name_has_an_example():
    names = [name for name in sagellm_lifetime.__all__ if name != "PREDICTORS"]
    without = [
        name for name in names if ">>> " not in (getattr(sagellm_lifetime, name).__doc__ or "")
    ]
    assert without == []
