"""What a verdict says where a load is only bounded, windows are one, or the log has no load."""

from dataclasses import replace as with_

import pytest
from verdicts import figures, load, replay, verdict

from sagellm_lifetime.assessment.capacity import Highest, gain
from sagellm_lifetime.assessment.engine import Engine
from sagellm_lifetime.assessment.objective import Objective
from sagellm_lifetime.assessment.page import page
from sagellm_lifetime.assessment.replay_part import Load, better_setting
from sagellm_lifetime.assessment.replays import DEFAULT, OURS, PROMPTS, TUNED
from sagellm_lifetime.assessment.tables import capacity_rows
from sagellm_lifetime.cli.assess import show

MORE, LESS = Highest(16.0, "more"), Highest(0.125, "less")
BUSY = load(1.0, [10, 12], [6, 9])


def test_a_default_that_meets_the_objective_nowhere_is_a_bound():
    part = replay([BUSY], [LESS], [0.24], unit=4.0)
    told = verdict(part).headline()
    assert "serves at least 92 % more load" in told
    assert "0.96 requests/s with lifetime, below 0.5 requests/s with vLLM's default" in told
    rows = capacity_rows(replay([BUSY], [LESS, LESS], [0.2, 0.25], unit=4.0))
    assert [row[1:] for row in rows] == [
        ["< 0.50", "", "< 0.12"],
        ["< 0.50", "", "< 0.12"],
        ["< 0.50", "", "< 0.12"],
        ["0.90", "0.80 to 1.00", "0.23"],
    ]
    told = verdict(replay([BUSY], [LESS, 0.2], [0.25, 0.3])).headline()
    assert "at least 75 % more load at the same objective (at least 50 % in every window)" in told
    told = verdict(replay([BUSY], [LESS, 0.2, 0.2], [LESS, 0.3, 0.3])).headline()
    assert "50 % more load at the same objective (in 2 of 3 windows; the others do" in told


def test_a_load_above_all_that_were_tried_is_a_bound():
    told = verdict(replay([BUSY], [8.0], [MORE])).headline()
    assert "at least 100 % more load" in told
    assert "80 requests/s or more with lifetime, 40 requests/s with vLLM's default" in told
    told = verdict(replay([BUSY], [MORE], [8.0])).headline()
    assert "WORSE here: it serves at least 50 % less load" in told


@pytest.mark.parametrize(
    ("default", "ours"),
    [([MORE], [Highest(16.0, "found")]), ([LESS, 1.0], [1.0, LESS]), ([LESS], [0.126])],
)
def test_what_the_bounds_leave_open_is_not_known(default, ours):
    part = replay([BUSY], default, ours)
    assert "Whether it serves more load is not known" in verdict(part).headline()


def test_no_window_tells():
    assert gain([LESS, MORE], [LESS, MORE]) is None
    part = replay([BUSY], [LESS, MORE], [LESS, MORE])
    assert "Whether it serves more load is not known" in verdict(part).headline()
    assert part.to_json()["more_load"] is None


def test_one_reference_is_named_and_all_changes_are_against_it():
    several = {
        DEFAULT: [figures(20.0, within=0.99)],
        TUNED: [figures(10.0, within=0.5)],  # better by mean latency, not by the objective
        PROMPTS: [figures(8.0, within=0.7)],
        OURS: [figures(5.0, within=0.9)],
    }
    at = Load(1.0, {DEFAULT: 0.0, TUNED: 0.2, PROMPTS: 0.0, OURS: 0.0}, several)
    told = verdict(replay([at], [1.0], [1.2])).says()[1]
    assert told.count("against the better of vLLM's default and a tuned watermark") == 1
    assert "mean latency -50 %" in told
    assert "within the objective 50 → 90 %" in told
    told = verdict(replay([BUSY], [1.0], [1.2])).says()[1]
    assert told.startswith("All changes are those of lifetime against vLLM's default, which")


