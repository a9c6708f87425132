"""C and C++ sources that are compiled on first use: the cache, and what is said where it fails."""

import ctypes
import os
import pathlib
import subprocess
import sys
import tempfile

import pytest

from src.common import native
from src.common.native import CompileError, compile_library, find_compiler

ROOT = pathlib.Path(__file__).parent.parent.parent
FLAGS = ["-fPIC", "-shared"]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, an empty folder for temporary files, and a compiler that notes its calls and takes its time."""
    compiler = tmp_path / "compiler"
    compiler.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/calls\n[ "$1" = --version ] || sleep 0.3\nexec cc "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", f"{compiler}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "cache" / "efficientnet-mindspore"


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "seven.c"
    path.write_text("int seven(void) { return 7; }\n")
    return path


def library(source, *flags):
    """Path of the compiled source."""
    return compile_library("seven", find_compiler("CC"), flags or ([*FLAGS, str(source)],), [str(source)])


def call(path):
    return ctypes.CDLL(path).seven()


def libraries(folder):
    return [path.name for path in folder.rglob("*.so")]


def compilations(tmp_path):
    """How often the compiler of `cache` has compiled."""
    return sum("-o" in line for line in (tmp_path / "calls").read_text().splitlines())


def test_it_is_compiled_once(cache, source, tmp_path):
    path = library(source)
    assert call(path) == 7
    assert library(source) == path
    assert compilations(tmp_path) == 1
    (name,) = libraries(cache)
    assert name.startswith("seven-")


def test_processes_that_start_together_compile_once(cache, source, tmp_path):
    program = "import sys; from tests.common.test_native import library; print(library(sys.argv[1]))"
    command, environment = [sys.executable, "-c", program, str(source)], {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) for _ in range(3)]
    (path,) = {process.communicate(timeout=120)[0].strip() for process in processes}
    assert call(path) == 7
    assert compilations(tmp_path) == 1


def test_a_changed_source_is_another_file(cache, source):
    assert call(library(source)) == 7
    source.write_text("int seven(void) { return 8; }\n")
    assert call(library(source)) == 8
    assert len(libraries(cache)) == 2


def test_compiler_flags_and_processor_make_another_name(source, monkeypatch):
    before = native.library_digest(["cc"], [FLAGS], [str(source)])
    assert native.library_digest(["cc", "-DX"], [FLAGS], [str(source)]) != before
    assert native.library_digest(["cc"], [FLAGS, []], [str(source)]) != before
    monkeypatch.setattr(native, "processor", lambda: "another")
    assert native.library_digest(["cc"], [FLAGS], [str(source)]) != before


def test_a_damaged_file_in_the_cache_is_made_anew(cache, source, tmp_path):
    path = pathlib.Path(library(source))
    whole = path.read_bytes()
    # Another file in its place: the one that this process may have loaded stays as it is.
    path.unlink()
    path.write_bytes(b"\x7fELF cut short")
    assert library(source) == str(path)
    assert path.read_bytes() == whole and compilations(tmp_path) == 2


def test_a_folder_that_others_may_write_to_is_not_used(cache, source, tmp_path):
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    path = library(source)
    assert call(path) == 7 and path.startswith(str(tmp_path / "temporary"))
    assert os.listdir(cache) == []


@pytest.mark.parametrize("place", ["cache", "temporary"])
def test_a_link_is_not_followed(cache, source, tmp_path, place):
    """Whoever may write to the folder of temporary files can put a link there that leads into this user's files."""
    (tmp_path / "mine").mkdir(mode=0o700)
    link = cache if place == "cache" else tmp_path / "temporary" / f"efficientnet-mindspore-{os.getuid()}"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(tmp_path / "mine")
    if place == "cache":
        assert library(source).startswith(str(tmp_path / "temporary"))
    else:
        (tmp_path / "cache").write_text("a file")
        with pytest.raises(CompileError, match="can keep compiled files neither in"):
            library(source)
    assert os.listdir(tmp_path / "mine") == []


def test_the_cache_keeps_what_was_used_last(cache, source, monkeypatch):
    """Sources change with every version; what no version uses any more goes, what others call theirs stays."""
    monkeypatch.setattr(native, "KEPT", 3)
    monkeypatch.setenv("CC", "cc")
    texts = [f"int seven(void) {{ return {number}; }}\n" for number in range(5)]
    paths = []
    for number, text in enumerate(texts):
        source.write_text(text)
        if number == 4:
            others = [
                cache / "seven-other-0.so",
                cache / f"seventy-{'0' * 32}.so",
                cache / f".x.tmp-seven-{'1' * 32}.so",
            ]
            for other in others:
                other.write_text("")
            killed = cache / f".y.tmp-seven-{'1' * 32}.so"
            killed.write_text("")
            os.utime(killed, (0, 0))
            source.write_text(texts[1])
            assert library(source) == paths[1]  # used again
            source.write_text(text)
        paths.append(library(source))
        os.utime(paths[-1], (number, number))
    # At the last compilation 2 was the oldest, since 1 was in use; 0 had gone before.
    kept = {os.path.basename(paths[number]) for number in (1, 3, 4)}
    assert {name for name in libraries(cache) if name.startswith("seven-") and len(name) > 30} == kept
    assert {name for name in os.listdir(cache) if name.endswith(".lock")} == {f"{name}.lock" for name in kept}
    assert all(other.exists() for other in others) and not killed.exists()


def test_a_cache_that_cannot_be_written_gives_way_to_temporary_files(cache, source, tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert library(source).startswith(str(tmp_path / "temporary"))


def test_no_place_is_a_sentence(cache, source, tmp_path):
    (tmp_path / "cache").write_text("a file")
    (tmp_path / "temporary").rmdir()
    (tmp_path / "temporary").write_text("a file")
    with pytest.raises(CompileError, match="can keep compiled files neither in"):
        library(source)


def test_an_error_in_the_source_is_a_sentence(cache, source):
    source.write_text("#include <no_such_header.h>\n")
    with pytest.raises(CompileError, match="failed: .*no_such_header.h"):
        library(source)
    assert libraries(cache) == []


def test_flags_that_the_compiler_does_not_know_give_way_to_the_next(cache, source, tmp_path):
    assert call(library(source, ["-no-such-flag", *FLAGS, str(source)], [*FLAGS, str(source)])) == 7
    assert compilations(tmp_path) == 2


def test_a_missing_library_is_a_sentence(cache, source):
    with pytest.raises(CompileError, match="no_such_library"):
        library(source, [*FLAGS, str(source), "-lno_such_library"])


@pytest.mark.parametrize(("variable", "language"), [("CC", "C"), ("CXX", r"C\+\+")])
def test_no_compiler(monkeypatch, tmp_path, variable, language):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(CompileError, match=f"there is no {language} compiler"):
        find_compiler(variable)


def test_a_compiler_of_the_users_choice(cache, source, monkeypatch):
    monkeypatch.setenv("CC", "cc -DUNUSED=1")
    assert find_compiler("CC") == ["cc", "-DUNUSED=1"]
    assert call(library(source)) == 7
