"""What a verdict says, from figures made by hand."""

import pytest
from verdicts import better, choice, load, replay, verdict

from sagellm_lifetime.assessment.capacity import Highest

MORE, LESS = Highest(16.0, "more"), Highest(1 / 16, "less")


def calm(multiple):
    return load(multiple, [4, 4], [4, 4], waiting=0.0)


def test_more_load_is_the_headline():
    found = better()
    assert found.headline().startswith(
        "The same hardware serves 28 % more load at the same objective (25 to 30 %): "
        "7 requests/s with lifetime, 5.5 requests/s with vLLM's default"
    )
    loads = found.says()[1]
    assert "Today nobody waits and nothing changes." in loads
    assert "At 2 times the load: mean latency -32 % (-40 to -25)" in loads
    assert "the queue grows" in loads
    commands = found.commands("sage llm lifetime")
    assert "sage llm lifetime train --data-path 'log <of> mine.csv'" in commands[1]
    assert "--lifetime-mode act" not in " ".join(commands)  # shadow first


def test_nothing_to_gain_is_said():
    found = verdict(replay([calm(1.0), calm(3.0)], [MORE], [MORE], free=MORE))
    assert found.headline().startswith("Nothing to gain: nobody waits, up to 80 requests/s")
    assert found.commands()[0].startswith("# Nothing to switch on")
    found = verdict(replay([calm(1.0), calm(3.0)], [4.0], [4.0], free=3.5))
    assert found.headline().startswith(
        "Nothing to gain at 3 times this load or less: nobody waits below 18 requests/s. Beyond "
        "that: No more load"
    )


def test_an_objective_that_is_always_met_is_said():
    found = verdict(replay([load(3.0, [4, 4], [4, 4])], [MORE, MORE], [MORE, MORE]))
    assert found.headline().startswith("No more load to gain: every policy gives 95 % of the")
    assert "up to 80 requests/s, the highest load tried" in found.headline()


def test_worse_is_said():
    part = replay([load(1.0, [4, 4], [5, 6])], [1.0, 1.2], [0.8, 0.9], tuned=[1.1, 1.3])
    found = verdict(part)
    assert "Lifetime is WORSE here: it serves 29 % less load" in found.headline()
    assert found.says()[1].endswith("Lifetime is WORSE here.")
    assert found.commands()[-1] == "vllm serve MODEL --watermark 0.1"


def test_the_better_of_default_and_tuned_is_compared_with():
    part = replay([load(1.0, [4, 4], [4, 4])], [1.0, 1.0], [1.2, 1.2], tuned=[1.25, 1.25])
    assert "with vLLM's own order (--watermark 0.1)" in verdict(part).headline()
    assert part.more_load.share.middle < 0


def test_an_objective_that_is_never_met():
    part = replay([load(1.0, [4], [4])], [LESS], [LESS])
    assert "does not meet the objective at any load" in verdict(part).headline()


def test_a_baseline_that_beats_the_predictor_is_named():
    says = choice(lightgbm=40.0).says()
    assert "The baseline lightgbm errs less: 40 tokens." in says
    assert "50 % less (40 to 60 %)" in says
    assert "10 % MORE (5 to 15 %)" in choice(110.0, saved=(-0.1, -0.15, -0.05)).says()
    assert "no difference beyond chance" in choice(99.0, saved=(0.01, -0.02, 0.04)).says()


def test_without_a_replay():
    found = verdict(None, "the replay needs vLLM: pip install X")
    assert found.headline() == (
        "Whether it pays on your engine is not known: the replay needs vLLM: pip install X."
    )
    assert found.to_json()["replay"] is None


def test_the_json_holds_every_figure():
    found = better().to_json()
    assert found["replay"]["capacity"]["lifetime"][1] == {
        "multiple": 1.5,
        "requests_per_s": 7.5,
        "end": "found",
    }
    assert found["replay"]["loads"][1]["policies"]["fcfs"][0]["mean_s"] == 10
    assert found["predictor"]["saved_of_constant"]["low"] == 0.4
    assert found["engine"]["step_cost"]["base_s"] > 0


def test_a_difference_below_the_steps_of_the_search_is_none():
    part = replay([load(1.0, [4, 4], [4, 4])], [1.0, 1.0], [1.06, 1.05])
    told = "No more load at the same objective, as far as 8 % steps over 2 windows can tell (5 to"
    assert verdict(part).headline().startswith(told)
    part = replay([load(1.0, [4, 4], [4, 4])], [1.0], [1.3])
    told = "30 % more load at the same objective (one window, so no range)"
    assert told in verdict(part).headline()


def test_what_needs_no_prediction_is_said():
    busy = [load(1.0, [4, 4], [4, 4], waiting=0.0), load(2.0, [10, 12], [6, 8], prompts=[7, 9])]
    part = replay(busy, [1.0, 1.0], [1.3, 1.3], prompts=[1.15, 1.15])
    told = verdict(part).says()[2]
    assert "serves 5.8 requests/s, 15 % more load than vLLM's default; what lifetime" in told
    assert "At 2 times the load its mean latency is 8.00 s (lifetime 7.00 s, vLLM's def" in told
    assert "its longest wait 9.00 s (lifetime 4.00 s," in told
    told = verdict(replay(busy, [1.0, 1.0], [1.3, 1.3], prompts=[1.28, 1.28])).says()[2]
    assert "as much as lifetime, as far as 8 % steps can tell, so for this objective not" in told
    told = verdict(replay(busy, [1.0, 1.0], [1.1, 1.1], prompts=[1.4, 1.4])).says()[2]
    assert "more than lifetime" in told
    told = verdict(replay(busy, [1.0], [MORE], prompts=[MORE])).says()[2]
    assert "was not found" in told
    assert part.to_json()["more_load_without_prediction"]["middle"] == pytest.approx(0.15)


def test_where_nobody_waits_no_rival_is_named():
    found = verdict(replay([calm(1.0), calm(3.0)], [4.0], [4.0], free=3.5))
    assert "Without a prediction" not in " ".join(found.says())
    assert found.says()[2].startswith("Predictor: ")
