"use strict";
// Who is on a photo or before the camera: boxes with numbers, and a card for each face. It uses the functions of page.js.
const FRAME_QUALITY = 0.9;
const AROUND = 1.6; // side of a cut-out face, of the longer side of its box
const MOST_PX = 480; // side of a cut-out face
let stream = null; // of the camera
let watching = null; // the stream whose frames are recognised
let photo = null; // the photo that is looked at
let looks = 0; // counts what was looked at, so that a late answer about another photo is not shown
let placed = null; // the answer whose boxes are shown
let cards = [];

const title = (face) => (face.name === null ? (face.refused ? "not judged" : "unknown") : shown(face.name));

function show(found, source) {
  const scale = (source.naturalWidth || source.width) / found.width;
  cards.length = Math.min(cards.length, found.faces.length);
  found.faces.forEach((face, place) => {
    cards[place] ??= faceCard(place + 1);
    cards[place].update(face, found.threshold, scale ? cutOut(source, face.box, scale) : null);
  });
  $("faces").replaceChildren(...(cards.length ? cards.map((card) => card.element) : [make("li", { className: "none" }, "No face was found.")]));
  const names = found.faces.map(title).join(", ") || "No face was found.";
  if ($("said").textContent !== names) $("said").textContent = names; // read out once, not every frame
  placed = scale ? found : null;
  placeBoxes();
}

// The square around a face, as large as the photo allows.
function cutOut(source, [x, y, width, height], scale) {
  const [wide, high] = [source.naturalWidth || source.width, source.naturalHeight || source.height];
  const side = Math.min(AROUND * Math.max(width, height) * scale, wide, high);
  const clamp = (middle, most) => Math.max(0, Math.min(middle - side / 2, most - side));
  const size = Math.max(1, Math.round(Math.min(side, MOST_PX)));
  const canvas = make("canvas", { width: size, height: size });
  const [left, top] = [clamp((x + width / 2) * scale, wide), clamp((y + height / 2) * scale, high)];
  canvas.getContext("2d").drawImage(source, left, top, side, side, 0, 0, size, size);
  return canvas;
}

// A card is kept while frames come and go, so that its button can be pressed.
function faceCard(number) {
  const picture = make("div", { className: "cut", ariaHidden: "true" });
  const name = make("strong", { dir: "auto" });
  const fill = make("i", { className: "fill" });
  const mark = make("i", { className: "mark" });
  const bar = make("div", { className: "bar", ariaHidden: "true" }, fill, mark);
  const score = make("p", { className: "score" });
  const button = make("button", { type: "button" }, "Enrol this face");
  let face = null;
  let canvas = null;
  button.addEventListener("click", () => attempt(() => enrolFace(canvas)));
  const element = make("li", { className: "face" }, picture,
    make("div", {}, make("p", { className: "who" }, make("span", { className: "number" }, String(number)), " ", name), bar, score, button));
  for (const kind of ["pointerenter", "pointerleave"]) {
    element.addEventListener(kind, () => document.querySelector(`.box[data-number="${number}"]`)?.classList.toggle("lit", kind === "pointerenter"));
  }
  const percent = (value) => `${100 * Math.max(0, Math.min(1, value))}%`;
  const update = (now, threshold, cut) => {
    [face, canvas] = [now, cut];
    picture.replaceChildren(...(canvas ? [canvas] : []));
    name.textContent = title(face);
    element.classList.toggle("known", face.name !== null);
    bar.hidden = face.score === null;
    fill.style.width = percent(face.score ?? 0);
    mark.style.left = percent(threshold);
    score.textContent = describe(face, threshold);
    button.hidden = !canvas || face.name !== null || face.refused !== null;
  };
  return { element, update };
}

function describe(face, threshold) {
  if (face.refused) return face.refused;
  if (face.score === null) return "There is nobody to compare with yet.";
  const nearest = face.name === null && face.nearest !== null ? `; nearest: ${shown(face.nearest)}` : "";
  return `similarity ${face.score.toFixed(3)}, threshold ${threshold.toFixed(3)}${nearest}`;
}

