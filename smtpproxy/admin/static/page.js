"use strict";
// The live page: one event a second becomes figures, the list of sessions and one picture.

const KEPT = 300, SILENT_MS = 6000, AGAIN_MS = 3000;
const AWAITED = 5; // events in which workers may still report a session of a link

const sessions = new Map();
const get = (name) => document.getElementById(name);
let latest = null, chosen = null, paused = false, onlyWrong = false, pending = false, awaited = 0;
let source = null, heard = 0, lostSince = 0, isFirst = true, shutOut = false;

// --- the events of the proxy --------------------------------------------------------------------

function take(event) {
  takeFigures(event, isFirst);
  if (isFirst) { // of a connection: it has all open sessions, so the others have ended
    const open = new Set(event.sessions.map((each) => each.session));
    for (const [id, session] of sessions) if (!session.reason && !open.has(id)) sessions.delete(id);
    isFirst = false;
  }
  for (const session of event.sessions) sessions.set(session.session, session);
  for (const id of sessions.keys()) {
    if (sessions.size <= KEPT) break;
    if (id !== chosen) sessions.delete(id);
  }
  latest = event;
  awaited++;
  const changed = event.sessions.some((each) => each.session === chosen);
  if (!paused) draw(changed || !sessions.has(chosen));
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
    drawInstance(latest);
    drawSessions();
  });
}

function drawSessions() {
  const wanted = get("filter").value.trim().toLowerCase();
  const shown = drawList(sessions, wanted, onlyWrong, chosen);
  get("none").hidden = shown > 0;
  if (!shown) drawNone(get("none"), latest ? latest.listeners : [], wanted || onlyWrong);
  const rate = latest ? figuresNow.lately.opened : 0, seen = latest ? latest.sessions.length : 0;
  get("sample").hidden = rate < 30 || seen > rate * 0.9;
  get("sample").textContent = `a sample of ${number(rate)} new sessions a second`;
}

function drawState() {
  const [style, text] = shutOut ? ["lost", "the token is no longer good: open /?token=TOKEN"] : lostSince ? ["lost", `no answer since ${new Date(lostSince).toTimeString().slice(0, 8)}, trying again`] :
    paused ? ["paused", "paused"] : !latest ? ["", "connecting"] : latest.why_not_ready ? ["lost", "not ready: " + latest.why_not_ready] : ["live", "live"];
  get("state").className = style;
  if (get("state").textContent !== text) get("state").textContent = text;
  document.body.classList.toggle("gone", Boolean(lostSince));
}

function connect() {
  source = new EventSource("events");
  isFirst = true;
  source.onmessage = (message) => {
    heard = Date.now();
    lostSince = 0;
    take(JSON.parse(message.data));
  };
  source.onerror = () => {
    isFirst = true;
    lostSince = lostSince || Date.now();
    drawState();
    if (source.readyState === EventSource.CLOSED) again();
  };
}

async function again() {
  const ended = source;
  const why = await fetch("page.js", {cache: "no-store"}).then((reply) => reply.status, () => 0);
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
  const session = sessions.get(chosen);
  if (session) show("opened");
  else if (!chosen) show("hint");
  else if (get("opened").hidden) drawMissing(); // else what was drawn stays
  if (!session) return;
  const top = get("picture").scrollTop;
  const end = session.reason ? [{what: "closed", reason: session.reason}] : [];
  const more = [];
  if (session.content_bytes) more.push(size(session.content_bytes));
  for (const [side, version] of Object.entries(session.tls)) more.push(`${version.replace("TLSv", "TLS ")} to ${side === "client" ? "the client" : "the MTA"}`);
  if (session.duration_s) more.push(duration(session.duration_s));
  drawSession(get("drawing"), session.records.concat(end), {roundTripsSaved: session.round_trips_saved, more});
  get("dialogue").textContent = shownLines(dialogue(session).join("\n"));
  get("link").href = hashOf(chosen);
  get("picture").scrollTop = top;
}

function show(name) { for (const each of ["hint", "missing", "opened"]) get(each).hidden = each !== name; }

// Says that the session of a link is not here, once workers have had time to report it.
function drawMissing() {
  const name = cut(visible(chosen), 60), gone = awaited > AWAITED;
  const text = gone ? `Session ${name} is not on this page any more: the page keeps recent sessions only, and a sample of them if there are many. ` +
    `In the log, look for session=${name}; if sessions are traced, smtpproxy trace show ${name} draws it.` : `Looking for session ${name} …`;
  show("missing");
  if (get("missing").textContent !== text) get("missing").textContent = text;
}

function dialogue(session) {
  const lines = [];
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
  return lines;
}

const hashOf = (id) => "#" + encodeURIComponent(id);

// Opens a session, or closes the one that is open; its link becomes the address of the page.
function choose(id) {
  chosen = id;
  awaited = 0;
  history.replaceState(null, "", id ? hashOf(id) : location.pathname + location.search);
  mark(id);
  if (!sessions.has(id)) get("opened").hidden = true;
  get("picture").scrollTop = 0;
  drawPicture();
  if (id && get("picture").getBoundingClientRect().top > innerHeight * 0.7) get("picture").scrollIntoView({behavior: STILL.matches ? "auto" : "smooth"});
}

const STILL = matchMedia("(prefers-reduced-motion: reduce)");

function chooseLinked() {
  let id = location.hash.slice(1);
  try { id = decodeURIComponent(id); } catch { /* no link of ours: shown as it is */ }
  if (id !== (chosen || "")) choose(id || null);
}

function closeSession() {
  const id = chosen;
  choose(null);
  toList(id);
}

// Moves the focus to a session's row, or else to the first.
function toList(id) { (rows.get(id) || get("sessions").firstElementChild || get("list")).focus(); }

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
  const from = document.activeElement.dataset.id ?? chosen;
  const all = [...get("sessions").rows], at = all.findIndex((row) => row.dataset.id === from);
  if (!all.length) return;
  const row = all[Math.max(0, Math.min(all.length - 1, at + by))];
  choose(row.dataset.id);
  row.focus();
}

const KEYS = {
  "/": () => get("filter").focus(), p: pause, e: problems, Home: () => step(-1e6), End: () => step(1e6),
  ArrowDown: () => step(1), ArrowUp: () => step(-1), j: () => step(1), k: () => step(-1),
  Escape: () => { if (chosen) closeSession(); else backToAll(); },
};
document.onkeydown = (event) => {
  const on = document.activeElement, typing = on === get("filter");
  if (event.ctrlKey || event.metaKey || event.altKey || on.tagName === "SELECT") return;
  if (typing && event.key === "Escape") { backToAll(); return; }
  if (typing && event.key !== "ArrowDown") return;
  if (event.key === "Enter" && on.dataset.id) { choose(on.dataset.id); get("picture").focus(); return; }
  if (event.key.startsWith("Arrow") && get("picture").contains(on)) return; // they scroll it
  const act = Object.hasOwn(KEYS, event.key) && KEYS[event.key];
  if (act) { event.preventDefault(); act(); }
};
get("pause").onclick = pause;
get("problems").onclick = problems;
get("close").onclick = closeSession;
get("filter").oninput = drawSessions;
get("skip").onclick = (event) => { event.preventDefault(); toList(chosen); };
get("span").onchange = get("verb").onchange = () => { if (latest) drawFigures(); };
get("sessions").onclick = (event) => { const row = event.target.closest("tr"); if (row) choose(row.dataset.id); };
window.onhashchange = chooseLinked;
window.onresize = drawPicture;
setInterval(watch, 1000);
chooseLinked();
connect();
