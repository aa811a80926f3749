"""keras-aspp demo: the server, and the page in a real browser."""

import http.client
import json
import re
import shutil
import threading
from pathlib import Path

import numpy as np
import PIL
import pytest
from helpers import randomize
from PIL import Image, ImageCms

import keras_aspp as ka
from keras_aspp.cli import demo
from keras_aspp.cli.main import main
from keras_aspp.data.resize import resize_image

ROOT = Path(__file__).parents[2]


@pytest.fixture
def modules(tmp_path):
    """What stands for the runtime where it is not run."""
    folder = tmp_path / "node_modules"
    folder.mkdir()
    (folder / "index.js").write_text("export const one = 1;")
    (folder / "secret.txt").write_text("not asked for")
    (tmp_path / "outside.js").write_text("not asked for")
    return folder


@pytest.fixture
def serve():
    running = []

    def start(node_modules, *folders):
        models = {str(folder): folder for folder in folders}
        server = demo.make_server(models, node_modules, 0)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        running.append(server)
        return server.server_address[1]

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def ask(port, path, method="GET"):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request(method, path)
    answer = connection.getresponse()
    return answer, answer.read()


def test_the_server_gives_its_files_and_no_others(tiny_export, modules, serve):
    port = serve(modules, tiny_export)
    answer, page = ask(port, "/")
    assert (answer.status, page) == (
        200,
        (demo.PAGE / "index.html").read_bytes(),
    )
    assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy
    listed = json.loads(ask(port, "/models.json")[1])
    assert listed == [{"folder": "model0", "given": str(tiny_export)}]
    answer, content = ask(port, "/model0/model_float32.tflite")
    assert content == (tiny_export / "model_float32.tflite").read_bytes()
    answer, nothing = ask(port, "/model0/model_float32.tflite", "HEAD")
    assert int(answer.headers["Content-Length"]) == len(content)
    assert nothing == b""
    assert ask(port, "/node_modules/index.js?x=1")[0].status == 200
    for path in (
        "/model0/model_int8.tflite",
        "/model0/model.keras",
        "/model0/",
        "/model1/model_float32.tflite",
        "/node_modules/manifest.json",
        "/node_modules/../outside.js",
        "/node_modules/%2e%2e/outside.js",
        "/node_modules/secret.txt",
        "/package.json",
        "/etc/passwd",
        "//etc/passwd",
    ):
        assert ask(port, path)[0].status == 404, path


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda folder: None, "must be an exported folder"),
        (lambda folder: folder.mkdir(), "must be an exported folder"),
    ],
    ids=["nothing", "empty"],
)
def test_no_export(make, message, tmp_path, capsys):
    make(tmp_path / "model")
    assert main(["demo", str(tmp_path / "model")]) == 1
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    assert message in said


def write_export(folder, *entries):
    """An export as `demo` reads it, of `(format, dtype, shape)`."""
    folder.mkdir()
    artefacts = []
    for name, dtype, shape in entries:
        path = f"model_{name}.tflite"
        (folder / path).touch()
        artefacts.append(
            {
                "path": path,
                "sha256": "",
                "format": f"tflite_{name}",
                "input": {"dtype": dtype, "shape": shape},
            }
        )
    content = {"class_names": ["a"], "artefacts": artefacts}
    (folder / "manifest.json").write_text(json.dumps(content))
    return folder


RGB = [1, 64, 96, 3]


