"""What the demo's server does not give away."""

import http.client
import shutil
import socket
import threading

import pytest
from conftest import ROOT

from keras_aspp.cli import demo
from keras_aspp.cli.main import main

EXPORT = ROOT / "saved_models/multiscale_shapes"


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "export"
    shutil.copytree(EXPORT, folder)
    (tmp_path / "modules").mkdir()
    (tmp_path / "secret.json").write_text("{}")
    (folder / "link.json").symlink_to(tmp_path / "secret.json")
    (folder / "loop.json").symlink_to("loop.json")
    (folder / "inside.json").symlink_to("manifest.json")
    running = demo.make_server(folder, tmp_path / "modules", 0)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


def ask(server, path, host="127.0.0.1"):
    connection = http.client.HTTPConnection(*server.server_address, timeout=9)
    connection.putrequest("GET", path, skip_host=True)
    connection.putheader("Host", host)
    connection.endheaders()
    return connection.getresponse().status


def test_links_lead_nowhere_else(server):
    assert ask(server, "/model/manifest.json") == 200
    assert ask(server, "/model/inside.json") == 200
    for path in (
        "/model/link.json",
        "/model/loop.json",
        "/model/%00.json",
        "/model/%ff%fe.json",
        "/model/..%2fsecret.json",
        "/model/%2e%2e/secret.json",
        "/model//etc/passwd",
        "/model/" + "a" * 5000 + ".json",
    ):
        assert ask(server, path) == 404, path


def test_other_names_for_this_machine_get_nothing(server):
    """A page elsewhere that has its own name resolve to 127.0.0.1."""
    port = server.server_address[1]
    assert ask(server, "/", f"localhost:{port}") == 200
    assert ask(server, "/", f"127.0.0.1:{port}") == 200
    assert ask(server, "/", f"example.org:{port}") == 404
    assert ask(server, "/model/manifest.json", "example.org") == 404


def test_garbage_does_not_end_it(server):
    for content in (b"", b"\0" * 999, b"GET /\xff\xfe HTTP/9.9\r\n\r\n"):
        with socket.create_connection(server.server_address) as connection:
            connection.sendall(content)
    assert server.server_address[0] == "127.0.0.1"
    assert ask(server, "/") == 200


def test_a_folder_that_is_no_export(tmp_path, capsys):
    (tmp_path / "manifest.json").symlink_to("manifest.json")
    assert main(["demo", str(tmp_path)]) == 1
    assert "must be an exported folder" in capsys.readouterr().err
