"""Upload of models to the Hugging Face Hub."""

from __future__ import annotations

import hashlib
import logging
import posixpath
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from keras_aspp.config.load import load_config
from keras_aspp.data.spec import DatasetSpec
from keras_aspp.export.about import about_run
from keras_aspp.export.card import LEADS, README, card_of_run, front_matter
from keras_aspp.utils.exceptions import (
    InputError,
    InputNotFoundError,
    OutputExistsError,
)
from keras_aspp.utils.files import files_of, sha256
from keras_aspp.utils.hub import (
    SUMS,
    Address,
    explained,
    is_address,
    is_within,
    parse,
    read_sums,
)
from keras_aspp.utils.text import num_of, read_json, read_manifest, read_text
from keras_aspp.utils.types import PathLike

# The folder of a workdir with the state of its training.
_CHECKPOINTS = "checkpoints"
# The names by which the Hub knows common licenses: those of
# https://huggingface.co/docs/hub/repositories-licenses, which has not every
# version of a family.
_LICENSES = frozenset(
    """
    afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bsd bsd-2-clause bsd-3-clause
    bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0
    cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0
    cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0
    cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0
    cdla-sharing-1.0 ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 gfdl gpl
    gpl-2.0 gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0 mit mpl-2.0 ms-pl odbl odc-by
    openrail osl-3.0 other pddl unknown unlicense wtfpl zlib
    """.split()
)
# The preview of a card of ours and the note below it.
_PREVIEW = re.compile(
    r"!\[[^\]]*\]\(preview\.png\)\n\n"
    rf"(?:(?!{'|'.join(LEADS)}).+\n\n)?"
)
_log = logging.getLogger(__name__)


def push_model(
    directory: PathLike,
    address: str,
    *,
    revision: str | None = None,
    private: bool = False,
    message: str | None = None,
    include: Sequence[str] = (),
    dry_run: bool = False,
) -> str | None:
    """Uploads a model to the Hugging Face Hub, in one commit.

    Of an exported folder, its artefacts, manifest, labels and card are sent;
    of a workdir, model.keras, dataset.json and a card with its metrics. The
    log names the files and their sizes before. `SHA256SUMS` goes with them,
    which whoever fetches the model verifies. Files of an earlier upload to the
    same place that are not sent again are removed there.

    Args:
        directory: exported folder, workdir or other folder of a model.keras.
        address: `hf://user/name[@branch][/path]`. The repository and the
            branch are created if they do not exist.
        revision: str, the branch, if the address names none.
        private: bool. Create a private repository; an existing one must be
            private.
        message: str, of the commit, or `None` for a default.
        include: patterns of further files of the folder to send, such as
            `"preview.png"`, `"config.yaml"` or `"logs/*"`. Wildcards match
            neither a first dot nor the folder of checkpoints.
        dry_run: bool. Log what would be sent, and send nothing.

    Returns:
        str, the URL of the commit; `None` with `dry_run`.

    Raises:
        FileNotFoundError: the folder holds no model.
        ValueError: a file is not the one of the manifest, or lies elsewhere.
        OSError: the Hub refuses access or cannot be reached.
    """
    if not is_address(address):
        raise InputError(
            "A model is pushed to hf://user/name. Received: "
            f"address={str(address)!r}"
        )
    where = parse(address)
    if revision is not None:
        if where.revision is not None:
            raise InputError(
                "The branch must be given once. Received: "
                f"address={str(address)!r}, revision={revision!r}"
            )
        where = where._replace(revision=revision)
    files = _collect(Path(directory), where, include)
    files[SUMS] = "".join(
        f"{_hash(content)}  {name}\n"
        for name, content in sorted(files.items())
        # Its owner may edit the card on the Hub.
        if name != README
    ).encode()
    sizes = {name: _size(content) for name, content in files.items()}
    lines = [f"  {size / 1e6:10.3f} MB  {n}" for n, size in sizes.items()]
    total = f"{len(files)} files, {sum(sizes.values()) / 1e6:.3f} MB"
    _log.info("To %s: %s\n%s", where, total, "\n".join(lines))
    if dry_run:
        return None
    with explained(address):
        return _send(files, where, private, message)


def _collect(folder, where, include):
    """Returns the contents to send, bytes or a path, by their names."""
    paths = [
        path
        for name in _names_of_model(folder)
        for path in files_of(folder / name)
    ]
    for pattern in include:
        pattern = pattern.rstrip("/")
        found = sorted(folder.glob(pattern)) if is_within(pattern) else []
        found = [
            path
            for top in found
            for path in files_of(top)
            if _is_meant(path.relative_to(folder).parts, pattern.split("/"))
        ]
        if not found:
            raise InputNotFoundError(
                "Files to include must match a pattern within the folder "
                "(which names hidden files and checkpoints, if these are "
                "meant). "
                f"Received: {pattern!r} in {str(folder)!r}"
            )
        paths += found
    files = {}
    for path in paths:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise InputError(
                "Only files within the folder are sent. Received: "
                f"{str(path)!r}, which leads to {path.resolve()}"
            )
        files[path.relative_to(folder).as_posix()] = path
    card = _card(folder, where, "preview.png" in files)
    return {**files, README: card.encode()}


