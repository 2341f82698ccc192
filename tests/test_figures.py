"""README and docs carry the figures of the pages that the benchmarks wrote, and no others."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from cogapp import Cog

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "scripts"
PAGES = (
    "README.md",
    "docs/explanation/policies.md",
    *(
        f"docs/lab/{name}.md"
        for name in ("batches", "decisions", "live", "replay", "reservation", "results")
    ),
)


def check(page):
    return Cog().main(["cog", "--check", "-P", "-I", str(SCRIPTS), str(page)])


@pytest.mark.parametrize("name", PAGES)
def test_a_page_says_what_its_source_says(name, capsys):
    assert check(ROOT / name) == 0, capsys.readouterr().out


@pytest.mark.parametrize("name", PAGES)
def test_another_figure_on_a_page_is_found(name, tmp_path, capsys):
    page = tmp_path / "page.md"
    head, made = (ROOT / name).read_text(encoding="utf-8").split("]]] -->\n", 1)
    digit = next(i for i, letter in enumerate(made) if letter.isdigit())
    other = made[:digit] + str((int(made[digit]) + 1) % 10) + made[digit + 1 :]
    page.write_text(f"{head}]]] -->\n{other}", encoding="utf-8")
    assert check(page) != 0
    assert "changed" in capsys.readouterr().out


def test_every_page_with_figures_is_checked():
    marked = {
        str(page.relative_to(ROOT))
        for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
        if "[[[cog" in page.read_text(encoding="utf-8")
    }
    assert marked == set(PAGES)
    script = (SCRIPTS / "figures").read_text(encoding="utf-8")
    assert all(page in script for page in PAGES)


@pytest.fixture
def figures(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.delitem(sys.modules, "figures", raising=False)
    import figures

    yield figures
    sys.modules.pop("figures")


def test_another_measurement_gives_other_figures(figures, tmp_path, monkeypatch):
    before = figures.live_table()
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    page = tmp_path / "docs" / "lab" / "live.md"
    text = page.read_text(encoding="utf-8")
    rows = figures.table("lab/live.md", "Overload")
    ours = next(row for row in rows if row[""] == "lifetime")
    assert f"|   {ours['mean s']} |" in text
    page.write_text(text.replace(f"|   {ours['mean s']} |", "|   9.9 |", 1), encoding="utf-8")
    monkeypatch.setattr(figures, "DOCS", tmp_path / "docs")
    figures.table.cache_clear()
    assert figures.live_table() != before


def test_what_is_not_there_is_said(figures):
    with pytest.raises(ValueError, match="no heading 'Nowhere'"):
        figures.table("lab/live.md", "Nowhere")
    with pytest.raises(ValueError, match="tables below 'Overload'"):
        figures.table("lab/live.md", "Overload", 99)
