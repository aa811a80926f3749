// Runs one model for the page, so that the page stays responsive.
//
// A classic worker: LiteRT.js loads its WebAssembly by importScripts(), which
// module workers do not have.
//
// Requests: {id, task: 'load' | 'segment', ...}. Responses: {id, ...} or
// {id, error}.

// Share of pixels with equal labels from which WebGPU may replace WASM.
const MIN_AGREEMENT = 0.995;
const RUNTIME = new URL('node_modules/@litertjs/core/', self.location).href;

let runtime = null;
let wasm = null;
let gpu = null;
// True once the labels of both were compared; then only one is left.
let compared = false;
let runsOn = '';

async function loadRuntime() {
  const loaded = await import(`${RUNTIME}dist/index.js`);
  // Without these, files are looked for beside this script.
  self.Module = {
    locateFile: (file) => `${RUNTIME}wasm/${file}`,
    mainScriptUrlOrBlob: `${RUNTIME}wasm/litert_wasm_threaded_internal.js`,
  };
  await loaded.loadLiteRt(`${RUNTIME}wasm/`, {threads: self.crossOriginIsolated});
  return loaded;
}

function nameOfWasm() {
  const count = runtime.getGlobalLiteRt().liteRtWasm.getThreadCount();
  return `WASM (${count} ${count === 1 ? 'thread' : 'threads'})`;
}

function useWasm(reason) {
  gpu?.delete();
  gpu = null;
  compared = true;
  runsOn = `${nameOfWasm()}, because ${reason}.`;
}

/** Returns why WebGPU cannot be used, or null. */
async function obstacle(accelerator) {
  if (accelerator === 'wasm') {
    return 'WASM is selected';
  }
  if (!navigator.gpu) {
    return 'this browser has no WebGPU';
  }
  if (!runtime.getWebGpuDevice()) {
    return 'WebGPU finds no adapter';
  }
  const adapter = await navigator.gpu.requestAdapter();
  if (accelerator === 'auto' && adapter?.info.isFallbackAdapter) {
    return 'the only WebGPU adapter is emulated by the processor';
  }
  return null;
}

/**
 * Loads a .tflite file.
 *
 * @param {{url: string, accelerator: 'auto'|'webgpu'|'wasm'}} request
 */
async function load({url, accelerator}) {
  runtime ??= await loadRuntime();
  [wasm, gpu].forEach((model) => model?.delete());
  wasm = gpu = null;
  compared = false;
  const answer = await fetch(url);
  if (!answer.ok) {
    throw new Error(`${url} cannot be loaded: ${answer.status}.`);
  }
  const bytes = new Uint8Array(await answer.arrayBuffer());
  wasm = await runtime.loadAndCompile(bytes, {accelerator: 'wasm'});
  const reason = await obstacle(accelerator);
  if (reason) {
    useWasm(reason);
    return {runsOn};
  }
  try {
    gpu = await runtime.loadAndCompile(bytes, {accelerator: 'webgpu'});
  } catch (error) {
    console.warn(error);
  }
  // A graph in parts would move every frame between GPU and processor.
  if (gpu?.isFullyAccelerated && gpu.options.accelerator === 'webgpu') {
    runsOn = 'WebGPU, if its labels equal those of WASM on the first image.';
  } else {
    useWasm('WebGPU cannot run the whole model');
  }
  return {runsOn};
}

/** Reads the pixels of an image at the model's size: uint8 RGB. */
async function readPixels(bitmap, size) {
  const {resize} = await import('./resize.js');
  const {width} = bitmap;
  let context = null;
  return resize(bitmap, size, (top, rows) => {
    // The first strip is the highest.
    context ??= new OffscreenCanvas(width, rows).getContext('2d', {willReadFrequently: true});
    context.globalCompositeOperation = 'copy';
    context.drawImage(bitmap, 0, -top);
    const {data} = context.getImageData(0, 0, width, rows);
    for (let i = 3; i < data.length; i += 4) {
      if (data[i] < 255) {
        throw new Error('The image is transparent in places, and a browser does not give ' +
            'the colors that are stored there: save it without transparency.');
      }
    }
    return data;
  });
}

