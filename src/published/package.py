"""Weights in an installed Python package, found without importing it."""

from __future__ import annotations

import base64
import importlib.metadata
import os

from src.common.cli import RunError
from src.common.files import file_sha256
from src.published.origin import Origin, Taken
from src.published.table import Published


def take_from_package(row: Published) -> Taken | None:
    """The file in the package that carries the weights; None where there is no such package.

    Raises:
        RunError: if the file is not the one that was installed.
    """
    if row.package is None:
        return None
    try:
        package = importlib.metadata.distribution(row.package)
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in package.files or ():
        path = str(file.locate())
        if file.suffix == ".pth" and file.hash and file.hash.mode == "sha256" and os.path.isfile(path):
            digest = file_sha256(path)
            # The installer's list has digests in base64 without its padding.
            if base64.urlsafe_b64encode(bytes.fromhex(digest)).decode().rstrip("=") != file.hash.value:
                raise RunError(
                    f"{path}: its SHA-256 is not the one that was installed; "
                    f"pip install --force-reinstall {row.package} puts it right"
                )
            place = f"the Python package {row.package}"
            return Taken(path, Origin(row.name, place, revision=package.version, sha256=digest, licence=row.licence))
    return None
