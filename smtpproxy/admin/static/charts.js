"use strict";
// The figures: rates and times of the last two minutes, and how the servers are.

const POINTS = 120;
const series = {relayed: [], refused: [], saved: [], mean: [], high: [], open: []};
let before = null, lately = null; // the last event, and the last in which the MTA replied

function push(values, value) { values.push(value); if (values.length > POINTS) values.shift(); }

// Adds one event to the series; counters that a new supervisor has begun anew make no rates.
function takeFigures(event) {
  const now = {...event.metrics, at: event.at};
  const passed = before ? now.at - before.at : 0;
  if (passed > 0 && now.opened >= before.opened) {
    const rate = (name) => Math.max(0, now[name] - before[name]) / passed;
    for (const name of ["relayed", "refused", "saved"]) push(series[name], rate(name));
    now.rate = rate("opened");
    now.taken = since(before.replies, now.replies);
    const total = [...now.taken.values()].reduce((one, other) => [one[0] + other[0], one[1] + other[1]], [0, 0]);
    push(series.mean, total[1] ? total[0] / total[1] : 0);
    if (total[1]) lately = {at: now.at, mean: total[0] / total[1], verbs: now.taken};
    push(series.high, quantile(now.bounds, buckets(before.replies), buckets(now.replies), 0.95));
  }
  push(series.open, now.open);
  before = now;
}

const count = (times) => times.counts.reduce((one, other) => one + other, 0);

// Returns seconds and replies of each verb that got replies since.
function since(old, now) {
  const found = new Map();
  for (const [verb, times] of Object.entries(now)) {
    const before = old[verb] || {seconds: 0, counts: []};
    if (count(times) > count(before)) found.set(verb, [times.seconds - before.seconds, count(times) - count(before)]);
  }
  return found;
}

// Returns how many replies took no longer than each bound, of all verbs.
function buckets(replies) {
  const found = [];
  for (const {counts} of Object.values(replies)) counts.forEach((value, at) => { found[at] = (found[at] || 0) + value; });
  let total = 0;
  return found.map((value) => total += value);
}

// Returns below which time so large a part of the replies came, as Prometheus' histogram_quantile does.
function quantile(bounds, old, now, part) {
  const counts = now.map((value, at) => value - (old[at] || 0));
  const all = counts.at(-1) || 0;
  if (all <= 0) return 0;
  const at = counts.findIndex((value) => value >= all * part);
  if (at >= bounds.length) return bounds.at(-1);
  const low = at ? bounds[at - 1] : 0, under = at ? counts[at - 1] : 0;
  return low + (bounds[at] - low) * (all * part - under) / (counts[at] - under);
}

function number(value) { return value >= 100 ? Math.round(value).toLocaleString() : value.toFixed(value && value < 10 ? 1 : 0); }

function plot(title, text, ...lines) {
  const picture = document.createElementNS(SVG, "svg");
  for (const [key, value] of Object.entries({viewBox: `0 0 ${POINTS - 1} 40`, preserveAspectRatio: "none", role: "img", "aria-label": title})) picture.setAttribute(key, value);
  const top = Math.max(...lines.flatMap(([values]) => values), 1e-9) * 1.05;
  for (const y of [2, 20.5, 39.5]) svg(picture, "line", {x1: 0, x2: POINTS - 1, y1: y, y2: y, class: "grid"});
  for (const [values, name] of lines) {
    const start = POINTS - values.length;
    const points = values.map((value, index) => `${start + index},${(39.5 - 37.5 * value / top).toFixed(1)}`);
    if (points.length < 2) continue;
    if (name === "plot") svg(picture, "path", {d: `M${start},39.5 L${points.join(" L")} L${POINTS - 1},39.5 Z`, class: "plot-area"});
    svg(picture, "polyline", {points: points.join(" "), class: name});
  }
  const most = Math.max(0, ...lines.flatMap(([values]) => values));
  const made = element("div", "plotted");
  made.append(picture, element("span", "top", most ? text(most) : ""));
  return made;
}

function card(title, value, unit, picture, note) {
  const made = element("div", "figure");
  made.append(element("span", "", title), element("b", "", value), element("small", "", unit), picture, element("em", "", note));
  return made;
}

function drawFigures() {
  const now = (name) => series[name].at(-1) || 0;
  const share = before.saved ? Math.round(100 * before.saved / (before.saved + before.groups)) : 0;
  const told = lately && before.at - lately.at < 10 ? lately : null;
  const slow = [...(told ? told.verbs : [])].map(([verb, [seconds, replies]]) => [verb, seconds / replies]).sort((one, other) => other[1] - one[1]).slice(0, 3);
  document.getElementById("figures").replaceChildren(
    card("messages", number(now("relayed")), "a second", plot("messages a second", number, [series.relayed, "plot"], ...(series.refused.some(Boolean) ? [[series.refused, "plot bad"]] : [])), `${before.relayed.toLocaleString()} relayed · ${before.refused.toLocaleString()} refused`),
    card("round trips saved", number(now("saved")), "a second", plot("round trips saved a second", number, [series.saved, "plot"]), `${before.saved.toLocaleString()} in all` + (share ? ` · ${share} % of the waits` : "")),
    card("MTA's reply time", told ? duration(told.mean) : "–", told ? "on average" : "", plot("reply time", duration, [series.mean, "plot"], [series.high, "plot high"]), slow.length ? slow.map(([verb, seconds]) => `${verb} ${duration(seconds)}`).join(" · ") : "dashed: 95 % are faster"),
    card("sessions open", now("open").toLocaleString(), "", plot("open sessions", String, [series.open, "plot"]), `${number(before.rate || 0)} new a second`));
}

function drawServers(event) {
  const servers = event.metrics.servers;
  const several = new Set(servers.map(([backend]) => backend)).size > 1;
  const chips = servers.map(([backend, server, up]) => element("span", up ? "server" : "server down", (several ? backend + " " : "") + server + (up ? "" : " is down")));
  for (const [backend, waiting] of Object.entries(event.metrics.waiting)) {
    if (waiting) chips.push(element("span", "server wait", `${waiting} wait for ${backend}`));
  }
  document.getElementById("servers").replaceChildren(...chips);
}
