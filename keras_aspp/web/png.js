// Writes class ids as a grayscale PNG. A canvas would write RGBA.

const CRC = new Uint32Array(256).map((_, n) => {
  for (let k = 0; k < 8; k++) {
    n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  }
  return n;
});

function chunk(type, data) {
  const bytes = new Uint8Array(12 + data.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, data.length);
  bytes.set(new TextEncoder().encode(type), 4);
  bytes.set(data, 8);
  let crc = ~0;
  for (const byte of bytes.subarray(4, -4)) {
    crc = CRC[(crc ^ byte) & 255] ^ (crc >>> 8);
  }
  view.setUint32(bytes.length - 4, ~crc);
  return bytes;
}

/**
 * Encodes values as a PNG of one channel, lossless.
 *
 * @param {ArrayLike<number>} values in 0..65535, row by row. 8 bits each if
 *     they fit, else 16.
 * @return {Promise<Blob>}
 */
export async function encodeGray(values, width, height) {
  const size = values.every((value) => value < 256) ? 1 : 2;
  const stride = 1 + width * size; // each row begins with its filter, 0
  const raw = new Uint8Array(height * stride);
  const view = new DataView(raw.buffer);
  values.forEach((value, i) => {
    const at = Math.floor(i / width) * stride + 1 + (i % width) * size;
    size === 1 ? view.setUint8(at, value) : view.setUint16(at, value);
  });
  const header = new Uint8Array(13);
  const fields = new DataView(header.buffer);
  fields.setUint32(0, width);
  fields.setUint32(4, height);
  header[8] = 8 * size;
  // 'deflate' is the zlib format, as PNG asks for.
  const packed = new Blob([raw]).stream().pipeThrough(new CompressionStream('deflate'));
  const data = new Uint8Array(await new Response(packed).arrayBuffer());
  return new Blob([
    new Uint8Array([137, 80, 78, 71, 13, 10, 26, 10]),
    chunk('IHDR', header), chunk('IDAT', data), chunk('IEND', new Uint8Array()),
  ], {type: 'image/png'});
}
