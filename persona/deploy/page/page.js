// Two photos, a frame in each, the model's embedding of each frame, and the cosine of both.
//
// 1. a photo is opened or taken, and a frame put around the face: by the browser where it can
//    find faces, else in the middle, and then by hand
// 2. the frame's pixels go into the model as they are: it resizes and normalises by itself
// 3. two embeddings of unit length are compared
import * as ort from "./ort.wasm.bundle.min.mjs";

// The model was trained on MTCNN's boxes and a margin, stretched to squares. Over 100 photos of LFW
// these are 0.745 (deviation 0.04) as wide as high.
const ASPECT = 0.75;
const MARGIN = 1.1;
// Where the eyes and the corners of the mouth lie in them, on average; deviation 0.02 of the height.
const EYES = [[0.315, 0.405], [0.71, 0.405]];
const MOUTH = [[0.34, 0.74], [0.7, 0.74]];
const FIRST = 0.55; // of the photo's shorter side, where no face was found
const LARGEST = 1024; // px of height that the model is given; it works in far fewer
const SMALLEST = 32; // px of a frame's height, and of a photo's sides
const $ = (selector, root = document) => root.querySelector(selector);
const show = (element, shown) => { element.hidden = !shown; };

ort.env.wasm.numThreads = 1; // threads would need headers that a plain server does not send
ort.env.logLevel = "error";
let session = null;
let running = Promise.resolve();

// The model's embedding of an ImageData: Float32Array of unit length. One at a time.
export function embed({ data, width, height }) {
  const rgb = new Uint8Array(width * height * 3);
  for (let from = 0, to = 0; from < data.length; from += 4) {
    rgb[to++] = data[from];
    rgb[to++] = data[from + 1];
    rgb[to++] = data[from + 2];
  }
  const images = new ort.Tensor("uint8", rgb, [1, height, width, 3]);
  const found = running.then(() => session.run({ images })).then((out) => out.embedding.data);
  running = found.catch(() => {});
  return found;
}

export const cosine = (a, b) => a.reduce((sum, value, place) => sum + value * b[place], 0);

const around = (x, y, height) => (
  { x: x - (height * ASPECT) / 2, y: y - height / 2, width: height * ASPECT, height });

// The largest face near the middle as {x, y, height}, or null.
async function findFace(photo) {
  if (!("FaceDetector" in window)) return null;
  try {
    const faces = await new FaceDetector({ maxDetectedFaces: 10 }).detect(photo);
    const boxes = faces.map(({ boundingBox: box }) => {
      const height = Math.max(box.width, box.height) * MARGIN;
      const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
      const away = Math.hypot(x - photo.width / 2, y - photo.height / 2);
      return { ...around(x, y, height), rank: height - away };
    });
    return boxes.sort((a, b) => b.rank - a.rank)[0] || null;
  } catch {
    return null; // some browsers have the name and not the service
  }
}

