"""What is measured: real readings of this machine, and fixture trees of the files that other machines have."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from limits import cgroup
from limits.cpu import CpuShare
from limits.gpu import Gpus
from limits.pressure import Pressure
from limits.processes import Use, is_stopped, use_of
from limits.sampling import Sampler

MIB = 2**20
HERE = os.getpid()


def write(folder: Path, **files: str) -> Path:
    """`memory_max="5"` → the file memory.max."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(text + "\n")
    return folder


def proc_of(tmp_path: Path, cgroups: str, mounts: list[str], stat: str = "") -> Path:
    """A /proc: `mounts` end as lines of mountinfo do, {0} is the folder that stands for /."""
    lines = [f"{n} 1 0:{n} {line.format(tmp_path)}" for n, line in enumerate(mounts, 30)]
    write(tmp_path / "proc" / "self", cgroup=cgroups, mountinfo="\n".join(lines))
    (tmp_path / "proc" / "stat").write_text(stat or "cpu 1 0 0 1 0 0 0 0 0 0\ncpu0 1 0 0 1 0 0 0 0 0 0\nintr 1\n")
    return tmp_path / "proc"


V2 = ["/ {0}/cg rw shared:1 - cgroup2 cgroup rw"]
V1 = [
    "/ {0}/cg/memory rw - cgroup cgroup rw,memory",
    "/ {0}/cg/cpu rw - cgroup cgroup rw,cpu,cpuacct",
    "/ {0}/cg/unified rw - cgroup2 cgroup2 rw",
]


def memory_of(proc: Path) -> cgroup.MemoryLimits:
    group = cgroup.find(proc / "self").memory
    assert group is not None
    found = cgroup.MemoryLimits(group)
    found.refresh()
    return found


