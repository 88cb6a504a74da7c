"use strict";
// The figures: rates and times of up to an hour, which the server keeps, and how the servers are.

const HOUR_S = 3600, COLUMNS = 180;
const TICKS = {300: 120, 900: 300, 3600: 1200}; // seconds between two marks of the axis, by span
const YOUNG_S = 300;
const FAR_S = 10; // a reply time that is older is shown with its time of day
const LABEL = 58; // pixels at both ends of the axis, which their own labels need
const TOP = 2, BOTTOM = 39.5; // of a plot
let figureRows = [], figuresNow = null; // the oldest row first; the last event

const rowOfFigures = ([at, seconds, relayed, refused, saved, opened, open, replies]) => ({at, seconds, relayed, refused, saved, opened, open, replies});

// Takes one event; whole: it has all rows that there are.
function takeFigures(event, isFirst) {
  if (isFirst) figureRows = [];
  const last = figureRows.length ? figureRows.at(-1).at : -Infinity;
  figureRows.push(...event.rows.map(rowOfFigures).filter((row) => row.at > last));
  while (figureRows.length && figureRows[0].at < event.clock - HOUR_S) figureRows.shift();
  // A service that has just started would fill a small part of a plot only.
  if (!figuresNow && event.uptime_s < YOUNG_S) document.getElementById("span").value = YOUNG_S;
  figuresNow = {...event, lately: rowOfFigures(event.lately)};
  offerVerbs();
}

// Lets the reader choose each verb that got a reply.
function offerVerbs() {
  const select = document.getElementById("verb"), known = new Set([...select.options].map((each) => each.value));
  const verbs = new Set([...figureRows, figuresNow.lately].flatMap((row) => Object.keys(row.replies)));
  for (const verb of [...verbs].filter((each) => !known.has(each)).sort()) {
    const option = element("option", "", nameOf({verb}));
    option.value = verb;
    select.append(option);
  }
}

// Returns the rows of a span, several as one where there are more than a plot has columns.
function columnsOf(span) {
  const width = span / COLUMNS, clock = figuresNow.clock, since = clock - span;
  const rows = figureRows.filter((row) => row.at > since);
  const last = rows.length ? rows.at(-1).at : clock - figuresNow.lately.seconds;
  if (clock - last > 0.5) rows.push({...figuresNow.lately, at: clock, seconds: clock - last}); // until its row is complete
  return grouped(rows, (one, other) => Math.floor(one.at / width) === Math.floor(other.at / width)).map(joined);
}

function joined(rows) {
  if (rows.length === 1) return rows[0];
  const seconds = rows.reduce((sum, row) => sum + row.seconds, 0), made = {at: rows.at(-1).at, seconds, replies: {}};
  for (const name of ["relayed", "refused", "saved", "opened"]) made[name] = rows.reduce((sum, row) => sum + row[name] * row.seconds, 0) / seconds;
  made.open = Math.max(...rows.map((row) => row.open));
  for (const row of rows) {
    for (const [verb, [count, mean, high]] of Object.entries(row.replies)) {
      const [before, was, most] = made.replies[verb] || [0, 0, 0];
      made.replies[verb] = [before + count, (before * was + count * mean) / (before + count), Math.max(most, high)];
    }
  }
  return made;
}

function number(value) { return value >= 100 ? Math.round(value).toLocaleString() : value.toFixed(value && value < 10 ? 1 : 0); }

const timeOfDay = (seconds) => new Date(seconds * 1000).toTimeString();
// When something was by the wall clock, which the rows know nothing of.
const wallClock = (at) => figuresNow.at - (figuresNow.clock - at);

function figure(name, value, unit, ...notes) {
  const card = document.getElementById(name);
  const put = (where, text) => { where.textContent = shownLines(text); };
  put(card.querySelector("b"), value);
  put(card.querySelector("small"), unit);
  card.querySelectorAll("i").forEach((each, index) => put(each, notes[index]));
}

// Draws lines, each [value of a column, its class]; a column without a value is a gap.
function plot(name, title, text, span, columns, ...lines) {
  const values = lines.flatMap(([valueOf]) => columns.map(valueOf)).filter((value) => value !== undefined);
  const most = Math.max(0, ...values), scale = (BOTTOM - TOP) / Math.max(most * 1.05, 1e-9);
  const picture = svgAlone({viewBox: `0 0 ${span} 40`, preserveAspectRatio: "none", role: "img", "aria-label": `${title}, last ${spanText(span)}: ${most ? `at most ${text(most)}` : "none"}`});
  for (const y of [TOP, (TOP + BOTTOM) / 2, BOTTOM]) svg(picture, "line", {x1: 0, x2: span, y1: y, y2: y, class: "grid"});
  for (const [valueOf, style] of lines) {
    let path = "", area = "", end = -Infinity;
    for (const column of columns) {
      const value = valueOf(column);
      if (value === undefined) continue;
      const x = span - (figuresNow.clock - column.at), from = Math.max(0, x - column.seconds), y = (BOTTOM - value * scale).toFixed(2);
      path += `${from - end > 1 ? "M" : "L"}${from.toFixed(1)},${y} L${x.toFixed(1)},${y} `;
      area += `M${from.toFixed(1)},${BOTTOM} V${y} H${x.toFixed(1)} V${BOTTOM} Z `;
      end = x;
    }
    if (style === "plot" && area) svg(picture, "path", {d: area, class: "plot-area"});
    if (path) svg(picture, "path", {d: path, class: style});
  }
  document.querySelector(`#${name} .plotted`).replaceChildren(picture, element("span", "top", most ? text(most) : ""), axis(span, document.getElementById(name).clientWidth));
}

