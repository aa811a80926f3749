"""A stand-in of the Hugging Face Hub: what its client asks, in memory."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_test"  # noqa: S105 - of this stand-in alone


def sha1(*parts):
    return hashlib.sha1("".join(map(str, parts)).encode()).hexdigest()  # noqa: S324


class Hub(http.server.ThreadingHTTPServer):
    """Repositories by name, each a dict of branches of files."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos, self.private, self.gated = {}, set(), set()
        self.objects, self.requests, self.cut = {}, [], set()

    @property
    def url(self):
        return "http://{}:{}".format(*self.server_address)

    def add(self, repo, files, branch="main"):
        self.repos.setdefault(repo, {})[branch] = dict(files)

    def files(self, repo, revision):
        """`(commit, files)` of a branch or commit; `None` if none is."""
        for branch, files in self.repos[repo].items():
            hashes = {
                n: hashlib.sha256(c).hexdigest() for n, c in files.items()
            }
            commit = sha1(repo, branch, sorted(hashes.items()))
            if revision in (branch, commit):
                return commit, files
        return None


class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, content=b"", status=200, **headers):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers["Content_Type"] = "application/json"
        self.send_response(status)
        headers.setdefault("Content_Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def fail(self, status, code="", message=""):
        self.answer(b"", status, X_Error_Code=code, X_Error_Message=message)

    def handle_all(self):
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        path = urlsplit(self.path).path
        self.server.requests.append((self.command, path))
        for pattern, method in ROUTES:
            match = re.fullmatch(pattern, path)
            if match:
                return method(self, *map(unquote, match.groups()))
        return self.fail(404, "RepoNotFound")

    do_GET = do_HEAD = do_POST = do_PUT = handle_all

    def is_member(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def look_up(self, repo, revision):
        """Files of a revision, or sends the error of the Hub."""
        server = self.server
        if repo in server.gated and not self.is_member():
            return self.fail(403, "GatedRepo", "Access is restricted")
        hidden = repo in server.private and not self.is_member()
        if repo not in server.repos or hidden:
            return self.fail(401, "RepoNotFound", "Repository not found")
        found = server.files(repo, revision)
        return found or self.fail(404, "RevisionNotFound", "No revision")

    def info(self, repo, revision="main"):
        found = self.look_up(repo, revision)
        if found:
            siblings = [
                {"rfilename": name, "size": len(content)}
                for name, content in found[1].items()
            ]
            self.answer(
                {
                    "id": repo,
                    "sha": found[0],
                    "private": repo in self.server.private,
                    "siblings": siblings,
                }
            )

    def resolve(self, repo, revision, name):
        found = self.look_up(repo, revision)
        if not found:
            return
        commit, files = found
        if name not in files:
            return self.fail(404, "EntryNotFound", "No entry")
        content = files[name]
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        headers = {"ETag": etag, "X_Repo_Commit": commit}
        if name in self.server.cut and self.command == "GET":
            self.server.cut.discard(name)
            headers["Content_Length"] = str(len(content))
            return self.answer(content[: len(content) // 2], **headers)
        ranges = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if ranges:
            start = int(ranges[1])
            headers["Content_Range"] = (
                f"bytes {start}-{len(content) - 1}/{len(content)}"
            )
            return self.answer(content[start:], 206, **headers)
        return self.answer(content, **headers)

    def create(self):
        if not self.is_member():
            return self.fail(401, "", "Invalid username or password.")
        asked = json.loads(self.body)
        repo = f"{asked['organization']}/{asked['name']}"
        answer = {"url": f"{self.server.url}/{repo}", "id": repo}
        if repo in self.server.repos:
            return self.answer(answer, 409)
        self.server.add(repo, {".gitattributes": b""})
        if asked.get("visibility") == "private":
            self.server.private.add(repo)
        return self.answer(answer)

    def branch(self, repo, name):
        branches = self.server.repos[repo]
        if name in branches:
            return self.answer({}, 409)
        branches[name] = dict(branches["main"])
        return self.answer({})

    def preupload(self, repo, revision):
        self.answer(
            {
                "files": [
                    {
                        "path": file["path"],
                        "shouldIgnore": False,
                        "uploadMode": "lfs"
                        if file["path"].endswith((".keras", ".tflite"))
                        else "regular",
                    }
                    for file in json.loads(self.body)["files"]
                ]
            }
        )

    def batch(self, repo):
        objects = json.loads(self.body)["objects"]
        for asked in objects:
            href = f"{self.server.url}/upload/{asked['oid']}"
            asked["actions"] = {"upload": {"href": href, "header": {}}}
        self.answer({"transfer": "basic", "objects": objects})

    def upload(self, oid):
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.server.objects[oid] = self.body
        self.answer()

    def commit(self, repo, revision):
        if not self.is_member():
            return self.fail(403, "", "Forbidden")
        files = self.server.repos[repo][revision]
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                content = base64.b64decode(value["content"])
                files[value["path"]] = content
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
            else:
                self.server.message = value["summary"]
        commit, _ = self.server.files(repo, revision)
        url = f"{self.server.url}/{repo}/commit/{commit}"
        return self.answer({"commitUrl": url, "commitOid": commit})

    def validate(self):
        self.server.card = json.loads(self.body)["content"]
        self.answer({"warnings": [], "errors": []})

    def log_message(self, *args):
        pass


REPO = r"/([\w.-]+/[\w.-]+)"
ROUTES = (
    ("/api/repos/create", Handler.create),
    ("/api/validate-yaml", Handler.validate),
    (f"/api/models{REPO}/revision/(.+)", Handler.info),
    (f"/api/models{REPO}/branch/(.+)", Handler.branch),
    (f"/api/models{REPO}/preupload/(.+)", Handler.preupload),
    (f"/api/models{REPO}/commit/(.+)", Handler.commit),
    (f"/api/models{REPO}", Handler.info),
    (rf"{REPO}\.git/info/lfs/objects/batch", Handler.batch),
    ("/upload/(.+)", Handler.upload),
    (f"{REPO}/resolve/([^/]+)/(.+)", Handler.resolve),
)


@contextlib.contextmanager
def serve():
    """A `Hub` that runs; its client must be pointed at `url`."""
    hub = Hub()
    thread = threading.Thread(
        target=hub.serve_forever, args=(0.02,), daemon=True
    )
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


def use(hub, monkeypatch, cache, token=TOKEN):
    """Points huggingface_hub at the stand-in and an empty cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        hub.url + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no_token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
