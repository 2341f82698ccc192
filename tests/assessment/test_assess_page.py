"""The page is well-formed, needs nothing from elsewhere, and opens with the verdict."""

import re
from xml.etree import ElementTree

import pytest
from verdicts import better, verdict

from sagellm_lifetime.assessment.page import page, write_page

PAGES = {"replayed": better, "without vLLM": lambda: verdict(None, "the replay needs vLLM")}


def parsed(text):
    return ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>"))


@pytest.mark.parametrize("make", PAGES.values(), ids=PAGES)
def test_it_is_well_formed_and_alone(make):
    text = page(make())
    root = parsed(text)
    tags = {element.tag for element in root.iter()}
    assert not tags & {"script", "link", "img", "iframe", "object", "base"}
    names = {name for element in root.iter() for name in element.attrib}
    assert not names & {"src", "href", "srcset", "action", "onload"}
    style = root.find("head/style").text
    assert not re.search(r"url\(|@import|@font-face", style)
    assert "prefers-color-scheme:dark" in style
    assert "@media print" in style
    assert "http://" not in text.replace("http://localhost:8000", "")
    assert "https://" not in text


def test_it_opens_with_the_verdict():
    found = better()
    body = list(parsed(page(found)).find("body"))
    assert body[0].text == "log <of> mine.csv: 1,400 requests"
    assert body[1].text == found.headline()


def test_charts_show_every_policy_with_its_range():
    charts = parsed(page(better())).findall(".//svg")
    assert len(charts) == 3
    for chart in charts:
        assert [g.find("title").text for g in chart.findall("g")] == [
            "default",
            "tuned",
            "prompts",
            "lifetime",
            "oracle",
        ]
        assert all(len(g.findall("circle")) == 2 for g in chart.findall("g"))


def test_it_is_written(tmp_path):
    target = write_page(tmp_path / "verdict.html", better(), "sage llm lifetime")
    assert "sage llm lifetime train" in target.read_text(encoding="utf-8")
