"use strict";
// The picture of one session: client, proxy and MTA as lines, time from top to bottom.
// It needs nothing else: `trace export --html` puts it into a page of its own.

const SVG = "http://www.w3.org/2000/svg";
const STEP = 22, LONGEST_STEP = 64; // pixels between two rows
const NARROWEST = 340, WIDEST = 820; // pixels across
const FOLDED = 6; // so many equal commands in a row are drawn one by one

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = shownLines(text);
  return made;
}

function svg(parent, name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = shownLines(text);
  parent.append(made);
  return made;
}

function duration(seconds) {
  if (seconds < 0.01) return (seconds * 1000).toFixed(1) + " ms";
  if (seconds < 1) return Math.round(seconds * 1000) + " ms";
  return seconds < 100 ? seconds.toFixed(1) + " s" : Math.round(seconds / 60) + " min";
}

function size(bytes) {
  if (bytes < 1024) return bytes + " B";
  return bytes < 1048576 ? (bytes / 1024).toFixed(bytes < 10240 ? 1 : 0) + " KiB" : (bytes / 1048576).toFixed(1) + " MiB";
}

// What peers sent may hold control characters, and marks that reorder text: they are shown, not obeyed.
function visible(text) { return text.replace(/[\p{C}\p{Zl}\p{Zp}]/gu, escaped); }

function escaped(character) {
  const code = character.codePointAt(0);
  return code < 256 ? "\\x" + code.toString(16).padStart(2, "0") : "\\u{" + code.toString(16) + "}";
}

// Escapes any text of peers, line by line.
function shownLines(text) { return String(text).split("\n").map(visible).join("\n"); }

function cut(text, most) { return text.length > most ? text.slice(0, Math.max(1, most - 1)) + "…" : text; }

function lastLine(reply) { return visible(reply.split(/\r?\n/).at(-1)); }

function grouped(items, same) {
  const groups = [];
  for (const each of items) {
    const last = groups.at(-1);
    if (last && same(last[0], each)) last.push(each); else groups.push([each]);
  }
  return groups;
}

function counted(words) {
  return grouped(words, (one, other) => one === other).map((run) => run.length > 1 ? run[0] + " ×" + run.length : run[0]).join(" · ");
}

function nameOf(exchange) { return exchange.verb === "end_of_data" ? "end of data" : exchange.verb === "malformed" ? "bad line" : exchange.verb; }

function commandOf(exchange) {
  if (exchange.verb === "end_of_data") return `content, ${size(exchange.content_bytes || 0)}, end of data`;
  return visible(exchange.command || nameOf(exchange));
}

// --- what is drawn, row by row -----------------------------------------------------------------

function rowsOf(records) {
  const exchanges = records.filter((each) => each.what === "exchange"), rows = [];
  const asked = exchanges.filter((each) => each.verb !== "greeting" && each.verb !== "unsolicited");
  for (const group of grouped(asked, (one, other) => one.framed === other.framed)) {
    const text = group.length > 1 ? counted(group.map(nameOf)) : commandOf(group[0]);
    rows.push({at: group[0].framed, order: 0, kind: "in", text, count: group.length, full: group.map(commandOf).join("\n")});
    for (const each of group) if (each.violation) rows.push(broken(each, each.framed));
  }
  rows.push(...exchanges.flatMap(saidToMta).map((each) => toMta([each])));
  for (const group of grouped(exchanges.filter((each) => each.flushed), (one, other) => one.flushed === other.flushed)) {
    const text = group.length > 1 ? counted(group.map((each) => String(each.code))) : lastLine(group[0].reply || "");
    rows.push({at: group[0].flushed, order: 2, kind: "out", text, count: group.length, bad: group.some((each) => each.code >= 400), full: group.map((each) => visible(each.reply || "").replaceAll("\\x0d\\x0a", "\n")).join("\n")});
    for (const each of group) {
      if (!each.sent && !isOfMta(each) && each.verb !== "greeting" && each.verb !== "unsolicited") rows.push({at: each.flushed, order: 1, kind: "here", text: `${nameOf(each)}: ${each.code} by smtpproxy`});
      if (each.violation && each.violation.side === "backend") rows.push(broken(each, each.flushed));
    }
  }
  rows.push(...records.filter((each) => each.what === "noted").map(noted));
  const gap = records.findIndex((each) => each.what === "gap");
  if (gap > 0) rows.push({at: records[gap - 1].flushed || 0, order: 3, kind: "gap", text: `${records[gap].exchanges} exchanges not kept`});
  rows.sort((one, other) => one.at - other.at || one.order - other.order);
  return grouped(rows, (one, other) => one.kind === "mta" && other.kind === "mta" && one.text === other.text && one.code === other.code).flatMap(folded);
}

// Whether the reply is the MTA's to what smtpproxy sent for the command: to its DATA for a BDAT.
function isOfMta(exchange) {
  const last = (exchange.steps || []).at(-1);
  return Boolean(last) && last.reply === exchange.reply;
}

