"use strict";
// Everything that came from elsewhere is set as text, never as HTML.
const $ = (id) => document.getElementById(id);
const FRAME_QUALITY = 0.9;
let token = sessionStorage.getItem("token");
let limits = { photos: 1, photo_bytes: Infinity, request_bytes: Infinity };
let shots = []; // {blob, url} of the photos to enrol
let stream = null;

class Refused extends Error {
  constructor(line, status, retryAfterS) {
    super(line);
    Object.assign(this, { status, retryAfterS });
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

function say(line) {
  $("status").textContent = line;
  $("status").hidden = !line;
}

const wait = (seconds) => new Promise((resolve) => { setTimeout(resolve, seconds * 1000); });

async function call(path, fields) {
  const body = fields && new FormData();
  for (const [name, value] of fields || []) body.append(name, value);
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let answer;
  try {
    answer = await fetch(`api/${path}`, { method: body ? "POST" : "GET", body, headers });
  } catch {
    throw new Refused("The server does not answer: is persona serve still running?", 0);
  }
  if (answer.status === 401) {
    await unlock();
    return call(path, fields);
  }
  const value = await answer.json().catch(() => ({ error: `The server answered ${answer.status}.` }));
  if (!answer.ok) throw new Refused(value.error, answer.status, Number(answer.headers.get("Retry-After")));
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

const plural = (count, one, many) => `${count} ${count === 1 ? one : many}`;

async function refresh() {
  const { network, match, threshold, threshold_source: source, people, limits: bounds, groups } = await call("people");
  limits = bounds;
  const photos = people.reduce((sum, person) => sum + person.photos, 0);
  $("rules").textContent = `${network} · threshold ${threshold.toFixed(3)} (${source}) · match ${match}`;
  $("count").textContent = people.length
    ? `${plural(people.length, "person", "people")}, ${plural(photos, "photo", "photos")}`
    : "Nobody yet: enrol someone first.";
  document.querySelector("#gallery table").hidden = !people.length;
  if (groups && $("groups").hidden) await showGroups();
  $("people").replaceChildren(...people.map((person) => {
    const button = make("button", { type: "button", className: "grave", ariaLabel: `Forget ${shown(person.name)}` }, "Forget");
    button.addEventListener("click", () => attempt(() => forget(person)));
    return make("tr", {},
      make("th", { scope: "row", dir: "auto" }, shown(person.name)), make("td", {}, String(person.photos)),
      make("td", {}, person.created.slice(0, 10)), make("td", {}, button));
  }));
}

async function forget(person) {
  const question = `Forget ${shown(person.name)}? ${plural(person.photos, "photo", "photos")} will be gone for good.`;
  if (!await ask(question, "Forget")) return;
  await call("forget", [["name", person.name]]);
  await refresh();
  say(`${shown(person.name)} is forgotten.`);
  $("gallery").querySelector(".scroll").focus();
}

async function attempt(work) {
  try {
    say("");
    await work();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    say(error.message);
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

// Looking at a photo or the camera.

function show(found) {
  const share = (part, whole) => `${(100 * part) / whole}%`;
  $("boxes").replaceChildren(...found.faces.map((face) => {
    const [x, y, width, height] = face.box;
    const box = make("div", { className: "box" }, make("span", {}, title(face)));
    box.classList.toggle("known", face.name !== null);
    box.classList.toggle("right", x + width / 2 > found.width / 2); // its name within the photo
    box.classList.toggle("low", y + height > 0.9 * found.height);
    Object.assign(box.style, { left: share(x, found.width), top: share(y, found.height),
      width: share(width, found.width), height: share(height, found.height) });
    return box;
  }));
  const lines = found.faces.map((face) => make("li", {},
    make("strong", { className: face.name === null ? "" : "known" }, title(face)), describe(face, found.threshold)));
  $("faces").replaceChildren(...(lines.length ? lines : [make("li", {}, "No face.")]));
  const names = found.faces.map(title).join(", ") || "No face.";
  if ($("said").textContent !== names) $("said").textContent = names; // read out once, not every frame
}

const title = (face) => (face.name === null ? (face.refused ? "not judged" : "unknown") : shown(face.name));

function describe(face, threshold) {
  if (face.refused) return `: ${face.refused}`;
  const score = face.score === null ? "nobody to compare with" : `score ${face.score.toFixed(3)}`;
  const nearest = face.name === null && face.nearest !== null ? `, nearest ${shown(face.nearest)}` : "";
  return make("span", { className: "score" }, `: ${score}${nearest}, threshold ${threshold.toFixed(3)}`);
}

function fill(element) {
  for (const other of [$("video"), $("shown")]) other.hidden = other !== element;
  $("hint").hidden = element !== null;
  $("stage").classList.toggle("filled", element !== null);
  $("boxes").replaceChildren();
  $("faces").replaceChildren();
  $("said").textContent = ""; // or the same names would not be read out again
}

function fits(blobs, most) {
  const other = blobs.find((blob) => !blob.type.startsWith("image/")); // a folder has no type
  if (other) throw new Refused(`${other.name} is no photo.`);
  if (blobs.length > most) throw new Refused(`At most ${plural(most, "photo", "photos")} at once.`);
  if (blobs.some((blob) => blob.size > limits.photo_bytes)) {
    throw new Refused(`A photo is over ${limits.photo_bytes / 1e6} MB.`);
  }
  if (blobs.reduce((sum, blob) => sum + blob.size, 0) > limits.request_bytes) {
    throw new Refused(`The photos are over ${limits.request_bytes / 1e6} MB together.`);
  }
}

async function look(file) {
  stopCamera();
  URL.revokeObjectURL($("shown").src);
  $("shown").src = URL.createObjectURL(file);
  fill($("shown"));
  try {
    show(await call("recognise", [["photo", file]]));
  } catch (error) {
    fill(null);
    throw error;
  }
}

async function startCamera() {
  if (!navigator.mediaDevices) {
    throw new Refused("A browser gives its camera to https and to this machine alone: open the page as localhost, "
      + "or start persona serve with --certificate.");
  }
  let opened;
  try {
    opened = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 640 } } });
  } catch (error) {
    throw new Refused(`No camera: ${error.message}`);
  }
  $("video").srcObject = opened;
  await $("video").play().catch((error) => {
    for (const track of opened.getTracks()) track.stop(); // nothing else knows of it yet
    throw error;
  });
  stream = opened;
  fill($("video"));
  $("shoot").disabled = false;
  $("camera").textContent = "Stop the camera";
  $("camera").ariaPressed = "true";
  watch(stream);
}

function stopCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  $("shoot").disabled = true;
  $("camera").textContent = "Start the camera";
  $("camera").ariaPressed = "false";
  if (!$("video").hidden) fill(null);
}

