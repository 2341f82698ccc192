"""The documentation names every public name, and every page has a place in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import sagellm_lifetime

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))
LONGEST = 200
GENERATED = {
    # A benchmark writes them, a table for each trace and setting, in one file.
    "lab/replay.md",
    "lab/reservation.md",
    "lab/results.md",
    "lab/live.md",
    "lab/strangers.md",
}
FOLDERS = {"", "how-to", "explanation", "reference", "lab"}


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


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_short(page):
    lines = (DOCS / page).read_text(encoding="utf-8").splitlines()
    assert (len(lines) > LONGEST) == (page in GENERATED)


def test_every_page_is_in_one_of_the_rooms():
    assert {Path(page).parent.as_posix().replace(".", "") for page in PAGES} == FOLDERS


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("lab/")])
def test_a_study_opens_with_its_answer_and_has_a_date(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    opening = "\n".join(text.splitlines()[:14])
    assert re.search(r"\b20\d\d-\d\d-\d\d\b", opening)
    _, _, body = text.partition("\n\n")
    answer = re.sub(r"<!--.*?-->\n?", "", body).strip()
    assert not answer.startswith(("|", "    ", "`", "Made by"))
