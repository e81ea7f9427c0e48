"use strict";
// What all parts of the page use: messages, requests, questions. look.js, enrol.js, people.js, groups.js and unknown.js are the parts.
// Everything that came from elsewhere is set as text, never as HTML.
const $ = (id) => document.getElementById(id);
let token = sessionStorage.getItem("token");
let limits = { photos: 1, photo_bytes: Infinity, request_bytes: Infinity };

class Refused extends Error {
  constructor(line, { status, retryAfterS, doubt, photos } = {}) {
    super(line);
    Object.assign(this, { status, retryAfterS, doubt: doubt ?? null, photos: photos ?? [] });
  }
}

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// What cannot be seen in a name that was kept before such names were refused, as persona/names.py has it.
const HIDDEN = /[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u2800\u3164\uffa0\ufff0-\ufff8\p{Cc}\p{Zl}\p{Zp}]|(?![\u200c\u200d\u{e0020}-\u{e007f}])\p{Cf}/gu;
const shown = (text) => text.replace(HIDDEN, (c) => `\\u{${c.codePointAt(0).toString(16)}}`);
const plural = (count, one, many) => `${count} ${count === 1 ? one : many}`;
const wait = (seconds) => new Promise((resolve) => { setTimeout(resolve, seconds * 1000); });

// Tells what was done, what to know about it, and what went wrong, each with its own look. Nothing takes the message away.
function tell({ good = [], notes = [], bad = [] } = {}) {
  const lines = (kind, texts) => texts.map((text) => make("p", { className: `notice ${kind}` }, text));
  $("alert").replaceChildren(...lines("bad", bad));
  $("status").replaceChildren(...lines("good", good), ...lines("note", notes));
  $("dismiss").hidden = !(good.length + notes.length + bad.length);
}

async function call(path, fields) {
  const body = fields && new FormData();
  for (const [name, value] of fields || []) body.append(name, value);
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let answer;
  try {
    answer = await fetch(`api/${path}`, { method: body ? "POST" : "GET", body, headers });
  } catch {
    throw new Refused("The server does not answer: is persona serve still running?", { status: 0 });
  }
  if (answer.status === 401) {
    await unlock();
    return call(path, fields);
  }
  const value = await answer.json().catch(() => ({ error: `The server answered ${answer.status}.` }));
  if (!answer.ok) {
    const { error, doubt, photos } = value;
    throw new Refused(error, { status: answer.status, retryAfterS: Number(answer.headers.get("Retry-After")), doubt, photos });
  }
  return value;
}

let unlocking = null;
function unlock() {
  unlocking ??= new Promise((resolve) => {
    $("locked-title").textContent = token ? "This token is not the one" : "Token";
    $("locked").showModal();
    $("locked").addEventListener("close", () => {
      token = $("token").value.trim();
      sessionStorage.setItem("token", token);
      $("token").value = "";
      unlocking = null;
      resolve();
    }, { once: true });
  });
  return unlocking;
}

function ask(question, yes) {
  $("question").textContent = question;
  $("yes").textContent = yes;
  $("ask").returnValue = "";
  $("ask").showModal();
  return new Promise((resolve) => {
    $("ask").addEventListener("close", () => resolve($("ask").returnValue === "yes"), { once: true });
  });
}

// A doubt as a sentence, without its remedy, which is not the page's.
function doubtOf(error) {
  const doubt = error.message.slice(0, error.message.lastIndexOf(";"));
  return `${doubt[0].toUpperCase()}${doubt.slice(1)}.`;
}

async function refresh() {
  const { network, match, threshold, threshold_source: source, people, limits: bounds, groups, keeps_crops: kept,
    keeps_unknown_hours: hours } = await call("people");
  limits = bounds;
  $("rules").textContent = `${network} · threshold ${threshold.toFixed(3)} (${source}) · match ${match}`;
  showPeople(people, threshold, kept);
  if (groups && $("groups").hidden) await showGroups();
  if (hours !== null) await showUnknown();
}

async function attempt(work) {
  try {
    tell();
    await work();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    tell({ bad: [error.message] });
  }
}

// Does `work`, but not again while it runs. A button that is disabled meanwhile would lose the focus.
function once(work) {
  let running = false;
  return async () => {
    if (running) return;
    running = true;
    try {
      await work();
    } finally {
      running = false;
    }
  };
}

// A zone takes what is dropped on it. A click beside its buttons opens the choice of files.
function droppable(zone, input, take, isEmpty) {
  zone.addEventListener("dragover", (event) => { event.preventDefault(); zone.classList.add("over"); });
  zone.addEventListener("dragleave", () => zone.classList.remove("over"));
  zone.addEventListener("drop", (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    const files = filesOf(event.dataTransfer);
    attempt(async () => {
      const found = await files;
      if (found.length) await take(found);
    });
  });
  zone.addEventListener("click", (event) => {
    if (isEmpty() && !event.target.closest("button, input, label, ol")) input.click();
  });
  input.addEventListener("change", () => {
    const files = [...input.files];
    input.value = ""; // so that the same photo can be chosen again
    if (files.length) attempt(() => take(files));
  });
}

// The files of what was dropped, also in folders. A file of a folder knows the folder's name as `who`.
async function filesOf(transfer) {
  // The items are gone when this function waits for the first time.
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter((entry) => entry?.isDirectory);
  const files = [...transfer.files];
  if (!entries.length) return files;
  const names = new Set(entries.map((entry) => entry.name));
  const found = files.filter((file) => file.type || !names.has(file.name)); // a folder is a file without a type
  for (const entry of entries) found.push(...await filesIn(entry));
  return found;
}

async function filesIn(folder) {
  const reader = folder.createReader();
  const found = [];
  for (;;) {
    const entries = await new Promise((resolve, reject) => { reader.readEntries(resolve, reject); });
    if (!entries.length) return found;
    for (const entry of entries) {
      if (entry.isDirectory) found.push(...await filesIn(entry));
      else found.push(Object.assign(await new Promise((resolve, reject) => { entry.file(resolve, reject); }), { who: folder.name }));
    }
  }
}

$("dismiss").addEventListener("click", () => { tell(); $("main").focus(); });
$("locked").addEventListener("cancel", (event) => event.preventDefault());
// A photo that misses its place must not replace the page.
for (const kind of ["dragover", "drop"]) window.addEventListener(kind, (event) => event.preventDefault());
document.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (!files.length || document.querySelector("dialog[open]")) return;
  event.preventDefault();
  attempt(() => ($("enrol").contains(document.activeElement) ? add(files) : takeOne(files)));
});
// Then the other parts have run too.
document.addEventListener("DOMContentLoaded", () => attempt(refresh).then(() => { document.body.dataset.ready = "true"; }));