async function enrolFace(canvas) {
  await add([await new Promise((resolve) => { canvas.toBlob(resolve, "image/jpeg", 0.95); })]);
  tell({ notes: ["The face is with the photos to enrol: write the name, then Enrol."] });
  $("name").focus();
  $("enrol").scrollIntoView({ block: "nearest" });
}

// Boxes and their labels, which are a number and, where there is room, the name.
function placeBoxes() {
  const picture = [$("video"), $("shown")].find((element) => !element.hidden);
  if (!placed || !picture) {
    $("boxes").replaceChildren();
    return;
  }
  const scale = picture.offsetWidth / placed.width;
  const faces = placed.faces.map(({ box: [x, y, width, height] }) => ({
    left: picture.offsetLeft + x * scale, top: picture.offsetTop + y * scale, width: width * scale, height: height * scale,
  }));
  const boxes = placed.faces.map((face, place) => {
    const box = make("div", { className: face.name === null ? "box" : "box known" });
    box.dataset.number = String(place + 1);
    put(box, faces[place]);
    return box;
  });
  const labels = placed.faces.map((face, place) => [
    make("span", { className: "tag" }, String(place + 1)),
    make("span", { className: "tag", dir: "auto" }, `${place + 1} ${title(face)}`),
  ]);
  $("boxes").replaceChildren(...boxes, ...labels.flat()); // in the page, so that they have a size
  const whole = { left: 0, top: 0, width: $("view").clientWidth, height: $("view").clientHeight };
  const sizes = labels.map((pair) => pair.map((label) => ({ width: label.offsetWidth, height: label.offsetHeight })));
  // Every face has its number first; then names are written where they hide nothing.
  const places = sizes.map(() => null);
  for (const length of [0, 1]) {
    faces.forEach((face, n) => {
      const others = faces.filter((_, m) => m !== n);
      const free = freePlace(face, sizes[n][length], others, places.filter((other, m) => other && m !== n), whole);
      if (!free) return;
      places[n] = free;
      put(labels[n][length], { left: free.left, top: free.top });
      labels[n][length].dataset.placed = "true";
      if (length) delete labels[n][0].dataset.placed;
    });
  }
  for (const label of labels.flat()) if (!label.dataset.placed) label.remove();
}

const put = (element, rectangle) => {
  for (const [side, value] of Object.entries(rectangle)) element.style[side] = `${value}px`;
};
const meet = (a, b) => a.left < b.left + b.width && b.left < a.left + a.width && a.top < b.top + b.height && b.top < a.top + a.height;

const distance = (a, b) => Math.hypot(Math.max(0, a.left - b.left - b.width, b.left - a.left - a.width), Math.max(0, a.top - b.top - b.height, b.top - a.top - a.height));

// The first place beside a box, then a little further away, that is within the picture, covers no face and no label, and is
// nearer to its own face than to any other.
function freePlace(face, { width, height }, others, labels, whole) {
  for (const gap of [1, 0.5 * height, height]) {
    const [left, middle, right] = [face.left, face.left + (face.width - width) / 2, face.left + face.width - width];
    const [above, below] = [face.top - height - gap, face.top + face.height + gap];
    const [before, after] = [face.left - width - gap, face.left + face.width + gap];
    const heights = [face.top, face.top + (face.height - height) / 2, face.top + face.height - height];
    const candidates = [
      ...[left, middle, right].flatMap((x) => [[x, below], [x, above]]),
      ...heights.flatMap((y) => [[after, y], [before, y]]),
      ...[before, after].flatMap((x) => [[x, below], [x, above]]),
      // At the edge of the picture it is moved inwards.
      ...[below, above].map((y) => [Math.max(0, Math.min(middle, whole.width - width)), y]),
    ];
    for (const [x, y] of candidates) {
      const place = { left: x, top: y, width, height };
      const inside = x >= 0 && y >= 0 && x + width <= whole.width && y + height <= whole.height;
      const own = distance(place, face);
      const isFree = inside && !labels.some((other) => meet(place, other));
      if (isFree && others.every((other) => own < distance(place, other))) return place;
    }
  }
  return null;
}