def test_version_2_takes_the_limits_of_all_levels_and_leaves_out_what_can_be_taken_back(tmp_path: Path) -> None:
    top = write(tmp_path / "cg", cgroup_controllers="cpu memory")
    write(top / "pod", memory_max=f"{1000 * MIB}", memory_high="max", memory_current=f"{700 * MIB}",
          memory_stat=f"anon 5\ninactive_file {100 * MIB}")  # fmt: skip
    write(top / "pod" / "a", memory_max="max", memory_high=f"{600 * MIB}", memory_current=f"{500 * MIB}", memory_stat="inactive_file 0",
          memory_events="low 0\noom 3\noom_kill 2")  # fmt: skip
    found = memory_of(proc_of(tmp_path, "0::/pod/a", V2))
    assert [(m.where, m.available_bytes // MIB, m.total_bytes // MIB) for m in found.look()] == [
        ("cgroup /pod/a", 100, 600), ("cgroup /pod", 400, 1000)
    ]  # fmt: skip
    assert found.oom_kills() == 2


def test_version_1_and_its_way_to_say_no_limit(tmp_path: Path) -> None:
    top = write(tmp_path / "cg" / "memory", memory_limit_in_bytes="9223372036854771712")
    write(top / "docker" / "x", memory_limit_in_bytes=f"{512 * MIB}", memory_usage_in_bytes=f"{500 * MIB}",
          memory_stat=f"inactive_file 1\ntotal_inactive_file {200 * MIB}",
          memory_oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 7")  # fmt: skip
    found = memory_of(proc_of(tmp_path, "4:memory:/docker/x\n0::/", V1))
    (memory,) = found.look()
    assert (memory.where, memory.available_bytes // MIB, memory.total_bytes // MIB) == ("cgroup /docker/x", 212, 512)
    assert found.oom_kills() == 7


def test_in_a_container_the_mount_begins_at_its_own_group(tmp_path: Path) -> None:
    write(tmp_path / "cg" / "memory", memory_limit_in_bytes=f"{64 * MIB}", memory_usage_in_bytes="0", memory_stat="total_inactive_file 0")
    mounts = ["/docker/abc {0}/cg/memory rw - cgroup cgroup rw,memory"]
    (memory,) = memory_of(proc_of(tmp_path, "4:memory:/docker/abc", mounts)).look()
    assert memory.total_bytes == 64 * MIB and memory.where == "cgroup /"


def quota_of(proc: Path) -> cgroup.CpuQuota:
    groups = cgroup.find(proc / "self")
    assert groups.cpu is not None and groups.cpuacct is not None
    quota = cgroup.CpuQuota(groups.cpu, groups.cpuacct)
    quota.refresh()
    return quota


def test_the_tightest_cpu_quota_counts(tmp_path: Path) -> None:
    top = write(tmp_path / "cg", cgroup_controllers="cpu")
    write(top / "pod", cpu_max="150000 100000", cpu_stat="usage_usec 3000000\nnr_throttled 5\nthrottled_usec 500000")
    write(top / "pod" / "a", cpu_max="max 100000", cpu_stat="usage_usec 1\nthrottled_usec 2")
    quota = quota_of(proc_of(tmp_path, "0::/pod/a", V2))
    assert quota.cores == 1.5 and quota.look() == cgroup.CpuUse(3.0, 0.5)


def test_version_1_counts_cpu_time_apart(tmp_path: Path) -> None:
    folder = write(tmp_path / "cg" / "cpu" / "x", cpu_cfs_quota_us="50000", cpu_cfs_period_us="100000", cpuacct_usage="2000000000",
                   cpu_stat="nr_periods 9\nnr_throttled 5\nthrottled_time 250000000")  # fmt: skip
    quota = quota_of(proc_of(tmp_path, "1:cpu,cpuacct:/x", V1))
    assert quota.cores == 0.5 and quota.look() == cgroup.CpuUse(2.0, 0.25)
    (folder / "cpu.cfs_quota_us").write_text("-1")
    quota.refresh()
    assert quota.cores is None and quota.look() is None


def cores(busy: list[int], nice: int = 0) -> str:
    """A /proc/stat whose cores were busy for so many hundredths of a second."""
    lines = [f"cpu {sum(busy)} {nice} 0 9 9 0 0 0 0 0", *(f"cpu{n} {each} {nice} 0 9 9 0 0 0 0 0" for n, each in enumerate(busy))]
    return "\n".join([*lines, "intr 1 2 3"]) + "\n"


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})


@pytest.mark.usefixtures("four_cores")
def test_others_use_is_all_but_our_own_and_what_is_nice_gives_way(tmp_path: Path) -> None:
    proc = proc_of(tmp_path, "", [], cores([0, 0, 0, 0]))
    share = CpuShare(proc, None)
    assert share.look(10.0, {5: Use(1, 3.0, 0, 0)}) is None, "nothing to compare with yet"
    (proc / "stat").write_text(cores([100, 100, 100, 50], nice=5000))
    assert share.look(11.0, {5: Use(1, 4.5, 0, 0)}) == pytest.approx(2 / 4)
    (proc / "stat").write_text(cores([200, 200, 200, 150], nice=5000))
    assert share.look(12.0, {5: Use(9, 1.0, 0, 0)}) == pytest.approx(3 / 4), "a process not seen before counts with all of its life"


def test_only_the_cores_that_the_node_may_run_on_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2, 3})
    proc = proc_of(tmp_path, "", [], cores([0, 0, 0, 0]))
    share = CpuShare(proc, None)
    share.look(1.0, {})
    (proc / "stat").write_text(cores([100, 100, 0, 100]))
    assert share.look(2.0, {}) == pytest.approx(1 / 2)


