"""keras-aspp demo: an exported model in the browser."""

import base64
import contextlib
import functools
import hashlib
import http.server
import os
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote, urlsplit

from keras_aspp.cli.main import Parser

PAGE = Path(__file__).parents[1] / "web"
_FILES = ("index.html", "app.js", "style.css")
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".wasm": "application/wasm",
    ".tflite": "application/octet-stream",
}


def run(arguments):
    """Serves a page that segments pictures in the browser."""
    parser = Parser(
        prog="keras-aspp demo",
        description="Serve, on this machine, a page that segments your "
        "pictures and your camera in the browser with an exported model. No "
        "picture leaves the browser. The runtime (@litertjs/core, some 40 MB) "
        "comes from npm on first use.",
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="DIR", type=Path, help="an export")
    parser.add_argument("--port", type=int, default=8000)
    flags = parser.parse_args(arguments)
    if not 0 <= flags.port <= 65535:
        parser.error(f"--port must be in 0..65535. Received: {flags.port}")
    check_export(flags.model)
    server = make_server(flags.model, modules(), flags.port)
    host, port = server.server_address[:2]
    print(f"http://{host}:{port}/  (Ctrl-C ends it)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()
    return 0


def check_export(folder):
    """Raises `FileNotFoundError` unless a folder has a model for the page."""
    if not (folder / "manifest.json").is_file() or not any(
        folder.glob("*.tflite")
    ):
        raise FileNotFoundError(
            "The model must be an exported folder, with manifest.json and a "
            f".tflite (`keras-aspp export`). Received: {str(folder)!r}"
        )


def modules():
    """The folder of the page's JavaScript, fetched by npm once.

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
        raise OSError(f"{advice}; npm is not installed (it is part of Node.js)")
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
            # npm before 10 shouts.
            words = re.findall(r"^npm (?:error|ERR!) (.+)", done.stderr, re.M)
            words = words[:2] or done.stderr.split()[:20]
            raise OSError(f"{advice}; npm said: {' '.join(words)}")
        try:
            os.replace(work, folder)
        except OSError:
            if not folder.is_dir():  # another process was sooner
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder / "node_modules"


def make_server(model, node_modules, port):
    """An HTTP server of the page, on this machine only; not started.

    Args:
        model: exported folder.
        node_modules: see `modules`.
        port: int; 0 takes a free one.

    Raises:
        OSError: the port is taken.
    """
    handler = functools.partial(
        _Handler,
        roots={"model": Path(model), "node_modules": Path(node_modules)},
    )
    try:
        return http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        raise OSError(
            f"Port {port} cannot be had ({error.strerror}); try another --port"
        ) from error


class _Handler(http.server.BaseHTTPRequestHandler):
    """Files of the page, of the model and of the runtime, and no others."""

    def __init__(self, *args, roots, **kwargs):
        self.roots = roots
        super().__init__(*args, **kwargs)

    def do_GET(self):
        self._answer(body=True)

    def do_HEAD(self):
        self._answer(body=False)

    def _answer(self, body):
        path = self._file()
        # A page from elsewhere may point a name of its own at this machine.
        host = self.headers.get("Host", "").split(":")[0]
        if path is None or host not in ("127.0.0.1", "localhost"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", _TYPES[path.suffix])
        self.send_header("Content-Length", str(path.stat().st_size))
        for name, value in headers().items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            # The browser may have gone on to another page.
            with open(path, "rb") as file, contextlib.suppress(ConnectionError):
                shutil.copyfileobj(file, self.wfile)

    def _file(self):
        """The file that is asked for, or `None`."""
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts == [""]:
            parts = ["index.html"]
        if len(parts) == 1 and parts[0] in _FILES:
            return PAGE / parts[0]
        root = self.roots.get(parts[0])
        if root is None or any(p in ("", ".", "..") for p in parts):
            return None
        path = root.joinpath(*parts[1:])
        # `os.path` takes a name that no file can have.
        if path.suffix not in _TYPES or not os.path.isfile(path):
            return None
        # A link in a folder from elsewhere may lead out of it.
        return path if path.resolve().is_relative_to(root.resolve()) else None

    def log_message(self, *args):
        """Says nothing: the browser's console has it."""


@functools.cache
def headers():
    """What keeps the page to itself, and lets it use threads."""
    page = (PAGE / "index.html").read_text()
    (inline,) = re.findall(r"<script type=\"importmap\">(.*?)</script>", page)
    digest = base64.b64encode(hashlib.sha256(inline.encode()).digest())
    policy = {
        "default-src": "'self'",
        "script-src": f"'self' 'wasm-unsafe-eval' 'sha256-{digest.decode()}'",
        "worker-src": "'self' blob:",
        "style-src": "'self' 'unsafe-inline'",
        "img-src": "'self' blob: data:",
    }
    return {
        "Content-Security-Policy": "; ".join(
            f"{name} {value}" for name, value in policy.items()
        ),
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Embedder-Policy": "require-corp",
        "Cache-Control": "no-cache",
    }
