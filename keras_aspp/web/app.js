// Segments images and videos with exported .tflite files, in the browser.
//
// Beside this page lie models.json, the exported folders that it names, and
// node_modules/ (see package.json). No other host is contacted.

import {encodeGray} from './png.js';

// Formats that return labels, the best for a browser first.
const FORMATS = ['tflite_int8', 'tflite_float16', 'tflite_float32', 'tflite_dynamic_range'];
// Longest side of a drawn image.
const LONGEST_PX = 1600;
const MAX_PANES = 4;

const part = (id) => document.getElementById(id);
const video = part('video');
const panes = [];
let models = [];
// The image or video frame on the page, and a stem for downloads.
let frame = null;
let stem = 'image';
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
  const ids = names.map((_, id) => id);
  const named = ids.filter((id) => /^[ _]*background[ _]*$/i.test(names[id]));
  // Black would hide the image.
  return named.length ? named : ids.filter((id) => colormap[id].every((v) => v === 0));
}

/** Reads the served folders: a flat list of files that return labels. */
async function readModels() {
  const folders = await readJson('models.json');
  const read = await Promise.all(folders.map(async ({folder, given}) => {
    const manifest = await readJson(`${folder}/manifest.json`);
    const found = FORMATS.flatMap((format) => manifest.artefacts.filter(
        (entry) => entry.format === format && entry.input.dtype === 'uint8'));
    const style = {
      overlapping: manifest.task === 'multilabel',
      colormap: manifest.colormap,
      unpainted: unpaintedOf(manifest),
    };
    return found.map((entry) => ({
      url: `${folder}/${entry.path}`,
      given, manifest, entry, style,
      height: entry.input.shape[1],
      width: entry.input.shape[2],
    }));
  }));
  return read.flat();
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

/** One model with its worker, and what it found in the current frame. */
class Pane {
  constructor(index) {
    this.root = part('pane').content.cloneNode(true).firstElementChild;
    this.part = (name) => this.root.querySelector(`.${name}`);
    this.pending = new Map();
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
    this.part('remove').addEventListener('click', guarded(() => inTurn(() => this.remove())));
    this.part('save-mask').addEventListener('click', guarded(() => this.saveMask()));
    this.part('save-overlay').addEventListener('click', guarded(() => this.saveOverlay()));
    this.worker = new Worker('worker.js');
    this.worker.onmessage = ({data}) => {
      const {resolve, reject} = this.pending.get(data.id);
      this.pending.delete(data.id);
      data.error ? reject(new Error(data.error)) : resolve(data);
    };
    this.worker.onerror = (event) => {
      this.pending.forEach(({reject}) => reject(new Error(event.message || 'The worker failed.')));
      this.pending.clear();
    };
  }

  get model() {
    return models[this.part('artefact').value];
  }

  ask(request, moved = []) {
    const id = crypto.randomUUID();
    return new Promise((resolve, reject) => {
      this.pending.set(id, {resolve, reject});
      this.worker.postMessage({id, ...request}, moved);
    });
  }

  /** Loads the selected file. */
  async load() {
    this.result = null;
    this.part('result').hidden = true;
    this.part('runs-on').textContent = 'Loading…';
    label();
    try {
      // Workers resolve addresses against their script, which lies here too.
      const {runsOn} = await this.ask({
        task: 'load', url: this.model.url, accelerator: part('accelerator').value});
      this.part('runs-on').textContent = `Runs on: ${runsOn}`;
    } catch (error) {
      this.part('runs-on').textContent = 'Not loaded.';
      throw error;
    }
  }

  /** Segments the current frame and shows the result. */
  async segment() {
    const {width, height, style} = this.model;
    const bitmap = await createImageBitmap(frame);
    this.result = await this.ask({task: 'segment', bitmap, width, height, style}, [bitmap]);
    this.show();
  }

  show() {
    const {width, height, manifest, style} = this.model;
    const {rgba, counts, ms, runsOn} = this.result;
    const scale = Math.min(1, LONGEST_PX / Math.max(frame.width, frame.height));
    const view = this.part('view');
    view.width = Math.round(frame.width * scale);
    view.height = Math.round(frame.height * scale);
    view.getContext('2d').drawImage(frame, 0, 0, view.width, view.height);
    const overlay = this.part('overlay');
    [overlay.width, overlay.height] = [width, height];
    overlay.getContext('2d').putImageData(new ImageData(rgba, width, height), 0, 0);
    this.part('runs-on').textContent = `Runs on: ${runsOn}`;
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
    view.setAttribute('aria-label', `${stem}: ` +
        shares.map(([id, share]) => `${manifest.class_names[id]} ${share}`).join(', '));
    this.part('result').hidden = false;
  }

  /** Shows the share of labels that equal those of the first pane. */
  showAgreement() {
    const [first] = panes;
    const names = (pane) => JSON.stringify(pane.model.manifest.class_names);
    const comparable = this !== first && this.result && first.result &&
        names(this) === names(first) &&
        this.model.style.overlapping === first.model.style.overlapping;
    this.part('agreement').hidden = !comparable;
    if (comparable) {
      const own = resizeLabels(this.result.labels, this.model, first.model);
      const equal = own.reduce((sum, id, i) => sum + (id === first.result.labels[i]), 0);
      const ratio = this.result.ms / first.result.ms;
      this.part('agreement').textContent =
          `${(100 * equal / own.length).toFixed(1)} % of labels equal the first ` +
          `model's; ${ratio.toFixed(2)} of its time`;
    }
  }

  /** Downloads class ids at the frame's size; one PNG per overlapping mask. */
  async saveMask() {
    const {style, manifest} = this.model;
    const labels = resizeLabels(this.result.labels, this.model, frame);
    if (!style.overlapping) {
      download(await encodeGray(labels, frame.width, frame.height), `${stem}_labels.png`);
      return;
    }
    const count = manifest.class_names.length;
    for (const [id, name] of manifest.class_names.entries()) {
      const mask = labels.filter((_, i) => i % count === id).map((v) => 255 * v);
      download(await encodeGray(mask, frame.width, frame.height),
          `${stem}_${name.replace(/\W+/g, '_')}.png`);
    }
  }

  /** Downloads the image and the overlay as drawn. */
  async saveOverlay() {
    const view = this.part('view');
    const canvas = new OffscreenCanvas(view.width, view.height);
    const context = canvas.getContext('2d');
    context.drawImage(view, 0, 0);
    context.globalAlpha = part('opacity').value / 100;
    context.imageSmoothingEnabled = false;
    context.drawImage(this.part('overlay'), 0, 0, view.width, view.height);
    download(await canvas.convertToBlob(), `${stem}_overlay.png`);
  }

  remove() {
    this.worker.terminate();
    this.root.remove();
    panes.splice(panes.indexOf(this), 1);
    arrange();
    panes.forEach((pane) => pane.showAgreement());
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

/** Segments the current frame with one model after the other. */
async function segmentFrame() {
  if (!frame) {
    return;
  }
  part('empty').hidden = true;
  // One at a time, or their times would depend on each other.
  for (const pane of panes) {
    await pane.segment();
  }
  panes.forEach((pane) => pane.showAgreement());
  // For tests, and for whoever opens the console.
  window.segmentations = panes.map(({model, result}) => (
    {labels: result.labels, width: model.width, height: model.height}));
}

async function showFrame(bitmap) {
  frame?.close();
  frame = bitmap;
  await segmentFrame();
}

/** Ends the camera or the video. */
function stop() {
  source += 1;
  video.pause();
  video.srcObject?.getTracks().forEach((track) => track.stop());
  video.srcObject = null;
  if (video.src) {
    URL.revokeObjectURL(video.src);
    video.removeAttribute('src');
  }
  part('stop').hidden = true;
  part('camera').hidden = false;
}

/** Segments frames of the video element until it ends or is stopped. */
async function play() {
  const own = source;
  part('camera').hidden = true;
  part('stop').hidden = false;
  try {
    await video.play();
    while (own === source && !video.ended) {
      // At time 0 there may be no frame yet, although `readyState` has data.
      if (video.currentTime > 0) {
        const bitmap = await createImageBitmap(video);
        await inTurn(() => own === source ? showFrame(bitmap) : bitmap.close());
        say('Playing. Frames that come while the model runs are skipped.');
      }
      await new Promise(requestAnimationFrame);
    }
  } finally {
    if (own === source) {
      stop();
      say('');
    }
  }
}

async function openFile(file) {
  if (!file) {
    return;
  }
  stop();
  say('Working…');
  const own = source;
  const name = file.name;
  if (file.type.startsWith('video/')) {
    video.src = URL.createObjectURL(file);
    await new Promise((resolve, reject) => {
      video.onloadeddata = resolve;
      video.onerror = () => reject(new Error(`This browser cannot play ${name}.`));
    });
    stem = name.replace(/\.[^.]*$/, '');
    await play();
    return;
  }
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`This browser cannot read ${name} as an image.`);
  }
  stem = name.replace(/\.[^.]*$/, '');
  await inTurn(() => showFrame(bitmap));
  if (own === source) {
    say(`${name}, ${bitmap.width}x${bitmap.height}`);
  }
}

async function openCamera() {
  if (!navigator.mediaDevices) {
    throw new Error('This browser offers a camera to https:// and localhost only.');
  }
  stop();
  part('camera').disabled = true;
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia(
        {video: {facingMode: 'environment'}});
  } finally {
    part('camera').disabled = false;
  }
  stem = 'camera';
  await play();
}

async function start() {
  models = await readModels();
  if (!models.length) {
    throw new Error('No served model has a .tflite file that returns labels.');
  }
  const names = [...new Set(models.map(nameOf))];
  document.title = part('name').textContent = names.join(', ');
  await inTurn(addPane);
  for (const id of ['file', 'camera', 'compare', 'accelerator']) {
    part(id).disabled = false;
  }
  say('Open an image or a video, or start the camera.');
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