def _is_meant(parts, pattern):
    """Returns False for hidden files and checkpoints met by a wildcard."""
    return all(
        any(word[:1] == part[0] and fnmatch(part, word) for word in pattern)
        for part in parts
        if part.startswith(".") or part == _CHECKPOINTS
    )


def _names_of_model(folder):
    """Returns the names of the files and folders that a receiver needs."""
    if (folder / "manifest.json").is_file():
        manifest = read_manifest(folder / "manifest.json")
        names = []
        for entry in manifest["artefacts"]:
            name = entry["path"]
            if not is_within(name):
                raise InputError(
                    "Artefacts of a manifest must lie beside it. Received: "
                    f"{name!r} in {str(folder)!r}"
                )
            # Large artefacts may have been left out.
            if (folder / name).exists():
                names.append(name)
                if sha256(folder / name) != entry["sha256"]:
                    raise InputError(
                        "The artefact is not the one that manifest.json beside "
                        "it was written for; export again. Received: "
                        f"{folder / name}"
                    )
        required, optional = names, ("manifest.json", "labels.txt")
    else:
        required, optional = ["model.keras"], ("dataset.json",)
    if not required or not all((folder / name).exists() for name in required):
        raise InputNotFoundError(
            "A folder to push must be an exported folder or a workdir, with "
            f"its model.keras. Received: {str(folder)!r}"
        )
    return [*required, *(n for n in optional if (folder / n).is_file())]


def _card(folder, where, with_preview):
    """Returns the model card for the Hub, with valid metadata."""
    if (folder / README).is_file():
        text = read_text(folder / README)
    else:
        text = card_of_run(folder.resolve().name, *_describe_run(folder))
    front, body = front_matter(text, folder / README)
    front = {
        **_hub_license(str(front.get("license") or "")),
        **{name: v for name, v in front.items() if name != "license"},
        "library_name": "keras-aspp",
    }
    front.setdefault("pipeline_tag", "image-segmentation")
    front.setdefault("tags", ["image-segmentation", "keras-aspp"])
    if not with_preview:
        body = _PREVIEW.sub("", body, count=1)
    body = re.sub(r'ka\.Predictor\(".*?"\)', f'ka.Predictor("{where}")', body)
    text = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    return f"---\n{text}---\n{body}"


def _describe_run(folder):
    """Returns class names, metrics and facts of a workdir, as far as known."""
    names, metrics = [], {}
    about = dict.fromkeys(
        ("dataset", "trained_on", "license", "evaluated_on"), ""
    )
    spec = folder / "dataset.json"
    if spec.is_file():
        spec = DatasetSpec.from_file(spec)
        names, about["license"] = spec.class_names, spec.license
    if (folder / "metrics.json").is_file():
        metrics = read_json(folder / "metrics.json")
    if (folder / "config.yaml").is_file():
        config = load_config(folder / "config.yaml", ())
        about |= about_run(config, about["license"])
        about["evaluated_on"] = (
            f"{num_of(metrics.get('num_images'), 'image')} of "
            f"{about['dataset']}, split {metrics.get('split')}"
        )
    return names, metrics, about


def _hub_license(text: str) -> dict[str, str]:
    """Returns the metadata of a license; the Hub refuses unknown names."""
    name = re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")
    if not name:
        return {}
    if name in _LICENSES:
        return {"license": name}
    return {"license": "other", "license_name": name}


def _send(
    files: Mapping[str, Any], where: Address, private: bool, message: str | None
) -> str:
    """Creates the repository and branch, and commits the files."""
    from huggingface_hub import (
        CommitOperationAdd,
        CommitOperationDelete,
        HfApi,
    )

    api = HfApi(library_name="keras_aspp")
    api.create_repo(where.repo, private=private or None, exist_ok=True)
    if private and not api.model_info(where.repo).private:
        raise OutputExistsError(
            "This repository exists and is public; nothing was sent. Choose "
            f"another name, or push without --private. Received: {where}"
        )
    branch = where.revision
    if branch and branch != "main" and not branch.startswith("refs/"):
        api.create_branch(where.repo, branch=branch, exist_ok=True)
    files = {posixpath.join(where.path, n): f for n, f in files.items()}
    operations = [
        CommitOperationAdd(name, str(f) if isinstance(f, Path) else f)
        for name, f in files.items()
    ]
    operations += [
        CommitOperationDelete(name)
        for name in _sent_before(api, where)
        if name not in files
    ]
    commit = api.create_commit(
        where.repo,
        operations,
        commit_message=message or "Upload a model of keras-aspp",
        revision=branch,
    )
    return commit.commit_url


def _sent_before(api, where):
    """Returns the names of an earlier upload to the same place."""
    sums = posixpath.join(where.path, SUMS)
    info = api.model_info(where.repo, revision=where.revision)
    present = {file.rfilename for file in info.siblings or ()}
    if sums not in present:
        return []
    path = api.hf_hub_download(where.repo, sums, revision=info.sha)
    names = [posixpath.join(where.path, name) for name in read_sums(path)]
    return [name for name in names if name in present]


def _hash(content):
    if isinstance(content, Path):
        return sha256(content)
    return hashlib.sha256(content).hexdigest()


def _size(content):
    return content.stat().st_size if isinstance(content, Path) else len(content)
