// Segments images with an exported .tflite, in the browser.
//
// Beside this page lie model/ (an exported folder of keras_aspp: manifest.json
// and .tflite files) and node_modules/ (see package.json). Nothing else is
// asked for, and nothing is sent.

import {loadAndCompile, loadLiteRt, Tensor} from '@litertjs/core';

// Of the formats that answer with classes, the best for a browser first.
const FORMATS = ['tflite_int8', 'tflite_float16', 'tflite_float32', 'tflite_dynamic_range'];
// An image is drawn no larger than this.
const LONGEST_PX = 1600;

const part = (id) => document.getElementById(id);
const small = document.createElement('canvas');
let manifest;
let model = null;
let stream = null;
let last = Promise.resolve();

/** Does one thing after the other: a model is not changed while it runs. */
function inTurn(work) {
  const turn = last.then(work);
  last = turn.catch(() => {});
  return turn;
}

function say(text, error = false) {
  part('status').textContent = text;
  part('status').classList.toggle('error', error);
}

/** Runs `work`; what goes wrong is said on the page. */
function guarded(work) {
  return async (...given) => {
    try {
      await work(...given);
    } catch (error) {
      console.error(error);
      say(error.message || String(error), true);
    }
  };
}

/** Entries of the manifest whose files are there. */
async function artefacts() {
  const wanted = FORMATS.flatMap(
      (format) => manifest.artefacts.filter((entry) => entry.format === format));
  const answers = await Promise.all(
      wanted.map((entry) => fetch(`model/${entry.path}`, {method: 'HEAD'})));
  return wanted.filter((_, i) => answers[i].ok);
}

async function start() {
  const answer = await fetch('model/manifest.json');
  if (!answer.ok) {
    throw new Error('There is no model/manifest.json beside this page.');
  }
  manifest = await answer.json();
  part('name').textContent = manifest.name;
  document.title = manifest.name;
  const found = await artefacts();
  if (!found.length) {
    throw new Error('The model has no .tflite that answers with classes.');
  }
  for (const entry of found) {
    const size = (entry.bytes / 1e6).toFixed(1);
    part('artefact').add(new Option(`${entry.path} (${size} MB)`, entry.path));
  }
  await loadLiteRt('node_modules/@litertjs/core/wasm/', {threads: crossOriginIsolated});
  await choose();
  for (const id of ['image', 'camera', 'artefact']) {
    part(id).disabled = false;
  }
}

/** Loads the chosen artefact. */
async function choose() {
  const path = part('artefact').value;
  say(`Loading ${path}…`);
  const entry = manifest.artefacts.find((one) => one.path === path);
  const loaded = await loadAndCompile(`model/${path}`, {accelerator: 'wasm'});
  model?.delete();
  model = loaded;
  [small.height, small.width] = entry.input.shape.slice(1, 3);
  say('Choose an image, or start the camera.');
}

/** Whether masks of classes may overlap. */
function overlapping() {
  return manifest.task === 'multilabel';
}

/**
 * Labels of what is drawn, at the model's size.
 *
 * @param {CanvasImageSource} source
 * @return {Promise<Int32Array|Uint8Array>} row by row; of masks that may
 *     overlap, 0 or 1 for each class of a pixel.
 */
async function segment(source) {
  const context = small.getContext('2d', {willReadFrequently: true});
  context.imageSmoothingQuality = 'high';
  context.drawImage(source, 0, 0, small.width, small.height);
  const rgba = context.getImageData(0, 0, small.width, small.height).data;
  const pixels = new Uint8Array(small.width * small.height * 3);
  for (let i = 0, j = 0; i < rgba.length; i += 4, j += 3) {
    pixels[j] = rgba[i];
    pixels[j + 1] = rgba[i + 1];
    pixels[j + 2] = rgba[i + 2];
  }
  const input = new Tensor(pixels, [1, small.height, small.width, 3]);
  const outputs = await model.run([input]);
  // Confidence and probabilities, which an export may add, are floats.
  const type = overlapping() ? 'uint8' : 'int32';
  const at = model.getOutputDetails().findIndex(({dtype}) => dtype === type);
  const labels = (await outputs[Math.max(at, 0)].data()).slice();
  input.delete();
  outputs.forEach((output) => output.delete());
  return labels;
}

/**
 * Classes that are left unpainted: the background by its name, or without one
 * what is black, which would hide the image.
 */
