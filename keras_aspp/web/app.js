// Segments images and videos with exported .tflite files, in the browser.
//
// Beside this page lie models.json, the exported folders that it names, and
// node_modules/ (see package.json). No other host is contacted.

import {shareOfEqualPixels} from './labels.js';
import {encodeGray} from './png.js';

// Formats that return labels, the best for a browser first; also in cli/demo.py.
const FORMATS = ['tflite_int8', 'tflite_float16', 'tflite_float32', 'tflite_dynamic_range'];
// Longest side of a drawn image.
const LONGEST_PX = 1600;
const MAX_PANES = 4;
// How often the last frame of a video is tried, where it cannot be read at once.
const LAST_FRAME_TRIES = 60;

const part = (id) => document.getElementById(id);
const video = part('video');
const panes = [];
let models = [];
// The image or video frame on the page: {bitmap, width, height, stem}, the last
// for downloads.
let frame = null;
// Increases when the source changes; the loop of the former one then ends.
let source = 0;
let last = Promise.resolve();

/** Queues work: frames and changes of models do not overlap. */
function inTurn(work) {
  const turn = last.then(work);
  last = turn.catch(() => {});
  return turn;
}

function say(text, error = false) {
  part('status').textContent = text;
  part('status').classList.toggle('error', error);
}

/** Returns `work` with errors shown on the page. */
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

async function readJson(url) {
  const answer = await fetch(url);
  if (!answer.ok) {
    throw new Error(`There is no ${url} beside this page.`);
  }
  return answer.json();
}

/** Returns class ids that stay unpainted. */
function unpaintedOf({task, class_names: names, colormap}) {
  if (task === 'multilabel') {
    return [];
  }
  if (task === 'binary') {
    return [0];
  }
  const ids = names.map((_, id) => id);
  const named = ids.filter((id) => /^[ _]*background[ _]*$/i.test(names[id]));
  // Black would hide the image.
  return named.length ? named : ids.filter((id) => colormap[id].every((v) => v === 0));
}

/** Reads a served folder: its files that the page lists. */
async function readFolder({folder, given}) {
  const manifest = await readJson(`${folder}/manifest.json`);
  const {class_names: names, colormap, artefacts} = manifest;
  if (![names, colormap, artefacts].every(Array.isArray) || colormap.length !== names.length) {
    throw new Error('manifest.json lacks artefacts, classes or their colors.');
  }
  const found = FORMATS.flatMap((format) => artefacts.filter(
      ({format: own, input}) =>
        own === format && input?.dtype === 'uint8' && input.shape?.[3] === 3));
  const style = {
    overlapping: manifest.task === 'multilabel',
    colormap,
    unpainted: unpaintedOf(manifest),
  };
  return found.map((entry) => ({
    url: `${folder}/${entry.path}`,
    given, manifest, entry, style,
    height: entry.input.shape[1],
    width: entry.input.shape[2],
  }));
}

/** Reads `models`, and returns a message for each folder that cannot be read. */
async function readModels() {
  const problems = [];
  const read = (await readJson('models.json')).map((one) => readFolder(one).catch((error) => {
    console.error(error);
    problems.push(`${one.given} is left out: ${error.message}`);
    return [];
  }));
  models = (await Promise.all(read)).flat();
  return problems;
}

/** Returns the name of a model; equal names are followed by their folders. */
function nameOf({manifest, given}) {
  const same = models.some((one) => one.manifest.name === manifest.name && one.given !== given);
  return same ? `${manifest.name} (${given})` : manifest.name;
}

/** Resizes labels: each pixel takes the nearest one. */
function resizeLabels(labels, from, to) {
  const depth = labels.length / (from.width * from.height);
  const resized = new labels.constructor(to.width * to.height * depth);
  const columns = Array.from({length: to.width},
      (_, x) => Math.floor((x + 0.5) * from.width / to.width));
  for (let y = 0, i = 0; y < to.height; y++) {
    const row = Math.floor((y + 0.5) * from.height / to.height) * from.width;
    for (const column of columns) {
      for (let k = 0; k < depth; k++) {
        resized[i++] = labels[(row + column) * depth + k];
      }
    }
  }
  return resized;
}

function download(blob, name) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

/** Returns a file name for each class, of which no two differ in case only. */
function fileNames(classNames) {
  const taken = new Set();
  return classNames.map((name, id) => {
    let unique = name.replace(/[^\p{L}\p{M}\p{N}_]+/gu, '_');
    while (taken.has(unique.toLowerCase())) {
      unique += `_${id}`;
    }
    taken.add(unique.toLowerCase());
    return unique;
  });
}

