#!/usr/bin/env python3
"""Write ``dashboards/lifetime.json`` anew: python scripts/make_dashboard.py

The dashboard is made here, so that every panel has the same variables, and a test compares the file
with this program, its metrics with those that there are, and its form with Grafana's schema.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TARGET = Path(__file__).resolve().parents[1] / "dashboards" / "lifetime.json"
OURS = "lifetime_predictor_"
WHERE = 'namespace=~"$namespace",instance=~"$instance",model_name=~"$model"'
"""What every query is narrowed to. Without Kubernetes there is no namespace, and All holds."""
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
BY = "instance, model_name, engine"
WIDTH, HEIGHT, COLUMNS = 8, 8, 3


def one(metric: str, more: str = "") -> str:
    """Return the selector of a metric; ours have no prefix."""
    name = metric if metric.startswith("vllm:") else OURS + metric
    return f"{name}{{{WHERE}{more}}}"


def rate(metric: str, by: str = BY, more: str = "") -> str:
    """Return the rate of a counter."""
    return f"sum by ({by}) (rate({one(metric, more)}[$__rate_interval]))"


def share(part: str, whole: str, by: str = BY) -> str:
    """Return how much one counter grows for each of another."""
    return f"{rate(part, by)} / {rate(whole, by)}"


def quantile(level: float, metric: str) -> str:
    """Return a quantile of one of vLLM's histograms, over all engine cores that are chosen."""
    return f"histogram_quantile({level}, {rate(metric + '_bucket', 'le, model_name')})"


def quantiles(metric: str, *levels: float) -> tuple[tuple[str, str], ...]:
    """Return queries for quantiles, with their legends."""
    return tuple((quantile(level, metric), f"p{100 * level:g} {{{{model_name}}}}")
                 for level in levels)  # fmt: skip


