"""The report's page: data, style and script in one HTML file that needs no network."""

from __future__ import annotations

import base64
import hashlib
import importlib
import os

from src.common.cli import RunError
from src.common.files import atomic_write

PACKAGES = ("jinja2", "scipy")
"""Not everybody who runs an exported file has them."""
HERE = os.path.dirname(os.path.abspath(__file__))


def check_packages() -> None:
    """Find out, before the evaluation begins, whether the packages are there that a page is made with.

    Raises:
        RunError: naming one that is not.
    """
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError:
            raise RunError(f"the report as a page needs {name}, which is not installed: pip install {name}") from None


def read_part(name: str) -> str:
    """The text of a part of the page."""
    with open(os.path.join(HERE, name), encoding="utf-8") as file:
        return file.read()


def encode(value: object) -> str:
    """A value as JSON that may stand within HTML: without spaces, "<", ">", "&" and "'"."""
    from jinja2.utils import htmlsafe_json_dumps

    return str(htmlsafe_json_dumps(value, separators=(",", ":"), allow_nan=False))


def write_page(path: str, title: str, data: dict) -> None:
    """Write the page.

    Names within `data` and `title` may hold anything: Jinja escapes them, and the page's policy lets no script run but
    ours.

    Args:
        path: of the file, which appears whole or not at all.
        title: of the page.
        data: plain JSON types, what `src/mistakes/page.js` shows.

    Raises:
        OSError: if the file cannot be written.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    script = read_part("texts.js") + read_part("page.js")
    text = environment.from_string(read_part("page.html")).render(
        title=title,
        data=encode(data),
        style=read_part("page.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    with atomic_write(path, "w") as file:
        file.write(text)