def test_the_gain_is_against_the_policy_that_is_named():
    part = replay([BUSY], [1.0, 1.0, 1.3], [1.5, 1.5, 1.5], tuned=[1.2, 1.2, 1.0])
    told = verdict(part).headline()
    assert "25 % more load at the same objective (25 to 50 %)" in told
    assert "6 requests/s with vLLM's own order (--watermark 0.1)" in told


def test_a_tuned_watermark_is_never_below_none():
    assert better_setting({0.0: [Highest(1.2)], 0.2: [Highest(1.1)]}) == 0
    assert better_setting({0.0: [Highest(1.2)], 0.2: [Highest(1.3)]}) == 0.2
    rows = capacity_rows(replay([BUSY], [1.0], [1.2], mark=0.0))
    assert rows[1][0] == "tuned, no watermark"


@pytest.mark.parametrize(
    ("default", "told"),
    [
        (0.87, "it meets the objective up to 0.87 x"),
        (LESS, "it does not meet the objective even at 0.12 x"),
        (MORE, "it still meets the objective at 16.0 x"),
    ],
)
def test_of_a_log_without_arrival_times_nothing_is_said_of_today(default, told):
    loads = [load(1.0, [4], [4], waiting=0.0), load(2.0, [10], [6])]
    part = with_(replay(loads, [default], [16.0]), rate=None)
    said = verdict(part).says()
    assert not any("Today" in text or "the log's mean" in text for text in said)
    assert "Loads are multiples of 5 requests/s" in said[1]
    assert told in said[1]
    assert told.split()[-2] in capacity_rows(part)[0][-1]
    assert "At that load nobody waits" in said[1]
    assert "At 2 times that load" in said[1]
    calm = with_(replay(loads[:1], [4.0], [4.0], free=3.5), rate=None)
    assert verdict(calm).headline().startswith("Nothing to gain at 5 requests/s or less")


def test_one_window_has_no_ranges(capsys):
    loads = [load(1.0, [10], [6]), load(2.0, [10], [6])]
    one, two = (verdict(replay(loads, [1.0] * n, [1.2] * n)) for n in (1, 2))
    for found, has in ((one, False), (two, True)):
        show(found, "lifetime")
        out = capsys.readouterr().out
        assert ("Ranges" in " ".join(found.says())) is has
        assert ("  range" in out) is has
        assert ("over the windows" in " ".join(out.split())) is has
        assert ("over windows" in page(found)) is has


def test_times_have_one_style_and_sentences_a_full_stop():
    assert "within 1 ms and 1 ms a token" in Objective(0.001, 0.001).says()
    assert "within 2 s and 1.5 s a token" in Objective(2.0, 1.5).says()
    found = with_(verdict(replay([BUSY], [1.0], [1.2])), engine=Engine.of(kv_tokens=16_000))
    assert "on h100. Step time" in found.says()[-1]


def test_an_objective_that_is_never_met_advises_nothing():
    part = replay([BUSY], [LESS], [LESS])
    found = verdict(part, objective=Objective(0.001, 0.001))
    assert found.commands() == ["# No advice: the objective is met at no load that was tried."]
    assert "Switch it on" not in page(found)


def test_the_load_one_is_that_of_the_part_that_is_replayed():
    said = verdict(replay([BUSY], [1.0], [1.2])).says()[-1]
    assert "The load 1 x is the mean of the part of the log that is replayed, 5 requests/s" in said


def test_the_log_is_trained_on_as_it_was_read():
    options = ["--map", "actual_length=out put", "--clock", "wall"]
    (train,) = [
        line
        for line in verdict(None, "why", options=options).commands("lifetime")
        if line.startswith("lifetime train")
    ]
    assert "mine.csv' --map 'actual_length=out put' --clock wall --predictor-type" in train


def test_a_change_where_nobody_waits_is_said():
    told = verdict(replay([load(1.0, [10], [9], waiting=0.0)], [1.0], [1.2])).says()[1]
    assert "Today: mean latency -10 %" in told
    assert "nothing changes" not in told
