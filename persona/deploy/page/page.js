// Two photos, a frame in each, the model's embedding of each frame, and the cosine of both.
//
// 1. a photo is opened or taken; the face near its middle is found (detect.js) and a frame put
//    around it as the student's training photos were cut (crop.js), or by hand
// 2. the frame's pixels go into the model as they are: it resizes and normalises by itself
// 3. two embeddings of unit length are compared
import { FivePointCrop, MarginCrop, cut } from "./crop.js";
import { loadDetector } from "./detect.js";
import { open, pause, read, tensor } from "./runtime.js";

const FIRST = 0.55; // of the photo's shorter side, where no face was found
const SEARCHED = 4096; // px of a photo's longer side; a larger one is reduced to be searched: 16 bytes a px
const SMALLEST = 32; // px of a frame's height, and of a photo's sides
const $ = (selector, root = document) => root.querySelector(selector);
const show = (element, shown) => { element.hidden = !shown; };

let model = null; // a function from tensors to tensors
let detector = null;
export let crop = new MarginCrop({ size: 160, margin: 14 });

// The model's embedding of an ImageData: Float32Array of unit length.
export async function embed({ data, width, height }) {
  const rgb = new Uint8Array(width * height * 3);
  for (let from = 0, to = 0; from < data.length; from += 4) {
    rgb[to++] = data[from];
    rgb[to++] = data[from + 1];
    rgb[to++] = data[from + 2];
  }
  return (await model({ images: tensor(rgb, [1, height, width, 3]) })).embedding.data;
}

export const cosine = (a, b) => a.reduce((sum, value, place) => sum + value * b[place], 0);

// The faces of a photo, the large central one first.
export async function findFaces(photo) {
  const { width, height } = photo;
  const scale = Math.max(1, Math.max(width, height) / SEARCHED);
  const sides = [width, height].map((side) => Math.round(side / scale));
  const faces = await detector(cut(photo, { x: 0, y: 0, width, height }, ...sides));
  const larger = (px) => px * scale;
  return faces.map(({ box, score, points }) => (
    { box: box.map(larger), score, points: points.map((point) => point.map(larger)) }));
}

const inside = (at, { x, y, width, height }) => (
  at.x > x && at.x < x + width && at.y > y && at.y < y + height);

// A point of a frame, in shares of its sides, on a canvas.
function pointOf({ x, y, width, height, angle }, [across, down], scale) {
  const [right, below] = [(across - 0.5) * width, (down - 0.5) * height];
  return [
    (x + width / 2 + Math.cos(angle) * right - Math.sin(angle) * below) * scale,
    (y + height / 2 + Math.sin(angle) * right + Math.cos(angle) * below) * scale,
  ];
}

function outline(context, frame, scale) {
  const corners = [[0, 0], [1, 0], [1, 1], [0, 1]].map((corner) => pointOf(frame, corner, scale));
  context.moveTo(...corners.pop());
  for (const corner of corners) context.lineTo(...corner);
  context.closePath();
}

// Rings for the eyes and a line for the mouth: by them a frame is placed as a detector does.
function mark(context, frame, scale) {
  const radius = (frame.width * scale) / 14;
  for (const eye of crop.eyes) {
    const [x, y] = pointOf(frame, eye, scale);
    context.moveTo(x + radius, y);
    context.arc(x, y, radius, 0, 2 * Math.PI);
  }
  context.moveTo(...pointOf(frame, crop.mouth[0], scale));
  context.lineTo(...pointOf(frame, crop.mouth[1], scale));
}

function stroke(context, ...lines) {
  for (const [width, colour] of lines) {
    context.lineWidth = width;
    context.strokeStyle = colour;
    context.stroke();
  }
}

export class Side {
  constructor(name) {
    this.name = name;
    this.root = $("#side").content.cloneNode(true).firstElementChild;
    this.photo = this.frame = this.embedding = this.stream = null;
    this.found = []; // the frames of all faces
    this.chosen = null; // the one of these that the frame is
    this.placed = false; // around a face or by hand, not only in the middle
    this.looking = false; // for the faces of this photo
    this.starting = false; // the camera: a button that is disabled meanwhile would lose the focus
    this.order = 0; // of the photos that were asked for
    this.turn = 0;
    this.canvas = $(".photo", this.root);
    this.video = $("video", this.root);
    $("h2", this.root).textContent = `${name} face`;
    for (const label of this.root.querySelectorAll(".unseen:not(input)")) {
      label.textContent = `, ${name.toLowerCase()} photo`;
    }
    this.canvas.ariaLabel = `${name} photo. Move the frame with the arrow keys, change its size `
      + "with plus and minus";
    $(".face", this.root).ariaLabel = `${name} face as the model gets it`;
    this.video.ariaLabel = `Camera, ${name.toLowerCase()} face`;
    this.listen();
  }

