// MTCNN (Zhang et al. 2016, arXiv:1604.02878) as the student's training photos went through it: the
// networks, thresholds and arithmetic of persona/data/align/detect.py, which are facenet-pytorch's.
//
// 1. the photo is summed up once: the mean of any rectangle is then four look-ups
// 2. P-Net looks at every level of the photo's pyramid for what could be a face
// 3. R-Net and O-Net look at each of these more closely; O-Net also gives its five points
// 4. after each network, what overlaps a better one is dropped, and the rest is moved as it says
//
// A face is { box: [x0, y0, x1, y1], score, points: five of [x, y] }, px of the photo; on the way
// there it is without points.
import { open, tensor } from "./runtime.js";

const MIN_FACE = 20; // px
const CELL = 12; // P-Net's window, px
const STRIDE = 2;
const FACTOR = 0.709; // between two levels of the pyramid
const THRESHOLDS = [0.6, 0.7, 0.7];
const CENTRE_WEIGHT = 2;
// The finest levels of a photo of more than 1200 px are left out: they take longest, and hold faces
// of less than a sixtieth of its side.
const LARGEST_LEVEL = 720;
const BLOCK = 64; // faces that R-Net or O-Net take at once

// A photo, an ImageData, as the sums of all pixels above and left of every corner.
export class AreaSums {
  constructor({ data, width, height }) {
    [this.width, this.height, this.stride] = [width, height, 3 * (width + 1)];
    // 32 bits may overflow; the difference of two sums is right all the same.
    const sums = this.sums = new Int32Array((height + 1) * this.stride);
    for (let y = 0, from = 0, to = this.stride + 3; y < height; y++, to += 3) {
      let [red, green, blue] = [0, 0, 0];
      for (let x = 0; x < width; x++, from += 4, to += 3) {
        sums[to] = sums[to - this.stride] + (red += data[from]);
        sums[to + 1] = sums[to + 1 - this.stride] + (green += data[from + 1]);
        sums[to + 2] = sums[to + 2 - this.stride] + (blue += data[from + 2]);
      }
    }
  }

  // A window of whole px in rows x columns parts, the mean of each: into `means`, RGB by RGB.
  resize([left, top, right, bottom], rows, columns, means, place = 0) {
    const ys = edges(bottom - top, rows).map((edge) => (edge + top) * this.stride);
    const xs = edges(right - left, columns).map((edge) => (edge + left) * 3);
    for (let row = 0; row < 2 * rows; row += 2) {
      const [above, below] = [ys[row], ys[row + 1]];
      const high = (below - above) / this.stride;
      for (let column = 0; column < 2 * columns; column += 2) {
        const [before, behind] = [xs[column], xs[column + 1]];
        const wide = (behind - before) / 3;
        for (let colour = 0; colour < 3; colour++) {
          const sum = (this.sums[below + behind + colour] - this.sums[below + before + colour]
            - this.sums[above + behind + colour] + this.sums[above + before + colour]) | 0;
          // The reference divides in this order, in 32 bits.
          means[place++] = Math.fround(Math.fround(sum) / high) / wide;
        }
      }
    }
    return means;
  }

  // The whole px of the photo that a box covers; null where there is none.
  within(box) {
    const [x0, y0, x1, y1] = box.map(Math.trunc);
    const window = [Math.max(x0, 1) - 1, Math.max(y0, 1) - 1,
      Math.min(x1, this.width), Math.min(y1, this.height)];
    return window[0] < window[2] && window[1] < window[3] ? window : null;
  }
}

// Where each of so many parts of a length starts and ends, as area resizing has it.
function edges(length, parts) {
  const found = [];
  for (let part = 0; part < parts; part++) {
    found.push(
      Math.floor((part * length) / parts), Math.ceil(((part + 1) * length) / parts));
  }
  return found;
}

const area = ([x0, y0, x1, y1], edge = 0) => (x1 - x0 + edge) * (y1 - y0 + edge);

function common([a0, b0, a1, b1], [c0, d0, c1, d1], edge = 0) {
  const side = (low, high) => Math.max(0, high - low + edge);
  return side(Math.max(a0, c0), Math.min(a1, c1)) * side(Math.max(b0, d0), Math.min(b1, d1));
}

const overlap = (a, b) => common(a, b) / (area(a) + area(b) - common(a, b));
const contained = (a, b) => common(a, b, 1) / Math.min(area(a, 1), area(b, 1));

// Best first, without those that share more than `most` with a better one.
function suppress(faces, most, shared = overlap) {
  const kept = [];
  for (const face of [...faces].sort((a, b) => b.score - a.score)) {
    if (kept.every((better) => shared(better.box, face.box) <= most)) kept.push(face);
  }
  return kept;
}

