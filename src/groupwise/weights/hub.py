"""Weights from the Hugging Face hub: fetched into its cache once, and checked whenever they are new or changed."""

import hashlib
import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from groupwise.errors import UserError, check_installed, first_line
from groupwise.writing import write_text

REFERENCE = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>\w[\w.+/-]*))?", re.ASCII)
MODEL_FILES = ("model.safetensors", "pytorch_model.bin")
SHA256 = re.compile(r"[0-9a-f]{64}")


def fetch(reference: str) -> tuple[Path, dict[str, Any]]:
    """Fetch a network's weights and its config.json from the Hugging Face hub, or from the hub's cache here.

    `huggingface_hub` does it, and obeys its own variables: HF_HOME (where the cache lies), HF_HUB_OFFLINE, HF_TOKEN,
    HF_ENDPOINT and others. A file whose SHA-256 the hub has told is checked once, and again when its size or time of
    change is another.

    Args:
        reference: "owner/name" or "owner/name@revision", a revision being a branch, a tag or a commit.

    Returns:
        The path of model.safetensors, or where there is none of pytorch_model.bin, and what config.json holds, {}
        where there is none.

    Raises:
        UserError: the reference is none, or a file cannot be had, or is damaged.

    Examples:
        >>> path, config = fetch("timm/resnext50_32x4d.a1h_in1k")  # doctest: +SKIP
        >>> config["architecture"]  # doctest: +SKIP
        'resnext50_32x4d'
    """
    check_installed("huggingface_hub", f"hf:{reference}")
    match = REFERENCE.fullmatch(reference)
    if match is None or ".." in reference:
        raise UserError(
            f"hf:{reference} is no repository; write hf:owner/name or hf:owner/name@revision, "
            "such as hf:timm/resnet50.a1_in1k"
        )
    repository, revision = match["repository"], match["revision"]
    config = _download(repository, revision, "config.json")
    for name in MODEL_FILES:
        path = _download(repository, revision, name)
        if path is not None:
            return path, _read_config(config, reference) if config else {}
    raise UserError(f"hf:{reference} holds neither {' nor '.join(MODEL_FILES)}, of which one is needed")


def _read_config(path: Path, reference: str) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
        if not isinstance(config, dict):
            raise ValueError(f"a {type(config).__name__} instead of names and values")
    except ValueError as error:
        _forget(path)
        raise UserError(f"hf:{reference}: its config.json is damaged ({error}), and was deleted; try again") from error
    return config


def _download(repository: str, revision: str | None, name: str) -> Path | None:
    """Return a file's path in the cache, where it is now; None where the repository has no such file."""
    import huggingface_hub as hub  # imported late: it takes a fifth of a second
    from huggingface_hub import errors

    try:
        path = Path(hub.hf_hub_download(repository, name, revision=revision, library_name="groupwise"))
    except errors.LocalEntryNotFoundError as error:
        if hub.try_to_load_from_cache(repository, name, revision=revision) is hub._CACHED_NO_EXIST:
            return None
        raise UserError(_explain(error, f"hf:{repository}", name, revision)) from error
    except errors.EntryNotFoundError:
        return None
    except Exception as error:  # of HTTP libraries, one or another by huggingface_hub's version
        raise UserError(_explain(error, f"hf:{repository}", name, revision)) from error
    _verify(path, f"hf:{repository}: {name}")
    return path


def _explain(error: Exception, source: str, name: str, revision: str | None) -> str:
    """Return what an error of huggingface_hub means, and what to do about it."""
    from huggingface_hub import constants, errors

    token = "give a token of yours: hf auth login, or HF_TOKEN"
    if isinstance(error, errors.GatedRepoError):
        return f"{source} is open to those who accepted its terms; accept them on its page on the hub, and {token}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{source} does not exist on the hub, or is private; check the name, or {token}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{source} has no revision {revision!r}; check the branch, the tag or the commit after the @"
    if isinstance(error, errors.HFValidationError):
        return f"{source} is no name of a repository ({first_line(error).rstrip('.')}); write hf:owner/name"
    missing = isinstance(error, errors.LocalEntryNotFoundError)
    cause = error.__cause__ if missing else error
    if isinstance(cause, errors.HfHubHTTPError) and cause.response is not None:
        status = cause.response.status_code
        todo = "check the token: hf auth login, or HF_TOKEN" if status == 401 else "try again later"
        return f"{source}: {name} could not be had, since the hub answered {status}; {todo}"
    if missing and constants.HF_HUB_OFFLINE:
        return f"{source}: {name} is not in the cache, and HF_HUB_OFFLINE keeps the hub away; unset it to download"
    if missing:
        return f"{source}: {name} is not in the cache, and the hub cannot be reached; check the connection"
    return f"{source}: {name} could not be downloaded ({first_line(error).rstrip('.')}); try again"


def _verify(path: Path, name: str) -> None:
    """Check a file of the cache against its SHA-256, after which the cache names the blob that its link leads to.

    Only large files have one; and where a disk has no links, nothing tells it. A blob may be a link itself, to a file
    that the whole cache shares and that has another name. What a file was like when it was right is noted beside its
    blob: hashing a gigabyte takes seconds, and every load would wait for it.
    """
    blob = _blob(path)
    if not SHA256.fullmatch(blob.name):
        return
    note, status = _note(blob), path.stat()
    seen = f"{status.st_size} {status.st_mtime_ns}"
    with suppress(OSError):
        if note.read_bytes() == seen.encode():
            return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != blob.name:
        _forget(path)
        raise UserError(
            f"{name} is damaged: its SHA-256 is {found}, and the hub's is {blob.name}; it was deleted, so try again"
        )
    with suppress(UserError):  # a cache that cannot be written to: the next load hashes again
        write_text(note, seen)


def _forget(path: Path) -> None:
    """Delete a file from the cache, the links to it and the note about it included."""
    blob = _blob(path)
    for place in {path.resolve(), blob, _note(blob), path}:
        place.unlink(missing_ok=True)


def _blob(path: Path) -> Path:
    """Return where the link of a file in the cache leads; without links, the file itself."""
    return path.parent / path.readlink() if path.is_symlink() else path


def _note(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.verified")