  listen() {
    const file = $("input[type=file]", this.root);
    file.addEventListener("change", () => { this.open(file.files[0]); file.value = ""; });
    $(".camera", this.root).addEventListener("click", () => this.toggleCamera());
    $(".take", this.root).addEventListener("click", () => this.take());
    $(".next", this.root).addEventListener("click", () => {
      this.choose(this.found[(this.found.indexOf(this.chosen) + 1) % this.found.length]);
    });
    this.video.addEventListener("loadeddata", () => this.camera(Boolean(this.stream)));
    $(".size", this.root).addEventListener("input", ({ target }) => {
      this.byHand();
      this.resize(target.valueAsNumber);
    });
    this.root.addEventListener("dragover", () => this.root.classList.add("over"));
    this.root.addEventListener("dragleave", () => this.root.classList.remove("over"));
    this.root.addEventListener("drop", ({ dataTransfer: { files } }) => {
      this.root.classList.remove("over");
      if (files.length > 1) this.complain("Drop one photo at a time: a side holds one.");
      else this.open(files[0]);
    });
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.canvas.addEventListener("pointerdown", (event) => {
      this.canvas.setPointerCapture(event.pointerId);
      const { x, y, width, height } = this.frame;
      const at = this.place(event);
      const other = inside(at, this.frame) ? null : this.found.find((face) => inside(at, face));
      if (other) {
        this.choose(other);
        return;
      }
      this.hold = inside(at, this.frame) ? { x: at.x - x, y: at.y - y }
        : { x: width / 2, y: height / 2 };
      this.byHand();
      this.drag(event);
    });
    this.canvas.addEventListener("pointermove", (event) => this.hold && this.drag(event));
    for (const end of ["pointerup", "pointercancel"]) {
      this.canvas.addEventListener(end, () => { this.hold = null; });
    }
  }

  get largest() { return Math.floor(Math.min(this.photo.height, this.photo.width / this.aspect)); }

  complain(text) {
    $(".error", this.root).textContent = text;
    show($(".error", this.root), Boolean(text));
  }

  // A file, or the picture of the camera that is seen now. Which is decoded first does not matter:
  // the one that was asked for last is used.
  async open(source) {
    if (!source) return;
    const order = ++this.order;
    const photo = await createImageBitmap(source).catch(() => null);
    if (order !== this.order) {
      photo?.close();
      return;
    }
    this.stopCamera();
    if (photo) this.use(photo);
    else this.complain(`${source.name || "This"} is no photo that this browser can open.`);
  }

  use(photo) {
    if (Math.min(photo.width, photo.height) < SMALLEST) {
      this.complain(`This photo has ${photo.width} × ${photo.height} px: too few for a face.`);
      photo.close();
      return;
    }
    this.complain("");
    this.photo?.close(); // its pixels are not the garbage collector's
    this.photo = photo;
    this.hold = null;
    this.found = [];
    this.chosen = null;
    const { width, height } = photo;
    this.aspect = crop.aspect;
    this.placed = false;
    this.frame = { x: width / 2, y: height / 2, width: 0, height: 0, angle: 0 };
    this.resize(Math.min(width, height) * FIRST);
    show(this.canvas, true);
    show($(".crop", this.root), true);
    show($(".empty", this.root), false);
    show($(".next", this.root), false);
    this.look();
    forget();
  }

  // Finds the faces and puts the frame around the first, unless it was placed by hand meanwhile.
  async look() {
    const { photo } = this;
    if (!detector) return;
    this.looking = true;
    this.tell("Looking for the face …");
    await pause(); // that it is drawn
    if (photo !== this.photo) return;
    let faces = [];
    try {
      faces = await findFaces(photo);
    } catch (error) {
      if (photo === this.photo) this.complain(`The detector failed: ${error.message}`);
    }
    if (photo !== this.photo) return;
    this.looking = false;
    this.found = faces.map((face) => crop.frame(face, photo)).filter(Boolean);
    const count = this.found.length;
    this.count();
    show($(".next", this.root), count > 1);
    if (count && !this.placed) this.fit(this.found[0]);
    else this.move(0, 0);
  }

  tell(text) { $(".found", this.root).textContent = text; }

  count() {
    const count = this.found.length;
    this.tell(count === 0 ? "No face found: put the frame around it."
      : count === 1 ? "One face found." : `${count} faces found.`);
  }

  // Another face than the detector's first.
  choose(frame) {
    this.fit(frame);
    this.tell(`Face ${this.found.indexOf(frame) + 1} of ${this.found.length}.`);
  }