@pytest.mark.usefixtures("four_cores")
def test_with_a_quota_others_inside_it_count_and_those_outside_as_far_as_they_reach_into_it(tmp_path: Path) -> None:
    group = write(tmp_path / "cg", cgroup_controllers="cpu", cpu_max="200000 100000", cpu_stat="usage_usec 0\nthrottled_usec 0")
    proc = proc_of(tmp_path, "0::/", V2, cores([0, 0, 0, 0]))
    share = CpuShare(proc, quota_of(proc))
    share.look(0.0, {5: Use(1, 0.0, 0, 0)})
    write(group, cpu_stat="usage_usec 1500000\nthrottled_usec 400000")
    (proc / "stat").write_text(cores([90, 90, 20, 0]))
    assert share.look(1.0, {5: Use(1, 1.0, 0, 0)}) == pytest.approx(0.25), "half a core of the two is another's in this cgroup"
    assert share.throttled_share == pytest.approx(0.2)
    (proc / "stat").write_text(cores([190, 190, 120, 100]))
    assert share.look(2.0, {5: Use(1, 1.0, 0, 0)}) == pytest.approx(1.0), "four cores outside leave nothing of the two"


def test_pressure_is_the_share_of_the_time_since_the_last_look(tmp_path: Path) -> None:
    file = tmp_path / "memory"
    file.write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=1000000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n")
    pressure = Pressure(file)
    assert pressure.look(10.0) is None
    file.write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=1500000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n")
    assert pressure.look(12.0) == pytest.approx(0.25)
    file.write_text("")
    with pytest.raises(ValueError, match="not a pressure file"):
        pressure.look(13.0)


class FakeNvml:
    """As the module pynvml: two GPUs, the second of which tells of little."""

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        pass

    class NVMLError_NotSupported(NVMLError):
        pass

    def __init__(self) -> None:
        self.free, self.reasons, self.lost = [60_000 * MIB, 500 * MIB], 0x4, False

    def nvmlInit(self) -> None:
        return

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index > 1:
            raise self.NVMLError("Not Found")
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        return {"GPU-a": 0, "GPU-b": 1}[uuid]

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        if self.lost:
            raise self.NVMLError("GPU is lost")
        return SimpleNamespace(free=self.free[handle], total=80_000 * MIB)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        return self._only_the_first(handle, SimpleNamespace(gpu=97))

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> Any:
        return self._only_the_first(handle, 71)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: int) -> Any:
        return self._only_the_first(handle, self.reasons)

    def _only_the_first(self, handle: int, value: Any) -> Any:
        if handle:
            raise self.NVMLError_NotSupported
        return value


def test_gpus_are_looked_at_one_by_one() -> None:
    nvml = FakeNvml()
    gpus = Gpus(nvml, ())
    first, second = gpus.look()
    assert (first.name, first.busy_share, first.temperature_c, first.slowed_by) == ("GPU 0", 0.97, 71, ""), "a power cap is normal"
    assert (second.name, second.busy_share, second.temperature_c, second.slowed_by) == ("GPU 1", None, None, "")
    nvml.reasons, nvml.free[0] = 0x40, 10 * MIB
    first, _ = gpus.look()
    assert first.slowed_by == "heat" and first.free_when_ready_bytes == 60_000 * MIB and first.free_bytes == 10 * MIB
    gpus.forget_ready()
    assert gpus.look()[0].free_when_ready_bytes == 10 * MIB
    assert [gpu.name for gpu in Gpus(nvml, ("GPU-b", "0")).look()] == ["GPU GPU-b", "GPU 0"]


def test_gpus_that_fail_are_left_out_and_said_once(tmp_path: Path) -> None:
    said: list[str] = []
    nvml = FakeNvml()
    sampler = Sampler(said.append, ("1",), load_gpus=lambda: nvml)
    assert "1 GPU" in sampler.introduction()
    assert [gpu.name for gpu in sampler.sample([HERE], [HERE], 0).gpus] == ["GPU 1"]
    nvml.lost = True
    assert sampler.sample([HERE], [HERE], 0).gpus == () and sampler.sample([HERE], [HERE], 0).gpus == ()
    assert said == ["GPUs cannot be measured and counts for nothing: NVMLError: GPU is lost"]
    nvml.lost = False
    assert sampler.sample([HERE], [HERE], 0).gpus and said[1:] == ["GPUs can be measured again"]


