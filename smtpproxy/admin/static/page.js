"use strict";
// The live page: one event a second becomes figures, the list of sessions and one picture.

const KEPT = 300, SILENT_MS = 6000, AGAIN_MS = 3000;
const sessions = new Map();
const get = (name) => document.getElementById(name);
let latest = null, chosen = null, paused = false, onlyWrong = false, pending = false, textOpen = false;
let source = null, heard = 0, lostSince = 0, anew = true, shutOut = false;

// --- what the proxy tells ----------------------------------------------------------------------

function take(event) {
  if (anew) { // told all: what is not in it was of a proxy that is gone
    const open = new Set(event.sessions.map((each) => each.session));
    for (const [id, session] of sessions) if (!session.reason && !open.has(id)) sessions.delete(id);
    anew = false;
  }
  for (const session of event.sessions) sessions.set(session.session, session);
  for (const id of sessions.keys()) {
    if (sessions.size <= KEPT) break;
    if (id !== chosen) sessions.delete(id);
  }
  latest = event;
  takeFigures(event);
  const changed = event.sessions.some((each) => each.session === chosen);
  if (!paused) draw(changed);
}

function draw(picture) {
  drawState();
  if (picture && !paused) drawPicture();
  if (pending || !latest) return;
  pending = true;
  requestAnimationFrame(() => {
    pending = false;
    drawFigures();
    drawServers(latest);
    drawSessions();
  });
}

function drawSessions() {
  const wanted = get("filter").value.trim().toLowerCase();
  const shown = drawList(sessions, wanted, onlyWrong, chosen);
  get("none").hidden = shown > 0;
  if (!shown) drawNone(get("none"), latest ? latest.listeners : [], wanted || onlyWrong);
  const rate = before && before.rate || 0, seen = latest ? latest.sessions.length : 0;
  get("sample").hidden = rate < 30 || seen > rate * 0.9;
  get("sample").textContent = `a sample of ${number(rate)} new sessions a second`;
}

function drawState() {
  const [style, text] = shutOut ? ["lost", "the token is no longer good: open /?token=TOKEN"] : lostSince ? ["lost", `no answer for ${Math.round((Date.now() - lostSince) / 1000)} s, trying again`] :
    paused ? ["paused", "paused"] : !latest ? ["", "connecting"] : latest.why_not_ready ? ["lost", "not ready: " + latest.why_not_ready] : ["live", "live"];
  get("state").className = style;
  if (get("state").textContent !== text) get("state").textContent = text;
  document.body.classList.toggle("gone", Boolean(lostSince));
}

function connect() {
  source = new EventSource("events");
  anew = true;
  source.onmessage = (message) => {
    heard = Date.now();
    lostSince = 0;
    take(JSON.parse(message.data));
  };
  source.onerror = () => {
    anew = true;
    lostSince = lostSince || Date.now();
    drawState();
    if (source.readyState === EventSource.CLOSED) again();
  };
}

async function again() {
  const ended = source;
  const why = await fetch("page.js", {cache: "no-store"}).then((told) => told.status, () => 0);
  shutOut = why === 401;
  drawState();
  if (shutOut) return;
  setTimeout(() => { if (source === ended) connect(); }, AGAIN_MS);
}

function watch() {
  if (lostSince) drawState();
  if (source.readyState === EventSource.OPEN && heard && Date.now() - heard > SILENT_MS) {
    lostSince = lostSince || heard;
    source.close();
    connect();
  }
}

// --- the chosen session ------------------------------------------------------------------------

function drawPicture() {
  const session = sessions.get(chosen), place = get("picture");
  if (!session) return;
  const top = place.scrollTop;
  const end = session.reason ? [{what: "closed", reason: session.reason}] : [];
  const more = [];
  if (session.content_bytes) more.push(size(session.content_bytes));
  for (const [side, version] of Object.entries(session.tls)) more.push(`${version.replace("TLSv", "TLS ")} to ${side === "client" ? "the client" : "the MTA"}`);
  if (session.duration_s) more.push(duration(session.duration_s));
  drawSession(place, session.records.concat(end), {roundTripsSaved: session.round_trips_saved, more});
  place.append(dialogue(session));
  place.scrollTop = top;
}

function dialogue(session) {
  const told = element("details"), lines = [];
  told.open = textOpen;
  told.ontoggle = () => { textOpen = told.open; };
  for (const each of session.records) {
    if (each.what === "gap") lines.push(`… ${each.exchanges} exchanges not kept …`);
    if (each.what !== "exchange") continue;
    if (each.verb !== "greeting" && each.verb !== "unsolicited") lines.push("C: " + commandOf(each));
    for (const step of each.steps || []) {
      lines.push(`   to the MTA: ${visible(step.command) || nameOf(each)}`);
      for (const line of step.reply ? step.reply.split(/\r?\n/) : ["no reply"]) lines.push(`   MTA: ${visible(line)}`);
    }
    for (const line of (each.reply || "").split(/\r?\n/)) if (line) lines.push("S: " + visible(line));
  }
  told.append(element("summary", "", "Dialogue as text"), element("pre", "", lines.join("\n")));
  return told;
}

function choose(id, focus) {
  chosen = id;
  mark(id);
  const row = rows.get(id);
  if (focus && row) row.focus();
  get("picture").scrollTop = 0;
  drawPicture();
  if (!focus && id && get("picture").getBoundingClientRect().top > innerHeight * 0.7) get("picture").scrollIntoView({behavior: "smooth"});
}

// --- buttons and keys --------------------------------------------------------------------------

function toggle(name, on) { get(name).setAttribute("aria-pressed", on); }

function pause() {
  paused = !paused;
  toggle("pause", paused);
  get("pause").textContent = paused ? "Resume" : "Pause";
  draw(true);
}

function problems() {
  onlyWrong = !onlyWrong;
  toggle("problems", onlyWrong);
  drawSessions();
}

function backToAll() {
  get("filter").value = "";
  if (onlyWrong) problems(); else drawSessions();
  get("filter").blur();
}

function step(by) {
  const all = [...get("sessions").rows], at = all.findIndex((row) => row.dataset.id === chosen);
  if (all.length) choose(all[Math.max(0, Math.min(all.length - 1, at + by))].dataset.id, true);
}

const KEYS = {
  "/": () => get("filter").focus(), p: pause, e: problems, Escape: backToAll, Home: () => step(-1e6), End: () => step(1e6),
  ArrowDown: () => step(1), ArrowUp: () => step(-1), j: () => step(1), k: () => step(-1),
};
document.onkeydown = (event) => {
  const on = document.activeElement, typing = on === get("filter");
  if (event.ctrlKey || event.metaKey || event.altKey || typing && event.key !== "Escape" && event.key !== "ArrowDown") return;
  if (event.key === "Enter" && on.dataset.id) { choose(on.dataset.id, true); return; }
  if (event.key.startsWith("Arrow") && get("picture").contains(on)) return; // they scroll it
  const act = Object.hasOwn(KEYS, event.key) && KEYS[event.key];
  if (act) { event.preventDefault(); act(); }
};
get("pause").onclick = pause;
get("problems").onclick = problems;
get("filter").oninput = drawSessions;
get("sessions").onclick = (event) => { const row = event.target.closest("tr"); if (row) choose(row.dataset.id, false); };
setInterval(watch, 1000);
connect();