/** Computes labels; `dtype` is that of the output that holds them. */
async function run(model, pixels, width, height, dtype) {
  // Confidence and probabilities, which an export may add, are floats.
  const at = model.getOutputDetails().findIndex((one) => one.dtype === dtype);
  if (at < 0) {
    throw new Error(`The model has no output of ${dtype} labels.`);
  }
  const begun = performance.now();
  const input = new runtime.Tensor(pixels, [1, height, width, 3]);
  let outputs = [];
  try {
    outputs = await model.run([input]);
    const labels = (await outputs[at].data()).slice();
    return {labels, ms: performance.now() - begun};
  } finally {
    input.delete();
    outputs.forEach((output) => output.delete());
  }
}

/** Runs both on the first image, and keeps WebGPU only if they agree. */
async function compare(...given) {
  const {shareOfEqualPixels} = await import('./labels.js');
  const [, width, height] = given;
  const expected = await run(wasm, ...given);
  let found;
  try {
    found = await run(gpu, ...given);
  } catch (error) {
    console.warn(error);
    useWasm('WebGPU failed on the first image');
    return expected;
  }
  const share = shareOfEqualPixels(found.labels, expected.labels, width * height);
  const percent = `${(Math.floor(1e4 * share) / 100)} %`;
  if (share < MIN_AGREEMENT) {
    useWasm(`only ${percent} of WebGPU's labels equal those of WASM`);
    return expected;
  }
  compared = true;
  wasm.delete();
  wasm = null;
  runsOn = `WebGPU; ${percent} of its labels on the first image equal those of WASM.`;
  return found;
}

/**
 * Colors labels.
 *
 * @param {Int32Array|Uint8Array} labels row by row; of masks that may overlap,
 *     0 or 1 for each class of a pixel.
 * @return {{rgba: Uint8ClampedArray, counts: Array<[number, number]>}} pixels,
 *     and [class id, number of pixels], the largest first.
 */
function paint(labels, pixels, {overlapping, colormap, unpainted}) {
  const count = colormap.length;
  const classesOf = (pixel) => {
    if (!overlapping) {
      return [labels[pixel]];
    }
    const own = labels.subarray(pixel * count, (pixel + 1) * count);
    return [...own.keys()].filter((id) => own[id]);
  };
  const rgba = new Uint8ClampedArray(4 * pixels);
  const counts = new Map();
  for (let i = 0; i < pixels; i++) {
    const found = classesOf(i);
    found.forEach((id) => counts.set(id, (counts.get(id) || 0) + 1));
    const painted = found.filter((id) => !unpainted.includes(id));
    // The mean color where masks overlap.
    for (let band = 0; painted.length && band < 3; band++) {
      const sum = painted.reduce((all, id) => all + colormap[id][band], 0);
      rgba[4 * i + band] = sum / painted.length;
    }
    rgba[4 * i + 3] = painted.length ? 255 : 0;
  }
  return {rgba, counts: [...counts].sort((a, b) => b[1] - a[1])};
}

/** Segments an image, which it closes. */
async function segment({bitmap, width, height, style}) {
  let pixels;
  try {
    pixels = await readPixels(bitmap, {width, height});
  } finally {
    bitmap.close();
  }
  if (!wasm && !gpu) {
    throw new Error('No model is loaded.');
  }
  const given = [pixels, width, height, style.overlapping ? 'uint8' : 'int32'];
  const {labels, ms} = await (compared ? run(gpu ?? wasm, ...given) : compare(...given));
  return {labels, ms, runsOn, ...paint(labels, width * height, style)};
}

// One after the other: a model must not change while it runs.
let last = Promise.resolve();
self.onmessage = ({data}) => {
  last = last.then(async () => {
    try {
      const result = await (data.task === 'load' ? load(data) : segment(data));
      const moved = [result.labels, result.rgba].filter(Boolean).map((a) => a.buffer);
      self.postMessage({id: data.id, ...result}, moved);
    } catch (error) {
      console.error(error);
      self.postMessage({id: data.id, error: error.message || String(error)});
    }
  });
};
