"""Models on the Hugging Face Hub: addresses, downloads, SHA-256 sums."""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import json
import logging
import posixpath
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from keras_aspp.utils import extras
from keras_aspp.utils.errors import first_line
from keras_aspp.utils.exceptions import (
    InputError,
    InputNotFoundError,
    UnavailableError,
    UnreachableError,
    UserError,
)
from keras_aspp.utils.files import sha256
from keras_aspp.utils.text import MAX_BYTES, read_text
from keras_aspp.utils.types import PathLike

SUMS = "SHA256SUMS"
# Small files beside a model that describe it.
_DESCRIPTIONS = ("manifest.json", "dataset.json", "config.yaml")
_MODELS = (".keras", ".tflite", ".onnx")
_SAVED_MODEL = "saved_model.pb"
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
# `pathlib` drops a slash of `hf://`.
_PREFIX = re.compile(r"hf:/+")
# Revisions whose slashes an address holds as they are.
_SPECIAL_REVISION = re.compile(r"refs/(?:convert/[\w.-]+|pr/\d+)")
_log = logging.getLogger(__name__)


class Address(NamedTuple):
    """Parts of `hf://user/name[@revision][/path]`."""

    repo: str
    revision: str | None
    path: str

    def __str__(self) -> str:
        revision = self.revision or ""
        if not _SPECIAL_REVISION.fullmatch(revision):
            revision = quote(revision, safe="")
        revision = f"@{revision}" if revision else ""
        path = f"/{self.path}" if self.path else ""
        return f"hf://{self.repo}{revision}{path}"


def is_address(path: object) -> bool:
    """Returns True for paths on the Hub, `hf://...`."""
    return _PREFIX.match(str(path)) is not None


def parse(address: PathLike) -> Address:
    """Splits an address into repository, revision and path.

    Args:
        address: `hf://user/name[@revision][/path]`. A slash in the name of a
            branch is written `%2F`.

    Raises:
        ValueError: not such an address, or huggingface_hub is not installed.
    """
    extras.require("A path of hf://", "hub", "huggingface_hub")
    import huggingface_hub

    text = "hf://" + _PREFIX.sub("", str(address), count=1).rstrip("/")
    try:
        uri = huggingface_hub.parse_hf_uri(text)
        fault = "" if uri.type == "model" else f"this is a {uri.type}"
        if {"", ".", ".."} & set((uri.path_in_repo or "file").split("/")):
            fault = "its path leaves the repository"
    except ValueError as error:
        fault = first_line(error)
    if fault:
        raise InputError(
            "A model on the Hub is hf://user/name[@revision][/path]. "
            f"Received: {str(address)!r} ({fault})"
        )
    return Address(uri.id, uri.revision, uri.path_in_repo)


@contextlib.contextmanager
def explained(address: object) -> Iterator[None]:
    """Turns the errors of huggingface_hub into errors of one line.

    Args:
        address: str or `Address`, for the messages.
    """
    from huggingface_hub import constants, errors

    received = f"Received: {str(address)!r}"
    login = "log in (`hf auth login`, or the variable HF_TOKEN)"
    try:
        yield
    except UserError:
        raise
    except errors.GatedRepoError as error:
        raise UnavailableError(
            "The owner of this repository grants access on request: ask for it "
            f"at {constants.ENDPOINT}/{parse(address).repo}, then {login}. "
            f"{received}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InputNotFoundError(
            "The Hub has no such repository, or shows it to its members only: "
            f"correct the name, or {login}. {received}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputNotFoundError(
            "The repository has no such branch, tag or commit (write a slash "
            f"in a name as %2F). {received}"
        ) from error
    except Exception as error:
        if _is_refusal(error):
            raise UnavailableError(
                f"The Hub refuses this access: {login} with a token that may "
                f"do it. {received} ({first_line(error)})"
            ) from error
        if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
            raise UnavailableError(
                "The cache of huggingface_hub cannot be written; make room, or "
                f"choose another folder by HF_HOME. {received} ({error})"
            ) from error
        if not _is_of_transfers(error):
            if not isinstance(error, ValueError):
                raise
            raise InputError(
                "The Hub does not take this; correct what it names. "
                f"{received} ({' '.join(str(error).split())[:300]})"
            ) from error
        raise UnreachableError(
            "The Hub cannot be reached, or fails, and the cache lacks what is "
            "needed. Try again with a network, or pass a local path. "
            f"{received} ({type(error).__name__}: {first_line(error)})"
        ) from error