  // Takes the frame of a face that was found.
  fit(frame) {
    this.chosen = this.frame = frame;
    this.aspect = frame.width / frame.height;
    this.placed = true;
    this.move(0, 0);
  }

  byHand() {
    if (this.chosen) this.count();
    this.chosen = null;
    this.placed = true;
  }

  // Around the same middle.
  resize(wanted) {
    const { x, y, width, height, angle } = this.frame;
    const high = Math.min(Math.max(wanted, SMALLEST), this.largest);
    const wide = high * this.aspect;
    const corner = { x: x + (width - wide) / 2, y: y + (height - high) / 2 };
    this.frame = { ...corner, width: wide, height: high, angle };
    this.move(0, 0);
  }

  move(right, down) {
    const { x, y } = this.frame;
    this.frame = crop.keep({ ...this.frame, x: x + right, y: y + down }, this.photo);
    this.draw();
    this.compute();
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    const scale = this.photo.width / box.width;
    return { x: (event.clientX - box.x) * scale, y: (event.clientY - box.y) * scale };
  }

  drag(event) {
    const at = this.place(event);
    this.move(at.x - this.hold.x - this.frame.x, at.y - this.hold.y - this.frame.y);
  }

  key(event) {
    const step = Math.max(1, Math.round(this.largest / 100)) * (event.shiftKey ? 5 : 1);
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const sizes = { "+": 2, "=": 2, "-": -2, _: -2 };
    if (event.key in moves || event.key in sizes) this.byHand();
    if (event.key in moves) this.move(...moves[event.key].map((way) => way * step));
    else if (event.key in sizes) this.resize(this.frame.height + sizes[event.key] * step);
    else return;
    event.preventDefault();
  }

  draw() {
    const { photo, canvas, frame } = this;
    const scale = 1000 / Math.max(photo.width, photo.height);
    canvas.width = Math.round(photo.width * scale);
    canvas.height = Math.round(photo.height * scale);
    const context = canvas.getContext("2d");
    context.drawImage(photo, 0, 0, canvas.width, canvas.height);
    context.fillStyle = "rgba(0, 0, 0, 0.55)";
    context.beginPath();
    context.rect(0, 0, canvas.width, canvas.height);
    outline(context, frame, scale);
    context.fill("evenodd");
    context.beginPath();
    for (const other of this.found) if (other !== this.chosen) outline(context, other, scale);
    stroke(context, [6, "rgba(0, 0, 0, 0.5)"], [3, "white"]);
    context.beginPath();
    outline(context, frame, scale);
    stroke(context, [6, "white"]);
    if (!this.chosen) {
      context.beginPath();
      mark(context, frame, scale);
      stroke(context, [7, "rgba(0, 0, 0, 0.5)"], [4, "white"]);
    }
    this.preview();
    // In px: a key then moves it by one at least, also where frames are of whole px.
    Object.assign($(".size", this.root),
      { min: SMALLEST, max: Math.max(SMALLEST, this.largest), value: frame.height });
  }

  // The face as it lies in the frame, upright.
  preview() {
    const { x, y, width, height, angle } = this.frame;
    const face = $(".face", this.root);
    face.width = Math.round(face.height * crop.aspect);
    const context = face.getContext("2d");
    context.translate(face.width / 2, face.height / 2);
    context.scale(face.width / width, face.height / height);
    context.rotate(-angle);
    context.drawImage(this.photo, -x - width / 2, -y - height / 2);
  }

  // The embedding of the frame where it came to rest.
  async compute() {
    const turn = ++this.turn;
    this.embedding = null;
    await pause(100);
    if (turn !== this.turn || !model || (this.looking && !this.placed)) return;
    try {
      const embedding = await embed(crop.pixels(this.photo, this.frame));
      if (turn !== this.turn) return;
      this.embedding = embedding;
      compare();
    } catch (error) {
      if (turn !== this.turn) return;
      this.complain(`The model failed: ${error.message}`);
      forget();
    }
  }

  async toggleCamera() {
    if (this.starting) return;
    if (this.stream) {
      this.stopCamera();
      return;
    }
    this.starting = true;
    try {
      // Absent where the page came neither from localhost nor by https.
      if (!navigator.mediaDevices) throw new DOMException("", "SecurityError");
      const video = { facingMode: "user", width: { ideal: 1280 } };
      this.stream = await navigator.mediaDevices.getUserMedia({ video });
      this.order++; // a photo that is still decoded would lie beside the camera's picture
      this.video.srcObject = this.stream;
      this.complain("");
    } catch (error) {
      this.complain({
        NotAllowedError: "The browser was not allowed to use the camera.",
        NotFoundError: "There is no camera here.",
        SecurityError: "Browsers give the camera to localhost and https alone.",
      }[error.name] || "The camera does not start: is another program using it?");
    } finally {
      this.starting = false;
    }
  }

