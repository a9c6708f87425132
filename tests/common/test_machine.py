"""What the kernel says of the processor."""

import os

from src.common.machine import available_memory, count_cores, cpu_flags, cpu_name, usable_cores


def test_features_of_x86_and_arm(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nflags\t\t: fpu avx2 fma\nbogomips\t: 1\nprocessor\t: 1\nflags\t\t: fpu\n")
    assert cpu_flags(path) == {"fpu", "avx2", "fma"}
    path.write_text("processor\t: 0\nFeatures\t: fp asimd\n")
    assert cpu_flags(path) == {"fp", "asimd"}
    assert cpu_flags(tmp_path / "nothing") == frozenset()


def test_memory_is_what_is_free_and_no_more_than_a_container_may_have(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       8000 kB\nMemAvailable:   4000 kB\n")
    assert available_memory(meminfo, tmp_path / "none") == 4000 * 1024
    for limit, free in (("max", 4000 * 1024), ("3000000", 2000000), ("900000", 0)):
        (tmp_path / "memory.max").write_text(limit + "\n")
        (tmp_path / "memory.current").write_text("1000000\n")
        assert available_memory(meminfo, tmp_path) == free
    old = tmp_path / "old" / "memory"
    old.mkdir(parents=True)
    (old / "memory.limit_in_bytes").write_text("2000000\n")
    (old / "memory.usage_in_bytes").write_text("500000\n")
    assert available_memory(meminfo, tmp_path / "old") == 1500000


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