function frame() {
  const video = $("video");
  const canvas = make("canvas", { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  return new Promise((resolve) => { canvas.toBlob(resolve, "image/jpeg", FRAME_QUALITY); });
}

// One frame is on its way at a time: the next is taken when the answer is here.
async function watch(watched) {
  try {
    while (stream === watched) {
      try {
        const found = await call("recognise", [["photo", await frame()]]);
        if (stream === watched) show(found);
      } catch (error) {
        if (error.status !== 503) throw error;
        await wait(error.retryAfterS || 1);
      }
      await new Promise(requestAnimationFrame);
    }
  } catch (error) {
    stopCamera();
    if (!(error instanceof Refused)) throw error;
    say(error.message);
  }
}

// Enrolling.

function add(blobs) {
  fits([...shots.map((shot) => shot.blob), ...blobs], limits.photos);
  shots.push(...blobs.map((blob) => ({ blob, url: URL.createObjectURL(blob) })));
  drawShots();
}

function drop(kept) {
  for (const shot of shots) if (!kept.includes(shot)) URL.revokeObjectURL(shot.url);
  shots = kept;
  drawShots();
}

function drawShots() {
  $("thumbs").replaceChildren(...shots.map((shot, place) => {
    const button = make("button", { type: "button", ariaLabel: `Leave out photo ${place + 1}` }, "×");
    button.addEventListener("click", () => {
      drop(shots.filter((other) => other !== shot));
      $("photos").focus();
    });
    return make("li", {}, make("img", { src: shot.url, alt: `Photo ${place + 1}` }), button);
  }));
  $("shots").querySelector("p").hidden = shots.length > 0;
  $("held").textContent = `${plural(shots.length, "photo", "photos")} to enrol.`;
}

async function enrol(force = false) {
  if (!shots.length) throw new Refused("Add a photo first.");
  const fields = [["name", $("name").value], ...shots.map((shot) => ["photo", shot.blob])];
  $("send").ariaDisabled = "true";
  try {
    const { name, added, refused, already, looks_like, similarity } = await call("enroll", force ? [...fields, ["force", "1"]] : fields);
    drop([]);
    $("form").reset();
    await refresh();
    say([`${name}: ${plural(added, "photo", "photos")} enrolled.`, ...refused,
      ...(already ? [`${plural(already, "photo was", "photos were")} enrolled already.`] : []),
      ...(looks_like ? [`Looks like ${shown(looks_like)} (${similarity.toFixed(3)}).`] : [])].join("\n"));
  } catch (error) {
    if (error.status !== 409 || force) throw error;
    const doubt = error.message.slice(0, error.message.lastIndexOf(";")); // its remedy is not the page's
    if (await ask(`${doubt[0].toUpperCase()}${doubt.slice(1)}.`, "Enrol all the same")) await enrol(true);
  } finally {
    $("send").ariaDisabled = "false";
  }
}

function droppable(element, take) {
  element.addEventListener("dragover", (event) => { event.preventDefault(); element.classList.add("over"); });
  element.addEventListener("dragleave", () => element.classList.remove("over"));
  element.addEventListener("drop", (event) => {
    event.preventDefault();
    element.classList.remove("over");
    if (event.dataTransfer.files.length) attempt(() => take([...event.dataTransfer.files]));
  });
}

function pickable(input, take) {
  input.addEventListener("change", () => {
    const files = [...input.files];
    input.value = ""; // so that the same photo can be chosen again
    if (files.length) attempt(() => take(files));
  });
}

const takeOne = (files) => { fits(files, 1); return look(files[0]); };
// A photo that misses its place must not replace the page.
for (const kind of ["dragover", "drop"]) window.addEventListener(kind, (event) => event.preventDefault());
droppable($("stage"), takeOne);
pickable($("photo"), takeOne);
droppable($("shots"), add);
pickable($("photos"), add);
$("camera").addEventListener("click", once(() => attempt(stream ? stopCamera : startCamera)));
$("shoot").addEventListener("click", () => attempt(async () => add([await frame()])));
$("form").addEventListener("submit", (event) => event.preventDefault());
$("form").addEventListener("submit", once(() => attempt(enrol)));
$("locked").addEventListener("cancel", (event) => event.preventDefault());
// Then groups.js has run too.
document.addEventListener("DOMContentLoaded", () => attempt(refresh).then(() => { document.body.dataset.ready = "true"; }));