// What was said to the MTA for an exchange: mostly its line, but the proxy has words of its own, too.
function saidToMta(exchange) {
  if (exchange.steps && exchange.steps.length) {
    return exchange.steps.map((step) => ({...step, code: Number(step.reply.slice(0, 3)) || 0, content_bytes: exchange.content_bytes,
      verb: step.command === "." ? "end_of_data" : step.command.split(" ")[0].replaceAll(/\\x..|[a-z]/g, (part) => part.length > 1 ? part : part.toUpperCase()) || exchange.verb, own: step.command !== (exchange.command || "")}));
  }
  const sent = exchange.sent || (exchange.verb === "greeting" ? exchange.framed : 0);
  return sent ? [{...exchange, sent}] : [];
}

// Of many equal commands in a row the first and the last one are drawn, and the others as one.
function folded(run) {
  if (run.length <= FOLDED) return run;
  return [run[0], toMta(run.slice(1, -1).flatMap((row) => row.run)), run.at(-1)];
}

function broken(exchange, at) {
  const found = exchange.violation;
  return {at, order: 0.5, kind: "broken", text: violationText(found) + (found.bytes ? " · " + visible(found.bytes) : "")};
}

function violationText(found) { return `${found.side}: ${found.kind.replaceAll("_", " ")}${found.rewritten ? ", rewritten" : ""}`; }

// What happened besides the dialogue: a side went inside TLS, or did not, or the client waits in vain.
function noted(each) {
  const side = each.side === "backend" ? "the MTA" : "the client", version = (each.version || "").replace("TLSv", "TLS ");
  const header = [["authority", each.forwarded_authority], ["unique id", each.forwarded_unique_id], ["TLS", each.forwarded_tls], ["CN", each.forwarded_cn]];
  const text = each.event === "tls_started" ? `${side} is inside ${version}`
    : each.event === "proxy_header_read" ? `PROXY header: ${header.filter((pair) => pair[1]).map((pair) => `${pair[0]} ${visible(pair[1])}`).join(", ")}`
    : each.event === "tls_failed" ? `TLS with ${side} failed: ${visible(each.reason || "")}`
    : each.event === "content_not_ended" ? `the client's lone dot is no end of data: ${visible(each.kind || "").replaceAll("_", " ")}`
    : `${each.event.replaceAll("_", " ")}: ${visible(each.fault || each.reason || "")}`;
  return {at: each.at, order: 3, kind: "note", side: each.side, bad: !["proxy_header_read", "tls_started"].includes(each.event), text, full: each.cipher ? `${version}, ${each.cipher}` : text};
}

function toMta(run) {
  const last = run.at(-1), took = run.map((each) => (each.replied || 0) - each.sent);
  const name = run[0].verb === "greeting" ? "connect" : nameOf(run[0]);
  return {run, own: run[0].own, at: run[0].sent, until: last.replied || 0, order: 1, kind: "mta", code: last.code || 0,
    text: run.length > 1 ? `${name} ×${run.length}` : name,
    took: !last.replied ? "" : run.length > 1 ? `${duration(Math.min(...took))}–${duration(Math.max(...took))}` : duration(took[0]),
    full: run.map((each) => commandOf(each) + " → " + visible(each.reply || "no reply").replaceAll("\\x0d\\x0a", "\n")).join("\n")};
}

// Places the rows, and returns where any time stands.
function place(rows) {
  let y = 52, before = rows[0].at;
  const gaps = rows.map((row) => { const gap = row.at - before; before = row.at; return gap; });
  const scale = 160 / Math.max(0.05, rows.at(-1).at - rows[0].at);
  rows.forEach((row, index) => {
    const wanted = Math.max(STEP, gaps[index] * scale);
    if (index) y += Math.min(LONGEST_STEP, wanted);
    row.y = y;
  });
  return (at) => {
    const next = rows.findIndex((row) => row.at >= at);
    if (next < 0) return rows.at(-1).y + STEP * 0.7;
    const one = rows[Math.max(0, next - 1)], other = rows[next];
    return other.at > one.at ? one.y + (other.y - one.y) * (at - one.at) / (other.at - one.at) : other.y;
  };
}

// --- drawing -----------------------------------------------------------------------------------

// known: what else is known of it; `roundTripsSaved`, if not all of its exchanges are among the records, and `more` facts.
function drawSession(where, records, known = {}) {
  const width = Math.max(NARROWEST, Math.min(WIDEST, where.clientWidth));
  where.replaceChildren(...heading(records, known));
  const rows = rowsOf(records);
  if (rows.length) where.append(drawRows(rows, width), legend(rows.some((row) => row.own)));
}

