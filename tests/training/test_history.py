"""metrics.csv, curves.png and TensorBoard events of a run, and of one that goes on."""

import csv
import struct
import time

import pytest
from PIL import Image
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event, SessionLog

from src.training.history import COLUMNS, History
from src.training.history import read_events as events_of_a_kill

ROWS = [
    {"epoch": 1, "step": 10, "loss": 2.5, "learning_rate": 0.1, "images_per_second": 50.0},
    {"epoch": 2, "step": 20, "loss": 1.25, "learning_rate": 0.05, "top_1": 0.75, "top_5": 1.0, "eval_loss": 0.5},
]


def read_rows(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def read_events(path):
    """The events of a file in TensorFlow's record format: length, its checksum, data, their checksum."""
    data = path.read_bytes()
    events = []
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        body, data = data[12 : 12 + size], data[16 + size :]
        events.append(Event.FromString(body))
    return events


def scalars(events):
    return {(event.step, value.tag): value.simple_value for event in events for value in event.summary.value}


def test_a_row_for_each_epoch_with_empty_cells_for_what_was_not_measured(tmp_path):
    history = History(str(tmp_path))
    for row in ROWS:
        history.add(row)
    first, second = read_rows(tmp_path)
    assert tuple(first) == COLUMNS
    assert (first["loss"], first["top_1"]) == ("2.5", "")
    assert (second["epoch"], second["top_1"], second["images_per_second"]) == ("2", "0.75", "")


def test_the_picture_is_renewed(tmp_path):
    history = History(str(tmp_path))
    history.add(ROWS[0])
    first = (tmp_path / "curves.png").read_bytes()
    history.add(ROWS[1])
    assert (tmp_path / "curves.png").read_bytes() != first
    with Image.open(tmp_path / "curves.png") as picture:
        picture.load()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "metrics.csv"]


def test_tensorboard_gets_the_numbers_at_their_steps(tmp_path):
    history = History(str(tmp_path), tensorboard=True)
    for row in ROWS:
        history.add(row)
    # Before it is closed: a run that is killed has its events.
    (path,) = (tmp_path / "tensorboard").iterdir()
    assert path.name.startswith("events.out.tfevents.")
    events = read_events(path)
    history.close()
    assert events[0].file_version == "brain.Event:2"
    assert scalars(events) == {
        (row["step"], name): pytest.approx(value)
        for row in ROWS
        for name, value in row.items()
        if name not in ("epoch", "step")
    }


def test_the_records_carry_tensorflows_checksums(tmp_path):
    history = History(str(tmp_path), tensorboard=True)
    history.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    for start, end in ((0, 8), (12, 12 + size)):
        crc = crc32c(data[start:end])
        masked = (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
        assert struct.unpack("<I", data[end : end + 4]) == (masked,)


def test_a_run_that_goes_on_keeps_its_rows(tmp_path):
    first = History(str(tmp_path), tensorboard=True)
    for row in ROWS:
        first.add(row)
    first.close()
    # Killed after epoch 2 was recorded and before it was saved.
    again = History(str(tmp_path), first.rows[:1], tensorboard=True)
    again.add({**ROWS[1], "loss": 1.5})
    again.close()
    assert [(row["epoch"], row["loss"]) for row in read_rows(tmp_path)] == [("1", "2.5"), ("2", "1.5")]


def test_a_run_that_goes_on_leaves_one_event_file_with_every_epoch_once(tmp_path):
    """Killed after epoch 2 was recorded and before it was saved, in the middle of writing a further event."""
    first = History(str(tmp_path), tensorboard=True)
    for row in ROWS:
        first.add(row)
    first.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    times = {event.step: event.wall_time for event in read_events(path)}
    path.write_bytes(path.read_bytes()[:-7])
    (tmp_path / "tensorboard" / "notes.txt").write_text("mine")
    time.sleep(0.02)

    again = History(str(tmp_path), first.rows[:1], tensorboard=True)
    again.add({**ROWS[1], "loss": 1.5})
    again.close()
    other, path = sorted((tmp_path / "tensorboard").iterdir(), key=lambda path: path.name != "notes.txt")
    assert other.name == "notes.txt" and path.name.startswith("events.out.tfevents.")
    events = read_events(path)
    assert events[1].session_log.status == SessionLog.START and events[1].step == 0
    assert scalars(events) == {
        (row["step"], name): pytest.approx(value)
        for row in (ROWS[0], {**ROWS[1], "loss": 1.5})
        for name, value in row.items()
        if name not in ("epoch", "step")
    }
    assert len([event for event in events if event.summary.value]) == len(scalars(events))
    assert {event.wall_time for event in events if event.step == 10} == {times[10]}
    assert min(event.wall_time for event in events if event.step == 20) > times[20]


def test_an_event_file_of_a_kill_is_read_up_to_the_kill(tmp_path):
    history = History(str(tmp_path), tensorboard=True)
    history.add(ROWS[0])
    history.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    data = path.read_bytes()
    count = len(read_events(path))
    for length in range(len(data)):
        path.write_bytes(data[:length])
        assert len(list(events_of_a_kill(str(path)))) < count
    path.write_bytes(data[:-9] + b"x" + data[-8:])
    assert len(list(events_of_a_kill(str(path)))) == count - 1


def test_a_full_disk_is_an_error_that_names_the_folder_and_leaves_no_thread_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tensorboardX.record_writer.open_file", lambda path: open("/dev/full", "wb"))
    history = History(str(tmp_path), tensorboard=True)
    with pytest.raises(OSError) as error:
        history.add(ROWS[0])
    assert error.value.filename == str(tmp_path / "tensorboard")
    history.close()