/** One model with its worker, and what it found in the current frame. */
class Pane {
  constructor(index) {
    this.root = part('pane').content.cloneNode(true).firstElementChild;
    this.part = (name) => this.root.querySelector(`.${name}`);
    this.pending = new Map();
    this.model = models[index];
    // True while the worker has loaded `model`.
    this.ready = false;
    // Of `model`, with the `image` ({width, height, stem}) that it belongs to.
    this.result = null;
    const select = this.part('artefact');
    models.forEach((model, i) => {
      const size = (model.entry.bytes / 1e6).toFixed(1);
      select.add(new Option(`${nameOf(model)}: ${model.entry.path} (${size} MB)`, i));
    });
    select.value = index;
    select.addEventListener('change', guarded(() => inTurn(async () => {
      await this.load();
      await segmentFrame();
    })));
    this.part('remove').addEventListener('click', () => this.remove());
    this.part('save-mask').addEventListener('click', guarded(() => this.saveMask()));
    this.part('save-overlay').addEventListener('click', guarded(() => this.saveOverlay()));
    this.worker = new Worker('worker.js');
    this.worker.onmessage = ({data}) => {
      const asked = this.pending.get(data.id);
      this.pending.delete(data.id);
      data.error ? asked?.reject(new Error(data.error)) : asked?.resolve(data);
    };
    this.worker.onerror = (event) => this.rejectAll(event.message || 'The worker failed.');
  }

  rejectAll(message) {
    this.pending.forEach(({reject}) => reject(new Error(message)));
    this.pending.clear();
  }

  ask(request, moved = []) {
    if (!panes.includes(this)) {
      throw new Error('The model was removed.');
    }
    const id = crypto.randomUUID();
    return new Promise((resolve, reject) => {
      this.pending.set(id, {resolve, reject});
      this.worker.postMessage({id, ...request}, moved);
    });
  }

  /** Forgets the result, so that it cannot be saved. */
  clear() {
    this.result = null;
    this.part('result').hidden = true;
    this.part('agreement').hidden = true;
  }

  showState(text, error = false) {
    const state = this.part('runs-on');
    state.textContent = text;
    state.classList.toggle('error', error);
    error ? state.setAttribute('role', 'alert') : state.removeAttribute('role');
  }

  /** Awaits `work`; an error is shown in this pane and leaves the others alone. */
  async attempt(work, failure) {
    try {
      await work();
    } catch (error) {
      console.error(error);
      this.clear();
      this.showState(`${failure} ${error.message || error}`, true);
    }
  }

  /** Loads the selected file. */
  async load() {
    this.clear();
    this.ready = false;
    this.model = models[this.part('artefact').value];
    this.showState('Loading…');
    label();
    await this.attempt(async () => {
      // Workers resolve addresses against their script, which lies here too.
      const {runsOn} = await this.ask({
        task: 'load', url: this.model.url, accelerator: part('accelerator').value});
      this.ready = true;
      this.showState(`Runs on: ${runsOn}`);
    }, 'Not loaded.');
  }

  /** Segments the current frame and shows the result. */
  async segment() {
    await this.attempt(async () => {
      const {width, height, style} = this.model;
      const {bitmap: shown, ...image} = frame;
      const bitmap = await createImageBitmap(shown);
      const answer = await this.ask({task: 'segment', bitmap, width, height, style}, [bitmap]);
      this.result = {...answer, image};
      this.show();
    }, 'Not segmented.');
  }

  show() {
    const {width, height, manifest, style} = this.model;
    const {rgba, counts, ms, runsOn, image} = this.result;
    const scale = Math.min(1, LONGEST_PX / Math.max(image.width, image.height));
    const view = this.part('view');
    view.width = Math.round(image.width * scale);
    view.height = Math.round(image.height * scale);
    view.getContext('2d').drawImage(frame.bitmap, 0, 0, view.width, view.height);
    const overlay = this.part('overlay');
    [overlay.width, overlay.height] = [width, height];
    overlay.getContext('2d').putImageData(new ImageData(rgba, width, height), 0, 0);
    this.showState(`Runs on: ${runsOn}`);
    this.part('time').textContent = `${ms.toFixed(0)} ms at ${width}x${height}`;
    const shares = counts.map(([id, count]) => [id, `${(100 * count / width / height).toFixed(1)} %`]);
    this.part('legend').replaceChildren(...shares.map(([id, share]) => {
      const row = document.createElement('li');
      const swatch = document.createElement('span');
      swatch.className = 'swatch';
      swatch.style.background =
          style.unpainted.includes(id) ? 'none' : `rgb(${manifest.colormap[id]})`;
      const number = document.createElement('b');
      number.textContent = share;
      row.append(swatch, manifest.class_names[id], number);
      return row;
    }));
    view.setAttribute('aria-label', `${image.stem}: ` +
        shares.map(([id, share]) => `${manifest.class_names[id]} ${share}`).join(', '));
    this.part('result').hidden = false;
  }

