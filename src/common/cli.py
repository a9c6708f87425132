"""What every script needs at its edges: errors as sentences, exit codes, readers of flags."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import difflib
import errno
import math
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Callable, NoReturn

SECONDS_BETWEEN_LINES = 60
"""A log gets a line so often at least, as long as something goes on."""


NO_MEMORY = "not enough memory; a smaller --batch_size needs less"
NO_MEMORY_ELSEWHERE = re.compile(
    r"memory (isn't|is not|not) enough|(not enough|out of|available|allocate) memory|MemoryError|bad_alloc"
    r"|can't start new thread|resource temporarily unavailable",
    re.IGNORECASE,
)
"""What MindSpore's errors say of too little memory, of a device too, and of threads, which need some to be started."""


class UsageError(Exception):
    """The command cannot mean what it says: unknown flag, bad value, contradiction. Exit code 2."""

    exit_code = 2


class RunError(Exception):
    """The command was right and failed: unreadable file, full disk, broken checkpoint. Exit code 1."""

    exit_code = 1


class HelpWithChoices(argparse.HelpFormatter):
    """Help lines that name the values of flags whose reader is a `choice`, unless the text names them all itself."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = super()._get_help_string(action)
        values = getattr(action.type, "values", ())
        seen = f"{text} {action.metavar}"
        if not text or all(re.search(rf"\b{re.escape(value)}\b", seen) for value in values):
            return text
        said, default, rest = text.partition(" (default: ")
        return f"{said}; one of {', '.join(values)}{default}{rest}"


class HelpWithDefaults(HelpWithChoices, argparse.ArgumentDefaultsHelpFormatter):
    """The same with the defaults."""


class ArgumentParser(argparse.ArgumentParser):
    """`argparse` that reports a wrong flag as one sentence and accepts no abbreviated flags."""

    def __init__(self, *args, **kwargs):
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", HelpWithDefaults)
        super().__init__(*args, **kwargs)

    def parse_args(self, args=None, namespace=None):
        """As in `argparse`; flags that there are not come with the nearest ones that there are.

        Raises:
            UsageError: if a flag is unknown, missing or wrong.
        """
        arguments, unknown = self.parse_known_args(args, namespace)
        if unknown:
            shown = [name for name, action in self._option_string_actions.items() if action.help != argparse.SUPPRESS]
            names = [name[2:] for name in shown if name.startswith("--")]
            near = [nearest(flag.partition("=")[0].lstrip("-"), names) for flag in unknown if flag.startswith("-")]
            meant = [f"--{name}" for name in near if name]
            suggestion = f"; did you mean {' and '.join(meant)}?" if meant else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{suggestion}")
        return arguments

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {os.path.basename(sys.argv[0])} --help)")


def create_parser(description: str) -> ArgumentParser:
    """A parser that leaves the defaults out of its help lines, for scripts that write them there themselves."""
    return ArgumentParser(description=description, formatter_class=HelpWithChoices)


def nearest(word: str, words: Sequence[str]) -> str | None:
    """The word that was probably meant: one with a slip, in other letters, or the only one that begins so; or None."""
    spelt = {other.lower(): other for other in words}
    wanted = word.lower().replace("-", "_")
    begin = [other for other in spelt if len(wanted) > 1 and other.startswith(wanted)]
    found = difflib.get_close_matches(wanted, spelt, n=1, cutoff=0.7) or (begin if len(begin) == 1 else [])
    return spelt[found[0]] if found else None


# Readers of flags, named for what they accept


def boolean(text: str) -> bool:
    """Read `True` or `False` as the model zoo's scripts write it."""
    value = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(str(text).lower())
    if value is None:
        raise argparse.ArgumentTypeError(f"expected True or False, not '{text}'")
    return value


def number(kind: type, low: float = -math.inf, high: float = math.inf, open_low: bool = False) -> Callable[[str], Any]:
    """Make a reader of numbers of `kind` within [low, high], or (low, high] where `open_low`."""

    def read(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (low < value if open_low else low <= value) or not value <= high:
            bounds = [f"{'above' if open_low else 'of at least'} {low:g}"] if low > -math.inf else []
            bounds += [f"at most {high:g}"] if high < math.inf else []
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"expected {what} {' and '.join(bounds)}, not '{text}'")
        return value

    return read


positive_int = number(int, 1)
non_negative_int = number(int, 0)
positive_float = number(float, 0, open_low=True)
non_negative_float = number(float, 0)
fraction = number(float, 0, 1)
fraction_below_one = number(float, 0, 0.99)


def choice(*values: str) -> Callable[[str], str]:
    """Make a reader of one of `values`, which `--help` names by its attribute `values`."""

    def read(text: str) -> str:
        if text not in values:
            near = nearest(text, values)
            meant = f"; did you mean {near}?" if near else ""
            raise argparse.ArgumentTypeError(f"expected one of {', '.join(values)}, not '{text}'{meant}")
        return text

    read.values = values
    return read


def three_floats(text: str) -> tuple[float, float, float]:
    """Read one number for all channels, or three separated by commas."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) not in (1, 3) or not all(math.isfinite(value) for value in values):
        raise argparse.ArgumentTypeError(f"expected a number, or three separated by commas, not '{text}'")
    return values * 3 if len(values) == 1 else values


# Output


@contextlib.contextmanager
def tell_each_minute(what: str) -> Iterator[None]:
    """While the body runs, say on standard error after each minute that `what` goes on, so that no log falls silent."""
    ended, began = threading.Event(), time.monotonic()

    def tell() -> None:
        while not ended.wait(SECONDS_BETWEEN_LINES):
            print(f"{what}: going on for {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


# Errors as sentences


def run_cli(main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> int:
    """Run a script's `main(argv)` and turn what a user can do wrong into one sentence and an exit code.

    Returns:
        int, the exit code: what `main` returned (None counts as 0), 2 for a UsageError, 1 for a failed run.
    """
    try:
        return main(argv) or 0
    except (UsageError, RunError) as error:
        sentence, code = str(error), error.exit_code
    except KeyboardInterrupt:
        sentence, code = "stopped by the user", 130
    except BrokenPipeError:
        # The reader of our output (head, less) left: nothing to say, and nobody to say it to.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        sentence, code = describe_os_error(error), 1
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not NO_MEMORY_ELSEWHERE.search(str(error)):
            raise
        sentence, code = NO_MEMORY, 1
        # What MindSpore does when Python ends takes memory, too; without any the process is aborted.
        atexit.register(end_at_once, code)
    sys.stdout.flush()
    print(f"error: {printable(' '.join(sentence.split()))}", file=sys.stderr)
    return code


def end_at_once(code: int) -> None:
    """End the process without what else is to be done at its end; what was printed is seen."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def describe_os_error(error: OSError) -> str:
    """Say in words what the operating system refused, with the file it refused."""
    reason = {
        errno.ENOSPC: "there is no space left on the device",
        errno.EDQUOT: "the disk quota is used up",
        errno.EACCES: "permission was denied",
        errno.EPERM: "the operation is not permitted",
        errno.EROFS: "the file system is read-only",
        errno.ENOENT: "there is no such file or directory",
        errno.EISDIR: "it is a directory",
        errno.ENOTDIR: "a part of the path is not a directory",
        errno.EEXIST: "it is there already, and is no directory",
    }.get(error.errno, error.strerror or str(error))
    return f"{error.filename}: {reason}" if error.filename else reason


def printable(text: str) -> str:
    """A name in one line that every terminal and log can show."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