export class Side {
  constructor(name) {
    this.name = name;
    this.root = $("#side").content.cloneNode(true).firstElementChild;
    this.photo = this.frame = this.embedding = this.stream = null;
    this.placed = false; // by the browser or by hand, not only in the middle
    this.turn = 0;
    this.canvas = $(".photo", this.root);
    this.video = $("video", this.root);
    $("h2", this.root).textContent = `${name} face`;
    for (const label of this.root.querySelectorAll(".tools .unseen:not(input)")) {
      label.textContent = `, ${name.toLowerCase()} face`;
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
    this.video.addEventListener("loadeddata", () => this.camera(true));
    $(".size", this.root).addEventListener("input", ({ target }) => {
      this.placed = true;
      this.resize(SMALLEST + (this.largest - SMALLEST) * (target.value / 1000));
    });
    this.root.addEventListener("dragover", (event) => {
      event.preventDefault();
      this.root.classList.add("over");
    });
    this.root.addEventListener("dragleave", () => this.root.classList.remove("over"));
    this.root.addEventListener("drop", (event) => {
      event.preventDefault();
      this.root.classList.remove("over");
      this.open(event.dataTransfer.files[0]);
    });
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.canvas.addEventListener("pointerdown", (event) => {
      this.canvas.setPointerCapture(event.pointerId);
      const { x, y, width, height } = this.frame;
      const at = this.place(event);
      const inside = at.x > x && at.x < x + width && at.y > y && at.y < y + height;
      this.hold = inside ? { x: at.x - x, y: at.y - y } : { x: width / 2, y: height / 2 };
      this.placed = true;
      this.drag(event);
    });
    this.canvas.addEventListener("pointermove", (event) => this.hold && this.drag(event));
    for (const end of ["pointerup", "pointercancel"]) {
      this.canvas.addEventListener(end, () => { this.hold = null; });
    }
  }

  get largest() { return Math.floor(Math.min(this.photo.height, this.photo.width / ASPECT)); }

  complain(text) {
    $(".error", this.root).textContent = text;
    show($(".error", this.root), Boolean(text));
  }

  async open(file) {
    if (!file) return;
    this.stopCamera();
    try {
      await this.use(await createImageBitmap(file));
    } catch {
      this.complain(`${file.name || "This"} is no photo that this browser can open.`);
    }
  }

  async use(photo) {
    if (Math.min(photo.width, photo.height) < SMALLEST) {
      this.complain(`This photo has ${photo.width} × ${photo.height} px: too few for a face.`);
      return;
    }
    this.complain("");
    this.photo = photo;
    const { width, height } = photo;
    const found = await findFace(photo);
    this.placed = found !== null;
    this.frame = found || around(width / 2, height / 2, Math.min(width, height) * FIRST);
    this.resize(this.frame.height);
    show(this.canvas, true);
    show($(".crop", this.root), true);
    show($(".empty", this.root), false);
  }

  // Around the same middle.
  resize(wanted) {
    const { x, y, width, height } = this.frame;
    this.frame = around(
      x + width / 2, y + height / 2, Math.min(Math.max(wanted, SMALLEST), this.largest));
    this.move(0, 0);
  }

  // By so many px, within the photo, to whole pixels: the model gets them unchanged.
  move(right, down) {
    const [width, height] = [this.frame.width, this.frame.height].map(Math.round);
    const keep = (value, room) => Math.round(Math.min(Math.max(value, 0), room));
    this.frame = {
      x: keep(this.frame.x + right, this.photo.width - width),
      y: keep(this.frame.y + down, this.photo.height - height),
      width,
      height,
    };
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
    this.placed ||= event.key in moves || event.key in sizes;
    if (event.key in moves) this.move(...moves[event.key].map((way) => way * step));
    else if (event.key in sizes) this.resize(this.frame.height + sizes[event.key] * step);
    else return;
    event.preventDefault();
  }

  // The frame's pixels; the photo's own ones up to LARGEST.
  pixels() {
    const { x, y, width, height } = this.frame;
    const scale = Math.min(1, LARGEST / height);
    const size = [width, height].map((side) => Math.round(side * scale));
    const context = new OffscreenCanvas(...size).getContext("2d", { willReadFrequently: true });
    context.fillStyle = "white"; // below what is transparent
    context.fillRect(0, 0, ...size);
    context.imageSmoothingQuality = "high";
    context.drawImage(this.photo, x, y, width, height, 0, 0, ...size);
    return context.getImageData(0, 0, ...size);
  }

  draw() {
    const { photo, canvas, frame } = this;
    const scale = 1000 / Math.max(photo.width, photo.height);
    canvas.width = Math.round(photo.width * scale);
    canvas.height = Math.round(photo.height * scale);
    const context = canvas.getContext("2d");
    context.drawImage(photo, 0, 0, canvas.width, canvas.height);
    const box = [frame.x, frame.y, frame.width, frame.height].map((value) => value * scale);
    context.fillStyle = "rgba(0, 0, 0, 0.55)";
    context.beginPath();
    context.rect(0, 0, canvas.width, canvas.height);
    context.rect(...box);
    context.fill("evenodd");
    context.lineWidth = 6;
    context.strokeStyle = "white";
    context.strokeRect(...box);
    this.mark(context, box);
    const face = $(".face", this.root);
    face.getContext("2d").drawImage(
      photo, frame.x, frame.y, frame.width, frame.height, 0, 0, face.width, face.height);
    const room = Math.max(1, this.largest - SMALLEST);
    $(".size", this.root).value = ((frame.height - SMALLEST) / room) * 1000;
  }

  // Rings for the eyes and a line for the mouth: by them a frame is placed as a detector does.
  mark(context, [left, top, width, height]) {
    const at = ([x, y]) => [left + x * width, top + y * height];
    context.beginPath();
    for (const eye of EYES) {
      const [x, y] = at(eye);
      context.moveTo(x + width / 14, y);
      context.arc(x, y, width / 14, 0, 2 * Math.PI);
    }
    context.moveTo(...at(MOUTH[0]));
    context.lineTo(...at(MOUTH[1]));
    for (const [line, colour] of [[7, "rgba(0, 0, 0, 0.5)"], [4, "white"]]) {
      context.lineWidth = line;
      context.strokeStyle = colour;
      context.stroke();
    }
  }

  // The embedding of the frame where it came to rest.
  async compute() {
    const turn = ++this.turn;
    this.embedding = null;
    await new Promise((resume) => { setTimeout(resume, 100); });
    if (turn !== this.turn || !session) return;
    try {
      const embedding = await embed(this.pixels());
      if (turn !== this.turn) return;
      this.embedding = embedding;
      compare();
    } catch (error) {
      this.complain(`The model failed: ${error.message}`);
    }
  }

  async toggleCamera() {
    if (this.stream) {
      this.stopCamera();
      return;
    }
    const button = $(".camera", this.root);
    button.disabled = true; // while the browser asks for leave
    try {
      // Absent where the page came neither from localhost nor by https.
      if (!navigator.mediaDevices) throw new DOMException("", "SecurityError");
      const video = { facingMode: "user", width: { ideal: 1280 } };
      this.stream = await navigator.mediaDevices.getUserMedia({ video });
      this.video.srcObject = this.stream;
      this.complain("");
    } catch (error) {
      this.complain({
        NotAllowedError: "The browser was not allowed to use the camera.",
        NotFoundError: "There is no camera here.",
        SecurityError: "Browsers give the camera to localhost and https alone.",
      }[error.name] || "The camera does not start: is another program using it?");
    } finally {
      button.disabled = false;
    }
  }

  camera(on) {
    show(this.video, on);
    show($(".take", this.root), on);
    show(this.canvas, !on && this.photo);
    show($(".crop", this.root), !on && this.photo);
    show($(".empty", this.root), !on && !this.photo);
    $(".camera", this.root).firstChild.data = on ? "Stop camera" : "Camera";
  }

  stopCamera() {
    if (!this.stream) return;
    for (const track of this.stream.getTracks()) track.stop();
    this.stream = this.video.srcObject = null;
    this.camera(false);
  }

  async take() {
    const photo = await createImageBitmap(this.video);
    this.stopCamera();
    await this.use(photo);
    this.canvas.focus();
  }
}

export const sides = ["First", "Second"].map((name) => new Side(name));

// What both embeddings say, against the threshold of the field.
function compare() {
  const [first, second] = sides.map((side) => side.embedding);
  if (!first || !second) return;
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
  $("#similarity").textContent = `Cosine similarity ${similarity.toFixed(3)}`;
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

async function read(name) {
  const answer = await fetch(name);
  if (!answer.ok) throw new Error(`${name}: the server answers ${answer.status}`);
  return answer;
}

async function start() {
  const status = $("#status");
  $("#sides").append(...sides.map((side) => side.root));
  $("#finding").textContent = "FaceDetector" in window
    ? "This browser can find faces by itself; look whether the frame fits."
    : "This browser does not find faces by itself: move and size the frame of each, or tap it where it fits.";
  $("#finding").textContent += " It fits when the eyes lie on the rings and the mouth on the line.";
  show($("#finding"), true);
  $("#threshold").addEventListener("input", compare);
  window.addEventListener("pagehide", () => sides.forEach((side) => side.stopCamera()));
  status.textContent = "Loading the model: about 20 MB the first time.";
  try {
    describe(await (await read("persona.json")).json());
    const model = new Uint8Array(await (await read("model.onnx")).arrayBuffer());
    session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
    for (const side of sides) if (side.photo) side.compute();
    show(status, false);
    document.body.dataset.ready = "yes";
  } catch (error) {
    status.textContent = `The model does not load: ${error.message}`;
  }
}

start();