  /** Shows the share of pixels whose labels equal those of the first pane. */
  showAgreement() {
    const [first] = panes;
    const names = (pane) => JSON.stringify(pane.model.manifest.class_names);
    const comparable = this !== first && this.result && first.result &&
        names(this) === names(first) &&
        this.model.style.overlapping === first.model.style.overlapping;
    this.part('agreement').hidden = !comparable;
    if (comparable) {
      const own = resizeLabels(this.result.labels, this.model, first.model);
      const {width, height} = first.model;
      const share = shareOfEqualPixels(own, first.result.labels, width * height);
      const ratio = this.result.ms / first.result.ms;
      this.part('agreement').textContent =
          `${(100 * share).toFixed(1)} % of labels equal the first ` +
          `model's; ${ratio.toFixed(2)} of its time`;
    }
  }

  /** Downloads class ids at the image's size; one PNG per overlapping mask. */
  async saveMask() {
    const {style, manifest} = this.model;
    const {width, height, stem} = this.result.image;
    const labels = resizeLabels(this.result.labels, this.model, {width, height});
    if (!style.overlapping) {
      download(await encodeGray(labels, width, height), `${stem}_labels.png`);
      return;
    }
    const names = fileNames(manifest.class_names);
    const count = names.length;
    for (const [id, name] of names.entries()) {
      const mask = labels.filter((_, i) => i % count === id).map((v) => 255 * v);
      download(await encodeGray(mask, width, height), `${stem}_${name}.png`);
    }
  }

  /** Downloads the image and the overlay as drawn. */
  async saveOverlay() {
    const {stem} = this.result.image;
    const view = this.part('view');
    const canvas = new OffscreenCanvas(view.width, view.height);
    const context = canvas.getContext('2d');
    context.drawImage(view, 0, 0);
    context.globalAlpha = part('opacity').value / 100;
    context.imageSmoothingEnabled = false;
    context.drawImage(this.part('overlay'), 0, 0, view.width, view.height);
    download(await canvas.convertToBlob(), `${stem}_overlay.png`);
  }

  /** Removes the pane at once, also while its model loads or runs. */
  remove() {
    panes.splice(panes.indexOf(this), 1);
    this.ready = false;
    this.worker.terminate();
    this.rejectAll('The model was removed.');
    this.root.remove();
    arrange();
    compareResults();
  }
}

/** Numbers the panes for screen readers. */
function label() {
  panes.forEach((pane, i) => {
    pane.root.setAttribute('aria-label', `Model ${i + 1}: ${nameOf(pane.model)}`);
  });
}

function arrange() {
  label();
  panes.forEach((pane) => {
    pane.part('remove').hidden = panes.length === 1;
  });
  part('compare').disabled = panes.length >= MAX_PANES || !models.length;
}

/** Adds a pane, with a model or else a file that none shows yet. */
async function addPane() {
  const shown = panes.map((pane) => pane.model);
  const folders = shown.map(({given}) => given);
  const next = models.find(({given}) => !folders.includes(given)) ??
      models.find((model) => !shown.includes(model)) ?? models[0];
  const pane = new Pane(models.indexOf(next));
  panes.push(pane);
  part('panes').append(pane.root);
  arrange();
  await pane.load();
}

function compareResults() {
  panes.forEach((pane) => pane.showAgreement());
  // For tests, and for whoever opens the console. Null where a model failed.
  window.segmentations = panes.map(({model, result}) => (
    result && {labels: result.labels, width: model.width, height: model.height}));
}

/** Segments the current frame with one model after the other. */
async function segmentFrame() {
  if (!frame) {
    return;
  }
  part('empty').hidden = true;
  // One at a time, or their times would depend on each other.
  for (const pane of [...panes]) {
    if (pane.ready) {
      await pane.segment();
    }
  }
  compareResults();
}

async function showFrame(bitmap, stem) {
  frame?.bitmap.close();
  frame = {bitmap, width: bitmap.width, height: bitmap.height, stem};
  await segmentFrame();
}

function endTracks(stream) {
  stream?.getTracks().forEach((track) => track.stop());
}

/** Ends the camera or the video. */
function stop() {
  source += 1;
  video.pause();
  endTracks(video.srcObject);
  video.srcObject = null;
  if (video.src) {
    URL.revokeObjectURL(video.src);
    video.removeAttribute('src');
    // Otherwise the former video stays loaded, and its errors still arrive.
    video.load();
  }
  part('stop').hidden = true;
  part('camera').hidden = false;
}

/**
 * Ends the former source and opens a new one.
 *
 * @param {function(function(): boolean)} work is given a function that returns
 *     false once another source was opened. Its errors then no longer matter.
 */
