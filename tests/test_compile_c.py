"""C sources that are compiled on first use: the cache, and what is said where it fails."""

import os
import stat

import pytest

from src import compile_c
from src.compile_c import CompileError, load_compiled


@pytest.fixture
def cache(tmp_path, monkeypatch):
    if not any(os.access(os.path.join(folder, "cc"), os.X_OK) for folder in os.environ["PATH"].split(os.pathsep)):
        pytest.skip("there is no C compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    return tmp_path / "cache" / "efficientnet-mindspore"


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "seven.c"
    path.write_text("int seven(void) { return 7; }\n")
    return path


def test_it_is_compiled_once(cache, source, monkeypatch):
    assert load_compiled(str(source)).seven() == 7
    (name,) = os.listdir(cache)
    assert name.startswith("seven-") and name.endswith(".so")
    monkeypatch.setattr(compile_c, "compile_source", lambda *_: pytest.fail("it was compiled again"))
    assert load_compiled(str(source)).seven() == 7


def test_a_changed_source_is_another_file(cache, source):
    load_compiled(str(source))
    source.write_text("int seven(void) { return 8; }\n")
    assert load_compiled(str(source)).seven() == 8
    assert len(os.listdir(cache)) == 2


def test_a_damaged_file_in_the_cache_is_made_anew(cache, source):
    name = compile_c.identity(str(source), compile_c.find_compiler(), ())
    cache.mkdir(parents=True, mode=0o700)
    (cache / f"{name}.so").write_bytes(b"\x7fELF cut short")
    assert load_compiled(str(source)).seven() == 7


def test_a_folder_that_others_may_write_to_is_not_used(cache, source):
    cache.mkdir(parents=True)
    os.chmod(cache, stat.S_IRWXU | stat.S_IRWXG | stat.S_IRWXO)
    assert load_compiled(str(source)).seven() == 7
    assert os.listdir(cache) == []


def test_an_error_in_the_source_is_a_sentence(cache, source):
    source.write_text("#include <no_such_header.h>\n")
    with pytest.raises(CompileError, match="failed: .*no_such_header.h"):
        load_compiled(str(source))
    assert os.listdir(cache) == []


def test_a_missing_library_is_a_sentence(cache, source):
    with pytest.raises(CompileError, match="no_such_library"):
        load_compiled(str(source), ["no_such_library"])


def test_no_compiler(cache, source, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CompileError, match="there is no C compiler"):
        load_compiled(str(source))


def test_a_compiler_of_the_users_choice(cache, source, monkeypatch):
    monkeypatch.setenv("CC", "cc -DUNUSED=1")
    assert load_compiled(str(source)).seven() == 7
