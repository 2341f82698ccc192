"""The documentation names every public name, and every page has a place in it."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

import sagellm_lifetime

ROOT = Path(__file__).resolve().parents[1]


def test_every_public_name_is_in_the_reference():
    text = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
    named = re.findall(r"^::: sagellm_lifetime\.[\w.]*?(\w+)$", text, re.M)
    assert sorted(named) == sorted(sagellm_lifetime.__all__)


def test_every_public_name_has_a_docstring():
    for name in sagellm_lifetime.__all__:
        value = getattr(sagellm_lifetime, name)
        if callable(value):
            assert (value.__doc__ or "").strip(), name


def pages(nav):
    for entry in nav:
        for target in entry.values():
            if isinstance(target, str):
                yield target
            else:
                yield from pages(target)


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = sorted(pages(yaml.safe_load(text)["nav"]))
    found = sorted(
        page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")
    )
    assert named == found
