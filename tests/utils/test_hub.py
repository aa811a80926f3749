"""hf:// addresses and downloads, against a stand-in of the Hub."""

import errno
import hashlib
import sys

import hub_server
import pytest

from keras_aspp.utils import hub
from keras_aspp.utils.exceptions import UserError

pytest.importorskip("huggingface_hub", reason="extra `hub` (2026-11-30)")


@pytest.fixture
def server(tmp_path, monkeypatch):
    with hub_server.serve() as server:
        hub_server.use(server, monkeypatch, tmp_path / "cache")
        yield server


def sums_of(files):
    return "".join(
        f"{hashlib.sha256(content).hexdigest()}  {name}\n"
        for name, content in files.items()
    ).encode()


def with_sums(files):
    return {**files, "SHA256SUMS": sums_of(files)}


def test_an_address_has_a_repository_a_revision_and_a_path():
    for text, parts in {
        "hf://me/m": ("me/m", None, ""),
        "hf:/me/m/": ("me/m", None, ""),  # as pathlib has it
        "hf://me/m@v1/a/b.tflite": ("me/m", "v1", "a/b.tflite"),
        "hf://me/m@refs/pr/1/x": ("me/m", "refs/pr/1", "x"),
        "hf://me/m@feature%2Fx": ("me/m", "feature/x", ""),
    }.items():
        assert hub.is_address(text)
        assert hub.parse(text) == parts
        # Pasted from a message or a card, it leads to the same place.
        assert hub.parse(hub.Address(*parts)) == parts
    assert str(hub.parse("hf://me/m@a%2F100%25/b/c")) == (
        "hf://me/m@a%2F100%25/b/c"
    )
    for path in ("runs/mine", "/hf:/x", "hf", "xhf://me/m"):
        assert not hub.is_address(path)


@pytest.mark.parametrize(
    "address",
    [
        "hf://",
        "hf://me",
        "hf://../m",
        "hf://me/..",
        "hf://me/m/../../x",
        "hf://me/m//x",
        "hf://me/m@",
        "hf://datasets/me/m",
        "hf://me/m\x00",
    ],
)
def test_what_is_no_address_is_refused_before_any_request(address, server):
    with pytest.raises(UserError, match=r"hf://user/name\[@revision\]"):
        hub.fetch(address)
    assert not server.requests


def test_a_model_comes_with_its_descriptions_and_nothing_else(server):
    files = {
        "model.keras": b"model",
        "model_int8.tflite": b"int8",
        "manifest.json": b"{}",
        "more/model.keras": b"another",
    }
    server.add("me/m", with_sums(files))
    path = hub.fetch("hf://me/m", ("model.keras", "model_int8.tflite"))
    assert path.name == "model.keras"
    assert path.read_bytes() == b"model"
    beside = {file.name for file in path.parent.iterdir()}
    assert beside == {"model.keras", "manifest.json", "SHA256SUMS"}
    below = hub.fetch("hf://me/m/more")
    assert below.read_bytes() == b"another"
    assert hub.fetch("hf://me/m/model_int8.tflite").read_bytes() == b"int8"


def test_a_revision_is_another_model(server):
    server.add("me/m", {"model.keras": b"main"})
    server.add("me/m", {"model.keras": b"branch"}, branch="feature/x")
    assert hub.fetch("hf://me/m").read_bytes() == b"main"
    path = hub.fetch("hf://me/m@feature%2Fx")
    assert path.read_bytes() == b"branch"
    commit = path.parent.name
    assert hub.fetch(f"hf://me/m@{commit}").read_bytes() == b"branch"


def test_a_saved_model_is_fetched_only_by_its_own_path(server):
    files = {
        "saved_model/saved_model.pb": b"program",
        "saved_model/variables/variables.index": b"index",
        "saved_model/../../../outside": b"hostile",
        "manifest.json": b"{}",
    }
    server.add("me/m", files)
    with pytest.raises(FileNotFoundError, match="its models: saved_model"):
        hub.fetch("hf://me/m", ("model.keras",))
    folder = hub.fetch("hf://me/m/saved_model")
    assert (folder / "saved_model.pb").read_bytes() == b"program"
    assert (folder / "variables" / "variables.index").exists()
    assert (folder.parent / "manifest.json").exists()
    assert not any("outside" in path for _, path in server.requests)


