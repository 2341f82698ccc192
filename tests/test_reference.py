"""The reference pages name what there is: every setting with its default, every metric."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
import typer

from sagellm_lifetime.cli.app import app
from sagellm_lifetime.history.schema import HISTORY_SCHEMA
from sagellm_lifetime.vllm.launch.server import OPTIONS
from sagellm_lifetime.vllm.settings import RANGES, LiveSettings

REFERENCE = Path(__file__).resolve().parents[1] / "docs" / "reference"


def rows(page):
    """Return the cells of every row of a page's table whose first cell is code."""
    text = (REFERENCE / page).read_text(encoding="utf-8")
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("| `")
    ]


def test_every_setting_is_there_with_its_option_and_default():
    found = {name.strip("`"): (option, default) for name, option, default, _ in rows("settings.md")}
    expected = {
        field.name: (
            f"`{OPTIONS[field.name]}`" if field.name in OPTIONS else "–",
            "`{}`".format(str(field.default).lower() if isinstance(field.default, bool)
                          else f'"{field.default}"' if isinstance(field.default, str)
                          else field.default),
        )
        for field in fields(LiveSettings)
    }  # fmt: skip
    assert found == expected


@pytest.mark.parametrize("name", RANGES)
def test_the_range_of_a_number_is_there(name):
    (says,) = (row[3] for row in rows("settings.md") if row[0] == f"`{name}`")
    said = {float(number) for number in re.findall(r"\d[\d.]*", says.replace(",", ""))}
    assert {RANGES[name].least, RANGES[name].most} <= said


def test_every_metric_is_there(tmp_path):
    pytest.importorskip("prometheus_client")
    from sagellm_lifetime.vllm.observability.metrics import PREFIX, LifetimeCollector

    (tmp_path / "engine-0").mkdir()
    families = {
        family.name.removeprefix(PREFIX) for family in LifetimeCollector(tmp_path).collect()
    }
    assert families == {row[0].strip("`") for row in rows("metrics.md")}


def test_every_column_of_a_history_is_there():
    named = {name for row in rows("history-files.md") for name in re.findall(r"`(\w+)`", row[0])}
    assert named == set(HISTORY_SCHEMA)


def test_every_command_is_there():
    group = typer.main.get_command(app)
    expected = {name for name in group.commands if name != "engine"}
    expected |= {f"engine {name}" for name in group.commands["engine"].commands}
    found = set()
    for row in rows("commands.md"):
        said = row[0].strip("`").split()
        found.add(" ".join(said[:2]) if said[0] == "engine" else said[0])
    assert found == expected
