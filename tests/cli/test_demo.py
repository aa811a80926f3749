"""keras-aspp demo: the server, and the page in a real browser."""

import http.client
import shutil
import threading

import numpy as np
import pytest
from helpers import randomize
from PIL import Image

import keras_aspp as ka
from keras_aspp.cli import demo
from keras_aspp.cli.main import main


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

    def start(model, node_modules):
        server = demo.make_server(model, node_modules, 0)
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
    port = serve(tiny_export, modules)
    answer, page = ask(port, "/")
    assert (answer.status, page) == (
        200,
        (demo.PAGE / "index.html").read_bytes(),
    )
    assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy
    answer, content = ask(port, "/model/model_float32.tflite")
    assert content == (tiny_export / "model_float32.tflite").read_bytes()
    answer, nothing = ask(port, "/model/model_float32.tflite", "HEAD")
    assert int(answer.headers["Content-Length"]) == len(content)
    assert nothing == b""
    assert ask(port, "/node_modules/index.js?x=1")[0].status == 200
    for path in (
        "/model/model_int8.tflite",
        "/model/model.keras",
        "/model/",
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
    taken = serve(tiny_export, modules)
    assert main(["demo", str(tiny_export), "--port", str(taken)]) == 1
    assert "try another --port" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["demo", str(tiny_export), "--port", "70000"])
    assert stop.value.code == 2


@pytest.fixture
def browser():
    """The system's Chromium, with a camera that is none."""
    playwright = pytest.importorskip(
        "playwright.sync_api",
        reason="extra `examples` is not installed (2026-11-28)",
    )
    for program in ("chromium", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (2026-11-28)")
    with playwright.sync_playwright() as running:
        launched = running.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=[
                "--no-sandbox",
                "--use-fake-device-for-media-stream",
                "--use-fake-ui-for-media-stream",
            ],
        )
        yield launched
        launched.close()


def segmented(page, port, picture):
    """The labels of a picture, a list, once the page shows them."""
    page.goto(f"http://127.0.0.1:{port}/")
    page.wait_for_selector("#image:enabled, #status.error", state="attached")
    page.set_input_files("#image", picture)
    page.wait_for_selector("#legend li, #status.error")
    return page.evaluate("() => Array.from(window.segmentation.labels)")


def paint(page):
    """The pixels of the overlay, RGBA."""
    found = page.evaluate(
        "() => { const c = document.getElementById('overlay');"
        " const d = c.getContext('2d');"
        " const p = d.getImageData(0, 0, c.width, c.height);"
        " return Array.from(p.data); }"
    )
    return np.reshape(found, (64, 96, 4))


@pytest.mark.slow
def test_the_page_paints_masks_that_overlap(
    toy_backbone, tmp_path, serve, browser
):
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
    port = serve(tmp_path / "out", demo.modules())
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    page = browser.new_page()
    found = segmented(page, port, tmp_path / "picture.png")
    expected = ka.Predictor(tmp_path / "out").predict(pixels)
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
    rows = page.inner_text("#legend").split("\n")
    assert dict(zip(rows[::2], rows[1::2], strict=True)) == shares


@pytest.mark.slow
def test_the_page_answers_like_predictor_and_asks_nobody(
    tiny_export, tmp_path, serve, browser
):
    port = serve(tiny_export, demo.modules())
    # At the model's own size, where nobody has to resize.
    pixels = np.random.default_rng(3).integers(0, 256, (64, 96, 3), "uint8")
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    page = browser.new_page(viewport={"width": 390, "height": 800})
    asked, wrong = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    found = segmented(page, port, tmp_path / "picture.png")
    chosen = page.input_value("#artefact")
    expected = ka.Predictor(tiny_export / chosen).predict(pixels)
    np.testing.assert_array_equal(np.reshape(found, (64, 96)), expected)
    # The legend: names and shares, the largest first.
    kinds, counts = np.unique(expected, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    names = ka.Predictor(tiny_export).spec.class_names
    rows = page.inner_text("#legend").split("\n")
    assert rows[::2] == [names[kinds[i]] for i in order]
    assert rows[1] == f"{100 * counts.max() / expected.size:.1f} %"
    assert page.inner_text("#status").startswith("96x64, ")
    # The ground has the palette's black, and so no paint.
    np.testing.assert_array_equal(
        paint(page)[..., 3], np.where(expected == 0, 0, 255)
    )
    page.fill("#opacity", "25")
    style = "() => document.getElementById('overlay').style.opacity"
    assert page.evaluate(style) == "0.25"
    # As wide as a phone, and not wider.
    wide = "() => document.documentElement.scrollWidth"
    assert page.evaluate(wide) == 390
    page.set_input_files("#image", tmp_path / "broken.png")
    page.wait_for_selector("#status.error")
    assert "broken.png is no image" in page.inner_text("#status")
    # The camera.
    page.click("#camera")
    page.wait_for_selector("#status:not(.error)")
    page.wait_for_selector("#camera:has-text('Stop')")
    page.click("#camera")
    page.wait_for_selector("#camera:has-text('Camera')")
    own = f"http://127.0.0.1:{port}/"
    assert [url for url in asked if not url.startswith((own, "blob:"))] == []
    assert wrong == []
