"""What the demo's server does not give away."""

import contextlib
import http.client
import json
import shutil
import socket
import struct
import threading
import time

import pytest
from helpers import ROOT

from keras_aspp.cli import demo
from keras_aspp.cli.main import main

EXPORT = ROOT / "saved_models/multiscale_shapes"


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "export"
    shutil.copytree(EXPORT, folder)
    (tmp_path / "modules").mkdir()
    (tmp_path / "secret.json").write_text("{}")
    (folder / "link.tflite").symlink_to(tmp_path / "secret.json")
    (folder / "loop.tflite").symlink_to("loop.tflite")
    (folder / "inside.tflite").symlink_to("manifest.json")
    running = demo.make_server({"export": folder}, tmp_path / "modules", 0)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


def ask(server, path, host="127.0.0.1"):
    return answer(server, path, host).status


def answer(server, path, host="127.0.0.1"):
    connection = http.client.HTTPConnection(*server.server_address, timeout=9)
    connection.putrequest("GET", path, skip_host=True)
    connection.putheader("Host", host)
    connection.endheaders()
    return connection.getresponse()


def test_links_lead_nowhere_else(server):
    assert ask(server, "/model0/manifest.json") == 200
    assert ask(server, "/model0/inside.tflite") == 200
    for path in (
        "/model0/link.tflite",
        "/model0/loop.tflite",
        "/model0/%00.tflite",
        "/model0/%ff%fe.tflite",
        "/model0/..%2fsecret.json",
        "/model0/%2e%2e/secret.json",
        "/model0//etc/passwd",
        "/model0/" + "a" * 5000 + ".tflite",
    ):
        assert ask(server, path) == 404, path


def test_other_names_for_this_machine_get_nothing(server):
    """A page elsewhere that has its own name resolve to 127.0.0.1."""
    port = server.server_address[1]
    assert ask(server, "/", f"localhost:{port}") == 200
    assert ask(server, "/", f"127.0.0.1:{port}") == 200
    assert ask(server, "/", f"example.org:{port}") == 404
    assert ask(server, "/model0/manifest.json", "example.org") == 404


def test_garbage_does_not_end_it(server):
    for content in (b"", b"\0" * 999, b"GET /\xff\xfe HTTP/9.9\r\n\r\n"):
        with socket.create_connection(server.server_address) as connection:
            connection.sendall(content)
    assert server.server_address[0] == "127.0.0.1"
    assert ask(server, "/") == 200


@pytest.mark.parametrize("target", ["http://[::1/", "//[/", "http://[x]/"])
def test_a_malformed_url_is_404(server, target, capfd):
    assert ask(server, target) == 404
    assert capfd.readouterr().err == ""


def test_a_reset_connection_prints_nothing(server, capfd):
    for request in (b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\n"):
        connection = socket.create_connection(server.server_address)
        connection.sendall(request)
        linger = struct.pack("ii", 1, 0)  # close() sends RST
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        connection.close()
    assert ask(server, "/") == 200
    wait_until_closed(server)
    assert capfd.readouterr().err == ""


def wait_until_closed(server):
    for _ in range(100):
        if not server._deadlines:
            return
        time.sleep(0.1)
    raise AssertionError(f"{len(server._deadlines)} connections are open")


def test_half_open_requests_hold_few_threads_and_not_for_long(
    server, monkeypatch
):
    monkeypatch.setattr(demo, "IDLE_SECONDS", 0.5)
    before = threading.active_count()
    held = []
    connections = [
        socket.create_connection(server.server_address, 9) for _ in range(100)
    ]
    for connection in connections:
        held.append(threading.active_count() - before)
        with connection, contextlib.suppress(ConnectionError):
            assert connection.recv(1) == b""
    assert demo.MAX_CONNECTIONS / 2 < max(held) <= demo.MAX_CONNECTIONS
    wait_until_closed(server)
    assert ask(server, "/") == 200


def test_a_request_that_arrives_byte_by_byte_is_ended(server, monkeypatch):
    monkeypatch.setattr(demo, "MAX_SECONDS", 0.2)
    with socket.create_connection(server.server_address, 9) as connection:
        ended = time.monotonic() + 5
        with pytest.raises(ConnectionError):
            while time.monotonic() < ended:
                connection.sendall(b"x")
                time.sleep(0.1)


def test_an_export_adds_no_script_or_page_to_the_origin(server):
    folder = server.RequestHandlerClass.keywords["roots"]["model0"]
    for name in ("a.html", "a.js", "a.css", "a.wasm", "a.json", "a.svg"):
        (folder / name).write_text("alert(1)")
        assert ask(server, f"/model0/{name}") == 404, name
    for path in ("/model0/model_float16.tflite", "/model0/manifest.json"):
        given = answer(server, path)
        assert given.headers["Content-Disposition"] == "attachment"
        assert given.headers["X-Content-Type-Options"] == "nosniff"
    for path in ("/", "/nothing"):
        policy = answer(server, path).headers["Content-Security-Policy"]
        for name in ("form-action", "frame-ancestors", "base-uri"):
            assert f"{name} 'none'" in policy, (path, name)


def test_the_manifest_lists_artefacts_that_exist(server):
    """The page asks for each of them, and each missing one would be a 404."""
    manifest = json.loads(answer(server, "/model0/manifest.json").read())
    paths = [entry["path"] for entry in manifest["artefacts"]]
    assert "model_float16.tflite" in paths
    assert {ask(server, f"/model0/{path}") for path in paths} == {200}


def test_an_unreadable_manifest_is_404(server):
    folder = server.RequestHandlerClass.keywords["roots"]["model0"]
    (folder / "manifest.json").write_text('{"artefacts": 3}')
    assert ask(server, "/model0/manifest.json") == 404


def test_a_folder_that_is_no_export(tmp_path, capsys):
    (tmp_path / "manifest.json").symlink_to("manifest.json")
    assert main(["demo", str(tmp_path)]) == 1
    assert "must be an exported folder" in capsys.readouterr().err
