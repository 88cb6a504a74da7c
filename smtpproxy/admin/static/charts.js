"use strict";
// The figures: rates and times of the last two minutes, and how the servers are.

const POINTS = 120;
const series = {relayed: [], refused: [], saved: [], mean: [], high: [], open: []};
let before = null, lately = null; // the last event, and the last in which the MTA replied

function sum(counts, name, label) {
  let total = 0;
  for (const [key, value] of Object.entries(counts)) if ((key === name || key.startsWith(name + "{")) && (!label || key.includes(label))) total += value;
  return total;
}

function push(values, value) { values.push(value); if (values.length > POINTS) values.shift(); }

// Adds one event to the series; counters that a new supervisor has begun anew make no rates.
function takeFigures(event) {
  const counts = event.counts;
  const now = {at: event.at, relayed: sum(counts, "messages", '"relayed"'), refused: sum(counts, "messages", '"refused"'), saved: sum(counts, "round_trips_saved"), opened: sum(counts, "sessions_opened"),
    verbs: verbTimes(counts), buckets: buckets(counts)};
  const passed = before ? now.at - before.at : 0;
  if (passed > 0 && now.opened >= before.opened) {
    const rate = (name) => Math.max(0, now[name] - before[name]) / passed;
    for (const name of ["relayed", "refused", "saved"]) push(series[name], rate(name));
    now.rate = rate("opened");
    now.taken = since(before.verbs, now.verbs);
    const total = [...now.taken.values()].reduce((one, other) => [one[0] + other[0], one[1] + other[1]], [0, 0]);
    push(series.mean, total[1] ? total[0] / total[1] : 0);
    if (total[1]) lately = {at: now.at, mean: total[0] / total[1], verbs: now.taken};
    push(series.high, quantile(before.buckets, now.buckets, 0.95));
  }
  push(series.open, event.gauges.sessions || 0);
  before = now;
}

// Seconds and replies of each verb; the greeting's time is that of the connection, too.
function verbTimes(counts) {
  const found = new Map();
  for (const [key, value] of Object.entries(counts)) {
    const matched = /^backend_reply_seconds_(sum|count)\{verb="([^"]*)"\}$/.exec(key);
    if (!matched || matched[2] === "greeting") continue;
    const pair = found.get(matched[2]) || [0, 0];
    pair[matched[1] === "sum" ? 0 : 1] = value;
    found.set(matched[2], pair);
  }
  return found;
}

function since(old, now) {
  const found = new Map();
  for (const [verb, [seconds, replies]] of now) {
    const [oldSeconds, oldReplies] = old.get(verb) || [0, 0];
    if (replies > oldReplies) found.set(verb, [seconds - oldSeconds, replies - oldReplies]);
  }
  return found;
}

function buckets(counts) {
  const found = new Map();
  for (const [key, value] of Object.entries(counts)) {
    const matched = /^backend_reply_seconds_bucket\{verb="([^"]*)",le="([^"]*)"\}$/.exec(key);
    if (!matched || matched[1] === "greeting") continue;
    const bound = matched[2] === "+Inf" ? Infinity : Number(matched[2]);
    found.set(bound, (found.get(bound) || 0) + value);
  }
  return found;
}

// Returns below which time so large a part of the replies came, as Prometheus' histogram_quantile does.
function quantile(old, now, part) {
  const bounds = [...now.keys()].sort((one, other) => one - other);
  const counts = bounds.map((bound) => now.get(bound) - (old.get(bound) || 0));
  const all = counts.at(-1) || 0;
  if (all <= 0) return 0;
  const at = counts.findIndex((count) => count >= all * part);
  if (!Number.isFinite(bounds[at])) return bounds.at(-2);
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

function drawFigures(event) {
  const now = (name) => series[name].at(-1) || 0;
  const share = before.saved && sum(event.counts, "commands") ? Math.round(100 * before.saved / (before.saved + sum(event.counts, "pipeline_group_size_count"))) : 0;
  const told = lately && before.at - lately.at < 10 ? lately : null;
  const slow = [...(told ? told.verbs : [])].map(([verb, [seconds, replies]]) => [verb, seconds / replies]).sort((one, other) => other[1] - one[1]).slice(0, 3);
  document.getElementById("figures").replaceChildren(
    card("messages", number(now("relayed")), "a second", plot("messages a second", number, [series.relayed, "plot"], ...(series.refused.some(Boolean) ? [[series.refused, "plot bad"]] : [])), `${before.relayed.toLocaleString()} relayed · ${before.refused.toLocaleString()} refused`),
    card("round trips saved", number(now("saved")), "a second", plot("round trips saved a second", number, [series.saved, "plot"]), `${before.saved.toLocaleString()} in all` + (share ? ` · ${share} % of the waits` : "")),
    card("MTA's reply time", told ? duration(told.mean) : "–", told ? "on average" : "", plot("reply time", duration, [series.mean, "plot"], [series.high, "plot high"]), slow.length ? slow.map(([verb, seconds]) => `${verb} ${duration(seconds)}`).join(" · ") : "dashed: 95 % are faster"),
    card("sessions open", now("open").toLocaleString(), "", plot("open sessions", String, [series.open, "plot"]), `${number(before.rate || 0)} new a second`));
}

function labelsOf(key) {
  const found = {};
  for (const [, name, value] of key.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) found[name] = value.replace(/\\(.)/g, "$1");
  return found;
}

function drawServers(event) {
  const servers = Object.entries(event.gauges).filter(([key]) => key.startsWith("server_up{")).map(([key, up]) => ({...labelsOf(key), up}));
  const several = new Set(servers.map((each) => each.backend)).size > 1;
  const chips = servers.map((each) => element("span", each.up ? "server" : "server down", (several ? each.backend + " " : "") + each.server + (each.up ? "" : " is down")));
  for (const [key, waiting] of Object.entries(event.gauges)) {
    if (key.startsWith("backend_waiting_clients{") && waiting) chips.push(element("span", "server wait", `${waiting} wait for ${labelsOf(key).backend}`));
  }
  document.getElementById("servers").replaceChildren(...chips);
}