function fill(element) {
  for (const other of [$("video"), $("shown")]) other.hidden = other !== element;
  $("view").hidden = element === null;
  $("hint").hidden = element !== null;
  $("stage").classList.toggle("filled", element !== null);
  placed = null;
  cards = [];
  $("boxes").replaceChildren();
  $("faces").replaceChildren();
  $("said").textContent = ""; // or the same names would not be read out again
}

// Nothing of a photo stays beside an error about the next one.
function clearLook() {
  looks += 1;
  photo = null;
  if (!watching) fill(null);
}

const isPhoto = (blob) => blob.type.startsWith("image/"); // a folder has no type

async function takeOne(files) {
  clearLook();
  if (files.length > 1) throw new Refused("One photo at a time is looked at: drop one of them.");
  const [file] = files;
  if (!isPhoto(file)) throw new Refused(`${file.name} is no photo.`);
  if (file.size > limits.photo_bytes) throw new Refused(`${file.name} is over ${limits.photo_bytes / 1e6} MB.`);
  await look(file);
}

async function look(file) {
  stopCamera();
  URL.revokeObjectURL($("shown").src);
  $("shown").src = URL.createObjectURL(file);
  fill($("shown"));
  photo = file;
  await recogniseShown(true);
}

// Looks at the photo again when people have changed, so that no old name stands under it.
async function lookAgain() {
  if (photo) await recogniseShown(false);
}

async function recogniseShown(isNew) {
  looks += 1;
  const mine = looks;
  if (isNew) $("faces").replaceChildren(make("li", { className: "none" }, "Looking…"));
  try {
    const [found] = await Promise.all([call("recognise", [["photo", photo]]), $("shown").decode().catch(() => {})]);
    if (mine === looks) show(found, $("shown"));
  } catch (error) {
    if (mine !== looks) return;
    clearLook();
    throw error;
  }
}

// The camera, for this part and for enrol.js.

async function openCamera() {
  if (!navigator.mediaDevices) {
    throw new Refused("A browser gives its camera to https and to this machine alone: open the page as localhost, "
      + "or start persona serve with --certificate.");
  }
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 640 } } });
  } catch (error) {
    throw new Refused(`No camera: ${error.message}`);
  }
}

async function play(video) {
  video.srcObject = stream;
  await video.play().catch((error) => {
    closeCamera();
    throw error;
  });
}

async function startCamera() {
  clearLook();
  if (!stream) await openCamera();
  await play($("video"));
  watching = stream;
  fill($("video"));
  $("camera").textContent = "Stop the camera";
  $("camera").ariaPressed = "true";
  showShoot();
  watch(watching);
}

// Stops looking. The camera itself goes on while enrol.js uses it.
function stopCamera() {
  if (!watching) return;
  watching = null;
  $("camera").textContent = "Start the camera";
  $("camera").ariaPressed = "false";
  fill(null);
  if ($("mirror").hidden) closeCamera();
  showShoot();
}

function closeCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
}

function frame(video) {
  const canvas = make("canvas", { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  return new Promise((resolve) => { canvas.toBlob((blob) => resolve({ canvas, blob }), "image/jpeg", FRAME_QUALITY); });
}

// One frame is on its way at a time: the next is taken when the answer is here.
async function watch(watched) {
  try {
    while (watching === watched) {
      const { canvas, blob } = await frame($("video"));
      try {
        const found = await call("recognise", [["photo", blob]]);
        if (watching === watched) show(found, canvas);
      } catch (error) {
        if (error.status !== 503) throw error;
        await wait(error.retryAfterS || 1);
      }
      await new Promise(requestAnimationFrame);
    }
  } catch (error) {
    if (watching !== watched) return;
    stopCamera();
    if (!(error instanceof Refused)) throw error;
    tell({ bad: [error.message] });
  }
}

droppable($("stage"), $("photo"), takeOne, () => $("view").hidden);
$("pick").addEventListener("click", () => $("photo").click());
$("camera").addEventListener("click", once(() => attempt(watching ? stopCamera : startCamera)));
new ResizeObserver(placeBoxes).observe($("view"));
