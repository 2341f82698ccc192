"""The report: tables and plots that open."""

from __future__ import annotations

import json

import pytest
from evaluation_stubs import Fixed, PointOnly, history

from sagellm_lifetime.evaluation.protocol import evaluate
from sagellm_lifetime.evaluation.report import write_report
from sagellm_lifetime.evaluation.rivals import fit_rivals

PNG = b"\x89PNG"
PLOTS = ("error_by_age", "survival", "coverage_by_age", "reliability", "predicted_actual")


def test_report_of_several_predictors(tmp_path):
    train, test = history(300, seed=1), history(300).with_columns(prompt_id=None)
    test = test.with_columns(prompt_id=test["request_id"].str.head(2))
    rivals = fit_rivals(train, ["constant_median", "residual_life"])
    wide, rule = Fixed(80.0, 1.5), PointOnly(lambda request: 50)
    wide.name = "wide"
    found = [evaluate(p, test, rivals=rivals) for p in (Fixed(), wide, rule)]
    page = write_report(tmp_path / "report", found)
    text = page.read_text(encoding="utf-8")
    for name in ("fixed", "wide", "rule", "*constant_median*", "*residual_life*", "Noise floor"):
        assert name in text
    assert "nan" not in text.lower()
    for name in PLOTS:
        assert f"({name}.png)" in text
        assert (page.parent / f"{name}.png").read_bytes()[:4] == PNG
    records = json.loads((page.parent / "report.json").read_text(encoding="utf-8"))
    assert [record["predictor"] for record in records] == ["fixed", "wide", "rule"]


def test_a_report_of_a_tiny_history(tmp_path):
    page = write_report(tmp_path, [evaluate(Fixed(), history(3))])
    assert "3 sequences" in page.read_text(encoding="utf-8")


def test_a_report_needs_an_evaluation(tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        write_report(tmp_path, [])