function svgAlone(attributes) {
  const made = document.createElementNS(SVG, "svg");
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

const spanText = (span) => span < HOUR_S ? `${span / 60} min` : "1 hour";

// The time axis: the span at the left, times of day, and now.
function axis(span, width) {
  const made = svgAlone({class: "axis", "aria-hidden": "true"});
  const mark = (part, text, anchor) => svg(made, "text", {x: `${(100 * part).toFixed(2)}%`, y: 11, "text-anchor": anchor}, text);
  mark(0, `−${spanText(span)}`, "start");
  mark(1, "now", "end");
  const step = TICKS[span];
  for (let at = Math.ceil((figuresNow.at - span) / step) * step; at < figuresNow.at; at += step) {
    const part = 1 - (figuresNow.at - at) / span, x = `${(100 * part).toFixed(2)}%`;
    if (Math.min(part, 1 - part) * width < LABEL) continue;
    svg(made, "line", {x1: x, x2: x, y1: 0, y2: 3, class: "tick"});
    mark(part, timeOfDay(at).slice(0, 5), "middle");
  }
  return made;
}

function drawFigures() {
  const span = Number(document.getElementById("span").value), verb = document.getElementById("verb").value;
  const columns = columnsOf(span), {totals, lately} = figuresNow;
  const draw = (name, title, text, ...lines) => plot(name, title, text, span, columns, ...lines);
  figure("messages", number(lately.relayed), "a second", totals.relayed.toLocaleString(), totals.refused.toLocaleString());
  draw("messages", "messages a second", number, [(each) => each.relayed, "plot"], [(each) => each.refused || (columns.some((other) => other.refused) ? 0 : undefined), "plot bad"]);
  const share = totals.saved ? Math.round(100 * totals.saved / (totals.saved + totals.groups)) : 0;
  figure("saved", number(lately.saved), "a second", totals.saved.toLocaleString() + (share ? `, ${share} % of all waits` : ""));
  draw("saved", "round trips saved a second", number, [(each) => each.saved, "plot"]);
  drawReplies(columns, verb, draw);
  figure("open", totals.open.toLocaleString(), "", `${number(lately.opened)} new a second`);
  draw("open", "open sessions", (value) => Math.round(value).toLocaleString(), [(each) => each.open, "plot"]);
}

function drawReplies(columns, verb, draw) {
  const newest = verb in figuresNow.lately.replies ? figuresNow.lately : columns.findLast((each) => verb in each.replies);
  const [, mean, high] = newest ? newest.replies[verb] : [];
  const ago = newest && figuresNow.clock - newest.at > FAR_S ? `, at ${timeOfDay(wallClock(newest.at)).slice(0, 5)}` : "";
  figure("replies", newest ? duration(mean) : "–", newest ? `on average${ago}` : "no reply in this time", newest ? duration(high) : "–");
  const value = (index) => (each) => each.replies[verb]?.[index];
  draw("replies", `reply time for ${nameOf({verb})}`, duration, [value(1), "plot"], [value(2), "plot high"]);
}

function drawServers(event) {
  const servers = event.totals.servers;
  const several = new Set(servers.map(([backend]) => backend)).size > 1;
  const chips = servers.map(([backend, server, up]) => element("span", up ? "server" : "server down", (several ? backend + " " : "") + server + (up ? "" : " is down")));
  for (const [backend, waiting] of Object.entries(event.totals.waiting)) {
    if (waiting) chips.push(element("span", "server wait", `${waiting} wait for ${backend}`));
  }
  document.getElementById("servers").replaceChildren(...chips);
}

// Which instance this is, and for how long it has run.
function drawInstance(event) {
  const workers = event.totals.workers;
  const facts = [`version ${event.version}`, `up ${uptime(event.uptime_s)}`, `${workers} worker${workers === 1 ? "" : "s"}`];
  const put = (name, text) => { const place = document.getElementById(name); if (place.textContent !== text) place.textContent = text; };
  put("host", visible(event.host));
  put("about", visible(facts.join(" · ")));
  document.title = visible(`smtpproxy ${event.host}`);
  document.getElementById("faults").hidden = !event.faults.length;
  put("faults", event.faults.length ? visible(`injects faults: ${event.faults.join(" · ")}`) : "");
}

function uptime(seconds) {
  const minutes = Math.floor(seconds / 60), hours = Math.floor(minutes / 60), days = Math.floor(hours / 24);
  if (days) return `${days} d ${hours % 24} h`;
  if (hours) return `${hours} h ${minutes % 60} min`;
  return minutes ? `${minutes} min` : `${Math.floor(seconds)} s`;
}