async function openSource(work) {
  stop();
  const own = source;
  const current = () => own === source;
  try {
    await work(current);
  } catch (error) {
    if (!current()) {
      console.warn(error);
      return;
    }
    stop();
    throw error;
  }
}

/** The frame that the video element shows, or null where it cannot be read (yet). */
async function videoFrame() {
  try {
    return await createImageBitmap(video);
  } catch (error) {
    if (error.name === 'InvalidStateError') {
      return null;
    }
    throw error;
  }
}

/** Segments frames of the video element until it ends or is stopped. */
async function play(stem, current) {
  part('camera').hidden = true;
  part('stop').hidden = false;
  await video.play();
  let tries = LAST_FRAME_TRIES;
  while (current() && tries > 0) {
    if (video.error) {
      throw new Error(`This browser cannot play the rest of ${stem}.`);
    }
    // Read before the frame, so that the last one is segmented, too.
    const {currentTime, ended} = video;
    // At time 0 there may be no frame yet, although `readyState` has data.
    const bitmap = currentTime > 0 ? await videoFrame() : null;
    if (bitmap) {
      await inTurn(() => current() ? showFrame(bitmap, stem) : bitmap.close());
      if (current()) {
        say('Playing. Frames that come while the model runs are skipped.');
      }
    }
    if (ended) {
      tries = bitmap ? 0 : tries - 1;
    }
    await new Promise(requestAnimationFrame);
  }
  if (current()) {
    stop();
    say('');
  }
}

async function openVideo(file, stem, current) {
  video.src = URL.createObjectURL(file);
  await new Promise((resolve, reject) => {
    video.onloadeddata = resolve;
    video.onerror = () => reject(new Error(`This browser cannot play ${file.name}.`));
  });
  if (!video.videoWidth) {
    throw new Error(`This browser plays only the sound of ${file.name}.`);
  }
  if (current()) {
    await play(stem, current);
  }
}

async function openImage(file, stem, current) {
  let bitmap;
  try {
    // Color profiles are ignored, as in Python.
    bitmap = await createImageBitmap(file, {colorSpaceConversion: 'none'});
  } catch {
    throw new Error(`This browser cannot read ${file.name} as an image.`);
  }
  const {width, height} = bitmap;
  await inTurn(async () => {
    if (!current()) {
      bitmap.close();
      return;
    }
    panes.forEach((pane) => pane.clear());
    await showFrame(bitmap, stem);
  });
  if (current()) {
    say(`${file.name}, ${width}x${height}`);
  }
}

async function openFile(file) {
  if (!file) {
    return;
  }
  say('Working…');
  const stem = file.name.replace(/\.[^.]*$/, '');
  const openAs = file.type.startsWith('video/') ? openVideo : openImage;
  await openSource((current) => openAs(file, stem, current));
}

async function openCamera() {
  if (!navigator.mediaDevices) {
    throw new Error('This browser offers a camera to https:// and localhost only.');
  }
  await openSource(async (current) => {
    part('camera').disabled = true;
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({video: {facingMode: 'environment'}});
    } finally {
      part('camera').disabled = false;
    }
    if (!current()) {
      endTracks(stream);
      return;
    }
    video.srcObject = stream;
    await play('camera', current);
  });
}

async function start() {
  const problems = await readModels();
  if (!models.length) {
    throw new Error(['No served folder has a .tflite file that this page lists: int8, ' +
        'float16, float32 or dynamic range, with RGB input of uint8.', ...problems].join(' '));
  }
  const names = [...new Set(models.map(nameOf))];
  document.title = part('name').textContent = names.join(', ');
  // Shows its own error if the file does not load.
  await inTurn(addPane);
  for (const id of ['file', 'camera', 'accelerator']) {
    part(id).disabled = false;
  }
  say([...problems, 'Open an image or a video, or start the camera.'].join(' '),
      problems.length > 0);
}

function setOpacity() {
  document.documentElement.style.setProperty('--opacity', part('opacity').value / 100);
}

part('file').addEventListener('change', guarded(async () => {
  const [file] = part('file').files;
  // So that the same file can be opened again.
  part('file').value = '';
  await openFile(file);
}));
part('camera').addEventListener('click', guarded(openCamera));
part('stop').addEventListener('click', () => {
  stop();
  say('');
  part('camera').focus();
});
part('compare').addEventListener('click', guarded(() => inTurn(async () => {
  await addPane();
  await segmentFrame();
})));
part('accelerator').addEventListener('change', guarded(() => inTurn(async () => {
  for (const pane of panes) {
    await pane.load();
  }
  await segmentFrame();
})));
part('opacity').addEventListener('input', setOpacity);
document.addEventListener('dragover', (event) => event.preventDefault());
document.addEventListener('drop', guarded(async (event) => {
  event.preventDefault();
  await openFile(event.dataTransfer.files[0]);
}));
setOpacity();
guarded(start)();
