"""Files that appear whole or not at all, and locks."""

import errno
import hashlib
import os
import stat
import subprocess
import sys

import pytest

from src.common.files import atomic_path, atomic_write, file_sha256, locked


class TestFiles:
    def test_a_file_appears_when_the_block_succeeds(self, tmp_path):
        path = tmp_path / "new folder" / "file.txt"
        with atomic_write(path, "w") as file:
            file.write("é")
            assert not path.exists()
        assert path.read_bytes() == "é".encode()
        assert os.listdir(path.parent) == ["file.txt"]

    def test_a_failed_block_leaves_the_old_file_and_nothing_else(self, tmp_path):
        path = tmp_path / "file"
        path.write_bytes(b"old")
        with pytest.raises(RuntimeError), atomic_write(path) as file:
            file.write(b"new")
            raise RuntimeError
        assert path.read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["file"]

    def test_others_may_read_it_as_the_umask_says(self, tmp_path):
        before = os.umask(0o027)
        try:
            with atomic_write(tmp_path / "file") as file:
                file.write(b"x")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640

    def test_a_file_that_another_program_made_unreadable_gets_its_mode_too(self, tmp_path):
        with atomic_path(tmp_path / "model.onnx") as temporary:
            os.chmod(temporary, 0o400)
        assert (tmp_path / "model.onnx").stat().st_mode & stat.S_IWUSR

    def test_a_folder_in_its_place_is_an_error_before_the_work(self, tmp_path):
        with pytest.raises(IsADirectoryError), atomic_path(tmp_path):
            raise AssertionError("the block must not run")

    def test_an_error_without_a_name_gets_the_files(self, tmp_path):
        """As that of a full disk: what was being written is known here alone."""
        with pytest.raises(OSError) as error, atomic_write(tmp_path / "file"):
            raise OSError(errno.ENOSPC, "No space left on device")
        assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(tmp_path / "file"))


class TestLocks:
    @pytest.mark.parametrize("kind", ["folder", "file"])
    def test_one_process_holds_it_and_lets_go_when_the_block_ends(self, tmp_path, kind):
        path = str(tmp_path if kind == "folder" else tmp_path / "lock")
        with locked(path):
            with pytest.raises(BlockingIOError), locked(path):
                raise AssertionError("the block must not run")
        with locked(path):
            pass

    def test_a_killed_process_lets_go(self, tmp_path):
        code = (
            "import sys, time; sys.path.insert(0, '.')\n"
            "from src.common.files import locked\n"
            "with locked(sys.argv[1]):\n    print('held', flush=True); time.sleep(60)\n"
        )
        command = [sys.executable, "-c", code, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "held\n"
            with pytest.raises(BlockingIOError), locked(str(tmp_path)):
                pass
            process.kill()
            process.wait()
        with locked(str(tmp_path)):
            pass

    def test_a_file_system_without_locks_is_no_error(self, tmp_path, monkeypatch):
        def refuse(descriptor, operation):
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr("fcntl.flock", refuse)
        with locked(str(tmp_path)):
            pass


def test_the_digest_is_sha256(tmp_path):
    (tmp_path / "file").write_bytes(bytes(3_000_000))
    assert file_sha256(str(tmp_path / "file")) == hashlib.sha256(bytes(3_000_000)).hexdigest()
