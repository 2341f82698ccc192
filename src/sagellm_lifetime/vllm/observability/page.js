"use strict";
// Every text comes into the page by textContent: names are chosen by clients.
const EVERY_MS = 1000, KEY = "lifetime-key", SVG = "http://www.w3.org/2000/svg";
const base = location.pathname.replace(/\/+$/, "");
const at = (id) => document.getElementById(id);
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const fixed = (value, digits = 0) => isNumber(value)
  ? value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits })
  : "–";
const percent = (value) => isNumber(value) ? `${fixed(100 * value)} %` : "–";
const list = (value) => Array.isArray(value) ? value : [];
const object = (value) => value && typeof value === "object" && !Array.isArray(value) ? value : {};
const sum = (values) => values.reduce((total, value) => total + (isNumber(value) ? value : 0), 0);

function element(name, text, kind) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}
function drawn(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}
function row(cells) {
  const made = element("tr");
  for (const [content, kind] of cells) {
    const cell = element("td", content instanceof Node ? undefined : String(content), kind);
    if (content instanceof Node) cell.append(content);
    else if (kind.startsWith("name")) cell.title = content;
    made.append(cell);
  }
  return made;
}
function fill(id, rows, columns, empty) {
  at(id).replaceChildren(...(rows.length ? rows : [row([[empty, ""]])]));
  if (!rows.length) at(id).firstChild.firstChild.colSpan = columns;
}

function tiles(stats) {
  const share = isNumber(stats.overhead_seconds) && stats.step_seconds > 0
    ? stats.overhead_seconds / stats.step_seconds : null;
  const breaker = stats.breaker === "closed" ? "good" : "bad";
  const shown = [
    ["mode", stats.mode, stats.mode === "act" ? "good" : ""],
    ["circuit breaker", stats.breaker, breaker],
    ["predictor", stats.predictor ?? "none", ""],
    ["policy", stats.policy, ""],
    ["predicted", fixed(stats.total_predictions), ""],
    ["mean error, tokens", fixed(stats.mae, 1), ""],
    ["within 10 %", percent(stats.accuracy_within_10_percent), ""],
    ["confidence, mean", percent(stats.avg_confidence), ""],
    ["completions learned", fixed(stats.lessons), ""],
    ["cost of a step", isNumber(share) ? `${fixed(100 * share, 2)} %` : "–", share > 0.05 ? "warn" : ""],
  ];
  at("tiles").replaceChildren(...shown.map(([name, value, kind]) => {
    const tile = element("div"), detail = element("dd", String(value ?? "–"), kind);
    detail.title = detail.textContent;
    tile.append(element("dt", name), detail);
    return tile;
  }));
}

function progress(sequence, most) {
  const made = drawn("svg", { viewBox: "0 0 160 14", "aria-hidden": "true" });
  const x = (tokens) => Math.max(0, Math.min(160, 160 * tokens / most));
  made.append(drawn("rect", { x: 0, y: 3, width: 160, height: 8, rx: 2, class: "track" }));
  made.append(drawn("rect", { x: 0, y: 3, width: x(sequence.generated), height: 8, rx: 2, class: "bar" }));
  if (isNumber(sequence.low) && isNumber(sequence.high)) {
    made.append(drawn("line", { x1: x(sequence.low), x2: x(sequence.high), y1: 7, y2: 7, class: "range" }));
  }
  if (isNumber(sequence.expected)) {
    made.append(drawn("line", { x1: x(sequence.expected), x2: x(sequence.expected), y1: 1, y2: 13, class: "aim" }));
  }
  return made;
}

function running(sequences, total) {
  at("n-running").textContent = total > sequences.length ? `${fixed(total)}, ${sequences.length} shown` : fixed(total);
  const most = Math.max(1, ...sequences.map((s) => Math.max(s.generated || 0, s.expected || 0, Math.min(s.high || 0, 3 * (s.expected || 0)))));
  fill("running", sequences.map((s) => row([
    [s.id, "name"], [progress(s, most), ""], [fixed(s.generated), "n"], [fixed(s.expected ?? s.predicted), "n"],
    [s.client ?? "–", "name wide"], [fixed(s.prompt), "n wide"], [fixed(s.seconds, 1), "n wide"],
  ])), 7, "Nothing runs.");
}

function queue(sequences, total, mode) {
  at("n-queue").textContent = total > sequences.length ? `${fixed(total)}, ${sequences.length} shown` : fixed(total);
  at("queue-note").textContent = mode === "act"
    ? "In the order in which it is admitted."
    : "In the order in which act would admit it; now vLLM's order is in force.";
  fill("queue", sequences.map((s, i) => {
    const moved = isNumber(s.arrived_as) ? s.arrived_as - (i + 1) : null;
    const text = moved === null ? "–" : moved > 0 ? `▲ ${moved}` : moved < 0 ? `▼ ${-moved}` : "·";
    return row([
      [i + 1, "n"], [text, `n ${moved > 0 ? "good" : moved < 0 ? "warn" : ""}`], [s.id, "name"],
      [fixed(s.predicted), "n"], [fixed(s.seconds, 1), "n"], [s.client ?? "–", "name wide"], [fixed(s.prompt), "n wide"],
    ]);
  }), 7, "Nobody waits.");
}