@pytest.mark.parametrize(
    "files, message",
    [
        ({}, r"holds none of model.keras at this path\. Rec"),
        (
            {"a.keras": b"", "b.keras": b""},
            "none of model.keras.*its models: a.keras, b.keras",
        ),
        ({"model.keras": b"", "manifest.json": b" " * 2**21}, "at most"),
        (
            {
                "model.keras": b"new",
                "SHA256SUMS": sums_of({"model.keras": b""}),
            },
            "model.keras differs from SHA256SUMS",
        ),
        ({"model.keras": b"", "SHA256SUMS": sums_of({})}, "is not listed in"),
        ({"model.keras": b"", "SHA256SUMS": b"nonsense"}, "lines of sha256sum"),
    ],
)
def test_repositories_without_one_whole_model(files, message, server):
    server.add("me/m", files)
    with pytest.raises(UserError, match=message):
        hub.fetch("hf://me/m")


def test_who_may_not_read_is_told_what_to_do(server, monkeypatch):
    server.add("me/open", {"model.keras": b""})
    for names in (server.gated, server.private):
        server.add("me/closed", {"model.keras": b""})
        names.add("me/closed")
        assert hub.fetch("hf://me/closed").exists()
        monkeypatch.delenv("HF_TOKEN")
        with pytest.raises(UserError, match="hf auth login"):
            hub.fetch("hf://me/closed")
        monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
        names.clear()
    with pytest.raises(FileNotFoundError, match="no such repository"):
        hub.fetch("hf://me/missing")
    with pytest.raises(FileNotFoundError, match="no such branch, tag or"):
        hub.fetch("hf://me/open@missing")


def test_an_interrupted_download_continues(server):
    content = bytes(range(256)) * 1000
    server.add("me/m", with_sums({"model.keras": content}))
    server.cut.add("model.keras")
    assert hub.fetch("hf://me/m").read_bytes() == content
    assert not server.cut


def test_without_a_network_the_last_download_is_used(server):
    server.add("me/m", with_sums({"model.keras": b"model"}))
    path = hub.fetch("hf://me/m")
    server.shutdown()
    server.server_close()
    assert hub.fetch("hf://me/m") == path
    with pytest.raises(ConnectionError, match="cannot be reached.*hf://me/x"):
        hub.fetch("hf://me/x")
    # A damaged copy is noticed.
    path.resolve().write_bytes(b"other")
    with pytest.raises(ValueError, match="differs from SHA256SUMS.*delete"):
        hub.fetch("hf://me/m")


def test_a_full_disk_is_not_blamed_on_the_network():
    with pytest.raises(OSError, match="make room.*HF_HOME.*No space left"):
        with hub.explained("hf://me/m"):
            raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("fault", [TypeError, KeyError, AssertionError])
def test_a_fault_is_not_blamed_on_the_network(fault):
    with pytest.raises(fault, match="ours"):
        with hub.explained("hf://me/m"):
            raise fault("ours")


@pytest.mark.parametrize(
    "error, message",
    [
        (ConnectionResetError("reset"), "cannot be reached.*reset"),
        (TimeoutError("late"), "cannot be reached.*late"),
        (RuntimeError("Error while uploading"), "cannot be reached.*uploadi"),
        (ValueError("Invalid\nlicense"), r"does not take.*\(Invalid license"),
    ],
)
def test_errors_of_transfers_are_one_line(error, message):
    with pytest.raises(UserError, match=message):
        with hub.explained("hf://me/m"):
            raise error


@pytest.mark.parametrize("is_cached", [False, True])
def test_who_loses_access_to_a_commit_is_told_to_log_in(
    is_cached, server, monkeypatch
):
    server.add("me/m", {"model.keras": b"model"})
    commit, _ = server.files("me/m", "main")
    if is_cached:
        hub.fetch("hf://me/m")
    # A token that may not read, of a repository that all may see.
    monkeypatch.setattr(
        hub_server.Handler,
        "look_up",
        lambda handler, repo, revision: handler.fail(403, "", "Forbidden"),
    )
    with pytest.raises(UserError, match="refuses this access.*hf auth login"):
        hub.fetch(f"hf://me/m@{commit}")


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"keras-aspp\[hub\]"):
        hub.parse("hf://me/m")
