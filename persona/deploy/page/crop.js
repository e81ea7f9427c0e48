// Where a face is cut out of a photo, and the pixels of it, as the student's training photos were
// (persona/data/align/crop.py).
//
// A frame is { x, y, width, height, angle }: px of the photo, turned about its centre by radians.
import { AreaSums } from "./detect.js";

const LARGEST = 1024; // px of height that the model is given; it works in far fewer

// A part of a photo, without transparency, as ImageData of any size.
export function cut(photo, { x, y, width, height }, columns, rows) {
  const context = new OffscreenCanvas(columns, rows).getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, columns, rows);
  context.imageSmoothingQuality = "high";
  context.drawImage(photo, x, y, width, height, 0, 0, columns, rows);
  return context.getImageData(0, 0, columns, rows);
}

const within = (value, low, high) => Math.min(Math.max(value, low), high);

// The detector's box and a margin, upright. The model itself stretches it to a square.
export class MarginCrop {
  // By hand: over 100 photos of LFW boxes are 0.745 (deviation 0.04) as wide as high. The eyes and
  // the corners of the mouth lie there on average; deviation 0.02 of the height.
  aspect = 0.75;
  eyes = [[0.315, 0.405], [0.71, 0.405]];
  mouth = [[0.34, 0.74], [0.7, 0.74]];

  constructor({ size, margin }) { this.share = margin / (size - margin) / 2; }

  // Of a face; null where its box has no pixel of the photo.
  frame({ box: [x0, y0, x1, y1] }, photo) {
    const [across, down] = [this.share * (x1 - x0), this.share * (y1 - y0)];
    const [x, y] = [x0 - across, y0 - down].map((edge) => Math.trunc(Math.max(edge, 0)));
    const width = Math.trunc(Math.min(x1 + across, photo.width)) - x;
    const height = Math.trunc(Math.min(y1 + down, photo.height)) - y;
    return width > 0 && height > 0 ? { x, y, width, height, angle: 0 } : null;
  }

  // Within the photo, to whole pixels: the model gets them unchanged.
  keep(frame, photo) {
    const [width, height] = ["width", "height"].map(
      (side) => within(Math.round(frame[side]), 1, photo[side]));
    const x = Math.round(within(frame.x, 0, photo.width - width));
    const y = Math.round(within(frame.y, 0, photo.height - height));
    return { x, y, width, height, angle: 0 };
  }

  pixels(photo, frame) {
    const scale = Math.min(1, LARGEST / frame.height);
    const sides = [frame.width, frame.height].map((side) => Math.max(1, Math.round(side * scale)));
    return cut(photo, frame, ...sides);
  }
}

// Where ArcFace has the eyes, the tip of the nose and the corners of the mouth in 112 px.
const SIDE = 112;
const TEMPLATE = [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655],
  [70.7299, 92.2041]];

// A square that is turned so that the face's five points come nearest to the template's.
export class FivePointCrop {
  aspect = 1;
  eyes = [0, 1].map((point) => TEMPLATE[point].map((px) => (px + 0.5) / SIDE));
  mouth = [3, 4].map((point) => TEMPLATE[point].map((px) => (px + 0.5) / SIDE));

  constructor({ size }) { this.size = size; }

  // Least squares (persona/landmarks.py): one complex factor from the photo to the template.
  frame({ points }) {
    const middle = (of) => [0, 1].map((axis) => of.reduce((sum, at) => sum + at[axis] / 5, 0));
    const [from, to] = [points, TEMPLATE].map(middle);
    let [real, imaginary, spread] = [0, 0, 1e-12];
    points.forEach((point, number) => {
      const [a, b] = [0, 1].map((axis) => point[axis] - from[axis]);
      const [c, d] = [0, 1].map((axis) => TEMPLATE[number][axis] - to[axis]);
      real += a * c + b * d;
      imaginary += a * d - b * c;
      spread += a * a + b * b;
    });
    const scale = spread / Math.hypot(real, imaginary);
    const angle = Math.atan2(-imaginary, real);
    const [right, down] = turn(
      to.map((px) => ((SIDE - 1) / 2 - px) * scale), angle);
    const side = SIDE * scale;
    // Points count from the centre of the first pixel, frames from its corner.
    const [x, y] = [from[0] + right, from[1] + down].map((centre) => centre + 0.5 - side / 2);
    return Number.isFinite(side) ? { x, y, width: side, height: side, angle } : null;
  }

  // Beyond the photo it is black; its centre stays within.
  keep(frame, photo) {
    const [across, down] = [frame.width / 2, frame.height / 2];
    return { ...frame, x: within(frame.x, -across, photo.width - across),
      y: within(frame.y, -down, photo.height - down) };
  }

  // Bilinear; of a face far larger than the crop the photo is first reduced by a whole factor.
  pixels(photo, { x, y, width, height, angle }) {
    const step = width / this.size;
    const shrink = Math.max(1, Math.floor(step));
    const reach = width; // more than half of its diagonal
    const [centre, middle] = [x + width / 2, y + height / 2];
    const [left, top] = [centre, middle].map(
      (at) => Math.max(0, Math.floor((at - reach) / shrink)) * shrink);
    const [columns, rows] = [[centre, photo.width, left], [middle, photo.height, top]].map(
      ([at, end, start]) => Math.floor((Math.min(at + reach, end) - start) / shrink));
    const crop = new ImageData(this.size, this.size);
    crop.data.fill(255);
    const region = { x: left, y: top, width: columns * shrink, height: rows * shrink };
    const sums = new AreaSums(cut(photo, region, region.width, region.height));
    const reduced = sums.resize([0, 0, region.width, region.height], rows, columns,
      new Float32Array(rows * columns * 3));
    for (let place = 0; place < this.size ** 2; place++) {
      const along = [place % this.size, Math.floor(place / this.size)];
      const [right, down] = turn(along.map((at) => (at + 0.5 - this.size / 2) * step), angle);
      const [across, below] = [centre + right, middle + down];
      const inside = across >= 0 && below >= 0 && across < photo.width && below < photo.height;
      for (let colour = 0; colour < 3; colour++) {
        crop.data[4 * place + colour] = inside ? bilinear(reduced, columns, rows,
          (across - left) / shrink - 0.5, (below - top) / shrink - 0.5, colour) : 0;
      }
    }
    return crop;
  }
}

const turn = ([right, down], angle) => [
  Math.cos(angle) * right - Math.sin(angle) * down,
  Math.sin(angle) * right + Math.cos(angle) * down];

function bilinear(pixels, columns, rows, x, y, colour) {
  const [left, top] = [Math.floor(x), Math.floor(y)];
  const at = (column, row) => pixels[
    3 * (within(row, 0, rows - 1) * columns + within(column, 0, columns - 1)) + colour];
  const mix = (a, b, share) => a + (b - a) * share;
  return mix(mix(at(left, top), at(left + 1, top), x - left),
    mix(at(left, top + 1), at(left + 1, top + 1), x - left), y - top);
}
