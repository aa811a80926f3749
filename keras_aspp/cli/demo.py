"""Command `keras-aspp demo`: exported models in the browser."""

import contextlib
import functools
import hashlib
import http.server
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

from keras_aspp.cli.main import Parser
from keras_aspp.utils.exceptions import (
    InputError,
    InputNotFoundError,
    UnavailableError,
)
from keras_aspp.utils.hub import fetch, is_address
from keras_aspp.utils.text import printable, read_manifest

# A connection is closed after `IDLE_SECONDS` without a byte, and after
# `MAX_SECONDS` whatever it does.
IDLE_SECONDS = 10
MAX_SECONDS = 60
# One thread each. A browser opens six at a time.
MAX_CONNECTIONS = 32
PAGE = Path(__file__).parents[1] / "web"
_FILES = (
    "index.html",
    "app.js",
    "worker.js",
    "labels.js",
    "resize.js",
    "png.js",
    "style.css",
)
# The formats of app.js, without `tflite_`.
_FORMATS = ("int8", "float16", "float32", "dynamic_range")
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".map": "application/json",
    ".wasm": "application/wasm",
    ".tflite": "application/octet-stream",
}
# Suffixes served of the runtime. An exported folder may come from elsewhere, so
# it must not add scripts or pages to the origin.
_RUNTIME_SUFFIXES = (".js", ".json", ".map", ".wasm")
# Import maps do not apply in workers, so a bare name becomes a path.
_RUNTIME_ENTRY = ["node_modules", "@litertjs", "core", "dist", "index.js"]
_IMPORTS = {
    b'"@litertjs/wasm-utils"': (
        b'"/node_modules/@litertjs/wasm-utils/dist/index.js"'
    )
}


