"use strict";
// The list of sessions: those of now and of a moment ago, newest first.

const SHOWN = 100;
const rows = new Map();

function outcomeOf(session) {
  const last = session.transactions.at(-1), code = last ? (last.reply || "").slice(0, 3) : "";
  if (!session.reason) return ["running", "◌", "open"];
  if (!last) {
    const refused = FINE.has(session.reason) && session.records.find((each) => each.code >= 400);
    const text = refused ? `${refused.code} to ${nameOf(refused)}` : session.reason.replaceAll("_", " ");
    return isWrong(session) ? ["bad", "✗", text] : ["soft", "·", text];
  }
  if (last.outcome === "relayed") return last.refused ? ["part", "✓", `${code}, ${last.refused} refused`] : ["good", "✓", `${code} relayed`];
  return ["bad", "✗", `${code} ${last.outcome}`.trim()];
}

const FINE = new Set(["", "quit", "client_closed", "draining", "introduced", "followed no more"]);
function isWrong(session) { return problemsOf(session).length > 0; }

// Returns what went wrong, the most important first: violations, what got a 4xx or 5xx, how it ended.
function problemsOf(session) {
  const exchanges = session.records.filter((each) => each.code >= 400), last = session.transactions.at(-1);
  const found = session.records.filter((each) => each.violation).map((each) => violationText(each.violation));
  found.push(...exchanges.map((each) => refusalText(each, each.reply ? lastLine(each.reply) : String(each.code))));
  if (!exchanges.length && last) { // they were not kept
    if (last.refused) found.push(`${last.refused} recipient${last.refused > 1 ? "s" : ""} refused`);
    if (last.outcome === "refused") found.push(`message refused: ${last.reply}`);
  }
  if (!exchanges.length && session.transactions.some((each) => each.outcome !== "relayed" && each.outcome !== "refused")) found.push("message abandoned");
  if (!found.length && session.transactions.some((each) => each.outcome !== "relayed" || each.refused)) found.push("an earlier message, or recipients of it, were refused");
  if (!FINE.has(session.reason)) found.push(session.reason.replaceAll("_", " "));
  return found.map(visible);
}

// The reply, the verb, and its address unless the reply has it.
function refusalText(exchange, reply) {
  const [, about] = /^[^<]*<([^>]*)>/.exec(exchange.command || "") || [];
  return `${reply} · ${nameOf(exchange)}${about && !reply.includes(about) ? " " + about : ""}`;
}

// Returns the text, and how many recipients there are besides.
function whoWrites(session) {
  const last = session.transactions.at(-1);
  if (!last) {
    const found = ["MAIL", "EHLO", "HELO"].map((verb) => session.records.find((each) => each.verb === verb && each.command));
    const wrong = session.records.find((each) => each.violation && (each.command || each.violation.bytes));
    const record = wrong || found.find(Boolean);
    return [record ? visible(record.command || record.violation.bytes) : "nothing said", ""];
  }
  const all = last.accepted + last.refused;
  return [visible(`${last.sender || "<>"} → ${last.to[0] || "nobody"}`), all > 1 ? ` +${all - 1}` : ""];
}

function details(session) {
  const found = [(session.client_ip || "unix") + " → " + (session.server || "no server")];
  if (session.tls.client) found.push(session.tls.client.replace("TLSv", "TLS "));
  if (session.content_bytes) found.push(size(session.content_bytes));
  if (session.messages > 1) found.push(`${session.messages} messages`);
  return visible(found.join(" · "));
}

function matches(session, wanted) {
  if (!wanted) return true;
  const said = session.transactions.flatMap((each) => [each.sender, each.outcome, each.reply, ...each.to]);
  const seen = session.records.flatMap((each) => [each.command || "", String(each.code || ""), each.violation ? each.violation.kind : ""]);
  return [session.session, session.reason, details(session), outcomeOf(session)[2], ...problemsOf(session), ...said, ...seen].join(" ").toLowerCase().includes(wanted);
}

// Draws those that match; rows stay where they are, so that neither a click nor the focus is lost.
function drawList(sessions, wanted, onlyWrong, chosen) {
  document.getElementById("table").className = onlyWrong ? "problems" : "";
  const found = [...sessions.values()].filter((each) => (!onlyWrong || isWrong(each)) && matches(each, wanted))
    .sort((one, other) => other.opened - one.opened).slice(0, SHOWN);
  const kept = new Set(found.map((each) => each.session)), body = document.getElementById("sessions");
  for (const [id, row] of rows) if (!kept.has(id)) { row.remove(); rows.delete(id); }
  let at = body.firstElementChild;
  for (const session of found) {
    const row = rowOf(session);
    if (row === at) at = at.nextElementSibling; else body.insertBefore(row, at);
  }
  mark(chosen);
  return found.length;
}

function rowOf(session) {
  let row = rows.get(session.session);
  if (!row) {
    row = element("tr");
    row.dataset.id = session.session;
    row.setAttribute("role", "row");
    rows.set(session.session, row);
  }
  if (row.session !== session) {
    row.session = session;
    const [style, sign, text] = outcomeOf(session), problems = problemsOf(session);
    const outcome = cell(`outcome ${style}`), more = problems.length > 1 ? ` (+${problems.length - 1})` : "";
    outcome.append(element("span", "sign", sign), element("span", "short", text), element("span", "problem", (problems[0] || "") + more));
    const [mail, others] = whoWrites(session), who = cell("who"), line = element("div", "line");
    line.append(element("span", "cut", mail), element("span", "others", others));
    who.append(line);
    row.title = [mail + others, details(session), ...problems].join("\n");
    row.replaceChildren(
      cell("when", new Date(session.opened * 1000).toTimeString().slice(0, 8)), cell("client", visible(session.client_ip || "unix")),
      who, cell("number", session.round_trips_saved || "–"), outcome);
  }
  return row;
}

function cell(style, text) {
  const made = element("td", style, text);
  made.setAttribute("role", "gridcell");
  return made;
}

// One row can be reached by Tab: the chosen one, or else the first.
function mark(chosen) {
  const first = rows.has(chosen) ? null : document.getElementById("sessions").firstElementChild;
  for (const [id, row] of rows) {
    row.setAttribute("aria-selected", id === chosen);
    row.tabIndex = id === chosen || row === first ? 0 : -1;
  }
}

// Says why there is nothing to see, and what to do about it.
function drawNone(place, listeners, filtered) {
  place.replaceChildren();
  if (filtered) { place.append(element("p", "", "No session matches.")); return; }
  place.append(element("p", "", "No session yet. Try:"));
  const address = listeners[0] || "127.0.0.1:25", unix = address.startsWith("unix:");
  const [, host, port] = /^(.*):(\d+)$/.exec(address) || ["", address, ""];
  const reached = ["0.0.0.0", "[::]"].includes(host) ? location.hostname : host;
  const to = unix ? `--socket ${address.slice(5)}` : `--server ${reached} --port ${port}`;
  place.append(element("code", "", `swaks ${to} --pipeline --to you@example.org`));
  place.append(element("p", "", `Clients connect to ${listeners.join(", ") || "no listener"}.`));
}
