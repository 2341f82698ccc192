"""``stats --watch``: again and again, until interrupted."""

from sagellm_lifetime.cli import stats
from sagellm_lifetime.cli.command_errors import CommandError


def test_it_looks_again_until_interrupted(cli, monkeypatch, tmp_path):
    asked = []

    def ask(url, key=None):
        asked.append(url)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return {
            "predictor": "lstm",
            "total_predictions": len(asked),
            "mode": "act",
            "decisions": {"admission": [5, 2]},
            "overhead_seconds": 0.002,
            "step_seconds": 1.0,
            "steps": 100,
        }

    monkeypatch.setattr(stats, "ask_engine", ask)
    monkeypatch.setattr(stats, "_EVERY_S", 0.0)
    done = cli("stats", "--engine", "http://h:1", "--watch", "--json", tmp_path / "s.json")
    assert done.code == 130
    assert asked == ["http://h:1"] * 3
    assert "Total Predictions: 1\n" in done.out
    assert "Total Predictions: 2\n" in done.out
    assert "Shadow Admissions: 5, about 2 differing" in done.out
    assert "Overhead: 20 µs a step (0.20%)" in done.out
    assert "\x1b" not in done.out  # no terminal
    assert '"total_predictions": 2' in (tmp_path / "s.json").read_text()


TROUBLE = {
    "  Unpredicted: 4": {"unpredicted": 4},
    "  Beam Search Steps: 12": {"beam_steps": 12},
    "  Circuit Breaker: stuck (hang: took longer than 1 s)": {
        "breaker": "stuck",
        "breaker_reason": "hang: took longer than 1 s",
    },
    "  Faults: hang 1, slow 2": {"faults": {"exception": 0, "hang": 1, "slow": 2}},
    "  Cannot Act: vLLM keeps an order": {"cannot_act": "vLLM keeps an order"},
    "  Silent Engine Cores: 1": {"stale": 1},
    "  Learner Restarts: 3": {"learner_restarts": 3},
    "  Learner Trouble: no space": {"learner_trouble": "no space"},
    "  Fleet: 2 other replicas, 70 of their completions in use, 1 exchanges failed": {
        **{"fleet_published": 3, "fleet_replicas": 2, "fleet_lessons": 70, "fleet_failures": 1}
    },
    "  Fleet Trouble: the store is away": {"fleet_trouble": "the store is away"},
}
FINE = {
    "predictor": "lstm",
    "completions": 9,
    "unpredicted": 0,
    "beam_steps": 0,
    "breaker": "closed",
    "breaker_reason": None,
    "faults": {"exception": 0, "hang": 0, "slow": 0},
    "cannot_act": "",
    "stale": 0,
    "learning": True,
    "learner_restarts": 0,
    "learner_trouble": None,
}


def test_what_is_wrong_has_a_line_when_it_is():
    fine = stats.block(FINE)
    assert "  Circuit Breaker: closed" in fine
    labels = [line.split(":")[0] for line in TROUBLE]
    assert [line for line in fine if line.split(":")[0] in labels] == ["  Circuit Breaker: closed"]
    for line, said in TROUBLE.items():
        shown = stats.block({**FINE, **said})
        assert line in shown
        assert shown[:6] == fine[:6], "the specification's come first"


def test_it_needs_an_engine(refused):
    assert "--watch needs --engine" in refused("stats", "--watch")


def test_a_server_that_restarts_is_asked_on(cli, monkeypatch):
    def gone():
        raise CommandError("http://h:1: no engine answers there\n(refused)")

    def interrupted():
        raise KeyboardInterrupt

    up = {"predictor": "lstm", "total_predictions": 7}
    again = {"predictor": "lstm", "total_predictions": 8}
    answers = iter([up, gone, gone, again, gone, interrupted])

    def ask(url, key=None):
        answer = next(answers)
        return answer() if callable(answer) else answer

    monkeypatch.setattr(stats, "ask_engine", ask)
    monkeypatch.setattr(stats, "_EVERY_S", 0.0)
    done = cli("stats", "--engine", "http://h:1", "--watch")
    assert done.code == 130
    assert [done.out.count(f"Total Predictions: {n}\n") for n in (7, 8)] == [1, 1]
    *told, last = done.err.splitlines()
    assert len(told) == 2  # once each time that it went
    assert all("no engine answers" in line and "asking again" in line for line in told)
    assert last == "interrupted"


def test_a_server_that_never_answered_is_not_waited_for(refused):
    said = refused("stats", "--engine", "http://127.0.0.1:9", "--watch")
    assert "no engine answers there" in said
