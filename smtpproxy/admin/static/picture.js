"use strict";
// The picture of one session: client, proxy and MTA as lines, time from top to bottom.

const SVG = "http://www.w3.org/2000/svg";

function svg(parent, name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

function duration(seconds) {
  if (seconds < 0.01) return (seconds * 1000).toFixed(1) + " ms";
  return seconds < 1 ? Math.round(seconds * 1000) + " ms" : seconds.toFixed(1) + " s";
}

function groupsBy(exchanges, key) {
  const groups = [];
  for (const each of exchanges) {
    const last = groups.at(-1);
    if (last && last[0][key] === each[key]) last.push(each); else groups.push([each]);
  }
  return groups;
}

function counted(words) {
  const runs = [];
  for (const word of words) {
    if (runs.length && runs.at(-1)[0] === word) runs.at(-1)[1]++; else runs.push([word, 1]);
  }
  return runs.map(([word, times]) => times > 1 ? word + " ×" + times : word).join(" · ");
}

function cut(text, most) { return text.length > most ? text.slice(0, most - 1) + "…" : text; }

function drawSession(place, records) {
  const exchanges = records.filter((each) => each.what === "exchange");
  const connected = records.find((each) => each.what === "connected");
  const closed = records.find((each) => each.what === "closed");
  const heading = document.createElement("h2");
  heading.textContent = connected ? connected.client_end + " → " + connected.server : "no server";
  const saved = exchanges.filter((each) => each.pipelined).length;
  const told = document.createElement("p");
  told.textContent = `session ${(exchanges[0] || connected || {}).session || ""} · ${exchanges.length} exchanges · ${saved} round trips saved` + (closed ? ` · ${closed.reason}` : "");
  place.replaceChildren(heading, told);
  if (!exchanges.length) return;

  const began = Math.min(...exchanges.map((each) => each.framed));
  const rows = [];
  const asked = exchanges.filter((each) => !["greeting", "unasked"].includes(each.verb));
  for (const group of groupsBy(asked, "framed")) {
    rows.push({at: group[0].framed, kind: "in", order: 0, text: group.length > 1 ? counted(group.map((e) => e.verb)) : group[0].line || (group[0].octets || 0) + " octets · ."});
  }
  for (const each of exchanges) {
    const sent = each.sent || (each.verb === "greeting" ? each.framed : 0);
    if (sent && each.replied) rows.push({at: sent, kind: "mta", order: 1, verb: each.verb === "greeting" ? "connect" : each.verb, code: each.code, took: each.replied - sent});
  }
  for (const group of groupsBy(exchanges.filter((each) => each.flushed), "flushed")) {
    rows.push({at: group[0].flushed, kind: "out", order: 2, codes: group.map((e) => e.code || 0), text: group.length > 1 ? counted(group.map((e) => String(e.code))) : (group[0].reply || "").split("\r\n").at(-1)});
  }
  rows.sort((one, other) => one.at - other.at || one.order - other.order);

  const narrow = place.clientWidth < 480;
  const width = narrow ? 420 : 640, clock = narrow ? 46 : 56;
  const client = clock + 8, proxy = Math.round(client + (width - client) * 0.58), mta = width - 10;
  const most = Math.floor((proxy - client - 24) / 7);
  let y = 44, before = began;
  for (const row of rows) {
    y += Math.max(22, Math.min(60, (row.at - before) * 200));
    row.y = y;
    before = row.at;
  }
  const height = y + 30;
  const picture = svg(place, "svg", {viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "sequence of the session"});
  svg(picture, "text", {x: client, y: 16, class: "title"}, "client");
  svg(picture, "text", {x: proxy, y: 16, class: "title", "text-anchor": "middle"}, "smtpproxy");
  svg(picture, "text", {x: mta, y: 16, class: "title", "text-anchor": "end"}, "MTA");
  for (const x of [client, proxy, mta]) svg(picture, "line", {x1: x, x2: x, y1: 26, y2: height - 8, class: "life"});

  function arrow(from, to, at) {
    const way = to > from ? 1 : -1;
    svg(picture, "line", {x1: from, x2: to - way * 5, y1: at, y2: at, class: "arrow"});
    svg(picture, "path", {d: `M${to},${at} l${-7 * way},-4 v8 z`, class: "head"});
  }
  for (const row of rows) {
    if (row.kind !== "mta") svg(picture, "text", {x: clock, y: row.y + 4, class: "time", "text-anchor": "end"}, duration(row.at - began));
    if (row.kind === "in") {
      arrow(client, proxy, row.y);
      svg(picture, "text", {x: client + 8, y: row.y - 5, class: "command"}, cut(row.text, most));
    } else if (row.kind === "out") {
      arrow(proxy, client, row.y);
      const bad = row.codes.some((code) => code >= 400);
      svg(picture, "text", {x: proxy - 8, y: row.y - 5, class: bad ? "no" : "ok", "text-anchor": "end"}, cut(row.text, most));
    } else {
      const next = rows[rows.indexOf(row) + 1];
      svg(picture, "rect", {x: mta - 4, y: row.y, width: 8, height: Math.max(8, (next ? next.y : row.y + 16) - row.y - 4), rx: 3, class: "bar"});
      arrow(proxy, mta - 4, row.y);
      svg(picture, "text", {x: proxy + 8, y: row.y - 5, class: "command"}, row.verb === "." ? "content ." : row.verb);
      const reply = svg(picture, "text", {x: mta - 10, y: row.y - 5, class: row.code >= 400 ? "no" : "ok", "text-anchor": "end"});
      reply.textContent = row.code + "  ";
      svg(reply, "tspan", {class: "time"}, duration(row.took));
    }
  }
}
