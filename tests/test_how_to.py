"""The commands and programs of the how-to pages do what their pages say."""

from __future__ import annotations

import pytest
from pages_help import DOCS, KINDS, blocks, folder_for, run_page

from sagellm_lifetime import load_predictor, read_history
from sagellm_lifetime.history import HistorySummary

PAGES = sorted(page.relative_to(DOCS).as_posix() for page in (DOCS / "how-to").glob("*.md"))
WITH_SAGELLM = [page for page in PAGES if any(b.kind == "sagellm" for b in blocks(page))]
WITH_VLLM = [page for page in PAGES if any(block.kind == "vllm" for block in blocks(page))]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folder of each page that was run, and what it printed."""
    return {}


@pytest.fixture
def ran(folders, tmp_path_factory):
    """Run a page once; return its folder and what its commands printed."""

    def run(page):
        if page not in folders:
            folder = folder_for(page, tmp_path_factory.mktemp("page"))
            folders[page] = folder, run_page(page, folder)
        return folders[page]

    return run


SLOW = {"how-to/record-and-train.md"}
"""Pages whose commands train networks."""


@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=pytest.mark.slow) if p in SLOW else p for p in PAGES]
)
def test_every_command_of_a_page_runs(page, ran):
    assert {block.kind for block in blocks(page)} <= set(KINDS)
    assert all(block.about for block in blocks(page) if block.kind in {"no", "file"})
    ran(page)


@pytest.mark.parametrize("page", WITH_VLLM)
def test_every_command_that_needs_vllm_runs(page, vllm, ran):
    folder, _ = ran(page)
    said = run_page(page, folder, kinds=("vllm",))
    if page == "how-to/assess.md":  # the verdict on the page is the one that is printed
        shown = [block.text for block in blocks(page) if block.language == "text"]
        assert len(shown) == 3
        assert all(text in said for text in shown)


@pytest.mark.parametrize("page", WITH_SAGELLM)
def test_every_program_that_needs_sagellms_packages_runs(page, tmp_path):
    for module in ("sagellm_kv_cache", "sagellm_control"):
        pytest.importorskip(module, reason="needs the extra sagellm", exc_type=ImportError)
    run_page(page, folder_for(page, tmp_path), kinds=("sagellm",))


def test_a_log_of_another_format(ran):
    folder, _ = ran("how-to/read-a-log.md")
    history = read_history(folder / "history.parquet").frame
    assert history["client_id"].to_list() == ["acme", "acme", "blue"]
    assert history["actual_time"].to_list() == pytest.approx([2.6, 11.8, 1.9])
    assert len(read_history(folder / "trace.parquet").frame) == 2
    assert load_predictor(folder / "trained").get_metrics()["lessons"] == 3
    mapped = read_history(folder / "mapped.parquet").frame
    assert mapped["actual_length"].to_list() == [130, 512]
    assert mapped["actual_time"].to_list() == pytest.approx([2.6, 11.8])
    assert load_predictor(folder / "mapped").get_metrics()["lessons"] == 2
    said = HistorySummary.of(read_history(folder / "requests.csv"), source="requests.csv").render()
    shown = next(b.text for b in blocks("how-to/read-a-log.md") if b.language == "console")
    assert shown == f"{said}\n"
    assert load_predictor(folder / "skipped").get_metrics()["lessons"] == 2
