// Resizes images as Python does (`data/resize.py`): Pillow's antialiased bilinear
// filter, in its integers, so that a model gets the same pixels here and there.

// Binary digits of the fraction of a weight.
const BITS = 22;
// By which sums are rounded.
const HALF = 1 << (BITS - 1);
// Rows that are read at once, since canvases are limited in size.
const STRIP_ROWS = 256;

/** Returns, for each of `to` pixels, the `first` of `from` pixels and `weights`. */
function filters(from, to) {
  const scale = from / to;
  const radius = Math.max(scale, 1);
  return Array.from({length: to}, (_, i) => {
    const center = (i + 0.5) * scale;
    const first = Math.max(Math.trunc(center - radius + 0.5), 0);
    const end = Math.min(Math.trunc(center + radius + 0.5), from);
    const shares = Array.from({length: end - first}, (_, k) =>
      Math.max(1 - Math.abs((first + k - center + 0.5) * (1 / radius)), 0));
    const total = shares.reduce((sum, share) => sum + share, 0);
    const weights = Int32Array.from(
        shares, (share) => Math.trunc(0.5 + share / total * 2 ** BITS));
    return {first, weights};
  });
}

/**
 * Filters one row or column.
 *
 * @param {ArrayLike<number>} source
 * @param {number} start index of the first value of the line.
 * @param {number} step from one pixel of the line to the next.
 * @param {Uint8Array} target of RGB; its start and step likewise.
 */
function filterLine(source, start, step, target, targetStart, targetStep, along) {
  for (const {first, weights} of along) {
    let [red, green, blue] = [HALF, HALF, HALF];
    let at = start + first * step;
    for (let k = 0; k < weights.length; k++) {
      red += weights[k] * source[at];
      green += weights[k] * source[at + 1];
      blue += weights[k] * source[at + 2];
      at += step;
    }
    target[targetStart] = red >> BITS;
    target[targetStart + 1] = green >> BITS;
    target[targetStart + 2] = blue >> BITS;
    targetStart += targetStep;
  }
}

/** Yields an image in strips: its first row, the number of rows, and their pixels. */
function* strips({height}, read) {
  for (let top = 0; top < height; top += STRIP_ROWS) {
    const count = Math.min(STRIP_ROWS, height - top);
    yield {top, count, strip: read(top, count)};
  }
}

/** Returns an image of as many rows as there are filters: RGB, row by row. */
function shortened(from, rows, read) {
  const length = 3 * from.width;
  const sums = new Int32Array(length * rows.length).fill(HALF);
  for (const {top, count, strip} of strips(from, read)) {
    rows.forEach(({first, weights}, i) => {
      const begin = Math.max(top - first, 0);
      const end = Math.min(top + count - first, weights.length);
      for (let k = begin; k < end; k++) {
        const weight = weights[k];
        let at = 4 * (first + k - top) * from.width;
        for (let j = i * length; j < (i + 1) * length; j += 3) {
          sums[j] += weight * strip[at];
          sums[j + 1] += weight * strip[at + 1];
          sums[j + 2] += weight * strip[at + 2];
          at += 4;
        }
      }
    });
  }
  return Uint8Array.from(sums, (sum) => sum >> BITS);
}

/**
 * Resizes an image.
 *
 * @param {{width: number, height: number}} from
 * @param {{width: number, height: number}} to
 * @param {function(number, number): ArrayLike<number>} read is given the first
 *     row and the number of rows, and returns their pixels, RGBA.
 * @return {Uint8Array} RGB, row by row.
 */
export function resize(from, to, read) {
  const [columns, rows] = [filters(from.width, to.width), filters(from.height, to.height)];
  const pixels = new Uint8Array(3 * to.height * to.width);
  const lost = (side) => from[side] - to[side];
  // Each pass rounds, so the order counts. It is that of Pillow 13.
  if (lost('height') > Math.max(2 * lost('width'), 0)) {
    const short = shortened(from, rows, read);
    for (let y = 0; y < to.height; y++) {
      filterLine(short, 3 * y * from.width, 3, pixels, 3 * y * to.width, 3, columns);
    }
    return pixels;
  }
  const narrow = new Uint8Array(3 * from.height * to.width);
  for (const {top, count, strip} of strips(from, read)) {
    for (let y = 0; y < count; y++) {
      filterLine(strip, 4 * y * from.width, 4, narrow, 3 * (top + y) * to.width, 3, columns);
    }
  }
  for (let x = 0; x < to.width; x++) {
    filterLine(narrow, 3 * x, 3 * to.width, pixels, 3 * x, 3 * to.width, rows);
  }
  return pixels;
}