function actual(pairs) {
  const svg = at("actual"), left = 44, bottom = 262, size = [300, 250];
  at("actual-note").textContent = pairs.length
    ? `Total lengths of the last ${pairs.length} answers that ended by themselves, in tokens. On the dashed line a prediction was right.`
    : "No answer has ended by itself yet.";
  const most = Math.max(10, ...pairs.flat().filter(isNumber)) * 1.1, low = Math.log(1), high = Math.log(most);
  const scaled = (v) => (Math.log(Math.max(1, v)) - low) / (high - low);
  const x = (v) => left + size[0] * scaled(v), y = (v) => bottom - size[1] * scaled(v);
  const parts = [
    drawn("line", { x1: left, y1: bottom, x2: left + size[0], y2: bottom, class: "axis" }),
    drawn("line", { x1: left, y1: bottom, x2: left, y2: bottom - size[1], class: "axis" }),
    drawn("line", { x1: x(1), y1: y(1), x2: x(most), y2: y(most), class: "ideal" }),
    drawn("text", { x: left + size[0] / 2, y: bottom + 32, "text-anchor": "middle" }, "predicted"),
    drawn("text", { x: 4, y: 10 }, "actual"),
  ];
  for (let tick = 1; tick <= most; tick *= 10) {
    parts.push(drawn("text", { x: x(tick), y: bottom + 16, "text-anchor": "middle" }, fixed(tick)));
    parts.push(drawn("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, fixed(tick)));
  }
  for (const [predicted, length] of pairs) parts.push(drawn("circle", { cx: x(predicted), cy: y(length), r: 3, class: "dot" }));
  svg.replaceChildren(...parts);
}

function calibration(counts, groups) {
  const total = sum(counts), svg = at("positions"), bottom = 140, height = 115, width = 32;
  const most = Math.max(0.2, ...counts.map((n) => total ? n / total : 0));
  at("calibration-note").textContent = total
    ? `Where the last ${fixed(total)} lengths fell in their predicted distributions: one tenth in each bar if it is calibrated.`
    : "No answer has ended by itself yet.";
  const parts = [drawn("line", { x1: 30, y1: bottom, x2: 352, y2: bottom, class: "axis" })];
  counts.forEach((n, i) => {
    const share = total ? n / total : 0, tall = height * share / most;
    parts.push(drawn("rect", { x: 32 + i * width, y: bottom - tall, width: width - 3, height: tall, class: "bar" }));
    if (i % 2 === 0) parts.push(drawn("text", { x: 32 + i * width, y: bottom + 15 }, `${10 * i} %`));
  });
  const ideal = bottom - height * 0.1 / most;
  parts.push(drawn("line", { x1: 30, y1: ideal, x2: 352, y2: ideal, class: "ideal" }));
  parts.push(drawn("text", { x: 28, y: ideal + 4, "text-anchor": "end" }, "10 %"));
  svg.replaceChildren(...parts);
  fill("confidence", groups.map(([n, said, right], i) => row([
    [`${20 * i} to ${20 * (i + 1)} %`, ""], [n ? percent(said / n) : "–", "n"],
    [n ? percent(right / n) : "–", "n"], [fixed(n), "n"],
  ])), 4, "–");
}

// Names of figures, in the order in which they are shown; one without a name here is not shown.
const DONE = [
  ["admissions", "admissions"], ["admissions_reordered", "of them, before an earlier one"],
  ["overtaken", "sequences overtaken"], ["overtaken_seconds", "their further waits, s"],
  ["longest_overtaken_seconds", "the longest of them, s"], ["preemptions", "preemptions"],
  ["preemptions_differing", "of them, other victims than vLLM's"],
  ["recomputed_tokens", "tokens computed again"],
  ["held_back_block_seconds", "KV blocks held back × s"],
];
const EFFECTS = [["latency", "latency"], ["first_token", "first token"], ["throughput", "throughput"], ["preemptions", "preemptions"]];
const figure = (value) => !isNumber(value) ? "–"
  : fixed(value, Number.isInteger(value) || Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 1 ? 2 : 3);
const signed = (value) => isNumber(value) && value > 0 ? `+${figure(value)}` : figure(value);

function decisions(stats) {
  const found = object(stats.decisions), act = object(found.act), shadow = object(found.shadow), rows = [];
  for (const [key, name] of [["admission", "admissions"], ["preemption", "preemptions"]]) {
    const [made, differing] = list(found[key]);
    rows.push(row([[`${name} compared in shadow`, ""], ["", "n"], [figure(made), "n"]]));
    rows.push(row([["of them, act would differ", ""], ["", "n"],
      [`${figure(differing)}${made ? ` (${percent(differing / made)})` : ""}`, "n"]]));
  }
  for (const [key, name] of DONE) {
    if (isNumber(act[key]) || isNumber(shadow[key])) rows.push(row([[name, ""], [figure(act[key]), "n"], [figure(shadow[key]), "n"]]));
  }
  fill("decisions", rows, 3, "–");
}

function switchback(stats) {
  const found = object(stats.switchback), effects = object(found.effects), seconds = found.block_ends - Date.now() / 1000;
  const pairs = isNumber(found.pairs) ? `${fixed(found.pairs)} pairs of blocks so far` : "";
  at("switchback-note").textContent = !("running" in found)
    ? "Not used yet. It alternates off and act in random blocks, and measures the difference."
    : found.running
      ? `${pairs}; ${found.arm ?? "the first block"} is due${seconds > 0 ? ` for ${fixed(seconds / 60)} min more` : ""}. Difference: act less off, with its 95 % interval.`
      : `${pairs}; it has ended. Difference: act less off, with its 95 % interval.`;
  fill("switchback", EFFECTS.filter(([key]) => isNumber(object(effects[key]).difference)).map(([key, name]) => {
    const effect = effects[key];
    const range = isNumber(effect.low) && isNumber(effect.high) ? ` (${signed(effect.low)} … ${signed(effect.high)})` : "";
    return row([[`${name}, ${effect.unit ?? ""}`, ""], [figure(effect.off), "n"], [figure(effect.act), "n"], [`${signed(effect.difference)}${range}`, "n"]]);
  }), 4, "No pair of blocks is complete.");
}

function ahead(stats) {
  const found = object(stats.outlook), rows = [];
  const two = (name, part, keys) => {
    const [first, second] = keys.map((key) => object(part)[key]);
    if (isNumber(first)) rows.push(row([[name, ""], [figure(first), "n"], [figure(second), "n"]]));
  };
  two("tokens to generate, of what runs", found.running_tokens, ["expected", "p90"]);
  two("tokens to generate, of what waits", found.waiting_tokens, ["expected", "p90"]);
  two("most KV blocks at once", found.peak_blocks, ["expected", "p90"]);
  two("seconds until what runs is done", found.done_s, ["p50", "p95"]);
  for (const [within, probability] of Object.entries(object(found.place_within))) {
    rows.push(row([[`a newcomer runs within ${within} s`, ""], [percent(probability), "n"], ["", "n"]]));
  }
  if (isNumber(found.retry_after_s)) rows.push(row([["retry after, s", ""], [figure(found.retry_after_s), "n"], ["", "n"]]));
  at("ahead-section").hidden = !rows.length;
  fill("ahead", rows, 3, "–");
}

function show(stats) {
  const views = list(stats.engines).map((engine) => object(object(engine).live));
  const all = (key) => views.flatMap((view) => list(view[key]));
  const added = (key, length) => views.reduce(
    (totals, view) => totals.map((total, i) => total + (list(view[key])[i] || 0)), Array(length).fill(0));
  const groups = Array.from({ length: 5 }, (_, i) => [0, 1, 2].map((j) => sum(views.map((view) => list(list(view.by_confidence)[i])[j]))));
  tiles(stats);
  running(all("running"), sum(views.map((view) => view.running_now)));
  queue(all("queue"), sum(views.map((view) => view.waiting_now)), stats.mode);
  actual(all("ended").slice(-400));
  calibration(added("positions", 10), groups);
  decisions(stats);
  switchback(stats);
  ahead(stats);
}

function say(text, isBad) {
  if (at("state").textContent !== text) at("state").textContent = text;
  at("state").className = isBad ? "bad" : "";
}

async function look() {
  const key = sessionStorage.getItem(KEY);
  let answer;
  try {
    answer = await fetch(`${base}/stats?live=1`, { cache: "no-store", headers: key ? { Authorization: `Bearer ${key}` } : {} });
  } catch {
    say("The server does not answer; asking again.", true);
    return;
  }
  at("key").hidden = answer.status !== 401;
  if (answer.status === 401) {
    at("main").hidden = true;
    say(key ? "This is not the key." : "The server wants its API key.", Boolean(key));
    return;
  }
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) {
    say(body.error || `The server answers with ${answer.status}.`, true);
    return;
  }
  const trouble = body.learner_trouble || body.breaker_reason || list(body.unreadable)[0] || (body.stale ? "an engine core is silent" : "");
  say(trouble ? String(trouble) : `${list(body.engines).map((e) => object(e).model_name).find(Boolean) || "one model"}, as of now`, Boolean(trouble));
  at("main").hidden = false;
  show(body);
}

async function poll() {
  if (!document.hidden) await look().catch((error) => say(`This page has failed: ${error.message}`, true));
  setTimeout(poll, EVERY_MS);
}
at("key").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, at("token").value);
  at("token").value = "";
  look();
});
poll();