// A box whose edges each move by their share of its size.
function moved([x0, y0, x1, y1], shares, edge) {
  const [width, height] = [x1 - x0 + edge, y1 - y0 + edge];
  return [x0 + shares[0] * width, y0 + shares[1] * height,
    x1 + shares[2] * width, y1 + shares[3] * height].map(Math.fround);
}

// The square around the box's centre that holds it.
function square([x0, y0, x1, y1]) {
  const side = Math.max(x1 - x0, y1 - y0);
  const [left, top] = [x0 + (x1 - x0 - side) / 2, y0 + (y1 - y0 - side) / 2];
  return [left, top, left + side, top + side].map(Math.fround);
}

// The faces that P-Net sees at one level of the pyramid.
async function propose(pnet, sums, scale) {
  const [rows, columns] = [sums.height, sums.width].map((side) => Math.trunc(side * scale + 1));
  if (Math.max(rows, columns) > LARGEST_LEVEL) return [];
  const whole = [0, 0, sums.width, sums.height];
  const pixels = sums.resize(whole, rows, columns, new Float32Array(rows * columns * 3));
  const { scores, moves } = await pnet({ pixels: tensor(pixels, [1, rows, columns, 3]) });
  const [, , high, wide] = scores.dims;
  const faces = [];
  for (let cell = 0; cell < high * wide; cell++) {
    const score = scores.data[high * wide + cell];
    if (score < THRESHOLDS[0]) continue;
    const corner = [STRIDE * (cell % wide), STRIDE * Math.floor(cell / wide)];
    const at = (px) => Math.floor(Math.fround(px / Math.fround(scale)));
    const box = [...corner.map((px) => at(px + 1)), ...corner.map((px) => at(px + CELL))];
    const move = [0, 1, 2, 3].map((edge) => moves.data[edge * high * wide + cell]);
    faces.push({ box, score, move });
  }
  return suppress(faces, 0.5);
}

// What a network says of each face, whose boxes become squares: those that it is sure of.
async function judge(network, sums, faces, side, threshold) {
  const seen = faces.map((face) => ({ box: square(face.box), window: sums.within(square(face.box)) }))
    .filter(({ window }) => window);
  const sure = [];
  for (let first = 0; first < seen.length; first += BLOCK) {
    const block = seen.slice(first, first + BLOCK);
    const pixels = new Float32Array(block.length * side * side * 3);
    block.forEach(({ window }, place) => (
      sums.resize(window, side, side, pixels, place * side * side * 3)));
    const out = await network({ pixels: tensor(pixels, [block.length, side, side, 3]) });
    block.forEach(({ box }, place) => {
      const score = out.scores.data[2 * place + 1];
      if (!(score > threshold)) return;
      const row = (name, length) => out[name]?.data.slice(place * length, (place + 1) * length);
      sure.push({ box, score, move: row("moves", 4), places: row("points", 10) });
    });
  }
  return sure;
}

// The points of a box: five x and then five y, as shares of its size.
function pointsOf([x0, y0, x1, y1], places) {
  return [0, 1, 2, 3, 4].map((point) => [
    (x1 - x0 + 1) * places[point] + x0 - 1, (y1 - y0 + 1) * places[point + 5] + y0 - 1]);
}

const centrality = ([x0, y0, x1, y1], { width, height }) => (
  area([x0, y0, x1, y1])
  - CENTRE_WEIGHT * (((x0 + x1 - width) / 2) ** 2 + ((y0 + y1 - height) / 2) ** 2));

// The detector: a function from an ImageData to its faces, the large central one first, which is
// the one that a training photo is cut to.
export async function loadDetector() {
  const [pnet, rnet, onet] = await Promise.all(["pnet.onnx", "rnet.onnx", "onet.onnx"].map(open));
  return async (photo) => {
    const sums = new AreaSums(photo);
    const proposed = [];
    let scale = CELL / MIN_FACE;
    let least = Math.min(photo.width, photo.height) * scale;
    for (; least >= CELL; scale *= FACTOR, least *= FACTOR) {
      proposed.push(...await propose(pnet, sums, scale));
    }
    const move = (edge) => (face) => ({ ...face, box: moved(face.box, face.move, edge) });
    let faces = suppress(proposed, 0.7).map(move(0));
    faces = suppress(await judge(rnet, sums, faces, 24, THRESHOLDS[1]), 0.7).map(move(1));
    faces = (await judge(onet, sums, faces, 48, THRESHOLDS[2]))
      .map((face) => ({ ...move(1)(face), points: pointsOf(face.box, face.places) }));
    // Windows that reach beyond the photo may be cut to the same, with the same score: the reference
    // takes the last of these here, and the first everywhere else.
    return suppress(faces.reverse(), 0.7, contained)
      .map(({ box, score, points }) => ({ box, score, points }))
      .sort((a, b) => centrality(b.box, photo) - centrality(a.box, photo));
  };
}
