"""Files that appear whole or not at all, and locks."""

import errno
import hashlib
import os
import shutil
import stat
import subprocess
import sys

import pytest

from src.common.cli import RunError, UsageError
from src.common.files import atomic_path, atomic_write, file_sha256, locked, locked_alone, unchanged


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

    @pytest.mark.parametrize("there", [True, False])
    def test_a_link_stays_and_its_target_is_replaced(self, tmp_path, there):
        (tmp_path / "target").mkdir()
        target, link = tmp_path / "target" / "file", tmp_path / "link"
        link.symlink_to("target/file")
        if there:
            target.write_bytes(b"old")
        with atomic_write(link) as file:
            file.write(b"new")
        assert link.is_symlink() and not target.is_symlink() and target.read_bytes() == b"new"
        assert os.listdir(tmp_path / "target") == ["file"] and sorted(os.listdir(tmp_path)) == ["link", "target"]

    def test_a_link_to_itself_is_an_error_with_its_name(self, tmp_path):
        (tmp_path / "loop").symlink_to("loop")
        with pytest.raises(OSError) as error, atomic_write(tmp_path / "loop"):
            raise AssertionError("the block must not run")
        assert (error.value.errno, error.value.filename) == (errno.ELOOP, str(tmp_path / "loop"))


class TestStreams:
    """What is no regular file stays what it is."""

    def test_a_device_stays_and_nothing_lies_beside_it(self, tmp_path):
        before = os.listdir("/dev")
        with atomic_write("/dev/null") as file:
            file.write(b"lost")
            assert os.listdir("/dev") == before
        assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
        (tmp_path / "link").symlink_to("/dev/null")
        with atomic_write(tmp_path / "link") as file:
            file.write(b"lost")
        assert os.readlink(tmp_path / "link") == "/dev/null" and stat.S_ISCHR(os.stat("/dev/null").st_mode)

    def test_a_full_device_is_an_error_with_its_name(self):
        with pytest.raises(OSError) as error, atomic_write("/dev/full") as file:
            file.write(b"x")
        assert (error.value.errno, error.value.filename) == (errno.ENOSPC, "/dev/full")

    def test_a_named_pipe_carries_the_whole_file(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        content = os.urandom(300_000)  # more than a pipe holds
        with open(tmp_path / "read", "wb") as out, subprocess.Popen(["cat", tmp_path / "pipe"], stdout=out) as reader:
            with atomic_write(tmp_path / "pipe") as file:
                file.write(content)
            assert reader.wait(timeout=60) == 0
        assert (tmp_path / "read").read_bytes() == content
        assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode) and sorted(os.listdir(tmp_path)) == ["pipe", "read"]

    @pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
    @pytest.mark.parametrize("kind", ["pipe", "file"])
    def test_standard_output_is_written_to_in_its_turn(self, tmp_path, name, kind):
        code = (
            "import sys; sys.path.insert(0, '.')\n"
            "from src.common.files import atomic_write\n"
            "print('before')\n"
            "with atomic_write(sys.argv[1], 'w') as file:\n    file.write('written\\n')\n"
            "print('after')\n"
        )
        with open(tmp_path / "out", "wb") as out:
            where = subprocess.PIPE if kind == "pipe" else out
            done = subprocess.run([sys.executable, "-c", code, name], stdout=where, check=True)
        text = done.stdout if kind == "pipe" else (tmp_path / "out").read_bytes()
        assert text == b"before\nwritten\nafter\n"
        assert os.listdir(tmp_path) == ["out"]


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

    @pytest.mark.parametrize("kind", ["folder", "file"])
    def test_without_locks_what_is_safe_goes_on_and_is_told_once(self, tmp_path, monkeypatch, capsys, kind):
        path = str(tmp_path if kind == "folder" else tmp_path / "lock")
        monkeypatch.setattr("fcntl.flock", refuse_lock)
        for _ in range(2):
            with locked(path, needed=False):
                pass
        assert capsys.readouterr().err == (
            f"warning: {tmp_path}: its file system has no locks (Operation not supported); processes that start "
            "together may do the same work twice\n"
        )

    def test_without_locks_what_is_not_safe_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.setattr("fcntl.flock", refuse_lock)
        with pytest.raises(RunError, match=f"{tmp_path}: its file system has no locks .* on another one"):
            with locked(str(tmp_path)):
                raise AssertionError("the block must not run")

    def test_a_second_writer_is_told_which_folder_is_in_use(self, tmp_path):
        with locked_alone(str(tmp_path)):
            with pytest.raises(UsageError, match=f"{tmp_path}: another process is writing to it"):
                with locked_alone(str(tmp_path)):
                    raise AssertionError("the block must not run")
        with locked_alone(str(tmp_path)):
            pass


class TestAFileThatIsRead:
    def replace(path):
        other = path.with_name("other")
        other.write_bytes(path.read_bytes())
        shutil.copystat(path, other)
        other.replace(path)

    def append(path):
        with open(path, "ab") as file:
            file.write(b"more")

    def overwrite(path):
        status = path.stat()
        path.write_bytes(bytes(reversed(path.read_bytes())))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))

    @pytest.mark.parametrize("change", [replace, append, overwrite], ids=lambda function: function.__name__)
    def test_is_refused_if_it_changes_meanwhile_even_where_it_looks_damaged(self, tmp_path, change):
        path = tmp_path / "file"
        path.write_bytes(b"data")
        for error in (None, RunError("file: it is damaged")):
            with pytest.raises(RunError, match=f"{path}: the file changed while it was read"), unchanged(str(path)):
                change(path)
                if error:
                    raise error

    def test_that_stays_is_taken_and_its_error_passed_on(self, tmp_path):
        path = tmp_path / "file"
        path.write_bytes(b"data")
        with unchanged(str(path)):
            path.read_bytes()
        with pytest.raises(RunError, match="damaged"), unchanged(str(path)):
            raise RunError("file: it is damaged")

    def test_that_goes_away_is_missing(self, tmp_path):
        path = tmp_path / "file"
        path.write_bytes(b"data")
        with pytest.raises(FileNotFoundError), unchanged(str(path)):
            path.unlink()


def refuse_lock(descriptor, operation):
    """What `flock` does on a file system without locks."""
    raise OSError(errno.EOPNOTSUPP, "Operation not supported")


def test_the_digest_is_sha256(tmp_path):
    (tmp_path / "file").write_bytes(bytes(3_000_000))
    assert file_sha256(str(tmp_path / "file")) == hashlib.sha256(bytes(3_000_000)).hexdigest()