function unpainted() {
  if (overlapping()) {
    return new Set();
  }
  const ids = manifest.class_names.map((_, i) => i);
  const named = ids.filter((i) => /^[ _]*background[ _]*$/i.test(manifest.class_names[i]));
  const black = ids.filter((i) => manifest.colormap[i].every((v) => v === 0));
  return new Set(named.length ? named : black);
}

/** Classes of a pixel: one, or of masks that may overlap any number. */
function classesOf(labels, pixel) {
  if (!overlapping()) {
    return [labels[pixel]];
  }
  const count = manifest.class_names.length;
  const own = labels.subarray(pixel * count, (pixel + 1) * count);
  return [...own.keys()].filter((id) => own[id]);
}

/** Draws labels over the image, and the legend under it. */
function show(labels) {
  const bare = unpainted();
  const overlay = part('overlay');
  [overlay.width, overlay.height] = [small.width, small.height];
  const context = overlay.getContext('2d');
  const image = context.createImageData(small.width, small.height);
  const counts = new Map();
  const pixels = small.width * small.height;
  for (let i = 0; i < pixels; i++) {
    const found = classesOf(labels, i);
    found.forEach((id) => counts.set(id, (counts.get(id) || 0) + 1));
    const painted = found.filter((id) => !bare.has(id));
    // Where masks overlap, their mean color.
    const color = [0, 1, 2].map((band) => painted.reduce(
        (sum, id) => sum + manifest.colormap[id][band] / painted.length, 0));
    image.data.set([...color, painted.length ? 255 : 0], 4 * i);
  }
  context.putImageData(image, 0, 0);
  const rows = [...counts].sort((a, b) => b[1] - a[1]).map(([label, count]) => {
    const row = document.createElement('li');
    const swatch = document.createElement('span');
    swatch.className = 'swatch';
    swatch.style.background = bare.has(label) ? 'none' : `rgb(${manifest.colormap[label]})`;
    const share = document.createElement('b');
    share.textContent = `${(100 * count / pixels).toFixed(1)} %`;
    row.append(swatch, manifest.class_names[label], share);
    return row;
  });
  part('legend').replaceChildren(...rows);
}

/** One image, or one frame of the camera. */
async function look(source, width, height) {
  const scale = Math.min(1, LONGEST_PX / Math.max(width, height));
  const view = part('view');
  view.width = Math.round(width * scale);
  view.height = Math.round(height * scale);
  view.getContext('2d').drawImage(source, 0, 0, view.width, view.height);
  const begun = performance.now();
  const labels = await segment(source);
  const spent = performance.now() - begun;
  show(labels);
  part('stage').hidden = false;
  say(`${small.width}x${small.height}, ${spent.toFixed(0)} ms`);
  // For tests, and for whoever opens the console.
  window.segmentation = {labels, width: small.width, height: small.height};
}

async function lookAtImage() {
  const [file] = part('image').files;
  if (!file) {
    return;
  }
  stopCamera();
  say('Working…');
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name} is no image that this browser can read.`);
  }
  await inTurn(() => look(bitmap, bitmap.width, bitmap.height));
  bitmap.close();
}

function stopCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  part('camera').textContent = 'Camera';
}

async function toggleCamera() {
  if (stream) {
    stopCamera();
    return;
  }
  if (!navigator.mediaDevices) {
    throw new Error('This browser gives a camera to https:// and localhost only.');
  }
  part('camera').disabled = true;
  const video = part('video');
  try {
    stream = await navigator.mediaDevices.getUserMedia({video: {facingMode: 'environment'}});
    part('camera').textContent = 'Stop';
    video.srcObject = stream;
    await video.play();
  } finally {
    part('camera').disabled = false;
  }
  try {
    while (stream) {
      await inTurn(() => look(video, video.videoWidth, video.videoHeight));
      await new Promise(requestAnimationFrame);
    }
  } finally {
    stopCamera();
  }
}

part('image').addEventListener('change', guarded(lookAtImage));
part('camera').addEventListener('click', guarded(toggleCamera));
part('artefact').addEventListener('change', guarded(async () => {
  await inTurn(choose);
  if (!stream) {
    await lookAtImage();
  }
}));
part('opacity').addEventListener('input', () => {
  part('overlay').style.opacity = part('opacity').value / 100;
});
part('overlay').style.opacity = part('opacity').value / 100;
guarded(start)();