@pytest.mark.parametrize(
    "entry",
    [
        ("float32", "uint8", [1, 64, 96, 1]),
        ("float32", "uint8", [1, 64, 96, 4]),
        ("float16", "uint16", RGB),
        ("int8", "float32", RGB),
        ("gpu", "float32", RGB),
        ("logits", "uint8", RGB),
        ("any_size", "uint8", [1, None, None, 3]),
        ("int16x8", "uint8", RGB),
        ("dynamic_range", "uint8", None),
    ],
)
def test_an_export_of_which_the_page_lists_nothing(
    entry, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(demo, "modules", lambda: pytest.fail("not refused"))
    folder = write_export(tmp_path / "model", entry)
    assert main(["demo", str(folder)]) == 1
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    assert "of a model of RGB images of 8 bits" in said
    assert f"{folder}' (model_{entry[0]}.tflite: {entry[1]} {entry[2]})" in said


@pytest.mark.parametrize(
    "name", ["int8", "float16", "float32", "dynamic_range"]
)
def test_one_file_that_the_page_lists_is_enough(name, tmp_path):
    entries = [("gpu", "float32", RGB), (name, "uint8", RGB)]
    folder = write_export(tmp_path / "model", *entries)
    demo.check_export(folder, "model")
    (folder / f"model_{name}.tflite").unlink()
    with pytest.raises(ValueError, match=r"\(model_gpu.tflite: float32 "):
        demo.check_export(folder, "model")


def test_links_out_of_the_folder_are_named(tmp_path, capsys):
    export = write_export(tmp_path / "model", ("int8", "uint8", RGB))
    folder = tmp_path / "links"
    folder.mkdir()
    for name in ("manifest.json", "model_int8.tflite"):
        (folder / name).symlink_to(export / name)
    for name in ("manifest.json", "model_int8.tflite"):
        assert main(["demo", str(folder)]) == 1
        said = capsys.readouterr().err
        assert f"'{folder}' ({name} is such a link)" in said
        (folder / name).unlink()
        (folder / name).write_bytes((export / name).read_bytes())
    demo.check_export(folder, "model")
    # The folder itself may be one.
    (tmp_path / "link").symlink_to(folder)
    demo.check_export(tmp_path / "link", "model")


def test_nothing_at_an_address_is_named_by_it(tmp_path, monkeypatch, capsys):
    (tmp_path / "manifest.json").write_text("{}")
    monkeypatch.setattr(demo, "fetch", lambda *_: tmp_path / "manifest.json")
    assert main(["demo", "hf://me/m@v1"]) == 1
    said = capsys.readouterr().err.strip()
    assert said.endswith("(`keras-aspp export`). Received: 'hf://me/m@v1'")


def test_no_npm_and_no_network(tiny_export, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KERAS_ASPP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["demo", str(tiny_export)]) == 1
    assert "npm is not installed" in capsys.readouterr().err
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error code ENOTFOUND' >&2\nexit 1\n")
    npm.chmod(0o755)
    assert main(["demo", str(tiny_export)]) == 1
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    assert said.endswith("npm said: code ENOTFOUND")
    assert list((tmp_path / "cache").iterdir()) == []


def test_wrong_port(tiny_export, modules, serve, monkeypatch, capsys):
    monkeypatch.setattr(demo, "modules", lambda: modules)
    taken = serve(modules, tiny_export)
    assert main(["demo", str(tiny_export), "--port", str(taken)]) == 1
    assert "try another --port" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["demo", str(tiny_export), "--port", "70000"])
    assert stop.value.code == 2


