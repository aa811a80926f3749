// Compares labels, for the page and its workers.

/**
 * Returns the share of pixels with equal labels.
 *
 * @param {ArrayLike<number>} found row by row; of masks that may overlap, 0 or 1
 *     for each class of a pixel, which must all be equal.
 * @param {ArrayLike<number>} expected of the same length.
 * @param {number} pixels
 */
export function shareOfEqualPixels(found, expected, pixels) {
  const depth = expected.length / pixels;
  let equal = 0;
  for (let first = 0; first < expected.length; first += depth) {
    let i = first;
    while (i < first + depth && found[i] === expected[i]) {
      i++;
    }
    equal += i === first + depth;
  }
  return equal / pixels;
}