def run(arguments):
    """Serves a page that segments images in the browser."""
    parser = Parser(
        prog="keras-aspp demo",
        description="Serve, on this machine, a page that segments your "
        "images, videos and your camera in the browser with exported models, "
        "side by side if there are several. No image leaves the browser. "
        "The runtime (@litertjs/core, some 40 MB) comes from npm on first "
        "use.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "models",
        metavar="DIR",
        nargs="+",
        help="an export; also hf://user/name of one",
    )
    parser.add_argument("--port", type=int, default=8000)
    flags = parser.parse_args(arguments)
    if not 0 <= flags.port <= 65535:
        parser.error(f"--port must be in 0..65535. Received: {flags.port}")
    with contextlib.ExitStack() as stack:
        folders = {}
        for given in dict.fromkeys(flags.models):
            folders[given] = stack.enter_context(local_export(given))
            check_export(folders[given], given)
        server = make_server(folders, modules(), flags.port)
        host, port = server.server_address[:2]
        print(f"http://{host}:{port}/  (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
        finally:
            server.server_close()
    return 0


@contextlib.contextmanager
def local_export(path):
    """Yields the folder of an export, that of the Hub in a temporary copy.

    The Hub's cache consists of links, which the server does not follow out of
    its folder.
    """
    if not is_address(path):
        yield Path(path)
        return
    folder = fetch(path, ("manifest.json",), "*.tflite").parent
    with tempfile.TemporaryDirectory(prefix="keras_aspp_") as copy:
        for file in (folder / "manifest.json", *folder.glob("*.tflite")):
            shutil.copy(file, copy)
        yield Path(copy)


def check_export(folder, received):
    """Raises if a folder has no model for the page.

    Args:
        folder: `pathlib.Path`.
        received: str, what the user gave, for messages.

    Raises:
        FileNotFoundError: the folder is not an export.
        ValueError: the page reads none of its files, or one is a link out of
            the folder.
    """
    if not (folder / "manifest.json").is_file() or not any(
        folder.glob("*.tflite")
    ):
        raise InputNotFoundError(
            "The model must be an exported folder, with manifest.json and a "
            f".tflite (`keras-aspp export`). Received: {received!r}"
        )
    for file in (folder / "manifest.json", *sorted(folder.glob("*.tflite"))):
        if not _is_within(file, folder):
            raise InputError(
                "Links that lead out of an exported folder are not served; "
                f"name a copy of it (`cp -rL`). Received: {received!r} "
                f"({printable(file.name)} is such a link)"
            )
    entries = [
        entry
        for entry in read_manifest(folder / "manifest.json")["artefacts"]
        if entry["path"].endswith(".tflite")
        and os.path.isfile(folder / entry["path"])
    ]
    if not any(map(_is_listed, entries)):
        names = ", ".join(f"model_{name}.tflite" for name in _FORMATS)
        found = ", ".join(map(_described, entries))
        raise InputError(
            f"The page lists {names}, of a model of RGB images of 8 bits, and "
            "the export has none of them. Export one by --formats. "
            f"Received: {received!r} ({found or 'no file of its manifest'})"
        )


def _described(entry):
    """Returns e.g. `"model_int8.tflite: uint16 [1, 64, 96, 4]"`."""
    image = entry.get("input")
    image = image if isinstance(image, dict) else {}
    text = f"{entry['path']}: {image.get('dtype')} {image.get('shape')}"
    return printable(text)


def _is_listed(entry):
    """Returns True for a file that the page lists, as `readFolder` does."""
    image = entry.get("input")
    if not isinstance(image, dict) or entry.get("format") not in [
        f"tflite_{name}" for name in _FORMATS
    ]:
        return False
    shape = image.get("shape")
    of_rgb = isinstance(shape, list) and shape[3:] == [3]
    return of_rgb and image.get("dtype") == "uint8"


def modules():
    """Returns the folder of the JavaScript runtime, downloaded once by npm.

    It is kept by the hash of the lock file, in `KERAS_ASPP_CACHE` or
    `~/.cache/keras_aspp`.

    Raises:
        OSError: npm is missing, or cannot fetch it.
    """
    lock = (PAGE / "package-lock.json").read_bytes()
    cache = Path(
        os.environ.get("KERAS_ASPP_CACHE")
        or Path.home() / ".cache" / "keras_aspp"
    )
    folder = cache / f"web-{hashlib.sha256(lock).hexdigest()[:16]}"
    if folder.is_dir():
        return folder / "node_modules"
    advice = (
        "The page's runtime, @litertjs/core, comes from npm, once and with a "
        "network"
    )
    npm = shutil.which("npm")
    if npm is None:
        raise UnavailableError(
            f"{advice}; npm is not installed (it is part of Node.js)"
        )
    work = folder.with_name(f".{folder.name}.{os.getpid()}")
    work.mkdir(parents=True)
    try:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(PAGE / name, work)
        print("Fetching @litertjs/core from npm...", flush=True)
        done = subprocess.run(
            [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
            cwd=work,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            # npm before 10 writes in capitals.
            words = re.findall(r"^npm (?:error|ERR!) (.+)", done.stderr, re.M)
            words = words[:2] or done.stderr.split()[:20]
            raise UnavailableError(f"{advice}; npm said: {' '.join(words)}")
        try:
            os.replace(work, folder)
        except OSError:
            if not folder.is_dir():  # another process has created it meanwhile
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder / "node_modules"


def make_server(models, node_modules, port):
    """Creates an HTTP server of the page, for this machine only.

    Args:
        models: dict, name of each model as the user gave it -> exported
            folder.
        node_modules: see `modules`.
        port: int; 0 takes a free one.

    Raises:
        OSError: the port is not available.
    """
    roots = {f"model{i}": Path(path) for i, path in enumerate(models.values())}
    listing = [
        {"folder": folder, "given": given}
        for folder, given in zip(roots, models, strict=True)
    ]
    handler = functools.partial(
        _Handler,
        roots={"node_modules": Path(node_modules), **roots},
        listing=json.dumps(listing).encode(),
    )
    try:
        return _Server(("127.0.0.1", port), handler)
    except OSError as error:
        raise UnavailableError(
            f"Port {port} cannot be had ({error.strerror}); try another --port"
        ) from error


class _Server(http.server.ThreadingHTTPServer):
    """Serves few connections at a time, each for a limited time."""

    # With the default of 5 a burst of connections waits for retries of TCP.
    request_queue_size = 128

    def __init__(self, *args):
        self._deadlines = {}
        super().__init__(*args)

    def process_request(self, request, client_address):
        if len(self._deadlines) >= MAX_CONNECTIONS:
            self.shutdown_request(request)
            return
        self._deadlines[request] = time.monotonic() + MAX_SECONDS
        super().process_request(request, client_address)

    def shutdown_request(self, request):
        self._deadlines.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self):
        """Ends connections whose time is up; called twice a second."""
        now = time.monotonic()
        for request, deadline in list(self._deadlines.items()):
            if deadline < now:
                # Wakes the thread that reads or writes.
                with contextlib.suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request, client_address):
        # The browser may cancel a request at any time.
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    """Serves files of the page, the models and the runtime, and no others."""

    def __init__(self, *args, roots, listing, **kwargs):
        self.roots = roots
        self.listing = listing
        self.timeout = IDLE_SECONDS
        super().__init__(*args, **kwargs)

    def do_GET(self):
        self._answer(body=True)

    def do_HEAD(self):
        self._answer(body=False)

    def _answer(self, body):
        # A page from elsewhere may resolve its own name to this machine.
        host = self.headers.get("Host", "").split(":")[0]
        parts = self._parts() if host in ("127.0.0.1", "localhost") else []
        try:
            path = self._file(parts)
            file = path and self._open(parts, path)
        except (OSError, ValueError):
            file = None  # removed, unreadable, or not a manifest
        if file is None:
            self.send_error(404)
            return
        with file:
            self.send_response(200)
            self.send_header("Content-Type", _TYPES[path.suffix])
            self.send_header("Content-Length", str(file.seek(0, io.SEEK_END)))
            if parts[0] in self.roots and parts[0] != "node_modules":
                self.send_header("Content-Disposition", "attachment")
            self.end_headers()
            if body:
                file.seek(0)
                shutil.copyfileobj(file, self.wfile)

    def _parts(self):
        """Returns the path of the URL as a list; empty if malformed."""
        try:
            path = urlsplit(self.path).path
        except ValueError:  # e.g. http://[::1/
            return []
        return (unquote(path).strip("/") or "index.html").split("/")

    def _file(self, parts):
        """Returns the requested file, or `None`."""
        if len(parts) == 1 and parts[0] in (*_FILES, "models.json"):
            return PAGE / parts[0]
        root = self.roots.get(parts[0]) if parts else None
        if root is None or any(p in ("", ".", "..") for p in parts):
            return None
        path = root.joinpath(*parts[1:])
        if parts[0] == "node_modules":
            served = path.suffix in _RUNTIME_SUFFIXES
        else:
            served = path.suffix == ".tflite" or _is_manifest(parts)
        # `os.path` accepts names that no file can have.
        if not served or not os.path.isfile(path):
            return None
        return path if _is_within(path, root) else None

    def _open(self, parts, path):
        """Opens a file; a manifest lists only artefacts that exist."""
        if parts == ["models.json"]:
            return io.BytesIO(self.listing)
        if parts == _RUNTIME_ENTRY:
            source = path.read_bytes()
            for name, place in _IMPORTS.items():
                source = source.replace(name, place)
            return io.BytesIO(source)
        if not _is_manifest(parts):
            return open(path, "rb")
        manifest = read_manifest(path)
        manifest["artefacts"] = [
            entry
            for entry in manifest["artefacts"]
            if self._file([parts[0], *entry["path"].split("/")])
        ]
        return io.BytesIO(json.dumps(manifest).encode())

    def end_headers(self):
        for name, value in headers().items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, *args):
        """Prints nothing: the browser's console lists failed requests."""


def _is_within(path, root):
    """Returns False for a link out of a folder, which may be from elsewhere."""
    # `Path.resolve` raises for a link to itself.
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


def _is_manifest(parts):
    return parts[0] != "node_modules" and parts[1:] == ["manifest.json"]


def headers():
    """Headers of every answer: one origin, no sniffing, threads allowed."""
    policy = {
        "default-src": "'self'",
        "script-src": "'self' 'wasm-unsafe-eval'",
        "worker-src": "'self' blob:",
        "style-src": "'self' 'unsafe-inline'",
        "img-src": "'self' blob: data:",
        "media-src": "blob:",
        # `default-src` does not cover these.
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    # Threads of WebAssembly need an isolated origin: the two Cross-Origin
    # policies of the opener and the embedder.
    return {
        "Content-Security-Policy": "; ".join(
            f"{name} {value}" for name, value in policy.items()
        ),
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Embedder-Policy": "require-corp",
        "Cross-Origin-Resource-Policy": "same-origin",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",
    }
