"""What the kernel says of the processor."""

import os

import pytest

from src.common import machine
from src.common.machine import (
    available_memory,
    count_cores,
    count_own_cores,
    cpu_flags,
    cpu_limit,
    cpu_name,
    usable_cores,
)


def test_features_of_x86_and_arm(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nflags\t\t: fpu avx2 fma\nbogomips\t: 1\nprocessor\t: 1\nflags\t\t: fpu\n")
    assert cpu_flags(path, "x86_64") == {"fpu", "avx2", "fma"}
    path.write_text("processor\t: 0\nFeatures\t: fp asimd\n")
    assert cpu_flags(path, "aarch64") == {"fp", "asimd"}
    assert cpu_flags(tmp_path / "nothing") == frozenset()


def test_under_an_emulator_the_hosts_features_are_not_this_machines(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text("flags\t\t: fpu avx2 fma avx512f\n")
    assert cpu_flags(path, "aarch64") == frozenset()
    path.write_text("Features\t: fp asimd\n")
    assert cpu_flags(path, "x86_64") == frozenset()


def write(folder, **files):
    """Files of a control group; "__" in a name is "."."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


def test_memory_is_what_is_free_and_no_more_than_a_container_may_have(tmp_path):
    meminfo, own = tmp_path / "meminfo", tmp_path / "own"
    meminfo.write_text("MemTotal:       8000 kB\nMemAvailable:   4000 kB\n")
    assert available_memory(meminfo, tmp_path / "none", own) == 4000 * 1024
    for limit, free in (("max", 4000 * 1024), ("3000000", 2000000), ("900000", 0)):
        write(tmp_path, memory__max=limit, memory__current=1000000)
        assert available_memory(meminfo, tmp_path, own) == free
    own.write_text("9:cpu,cpuacct:/\n5:memory:/\n")
    write(tmp_path / "old" / "memory", memory__limit_in_bytes=2000000, memory__usage_in_bytes=500000)
    assert available_memory(meminfo, tmp_path / "old", own) == 1500000


def test_memory_of_a_job_is_limited_by_every_group_around_it(tmp_path):
    meminfo, own = tmp_path / "meminfo", tmp_path / "own"
    meminfo.write_text("MemAvailable:   4000 kB\n")
    own.write_text("0::/jobs/7/step\n")
    write(tmp_path / "jobs/7/step", memory__max="max", memory__current=10)
    write(tmp_path / "jobs/7", memory__max=3000, memory__current=1000)
    assert available_memory(meminfo, tmp_path, own) == 2000


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", None), ("100000 100000", 1), ("150000 100000", 2), ("5000 100000", 1), ("", None)],
)
def test_cores_worth_of_time_in_a_container(tmp_path, quota, cores):
    write(tmp_path, cpu__max=quota)
    assert cpu_limit(tmp_path, tmp_path / "own") == cores


def test_the_narrowest_limit_around_a_job_holds(tmp_path):
    own = tmp_path / "own"
    own.write_text("0::/jobs/7\n")
    write(tmp_path / "jobs", cpu__max="300000 100000")
    write(tmp_path / "jobs/7", cpu__max="800000 100000")
    assert cpu_limit(tmp_path, own) == 3


def test_cores_worth_of_time_in_control_groups_of_the_first_version(tmp_path):
    own = tmp_path / "own"
    # In a container without a namespace of its own the kernel names the host's path; the mount is the container's.
    own.write_text("9:cpu,cpuacct:/docker/1f\n5:memory:/docker/1f\n")
    for quota, cores in ((-1, None), (200000, 2)):
        write(tmp_path / "cpu", cpu__cfs_quota_us=quota, cpu__cfs_period_us=100000)
        assert cpu_limit(tmp_path, own) == cores


def test_a_containers_limit_counts_as_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(96)))
    monkeypatch.setattr(machine, "cpu_limit", lambda: 4)
    assert count_cores() == 4
    monkeypatch.setattr(machine, "cpu_limit", lambda: 200)
    assert count_cores() == 96


def test_cores_are_those_of_this_process():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cores() == [min(before)] and count_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert count_cores() == len(before)


def test_the_processor_has_a_name():
    assert cpu_name()


class TestShareOfCores:
    def test_never_more_than_the_machine_has(self, monkeypatch):
        assert 1 <= count_own_cores() <= os.cpu_count()
        assert count_own_cores(1000) >= 1

    def test_the_cores_are_shared_among_the_ranks_of_a_host(self, monkeypatch):
        monkeypatch.setattr(os, "cpu_count", lambda: 96)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(96)))
        assert [count_own_cores(processes) for processes in (1, 4, 8, 16)] == [96, 24, 12, 12]

    def test_a_process_bound_to_some_cores_has_them_for_itself(self, monkeypatch):
        monkeypatch.setattr(os, "cpu_count", lambda: 96)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
        assert count_own_cores(8) == 12