@pytest.fixture
def launch():
    """Starts the system's Chromium, with a camera that is none."""
    playwright = pytest.importorskip(
        "playwright.sync_api",
        reason="extra `examples` is not installed (2026-11-28)",
    )
    for program in ("chromium", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (2026-11-28)")
    with playwright.sync_playwright() as running:
        launched = []

        def start(*flags):
            launched.append(
                running.chromium.launch(
                    executable_path=shutil.which("chromium"),
                    args=[
                        "--no-sandbox",
                        "--use-fake-device-for-media-stream",
                        "--use-fake-ui-for-media-stream",
                        *flags,
                    ],
                )
            )
            return launched[-1]

        yield start
        for browser in launched:
            browser.close()


@pytest.fixture
def browser(launch):
    return launch()


def opened(page, port):
    """The page, once its model is loaded."""
    page.goto(f"http://127.0.0.1:{port}/")
    page.wait_for_selector("#file:enabled, #status.error", state="attached")
    return page


def segmented(page, picture):
    """The labels of a picture by the first model, once the page shows them."""
    page.set_input_files("#file", picture)
    page.wait_for_selector(f"#status:has-text('{picture.name}, ')")
    return page.evaluate("() => Array.from(window.segmentations[0].labels)")


def saved(page, button, path):
    """The image that a button downloads."""
    with page.expect_download() as download:
        page.click(button)
    download.value.save_as(path)
    return download.value.suggested_filename, Image.open(path)


def paint(page, size=(64, 96)):
    """The pixels of the overlay, RGBA."""
    found = page.evaluate(
        "() => { const c = document.querySelector('.overlay');"
        " const d = c.getContext('2d');"
        " const p = d.getImageData(0, 0, c.width, c.height);"
        " return Array.from(p.data); }"
    )
    return np.reshape(found, (*size, 4))


@pytest.fixture
def overlapping_export(toy_backbone, tmp_path):
    """An exported multilabel model, and an image that it was verified on."""
    model = ka.models.DeepLabV3(
        2, toy_backbone(padding=1), aspp_filters=8, task="multilabel"
    )
    pixels = np.random.default_rng(3).integers(0, 256, (64, 96, 3), "uint8")
    randomize(model)
    logits = model(model.preprocess(pixels[None]), training=False)
    # Each class at half of the pixels.
    medians = np.median(logits, (0, 1, 2)).astype("float64")
    model.threshold = tuple((1 / (1 + np.exp(-medians))).tolist())
    ka.export.export_model(
        model,
        tmp_path / "out",
        image_size=(64, 96),
        class_names=["a", "b"],
        colormap=[[255, 0, 0], [0, 255, 0]],
        verify_images=[pixels],
        formats=("tflite_float32",),
        outputs=("labels", "probabilities"),
    )
    return tmp_path / "out", pixels


@pytest.mark.slow
def test_the_page_paints_masks_that_overlap(
    overlapping_export, tmp_path, serve, browser
):
    folder, pixels = overlapping_export
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    page = opened(browser.new_page(), serve(demo.modules(), folder))
    found = segmented(page, tmp_path / "picture.png")
    expected = ka.Predictor(folder).predict(pixels)
    masks = np.reshape(found, (64, 96, 2))
    np.testing.assert_array_equal(masks, expected)
    both, neither = masks.all(-1), ~masks.any(-1)
    assert both.any() and neither.any()
    painted = paint(page)
    assert np.abs(painted[both] - [128, 128, 0, 255]).max() <= 1
    assert not painted[neither].any()
    shares = {
        name: f"{100 * masks[..., i].mean():.1f} %"
        for i, name in enumerate("ab")
    }
    rows = page.inner_text(".legend").split("\n")
    assert dict(zip(rows[::2], rows[1::2], strict=True)) == shares
    downloads = []
    page.on("download", lambda download: downloads.append(download))
    page.click(".save-mask")
    page.wait_for_timeout(2000)
    for i, download in enumerate(downloads):
        assert download.suggested_filename == f"picture_{'ab'[i]}.png"
        download.save_as(tmp_path / "mask.png")
        np.testing.assert_array_equal(
            np.array(Image.open(tmp_path / "mask.png")), 255 * masks[..., i]
        )
    assert len(downloads) == 2


# A runtime whose files hold what they answer: the masks of WASM, then those of
# WebGPU.
_STUB = """
export const loadLiteRt = async () => {};
export const getWebGpuDevice = () => ({});
export const getGlobalLiteRt = () => ({liteRtWasm: {getThreadCount: () => 1}});
export class Tensor { delete() {} }
export const loadAndCompile = async (bytes, {accelerator}) => {
  const half = bytes.length / 2;
  const begin = accelerator === 'wasm' ? 0 : half;
  const data = async () => bytes.slice(begin, begin + half);
  return {
    isFullyAccelerated: true,
    options: {accelerator},
    getOutputDetails: () => [{dtype: 'uint8'}, {dtype: 'int32'}],
    run: async () => [{data, delete() {}}, {data, delete() {}}],
    delete() {},
  };
};
"""


@pytest.fixture
def stub_runtime(tmp_path):
    """A `node_modules` whose runtime answers with the bytes of a file."""
    entry = tmp_path / "stub" / "@litertjs" / "core" / "dist" / "index.js"
    entry.parent.mkdir(parents=True)
    entry.write_text(_STUB)
    return tmp_path / "stub"


def write_masks(folder, names, *masks):
    """An export whose file answers with masks `[H, W, K]` of each runtime."""
    height, width, _ = masks[0].shape
    write_export(folder, ("int8", "uint8", [1, height, width, 3]))
    content = json.loads((folder / "manifest.json").read_text())
    content |= {
        "name": "masks",
        "task": "multilabel",
        "class_names": names,
        "colormap": [[255, i, 0] for i in range(len(names))],
    }
    content["artefacts"][0]["bytes"] = 1
    (folder / "manifest.json").write_text(json.dumps(content))
    path = folder / "model_int8.tflite"
    path.write_bytes(b"".join(m.astype("uint8").tobytes() for m in masks))
    return folder


@pytest.mark.slow
def test_masks_agree_on_the_page_where_all_classes_do(
    stub_runtime, tmp_path, serve, launch
):
    none = np.zeros((4, 6, 5), bool)
    some = none.copy()
    some[:2, :3, 3] = True  # 6 of 24 pixels, 6 of 120 pairs with a class
    finds = write_masks(tmp_path / "finds", list("abcde"), some, none)
    misses = write_masks(tmp_path / "misses", list("abcde"), none, none)
    Image.new("RGB", (6, 4)).save(tmp_path / "picture.png")
    page = launch("--enable-unsafe-webgpu").new_page()
    opened(page, serve(stub_runtime, finds, misses))
    page.select_option("#accelerator", "webgpu")
    page.wait_for_selector(".runs-on:has-text('WebGPU, if')")
    found = segmented(page, tmp_path / "picture.png")
    np.testing.assert_array_equal(np.reshape(found, some.shape), some)
    said = page.inner_text(".runs-on")
    assert "only 75 % of WebGPU's labels equal those of WASM" in said
    page.click("#compare")
    second = page.locator(".pane").nth(1)
    second.locator(".agreement:visible").wait_for()
    assert second.locator(".agreement").inner_text().startswith("75.0 %")
    said = second.locator(".runs-on").inner_text()
    assert "WebGPU; 100 % of its labels" in said


@pytest.mark.slow
def test_the_background_of_a_binary_model_is_not_painted(
    stub_runtime, tmp_path, serve, browser
):
    labels = np.zeros((4, 6, 1), bool)
    labels[1:3, 2:5] = True
    folder = write_masks(tmp_path / "model", ["paper", "ink"], labels, labels)
    content = json.loads((folder / "manifest.json").read_text())
    # Black is the object here.
    content |= {"task": "binary", "colormap": [[255, 255, 255], [0, 0, 0]]}
    (folder / "manifest.json").write_text(json.dumps(content))
    Image.new("RGB", (6, 4)).save(tmp_path / "picture.png")
    page = opened(browser.new_page(), serve(stub_runtime, folder))
    segmented(page, tmp_path / "picture.png")
    painted = paint(page, (4, 6))[..., 3] > 0
    np.testing.assert_array_equal(painted, labels[..., 0])


@pytest.mark.slow
def test_each_mask_is_saved_under_a_name_of_its_own(
    stub_runtime, tmp_path, serve, browser
):
    names = ["road (wet)", "road [wet]", "Road-wet ", "road_wet__1", "été"]
    masks = np.zeros((4, 6, 5), bool)
    for i in range(5):
        masks[i // 2, i, i] = True
    folder = write_masks(tmp_path / "model", names, masks, masks)
    Image.new("RGB", (6, 4)).save(tmp_path / "picture.png")
    page = opened(browser.new_page(), serve(stub_runtime, folder))
    segmented(page, tmp_path / "picture.png")
    downloads = []
    page.on("download", lambda download: downloads.append(download))
    page.click(".save-mask")
    for _ in range(100):  # for 10 seconds at most
        if len(downloads) < len(names):
            page.wait_for_timeout(100)
    saved_as = [download.suggested_filename for download in downloads]
    assert saved_as == [
        "picture_road_wet_.png",
        "picture_road_wet__1.png",
        "picture_Road_wet__2.png",
        "picture_road_wet__1_3.png",
        "picture_été.png",
    ]
    for i, download in enumerate(downloads):
        download.save_as(tmp_path / "mask.png")
        with Image.open(tmp_path / "mask.png") as mask:
            np.testing.assert_array_equal(np.array(mask), 255 * masks[..., i])


@pytest.mark.slow
def test_the_page_answers_like_predictor_and_asks_nobody(
    tiny_export, tmp_path, serve, browser
):
    port = serve(demo.modules(), tiny_export)
    # At the model's own size, where nobody has to resize.
    pixels = np.random.default_rng(3).integers(0, 256, (64, 96, 3), "uint8")
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    page = browser.new_page(viewport={"width": 360, "height": 740})
    asked, wrong = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    opened(page, port)
    found = segmented(page, tmp_path / "picture.png")
    predictor = ka.Predictor(
        tiny_export / page.inner_text(".artefact option:checked").split()[1]
    )
    expected = predictor.predict(pixels)
    np.testing.assert_array_equal(np.reshape(found, (64, 96)), expected)
    # The legend: names and shares, the largest first.
    kinds, counts = np.unique(expected, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    names = ka.Predictor(tiny_export).spec.class_names
    rows = page.inner_text(".legend").split("\n")
    assert rows[::2] == [names[kinds[i]] for i in order]
    assert rows[1] == f"{100 * counts.max() / expected.size:.1f} %"
    assert page.inner_text(".time").endswith(" ms at 96x64")
    assert page.inner_text(".runs-on").startswith("Runs on: WASM (")
    assert page.evaluate("() => crossOriginIsolated")
    # The ground has the palette's black, and so no paint.
    painted = paint(page)
    np.testing.assert_array_equal(
        painted[..., 3], np.where(expected == 0, 0, 255)
    )
    # Downloads: class ids without loss, at the image's size; the overlay.
    name, mask = saved(page, ".save-mask", tmp_path / "mask.png")
    assert (name, mask.mode) == ("picture_labels.png", "L")
    np.testing.assert_array_equal(np.array(mask), expected)
    page.fill("#opacity", "25")
    name, overlay = saved(page, ".save-overlay", tmp_path / "overlay.png")
    assert name == "picture_overlay.png"
    shown = 0.25 * painted[..., :3] + 0.75 * pixels
    shown = np.where(painted[..., 3:] > 0, shown, pixels)
    assert np.abs(np.array(overlay)[..., :3] - shown).max() <= 2
    Image.fromarray(pixels).resize((150, 130)).save(tmp_path / "large.png")
    segmented(page, tmp_path / "large.png")
    _, mask = saved(page, ".save-mask", tmp_path / "mask.png")
    assert mask.size == (150, 130)
    # As wide as a phone, and not wider.
    wide = "() => document.documentElement.scrollWidth"
    assert page.evaluate(wide) == 360
    page.set_input_files("#file", tmp_path / "broken.png")
    page.wait_for_selector("#status.error")
    assert "cannot read broken.png" in page.inner_text("#status")
    own = f"http://127.0.0.1:{port}/"
    assert [url for url in asked if not url.startswith((own, "blob:"))] == []
    assert wrong == []


@pytest.mark.slow
def test_the_page_resizes_as_python(modules, tiny_export, serve, browser):
    page = browser.new_page()
    page.goto(f"http://127.0.0.1:{serve(modules, tiny_export)}/")
    call = (
        "async ([pixels, from, to]) => {"
        " const {resize} = await import('/resize.js');"
        " const size = ([height, width]) => ({height, width});"
        " const read = (top, rows) => pixels.slice("
        "     4 * top * from[1], 4 * (top + rows) * from[1]);"
        " return Array.from(resize(size(from), size(to), read)); }"
    )
    random = np.random.default_rng(0)
    for size, to in [
        ((64, 96), (64, 96)),
        ((37, 53), (64, 96)),
        ((130, 150), (64, 96)),
        ((300, 611), (64, 96)),  # more than one strip
        ((3, 200), (9, 7)),
        # Rows first, as Pillow 13 does.
        ((640, 90), (64, 96)),
        ((300, 150), (64, 96)),
        ((1, 1), (5, 7)),
    ]:
        pixels = random.integers(0, 256, (*size, 4), "uint8")
        found = page.evaluate(call, [pixels.ravel().tolist(), size, to])
        expected = resize_image(np.ascontiguousarray(pixels[..., :3]), to)
        np.testing.assert_allclose(
            np.reshape(found, (*to, 3)),
            expected.astype(int),
            atol=0 if int(PIL.__version__.split(".")[0]) >= 13 else 1,
        )


@pytest.mark.slow
def test_the_page_reads_pixels_as_python(tiny_export, tmp_path, serve, browser):
    page = opened(browser.new_page(), serve(demo.modules(), tiny_export))
    predictor = ka.Predictor(
        tiny_export / page.inner_text(".artefact option:checked").split()[1]
    )
    random = np.random.default_rng(5)

    def check(name, **options):
        image.save(tmp_path / name, **options)
        segmented(page, tmp_path / name)
        _, mask = saved(page, ".save-mask", tmp_path / "mask.png")
        expected = predictor.predict(tmp_path / name)
        # WASM rounds in another way where two scores are nearly equal.
        assert np.mean(np.array(mask) == expected) > 0.999

    # Of another size, where the page resizes.
    pixels = random.integers(0, 256, (130, 150, 3), "uint8")
    image = Image.fromarray(pixels)
    check("large.png")
    # With a color profile, which exchanges red and blue.
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    red, blue, kept = b"rXYZ", b"bXYZ", b"----"
    profile = profile.tobytes().replace(red, kept)
    profile = profile.replace(blue, red).replace(kept, blue)
    check("profile.png", icc_profile=profile)
    # An alpha channel that hides nothing; then one that does.
    image.putalpha(255)
    check("opaque.png")
    image.putpixel((140, 120), (1, 2, 3, 254))
    image.save(tmp_path / "transparent.png")
    page.set_input_files("#file", tmp_path / "transparent.png")
    page.wait_for_selector(".runs-on.error")
    said = page.inner_text(".runs-on")
    assert "Not segmented. The image is transparent in places" in said


@pytest.mark.slow
def test_a_download_belongs_to_the_image_of_its_name(
    tiny_export, tmp_path, serve, browser
):
    generator = np.random.default_rng(3)
    for name in "ab":
        pixels = generator.integers(0, 256, (64, 96, 3), "uint8")
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    page = browser.new_page()
    # `hold()` delays the labels of all models until `release()`.
    page.add_init_script(
        """
        window.hold = () => {
          window.held = new Promise((resolve) => { window.release = resolve; });
        };
        const post = Worker.prototype.postMessage;
        Worker.prototype.postMessage = async function (...given) {
          await window.held;
          post.apply(this, given);
        };
        """
    )
    opened(page, serve(demo.modules(), tiny_export))
    first = np.reshape(segmented(page, tmp_path / "a.png"), (64, 96))

    def check_saved(name, labels):
        found, mask = saved(page, ".save-mask", tmp_path / "mask.png")
        assert found == f"{name}_labels.png"
        np.testing.assert_array_equal(np.array(mask), labels)
        found, _ = saved(page, ".save-overlay", tmp_path / "overlay.png")
        assert found == f"{name}_overlay.png"

    # A file that cannot be read leaves the result as it is.
    page.set_input_files("#file", tmp_path / "broken.png")
    page.wait_for_selector("#status.error")
    check_saved("a", first)
    # While the second image is segmented, nothing can be saved.
    page.evaluate("() => hold()")
    page.set_input_files("#file", tmp_path / "b.png")
    page.wait_for_selector(".save-mask", state="hidden")
    assert page.locator(".save-overlay").is_hidden()
    page.evaluate("() => release()")
    page.wait_for_selector("#status:has-text('b.png, ')")
    second = page.evaluate("() => Array.from(segmentations[0].labels)")
    second = np.reshape(second, (64, 96))
    assert (first != second).any()
    check_saved("b", second)
    # Of two images that are opened at once, the last one stays.
    page.evaluate("() => hold()")
    page.set_input_files("#file", tmp_path / "b.png")
    page.wait_for_selector(".save-mask", state="hidden")
    page.set_input_files("#file", tmp_path / "a.png")
    page.evaluate("() => release()")
    page.wait_for_selector("#status:has-text('a.png, ')")
    check_saved("a", first)


@pytest.mark.slow
@pytest.mark.parametrize("field, value", [("shape", 4), ("dtype", "float32")])
def test_the_page_lists_models_of_rgb_of_8_bits_alone(
    field, value, tmp_path, modules, serve, browser
):
    exported = ROOT / "tests/golden/13d0402/exported"
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(exported / "model_float32.tflite", folder)
    manifest = json.loads((exported / "manifest.json").read_text())
    assert manifest["artefacts"][0]["input"]["shape"][3] == 3
    for entry in manifest["artefacts"]:
        if field == "shape":
            entry["input"]["shape"][3] = value
        else:
            entry["input"][field] = value
    (folder / "manifest.json").write_text(json.dumps(manifest))
    page = opened(browser.new_page(), serve(modules, folder))
    assert "with RGB input of uint8." in page.inner_text("#status")


@pytest.mark.slow
def test_models_that_do_not_load_leave_the_page_usable(
    tiny_export, tmp_path, serve, browser
):
    broken, incomplete, good = (
        tmp_path / name for name in ("broken", "incomplete", "good")
    )
    for folder in (broken, incomplete, good):
        shutil.copytree(
            tiny_export,
            folder,
            ignore=lambda _, names: (
                set(names) - {"manifest.json", "model_float32.tflite"}
            ),
        )
    (broken / "model_float32.tflite").write_bytes(b"no model" * 100)
    manifest = json.loads((incomplete / "manifest.json").read_text())
    del manifest["colormap"]
    (incomplete / "manifest.json").write_text(json.dumps(manifest))
    pixels = np.random.default_rng(3).integers(0, 256, (64, 96, 3), "uint8")
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    expected = ka.Predictor(tiny_export / "model_float32.tflite").predict(
        pixels
    )
    port = serve(demo.modules(), broken, incomplete, good)
    page = browser.new_page()
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    opened(page, port)
    page.wait_for_selector("#file:enabled", state="attached")
    assert f"{incomplete} is left out: manifest" in page.inner_text("#status")
    first, second = (page.locator(".pane").nth(i) for i in range(2))
    first.locator(".runs-on:has-text('Not loaded. ')").wait_for()
    page.click("#compare")
    second.locator(".runs-on:has-text('Runs on: ')").wait_for()

    def check_only_the_second():
        page.set_input_files("#file", tmp_path / "picture.png")
        page.wait_for_selector("#status:has-text('picture.png, ')")
        found = page.evaluate(
            "() => segmentations.map((one) => one && Array.from(one.labels))"
        )
        assert found[0] is None
        np.testing.assert_array_equal(np.reshape(found[1], (64, 96)), expected)
        assert first.locator(".result").is_hidden()
        assert second.locator(".agreement").is_hidden()
        reason = first.locator(".runs-on").inner_text()
        assert reason.startswith("Not loaded. ")

    check_only_the_second()
    page.select_option("#accelerator", "wasm")
    second.locator(".runs-on:has-text('WASM is selected')").wait_for()
    check_only_the_second()
    # The first pane recovers with another file.
    first.locator("select").select_option(index=1)
    second.locator(".agreement:visible").wait_for()
    said = second.locator(".agreement").inner_text()
    assert said.startswith("100.0 % of labels")
    # Removal does not wait for a worker that never answers.
    page.evaluate("() => { Worker.prototype.postMessage = () => {}; }")
    second.locator("select").select_option(index=1)
    second.locator(".runs-on:has-text('Loading')").wait_for()
    second.locator(".remove").click()
    second.wait_for(state="detached")
    page.wait_for_function("() => segmentations.length === 1")
    assert first.locator(".remove").is_hidden()
    assert wrong == []


def test_the_command_knows_the_formats_of_the_page():
    script = (ROOT / "keras_aspp/web/app.js").read_text()
    (line,) = re.findall(r"^const FORMATS = \[(.*)\];$", script, re.M)
    page = [name.strip("' ") for name in line.split(",")]
    assert page == [f"tflite_{name}" for name in demo._FORMATS]


def played(page, film):
    """Opens a film whose last frame is white and waits for its end."""
    page.set_input_files(
        "#file",
        {"name": "film.webm", "mimeType": "video/webm", "buffer": film},
    )
    page.wait_for_function(  # until the film is at its end, or refused
        "() => document.querySelector('#status.error')"
        " || playing.includes(true) && !playing.at(-1)"
    )
    assert page.inner_text("#status") == ""
    assert page.locator("#camera").is_visible()
    assert page.get_attribute(".view", "aria-label").startswith("film: ")
    last = page.evaluate(
        "() => document.querySelector('.view').getContext('2d')"
        ".getImageData(48, 32, 1, 1).data[0]"
    )
    assert last > 200


@pytest.mark.slow
def test_the_page_plays_a_camera_and_a_video(
    tiny_export, tmp_path, serve, browser
):
    page = opened(browser.new_page(), serve(demo.modules(), tiny_export))
    page.click("#camera")
    page.wait_for_selector("#status:has-text('Playing')")
    assert page.get_attribute(".view", "aria-label").startswith("camera: ")
    page.click("#stop")
    page.wait_for_selector("#camera:visible")
    # The browser records a second of gray that turns white.
    film = page.evaluate(
        """async () => {
          const canvas = document.createElement('canvas');
          [canvas.width, canvas.height] = [96, 64];
          const context = canvas.getContext('2d');
          const recorder = new MediaRecorder(canvas.captureStream(20));
          const parts = [];
          recorder.ondataavailable = ({data}) => parts.push(data);
          const ended = new Promise((resolve) => recorder.onstop = resolve);
          recorder.start();
          for (let i = 0; i < 20; i++) {
            const gray = Math.min(20 * i, 255);
            context.fillStyle = `rgb(${gray}, ${gray}, ${gray})`;
            context.fillRect(0, 0, 96, 64);
            await new Promise((resolve) => setTimeout(resolve, 50));
          }
          recorder.stop();
          await ended;
          return [...new Uint8Array(await new Blob(parts).arrayBuffer())];
        }"""
    )
    # What a busy machine sees too late is recorded.
    page.evaluate(
        """() => {
          const stop = document.querySelector('#stop');
          window.playing = [];
          new MutationObserver(() => playing.push(!stop.hidden)).observe(
            stop, {attributeFilter: ['hidden']});
        }"""
    )
    played(page, bytes(film))
    # While the browser has no frame to read, the page waits for the next one.
    page.evaluate(
        """() => {
          const read = window.createImageBitmap;
          window.refused = 0;
          window.createImageBitmap = async (source) => {
            if (source instanceof HTMLVideoElement && refused++ % 2 === 0) {
              throw new DOMException('No frame.', 'InvalidStateError');
            }
            return read(source);
          };
          playing.length = 0;
        }"""
    )
    played(page, bytes(film))
    assert page.evaluate("() => refused") > 1
    page.set_input_files(
        "#file",
        {"name": "bad.webm", "mimeType": "video/webm", "buffer": b"no film"},
    )
    page.wait_for_selector("#status.error")
    assert "cannot play bad.webm" in page.inner_text("#status")
    sound = page.evaluate(
        """async () => {
          const audio = new AudioContext();
          const tone = audio.createOscillator();
          const recorded = audio.createMediaStreamDestination();
          tone.connect(recorded);
          tone.start();
          const recorder = new MediaRecorder(recorded.stream);
          const parts = [];
          recorder.ondataavailable = ({data}) => parts.push(data);
          const ended = new Promise((resolve) => recorder.onstop = resolve);
          recorder.start();
          await new Promise((resolve) => setTimeout(resolve, 300));
          recorder.stop();
          await ended;
          return [...new Uint8Array(await new Blob(parts).arrayBuffer())];
        }"""
    )
    page.set_input_files(
        "#file",
        {"name": "a.webm", "mimeType": "video/webm", "buffer": bytes(sound)},
    )
    page.wait_for_selector("#status.error:has-text('only the sound of a.webm')")
    # A camera that starts after another file was opened is switched off.
    page.evaluate(
        """() => {
          const devices = navigator.mediaDevices;
          const begin = devices.getUserMedia.bind(devices);
          const wait = new Promise((resolve) => { window.release = resolve; });
          devices.getUserMedia = async (wanted) => {
            window.stream = await begin(wanted);
            await wait;
            return window.stream;
          };
        }"""
    )
    page.click("#camera")
    page.wait_for_function("() => window.stream")
    Image.new("RGB", (96, 64)).save(tmp_path / "picture.png")
    segmented(page, tmp_path / "picture.png")
    page.evaluate("() => release()")
    page.wait_for_selector("#camera:enabled")
    page.wait_for_function(
        "() => stream.getTracks().every((one) => one.readyState === 'ended')"
    )
    assert page.inner_text("#status") == "picture.png, 96x64"
    assert page.locator("#stop").is_hidden()


@pytest.mark.slow
def test_the_page_stays_responsive_and_compares_models(
    tiny_export, serve, browser, tmp_path
):
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright",
        reason="extra `examples` is not installed (2026-11-29)",
    ).Axe()
    port = serve(
        demo.modules(), ROOT / "saved_models/camvid_mobilenet_v2", tiny_export
    )
    page = browser.new_page(viewport={"width": 360, "height": 740})
    opened(page, port)

    def violations():
        found = axe.run(page).response["violations"]
        return [(v["id"], [n["html"] for n in v["nodes"]]) for v in found]

    assert violations() == []
    image = ROOT / "docs/images/china.jpg"
    segmented(page, image)
    # Gaps between ticks of the page's own thread while the model runs again.
    page.evaluate(
        """() => {
          let last = performance.now();
          window.gaps = [];
          setInterval(() => {
            const now = performance.now();
            window.gaps.push(now - last);
            last = now;
          }, 5);
        }"""
    )
    page.evaluate("() => { window.segmentations = null; }")
    segmented(page, image)
    spent = float(page.inner_text(".time").split()[0])
    gaps = page.evaluate("() => window.gaps")
    assert spent > 100
    assert sum(gaps) > spent
    assert max(gaps) < spent / 2
    # A second model, then the first one's other file: side by side.
    page.click("#compare")
    second = page.locator(".pane").nth(1)
    second.locator(".time:visible").wait_for()
    assert second.locator(".time").inner_text().endswith(" at 96x64")
    assert second.locator(".agreement").is_hidden()  # of other classes
    second.locator("select").select_option(index=1)
    second.locator(".agreement:visible").wait_for()
    share = float(second.locator(".agreement").inner_text().split()[0])
    both = page.evaluate(
        "() => window.segmentations.map(({labels}) => Array.from(labels))"
    )
    assert share == pytest.approx(100 * np.equal(*both).mean(), abs=0.06)
    assert share > 95
    assert violations() == []
    page.emulate_media(color_scheme="dark")
    assert violations() == []
    wide = "() => document.documentElement.scrollWidth"
    assert page.evaluate(wide) == 360
    # By the keyboard alone.
    second.locator(".remove").focus()
    page.keyboard.press("Enter")
    second.wait_for(state="detached")
    assert page.locator(".remove").is_hidden()


@pytest.mark.slow
def test_the_page_uses_webgpu_where_its_labels_agree(
    toy_backbone, tmp_path, serve, launch
):
    # SwiftShader, on the processor; the toy has no BROADCAST_TO.
    browser = launch(
        "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"
    )
    model = ka.models.DeepLabV3(
        3, toy_backbone(padding=1), aspp_filters=8, image_pooling=False
    )
    randomize(model)
    pixels = np.random.default_rng(3).integers(0, 256, (64, 96, 3), "uint8")
    ka.export.export_model(
        model,
        tmp_path / "out",
        image_size=(64, 96),
        class_names=["a", "b", "c"],
        verify_images=[pixels],
        formats=("tflite_float32",),
    )
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    page = opened(browser.new_page(), serve(demo.modules(), tmp_path / "out"))
    said = page.inner_text(".runs-on")
    assert said.endswith("adapter is emulated by the processor.")
    page.select_option("#accelerator", "webgpu")
    page.wait_for_selector(".runs-on:has-text('WebGPU, if')")
    found = segmented(page, tmp_path / "picture.png")
    said = page.inner_text(".runs-on")
    assert said.startswith("Runs on: WebGPU; ")
    expected = ka.Predictor(tmp_path / "out").predict(pixels)
    agreement = np.equal(np.reshape(found, (64, 96)), expected).mean()
    assert agreement > 0.995
    assert len(np.unique(expected)) > 1