def _is_refusal(error):
    """Returns True for an answer of the Hub that denies access."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status in (401, 403)


def _is_of_transfers(error):
    """Returns True for what a network or the Hub causes, False for a fault."""
    from huggingface_hub import errors

    if isinstance(error, FileNotFoundError) and error.errno is not None:
        return False  # a file to send
    return type(error) is RuntimeError or isinstance(
        # The last one: the server is not a Hub. Uploads raise RuntimeError.
        error,
        (
            errors.HTTPError,
            errors.EntryNotFoundError,
            errors.RevisionResolutionError,
            OSError,
            json.JSONDecodeError,
        ),
    )


def fetch(
    address: PathLike,
    first_of: Sequence[str] = ("model.keras",),
    all_of: str | None = None,
) -> Path:
    """Downloads a model and the files that describe it, once.

    All files are of one commit. Without a network, those of the last download
    are used. Files that `SHA256SUMS` of the repository does not list, or lists
    with another sum, are refused.

    Args:
        address: `hf://user/name[@revision][/path]` of a file, of a SavedModel
            or of a folder.
        first_of: names of files; of a folder, the first that exists.
        all_of: pattern of further files of a folder, or `None`.

    Returns:
        `pathlib.Path` of the file or SavedModel, in huggingface_hub's cache.
        Its manifest, if any, is beside it.

    Raises:
        ValueError: not an address, or a file is not the one that was sent.
        FileNotFoundError: no such repository, revision or model.
        OSError: no access, or no network.
    """
    where = parse(address)
    from huggingface_hub import HfApi

    api = HfApi(library_name="keras_aspp")
    with explained(address):
        revision = api.resolve_revision(where.repo, revision=where.revision)
        commit = revision.resolved
        sizes = _list_files(api, where.repo, commit)
    found, wanted = _choose(where, sizes, first_of)
    base = posixpath.dirname(found)
    pattern = posixpath.join(base, all_of or "")
    wanted += [
        name
        for name in fnmatch.filter(sizes, pattern)
        if posixpath.dirname(name) == base
    ]
    sums = _nearest_sums(base, sizes)
    wanted += _descriptions(base, sizes, address)
    wanted = list(dict.fromkeys(wanted))
    total = sum(sizes[name] for name in wanted) / 1e6
    _log.info("%s: %s, %.1f MB, commit %.7s", where, found, total, commit)
    with explained(address):
        for name in [*wanted, *filter(None, [sums])]:
            path = Path(api.hf_hub_download(where.repo, name, revision=commit))
            root = path.parents[name.count("/")]
    if sums:
        _check_sums(root, sums, wanted, address)
    return root / found


def _list_files(api, repo, commit):
    """Returns the sizes of a commit's files, in bytes, by their names."""
    from huggingface_hub import errors

    try:
        info = api.model_info(repo, revision=commit, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
        raise
    except Exception as error:
        if _is_refusal(error) or not _is_of_transfers(error):
            raise
        # The pattern matches nothing, so that no file of it is missing.
        folder = Path(
            api.snapshot_download(
                repo, revision=commit, local_files_only=True, allow_patterns="/"
            )
        )
        _log.info("The Hub does not answer (%s): cached files are used", error)
        sizes = {
            path.relative_to(folder).as_posix(): path.stat().st_size
            for path in folder.rglob("*")
            if path.is_file()
        }
    return {name: size for name, size in sizes.items() if is_within(name)}


def is_within(name: str) -> bool:
    """Returns True for names of files that lie within their folder."""
    return not {"", ".", ".."} & set(name.replace("\\", "/").split("/"))


def _choose(where, sizes, first_of):
    """Returns the name that an address means, and the files of it."""
    if where.path in sizes:
        return where.path, [where.path]
    if posixpath.join(where.path, _SAVED_MODEL) in sizes and where.path:
        prefix = f"{where.path}/"
        return where.path, [n for n in sizes if n.startswith(prefix)]
    for name in first_of:
        path = posixpath.join(where.path, name)
        if path in sizes:
            return path, [path]
    models = [
        name.removesuffix(f"/{_SAVED_MODEL}")
        for name in sorted(sizes)
        if name.endswith((*_MODELS, f"/{_SAVED_MODEL}"))
    ]
    models = f"; its models: {', '.join(models[:5])}" if models else ""
    raise InputNotFoundError(
        f"The repository holds none of {', '.join(first_of)} at this path"
        f"{models}. Received: {str(where)!r}"
    )


def _nearest_sums(base, sizes):
    """Returns the name of `SHA256SUMS` of a folder or of one around it."""
    while True:
        name = posixpath.join(base, SUMS)
        if name in sizes or not base:
            return name if name in sizes else None
        base = posixpath.dirname(base)


def _descriptions(base, sizes, address):
    """Returns the names of the files that describe a model in a folder."""
    names = [posixpath.join(base, name) for name in _DESCRIPTIONS]
    names = [name for name in names if name in sizes]
    for name in names:
        if sizes[name] > MAX_BYTES:
            raise InputError(
                f"{name} must have at most {MAX_BYTES} bytes. Received: "
                f"{str(address)!r} with {sizes[name]} bytes"
            )
    return names


def _check_sums(root, sums, names, address):
    """Raises `ValueError` for files that differ from `SHA256SUMS`."""
    listed = read_sums(root / sums)
    folder = posixpath.dirname(sums)
    for name in names:
        entry = name[len(folder) :].lstrip("/")
        if entry not in listed:
            fault = "is not listed in"
        elif listed[entry] != sha256(root / name):
            fault = "differs from"
        else:
            continue
        raise InputError(
            f"{name} {fault} {SUMS} of the repository: it was changed after "
            "`keras-aspp push`, or the download is damaged. Ask its owner to "
            f"push again, or delete {root.parents[1]} and try again. "
            f"Received: {str(address)!r}"
        )


def read_sums(path: PathLike) -> dict[str, str]:
    """Reads a `SHA256SUMS`, lines of `sha256sum`.

    Returns:
        dict, name -> SHA-256 in hexadecimal digits.

    Raises:
        ValueError: a line is not one of `sha256sum`.
    """
    found = {}
    for line in read_text(path).splitlines():
        match = re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line)
        if match is None:
            raise InputError(
                f"{SUMS} must hold lines of sha256sum. Received: {line[:80]!r} "
                f"in {path}"
            )
        found[match[2]] = match[1]
    return found