  camera(on) {
    show(this.video, on);
    show($(".take", this.root), on);
    show(this.canvas, !on && this.photo);
    show($(".crop", this.root), !on && this.photo);
    show($(".empty", this.root), !on && !this.photo);
    $(".camera", this.root).firstChild.data = on ? "Stop camera" : "Camera";
    forget();
    compare();
  }

  stopCamera() {
    if (!this.stream) return;
    for (const track of this.stream.getTracks()) track.stop();
    this.stream = this.video.srcObject = null;
    this.camera(false);
  }

  async take() {
    await this.open(this.video);
    this.canvas.focus();
  }
}

export const sides = ["First", "Second"].map((name) => new Side(name));

// Both photos are seen: neither side shows its camera instead.
const both = () => sides.every(({ photo, stream }) => photo && !stream);

// What was said of photos that are no longer both here.
function forget() {
  const soon = both() && sides.some(({ looking }) => looking);
  $("#verdict").textContent = soon ? "Comparing …" : "Choose two faces.";
  $("#verdict").dataset.same = $("#similarity").textContent = "";
  show($("#scale"), false);
}

// What both embeddings say, against the threshold of the field.
function compare() {
  const [first, second] = sides.map((side) => side.embedding);
  if (!first || !second || !both()) return;
  const similarity = cosine(first, second);
  const threshold = $("#threshold").valueAsNumber;
  const same = similarity >= threshold;
  const known = Number.isFinite(threshold);
  const loose = sides.filter((side) => !side.placed);
  const verdict = $("#verdict");
  // Of a frame that lies beside the face the model may say anything.
  if (loose.length === 2) verdict.textContent = "Fit both frames first";
  else if (loose.length) verdict.textContent = `Fit the ${loose[0].name.toLowerCase()} frame first`;
  else if (!known) verdict.textContent = "The nearer to 1, the more alike";
  else verdict.textContent = same ? "Same person" : "Different people";
  verdict.dataset.same = loose.length || !known ? "" : same ? "yes" : "no";
  let digits = 3; // more where the two would look alike, though one is below the other
  while (digits < 9 && !same && similarity.toFixed(digits) === threshold.toFixed(digits)) digits++;
  $("#similarity").textContent = `Cosine similarity ${similarity.toFixed(digits)}`;
  const scale = $("#scale");
  const share = (value) => `${100 * Math.min(Math.max(value, 0), 1)}%`;
  scale.style.setProperty("--at", share(similarity));
  scale.style.setProperty("--mark", share(threshold));
  show($("#mark"), known);
  show(scale, true);
}

function describe(facts) {
  const rows = {
    Model: facts.model, Architecture: facts.architecture, Precision: facts.precision,
    Runtime: facts.runtime, "Made by": `Persona ${facts.persona}`,
  };
  for (const [name, value] of Object.entries(rows)) {
    const [term, text] = ["dt", "dd"].map((tag) => document.createElement(tag));
    [term.textContent, text.textContent] = [name, value];
    $("#model").append(term, text);
  }
  if (facts.threshold !== null) {
    // Upwards: a lower one would not keep its false accept rate.
    $("#threshold").value = (Math.ceil(facts.threshold * 1000) / 1000).toFixed(3);
  }
  $("#origin").textContent = facts.threshold === null
    ? "(none was measured for this model: choose one on faces like yours)"
    : `(${facts.threshold_of || "measured with the model"}, with frames that a detector placed; faces like yours may need another)`;
}

async function start() {
  const status = $("#status");
  $("#sides").append(...sides.map((side) => side.root));
  $("#threshold").addEventListener("input", compare);
  // A photo that misses its side must not replace the page.
  for (const kind of ["dragover", "drop"]) window.addEventListener(kind, (event) => event.preventDefault());
  window.addEventListener("pagehide", () => sides.forEach((side) => side.stopCamera()));
  status.textContent = "Loading the model: about 20 MB the first time.";
  try {
    const facts = await read("persona.json", (answer) => answer.json());
    if (!facts.alignment) throw new Error("persona.json is not what persona export wrote");
    describe(facts);
    const { method } = facts.alignment;
    crop = new (method === "five-point" ? FivePointCrop : MarginCrop)(facts.alignment);
    [model, detector] = await Promise.all([open("model.onnx"), loadDetector()]);
    show(status, false);
    for (const side of sides.filter(({ photo }) => photo)) {
      side.aspect = crop.aspect; // until now the margin crop's
      side.resize(side.frame.height);
      side.look();
    }
    document.body.dataset.ready = "yes";
  } catch (error) {
    status.textContent = `The model does not load: ${error.message}`;
  }
}

start();
