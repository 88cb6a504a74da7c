"use strict";
// The live page: events from the proxy become figures, a list of sessions and one picture.

const KEPT = 300, SHOWN = 120, POINTS = 60;
const sessions = new Map(), rows = new Map();
const history = {rate: [], saved: [], reply: [], open: []};
let last = null, chosen = null, paused = false, pending = false;

const get = (name) => document.getElementById(name);

function make(name, className, text) {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function sum(counts, name) {
  let total = 0;
  for (const [key, value] of Object.entries(counts)) if (key === name || key.startsWith(name + "{")) total += value;
  return total;
}

function push(series, value) { series.push(value); if (series.length > POINTS) series.shift(); }

function takeFigures(event) {
  const now = {at: event.at, messages: sum(event.counts, "messages"), saved: sum(event.counts, "round_trips_saved"),
    seconds: sum(event.counts, "backend_reply_seconds_sum"), replies: sum(event.counts, "backend_reply_seconds_count")};
  if (last && now.at > last.at) {
    const passed = now.at - last.at, replies = now.replies - last.replies;
    push(history.rate, Math.max(0, now.messages - last.messages) / passed);
    push(history.saved, Math.max(0, now.saved - last.saved) / passed);
    push(history.reply, replies > 0 ? (now.seconds - last.seconds) / replies : 0);
  }
  push(history.open, event.gauges.sessions || 0);
  last = now;
}

function plot(values) {
  const picture = document.createElementNS(SVG, "svg");
  picture.setAttribute("viewBox", `0 0 ${POINTS - 1} 34`);
  picture.setAttribute("preserveAspectRatio", "none");
  picture.setAttribute("aria-hidden", "true");
  const top = Math.max(...values, 1e-9), start = POINTS - values.length;
  const points = values.map((value, index) => `${start + index},${(32 - 29 * value / top).toFixed(1)}`);
  if (points.length > 1) {
    svg(picture, "path", {d: `M${start},34 L${points.join(" L")} L${POINTS - 1},34 Z`, class: "plot-area"});
    svg(picture, "polyline", {points: points.join(" "), class: "plot"});
  }
  return picture;
}

function figure(title, value, unit, values) {
  const card = make("div", "figure");
  card.append(make("span", "", title), make("b", "", value), make("small", "", unit), plot(values));
  return card;
}

function number(value) { return value >= 100 ? Math.round(value).toLocaleString() : value.toFixed(value && value < 10 ? 1 : 0); }

function drawFigures(event) {
  const now = (series) => series.at(-1) || 0;
  get("figures").replaceChildren(
    figure("messages", number(now(history.rate)), "a second", history.rate),
    figure("round trips saved", number(now(history.saved)), "a second · " + (last ? last.saved : 0).toLocaleString() + " in all", history.saved),
    figure("MTA's reply time", duration(now(history.reply)), "on average", history.reply),
    figure("sessions open", number(now(history.open)), "", history.open));
  const servers = Object.entries(event.gauges).filter(([key]) => key.startsWith("server_up{"));
  get("servers").replaceChildren(...servers.map(([key, up]) =>
    make("span", up ? "server" : "server down", /server="([^"]*)"/.exec(key)[1] + (up ? "" : " is down"))));
}

function outcome(session) {
  const message = session.messages.at(-1);
  if (!session.reason) return ["running", "open"];
  if (message) return [message.outcome === "relayed" ? "good" : "bad", message.outcome + " " + (message.reply || "").slice(0, 3)];
  return ["soft", session.reason];
}

function words(session) {
  const message = session.messages.at(-1);
  if (!message) {
    const mail = session.records.find((each) => each.verb === "MAIL");
    return mail ? mail.line : "";
  }
  const to = message.recipients.concat(message.refused || []);
  return (message.sender || "<>") + " → " + (to[0] || "nobody") + (to.length > 1 ? ` and ${to.length - 1} more` : "");
}

function matches(session, wanted) {
  return !wanted || [session.client, session.server, session.reason, session.id, words(session), outcome(session)[1],
    ...session.records.map((each) => each.code || "")].join(" ").toLowerCase().includes(wanted);
}

function drawList() {
  const wanted = get("filter").value.trim().toLowerCase();
  const found = [...sessions.values()].filter((each) => matches(each, wanted)).sort((a, b) => b.opened - a.opened).slice(0, SHOWN);
  get("none").hidden = found.length > 0;
  if (wanted) get("none").textContent = "No session matches.";
  // Rows stay where they are, so that neither a click nor the focus is lost.
  const body = get("sessions");
  let place = body.firstElementChild;
  const kept = new Set();
  for (const session of found) {
    const row = rowOf(session);
    kept.add(session.id);
    while (place && place !== row && !wantedRow(place, found)) { const gone = place; place = place.nextElementSibling; gone.remove(); }
    if (row === place) place = place.nextElementSibling; else body.insertBefore(row, place);
  }
  while (place) { const gone = place; place = place.nextElementSibling; gone.remove(); }
  for (const id of rows.keys()) if (!kept.has(id)) rows.delete(id);
}

function wantedRow(row, found) { return found.some((session) => session.id === row.dataset.id); }

function rowOf(session) {
  let row = rows.get(session.id);
  if (!row) {
    row = make("tr");
    row.tabIndex = 0;
    row.dataset.id = session.id;
    rows.set(session.id, row);
  }
  if (row.session !== session) {
    row.session = session;
    const [style, text] = outcome(session);
    row.replaceChildren(make("td", "", new Date(session.opened * 1000).toTimeString().slice(0, 8)), make("td", "client", session.client.replace(/:\d+$/, "")),
      make("td", "", words(session)), make("td", "number", session.saved), make("td", style, text));
  }
  row.setAttribute("aria-selected", session.id === chosen);
  return row;
}

function drawPicture() {
  const session = sessions.get(chosen);
  if (!session) return;
  const end = session.reason ? [{what: "closed", reason: session.reason}] : [];
  drawSession(get("picture"), session.records.concat(end));
}

function choose(id, focus) {
  chosen = id;
  for (const row of get("sessions").rows) {
    row.setAttribute("aria-selected", row.dataset.id === id);
    if (focus && row.dataset.id === id) row.focus();
  }
  drawPicture();
}

function draw(event) {
  if (pending) return;
  pending = true;
  requestAnimationFrame(() => {
    pending = false;
    drawFigures(event);
    drawList();
  });
}

function take(event) {
  for (const session of event.sessions) sessions.set(session.id, session);
  while (sessions.size > KEPT) sessions.delete(sessions.keys().next().value);
  takeFigures(event);
  if (paused) return;
  get("state").className = "live";
  get("state").textContent = event.ready ? "live" : "live, but not ready";
  draw(event);
  if (event.sessions.some((each) => each.id === chosen)) drawPicture();
}

const source = new EventSource("events");
source.onmessage = (message) => take(JSON.parse(message.data));
source.onerror = () => { get("state").className = "lost"; get("state").textContent = "connection lost, trying again"; };

function pause() {
  paused = !paused;
  get("pause").setAttribute("aria-pressed", paused);
  get("pause").textContent = paused ? "Resume" : "Pause";
  if (paused) { get("state").className = ""; get("state").textContent = "paused"; }
}
get("pause").onclick = pause;
get("filter").oninput = drawList;
get("sessions").onclick = (event) => { const row = event.target.closest("tr"); if (row) choose(row.dataset.id, false); };
document.onkeydown = (event) => {
  const typing = document.activeElement === get("filter");
  if (event.key === "Escape") { get("filter").blur(); return; }
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const rows = [...get("sessions").rows], at = rows.findIndex((row) => row.dataset.id === chosen);
  if (event.key === "/") { event.preventDefault(); get("filter").focus(); }
  else if (event.key === "p") pause();
  else if (event.key === "Enter" && document.activeElement.dataset.id) choose(document.activeElement.dataset.id, true);
  else if ((event.key === "ArrowDown" || event.key === "ArrowUp") && rows.length) {
    event.preventDefault();
    const next = rows[Math.max(0, Math.min(rows.length - 1, at + (event.key === "ArrowDown" ? 1 : -1)))];
    choose(next.dataset.id, true);
  }
};