function heading(records, known) {
  const exchanges = records.filter((each) => each.what === "exchange");
  const connected = records.find((each) => each.what === "connected");
  const closed = records.find((each) => each.what === "closed");
  const saved = known.roundTripsSaved ?? exchanges.filter((each) => each.pipelined).length;
  const gap = records.find((each) => each.what === "gap");
  const facts = [`session ${(exchanges[0] || connected || closed || {}).session || ""}`, `${exchanges.length + (gap ? gap.exchanges : 0)} exchanges`, `${saved} round trips saved`, ...(known.more || [])];
  if (closed) facts.push(closed.reason.replaceAll("_", " "));
  const title = element("h2", "", connected ? `${connected.client_address} → ${connected.server}` : "no server");
  return [title, element("p", "facts", facts.join(" · "))];
}

function legend(own) {
  const shown = element("p", "legend");
  shown.append(element("i", "wait"), "the client waits", element("i", "work"), "the MTA works");
  if (own) shown.append(element("em", "", "slanted"), ": smtpproxy's own words");
  return shown;
}

function drawRows(rows, width) {
  const began = rows[0].at, yOf = place(rows), narrow = width < 480;
  const clock = narrow ? 40 : 58;
  const client = clock + (narrow ? 8 : 10), proxy = Math.round(client + (width - client) * (narrow ? 0.45 : 0.57)), mta = width - 8;
  const height = rows.at(-1).y + 34;
  const picture = document.createElementNS(SVG, "svg");
  for (const [key, value] of Object.entries({viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "sequence of the session"})) picture.setAttribute(key, value);
  for (const [x, text, anchor] of [[client, "client", "start"], [proxy, "smtpproxy", "middle"], [mta, "MTA", "end"]]) {
    svg(picture, "text", {x, y: 16, class: "title", "text-anchor": anchor}, text);
    svg(picture, "line", {x1: x, x2: x, y1: 26, y2: height - 6, class: "life"});
  }
  drawWaits(picture, rows, client);
  for (const row of rows.filter((each) => each.kind === "mta")) {
    const end = Math.max(row.y + 6, row.until ? yOf(row.until) - 3 : height - 8);
    svg(picture, "rect", {x: mta - 4, y: row.y, width: 8, height: end - row.y, rx: 2, class: row.until ? "work" : "work open"});
  }
  for (const row of rows) drawRow(picture, row, {began, clock, client, proxy, mta, narrow});
  return picture;
}

function drawWaits(picture, rows, client) {
  let owed = 1, since = 26; // the greeting
  for (const row of rows) {
    if (row.kind === "in") {
      if (owed <= 0) since = row.y;
      owed += row.count;
    } else if (row.kind === "out" && owed > 0) {
      svg(picture, "rect", {x: client - 3, y: since, width: 6, height: row.y - since - 1, rx: 2, class: "wait"});
      owed -= row.count;
      since = row.y;
    }
  }
}

function drawRow(picture, row, at) {
  const {client, proxy, mta} = at, left = proxy - client - 24, right = mta - proxy - 24;
  const letters = (room) => Math.floor(room / 6.1);
  const said = (x, y, name, text, anchor) => svg(picture, "text", {x, y, class: name, "text-anchor": anchor || "start"}, text);
  const whole = (text) => { if (row.full) svg(text, "title", {}, row.full); };
  if (row.kind === "gap" || row.kind === "broken") {
    said(client + 8, row.y, row.kind === "gap" ? "soft" : "no", cut((row.kind === "gap" ? "⋯ " : "⚠ ") + row.text, letters(mta - client - 16)));
    return;
  }
  if (row.kind === "here") {
    said(proxy + 8, row.y + 4, "soft", cut(row.text, letters(right)));
    return;
  }
  if (row.kind !== "mta") said(at.clock, row.y + 4, "time", duration(row.at - at.began), "end");
  if (row.kind === "note") {
    const x = (row.side === "backend" ? proxy : client) + 8;
    whole(said(x, row.y, row.bad ? "no" : "soft", cut(row.text, letters(mta - x - 8))));
  } else if (row.kind === "in") {
    arrow(picture, client + 3, proxy, row.y);
    whole(said(client + 9, row.y - 5, "command", cut(row.text, letters(left))));
  } else if (row.kind === "out") {
    arrow(picture, proxy, client + 3, row.y);
    whole(said(proxy - 9, row.y - 5, row.bad ? "no" : "ok", cut(row.text, letters(left)), "end"));
  } else {
    arrow(picture, proxy, mta - 4, row.y);
    whole(said(proxy + 8, row.y - 5, row.own ? "command own" : "command", cut(row.text, letters(right - (at.narrow ? 60 : 90)))));
    const reply = said(mta - 10, row.y - 5, row.code >= 400 ? "no" : "ok", row.until ? row.code + "  " : "", "end");
    svg(reply, "tspan", {class: "time"}, row.took);
  }
}

function arrow(picture, from, to, y) {
  const way = to > from ? 1 : -1;
  svg(picture, "line", {x1: from, x2: to - way * 5, y1: y, y2: y, class: "arrow"});
  svg(picture, "path", {d: `M${to},${y} l${-7 * way},-4 v8 z`, class: "head"});
}