def test_without_any_optional_source_the_rest_goes_on(tmp_path: Path) -> None:
    def no_library() -> Any:
        raise ImportError("No module named 'pynvml'")

    said: list[str] = []
    sampler = Sampler(said.append, proc=tmp_path, load_gpus=no_library)
    assert "not there: a cgroup's memory limit, a CPU quota, memory pressure, CPU pressure, a GPU" in sampler.introduction()
    found = sampler.sample([HERE], [HERE], 3)
    assert found.memory and found.model_rss_bytes and found.in_flight == 3
    assert [line.split(" and ")[0] for line in said] == ["CPU cannot be measured"]


def test_all_sources_of_a_container_at_once(tmp_path: Path) -> None:
    top = write(tmp_path / "cg", cgroup_controllers="cpu memory", memory_max=f"{1024 * MIB}", memory_high="max",
                memory_current=f"{24 * MIB}", memory_stat="inactive_file 0",
                cpu_max="100000 100000", cpu_stat="usage_usec 0\nthrottled_usec 0",
                memory_pressure="some avg10=0 avg60=0 avg300=0 total=0")  # fmt: skip
    proc = proc_of(tmp_path, "0::/", V2)
    write(proc / "pressure", cpu="some avg10=0 avg60=0 avg300=0 total=0")
    sampler = Sampler(print, proc=proc, load_gpus=FakeNvml)
    words = "cgroup / (1,024 MiB), a quota of 1 core, memory pressure, CPU pressure, 2 GPUs"
    assert sampler.introduction() == f"the limit follows memory and CPU of the machine, {words}"
    sampler.sample([HERE], [], 0)
    write(top, memory_pressure="some avg10=0 avg60=0 avg300=0 total=60000000")
    found = sampler.sample([HERE], [], 0)
    assert found.memory[1].available_bytes == 1000 * MIB and found.memory_stall_share == 1.0 and found.cpu_wait_share == 0.0


# this machine


@pytest.fixture
def burning() -> Iterator[psutil.Process]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    yield psutil.Process(process.pid)
    process.kill()
    process.wait()


def until(condition: Callable[[], Any], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not within its time"
        time.sleep(0.02)


def test_own_cpu_use_is_no_others(burning: psutil.Process) -> None:
    def used() -> float:
        return sum(burning.cpu_times()[:2])

    mine, theirs = Sampler(print), Sampler(print)
    mine.sample([burning.pid], [], 0)
    theirs.sample([], [], 0)
    begun = used()
    until(lambda: used() - begun > 0.5)
    ours = mine.sample([burning.pid], [], 0).others_cpu_share
    others = theirs.sample([], [], 0).others_cpu_share
    assert ours is not None and others is not None and others > ours


def test_a_process_is_seen_as_psutil_sees_it_and_an_ended_one_not(burning: psutil.Process) -> None:
    until(lambda: burning.cpu_times().user > 0.1)
    use = use_of(burning.pid, with_private=True)
    assert use is not None and abs(use.rss_bytes - burning.memory_info().rss) < 4 * MIB and 0 < use.private_bytes < use.rss_bytes
    burning.suspend()
    until(lambda: is_stopped(burning.pid))
    burning.resume()
    until(lambda: not is_stopped(burning.pid))
    burning.kill()
    burning.wait()
    assert use_of(burning.pid) is None and not is_stopped(burning.pid)


def test_a_sample_is_cheap() -> None:
    """Under 2 ms of CPU: 0.7 were seen, with four processes. Twice that is let pass here, where others are at work too."""
    sampler, own = Sampler(print), [HERE, os.getppid(), 1]
    sampler.sample(own, [HERE], 0)
    began = time.process_time()
    for _ in range(50):
        sampler.sample(own, [HERE], 0)
    assert (time.process_time() - began) / 50 < 0.004