@dataclass(frozen=True)
class Panel:
    """A panel: what it shows, in which unit, and what it means."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    about: str = ""
    kind: str = "timeseries"


CORE = "{{instance}} {{engine}}"
ROWS: dict[str, tuple[Panel, ...]] = {
    "Is it on": (
        Panel(
            "Mode", "short", ((one("mode") + " == 1", CORE + " {{state}}"),),
            "off, shadow or act, for each engine core", "stat",
        ),
        Panel(
            "Circuit breaker", "short",
            ((one("breaker_state") + " == 1", CORE + " {{state}}"),),
            "open: the engine runs as vLLM's own for a while; stuck: until restart", "stat",
        ),
        Panel(
            "Predictor and policy", "short",
            ((one("build_info"), CORE + " {{predictor}}, {{policy}}"),), "", "stat",
        ),
        Panel(
            "Faults in an hour", "short",
            ((f"sum by ({BY}, kind) (increase({one('faults_total')}[1h]))", CORE + " {{kind}}"),),
            "Each opens the circuit breaker.",
        ),
        Panel(
            "Share of a step", "percentunit",
            ((share("overhead_seconds_total", "step_seconds_total"), CORE),),
            "Spent on predictions and policies; above 0.05 the circuit breaker opens.",
        ),
        Panel("Age of these figures", "s", ((one("stats_age_seconds"), CORE),),
              "Some seconds at most; more, and the engine core hangs or has ended."),
    ),
    "Requests, by vLLM": (
        Panel("Latency", "s", quantiles("vllm:e2e_request_latency_seconds", 0.5, 0.95, 0.99),
              "From arrival to the last token."),
        Panel("Time to first token", "s",
              quantiles("vllm:time_to_first_token_seconds", 0.5, 0.95, 0.99)),
        Panel("Time between tokens", "s",
              quantiles("vllm:inter_token_latency_seconds", 0.5, 0.99)),
        Panel(
            "Queue", "short",
            (
                (f"sum by (model_name) ({one('vllm:num_requests_waiting')})",
                 "waiting {{model_name}}"),
                (f"sum by (model_name) ({one('vllm:num_requests_running')})",
                 "running {{model_name}}"),
            ),
            "Ordering helps only where requests wait.",
        ),
        Panel("Time in the queue", "s", quantiles("vllm:request_queue_time_seconds", 0.5, 0.99)),
        Panel("Preemptions", "ops", ((rate("vllm:num_preemptions_total"), CORE),),
              "Each computes a sequence anew."),
        Panel("KV cache in use", "percentunit", ((one("vllm:kv_cache_usage_perc"), CORE),)),
        Panel(
            "Tokens", "short",
            (
                (rate("vllm:generation_tokens_total", "model_name"), "generated {{model_name}}"),
                (rate("vllm:prompt_tokens_total", "model_name"), "prompts {{model_name}}"),
            ),
            "Each second.",
        ),
        Panel(
            "Ends", "reqps",
            ((rate("vllm:request_success_total", "model_name, finished_reason"),
              "{{finished_reason}} {{model_name}}"),),
        ),
    ),
    "Predictions": (
        Panel(
            "Sequences", "reqps",
            (
                (rate("predictions_total", "model_name"), "predicted {{model_name}}"),
                (rate("completions_total", "model_name"), "ended by themselves {{model_name}}"),
                (rate("censored_total", "model_name"), "capped or aborted {{model_name}}"),
                (rate("unpredicted_total", "model_name"), "not predicted {{model_name}}"),
            ),
        ),
        Panel("Mean error", "short",
              ((share("absolute_error_tokens_total", "scored_total"), CORE),),
              "Of the first prediction of what ended by itself, in tokens."),
        Panel(
            "Within 10 %, and confidence", "percentunit",
            (
                (share("within_10_percent_total", "scored_total", "model_name"),
                 "within 10 % {{model_name}}"),
                (share("confidence_total", "scored_total", "model_name"),
                 "confidence {{model_name}}"),
            ),
            "Calibrated where the two agree.",
        ),
        Panel(
            "Decisions that act would make otherwise", "percentunit",
            ((share("decisions_differing_total", "decisions_total", "model_name, kind"),
              "{{kind}} {{model_name}}"),),
            "Counted in the mode shadow.",
        ),
        Panel("Running sequences", "short", ((one("running_sequences"), CORE),)),
        Panel("Changes of the workload in a day", "short",
              ((f"sum by ({BY}) (increase({one('drift_changes_total')}[1d]))", CORE),)),
    ),
    "What acting does": (
        Panel(
            "Admissions before an earlier one", "percentunit",
            ((share("act_admissions_reordered_total", "act_admissions_total"), CORE),),
            "Of the admissions in act.",
        ),
        Panel(
            "Wait after being overtaken", "s",
            (
                (share("act_overtaken_seconds_total", "act_overtaken_total"), CORE + " mean"),
                (one("act_longest_overtaken_seconds"), CORE + " longest"),
            ),
        ),
        Panel(
            "Victims other than vLLM's", "percentunit",
            ((share("act_preemptions_differing_total", "act_preemptions_total"), CORE),),
            "Of the preemptions in act.",
        ),
        Panel("Tokens computed again", "short",
              ((rate("recomputed_tokens_total", "model_name, mode"), "{{mode}} {{model_name}}"),),
              "Each second, after preemptions."),
        Panel(
            "KV blocks held back", "short",
            ((rate("held_back_block_seconds_total", "model_name, mode"),
              "{{mode}} {{model_name}}"),),
            "On average while sequences waited; in shadow, what act would have held back.",
        ),
        Panel("Switchback: act less off", "short",
              ((one("switchback_effect", ',value=~"difference|low|high"'),
                "{{quantity}} {{value}} {{instance}}"),),
              "Seconds, tokens a second or preemptions, with the 95 % interval."),
        Panel("Tokens to generate", "short",
              ((one("outlook_tokens"), CORE + " {{state}} {{value}}"),),
              "What runs and what waits, looking ahead."),
        Panel("Until what runs is done", "s",
              ((one("outlook_done_seconds"), CORE + " {{value}}"),)),
        Panel("A newcomer runs in time", "percentunit",
              ((one("outlook_place_probability"), CORE + " within {{seconds}} s"),)),
    ),
    "Learning and recording": (
        Panel(
            "Learned", "reqps",
            (
                (rate("lessons_total"), CORE + " in use"),
                (rate("lessons_taken_total"), CORE + " taken"),
            ),
            "Completions handed to the process that learns, and come into use.",
        ),
        Panel("Completions behind the predictions", "short", ((one("lessons_in_use"), CORE),),
              "Those of earlier runs included."),
        Panel(
            "Not learned in an hour", "short",
            tuple((f"sum by ({BY}) (increase({one(metric + '_total')}[1h]))", CORE + " " + word)
                  for metric, word in (("lessons_dropped", "dropped"), ("lessons_lost", "lost"),
                                       ("learner_restarts", "restarts of the process"))),
        ),
        Panel("On the way to the learner", "short", ((one("lessons_on_the_way"), CORE),)),
        Panel(
            "Record", "reqps",
            ((rate("recorded_total"), CORE + " written"),
             (rate("record_lost_total"), CORE + " lost")),
        ),
        Panel("Waiting to be recorded", "short", ((one("record_waiting"), CORE),)),
    ),
    "Fleet": (
        Panel("Other replicas in use", "short", ((one("fleet_replicas"), CORE),),
              "0 where what is learned is not shared; equal at all replicas of a fleet."),
        Panel("Completions of the others", "short", ((one("fleet_lessons"), CORE),),
              "In use here, learned by other replicas."),
        Panel(
            "Exchanges in an hour", "short",
            tuple((f"sum by ({BY}) (increase({one(metric + '_total')}[1h]))", CORE + " " + word)
                  for metric, word in (("fleet_published", "written"), ("fleet_received", "read"),
                                       ("fleet_refused", "refused"), ("fleet_failures", "failed"))),
            "Failed: the store was away, and nothing changed. Refused: /lifetime/stats says why.",
        ),
    ),
}  # fmt: skip


def dashboard() -> dict[str, Any]:
    """Return the dashboard in Grafana's JSON."""
    panels: list[dict[str, Any]] = []
    y = 0
    for name, row in ROWS.items():
        panels.append(_row(len(panels) + 1, name, y))
        y += 1
        for place, panel in enumerate(row):
            column, line = place % COLUMNS, place // COLUMNS
            at = {"x": column * WIDTH, "y": y + line * HEIGHT, "w": WIDTH, "h": HEIGHT}
            panels.append(_panel(len(panels) + 1, panel, at))
        y += HEIGHT * -(-len(row) // COLUMNS)
    return {
        "title": "sageLLM lifetime prediction",
        "uid": "sagellm-lifetime",
        "tags": ["vllm", "sagellm"],
        "schemaVersion": 41,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": _variables()},
        "panels": panels,
    }


def _variables() -> list[dict[str, Any]]:
    source = {
        "name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source",
    }  # fmt: skip
    build = OURS + "build_info"
    chain = (
        ("namespace", "Namespace", build, "namespace"),
        ("instance", "Instance", build + '{namespace=~"$namespace"}', "instance"),
        ("model", "Model", build + '{namespace=~"$namespace",instance=~"$instance"}', "model_name"),
    )
    return [source, *(
        {
            "name": name,
            "type": "query",
            "label": label,
            "datasource": SOURCE,
            "query": {"query": f"label_values({series}, {key})", "refId": name},
            "refresh": 2,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
            "sort": 1,
        }
        for name, label, series, key in chain
    )]  # fmt: skip


def _row(number: int, title: str, y: int) -> dict[str, Any]:
    return {
        "id": number,
        "type": "row",
        "title": title,
        "collapsed": False,
        "gridPos": {"x": 0, "y": y, "w": 24, "h": 1},
        "panels": [],
    }


def _panel(number: int, panel: Panel, at: dict[str, int]) -> dict[str, Any]:
    options: dict[str, Any] = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    if panel.kind == "stat":
        options = {
            "textMode": "name",
            "colorMode": "background",
            "graphMode": "none",
            "justifyMode": "auto",
            "orientation": "auto",
            "reduceOptions": {"calcs": ["lastNotNull"], "values": False},
        }
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": SOURCE,
        "gridPos": at,
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "options": options,
        "targets": [
            {
                "refId": chr(ord("A") + place),
                "expr": expression,
                "legendFormat": legend,
                "datasource": SOURCE,
                "instant": panel.kind == "stat",
                "range": panel.kind != "stat",
            }
            for place, (expression, legend) in enumerate(panel.queries)
        ],
    }


def text() -> str:
    """Return the file's text."""
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
