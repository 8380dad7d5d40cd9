# SPDX-License-Identifier: Apache-2.0
"""The mediator's watch over the GPUs, and vgpu-admin show-gpus, on a libnvidia-ml that
has no GPU and does what a file says (tests/doubles/fake_nvml.c)."""

import itertools
import json
import os
import re
import shutil
import subprocess

import pytest
from control_support import ADMIN, admin, control, make_registered
from metrics_support import told
from support import BUILD, WAIT_S, wait_until

LOW = 0
OK, FAILED, USAGE = 0, 1, 2
UUID = "GPU-00000000-0000-0000-0000-00000000000"
FOREVER_MS = 3600000
VALUES = ["utilization_percent", "memory_total_bytes", "memory_used_bytes",
          "memory_reserved_bytes", "temperature_c", "power_mw", "power_limit_mw", "ecc_corrected",
          "ecc_uncorrected", "throttle", "mig"]

pytestmark = pytest.mark.threads


class Nvml:
    """A library of its own, and what it is told."""

    def __init__(self, directory):
        self.path = directory / "libnvidia-ml.so.1"
        shutil.copy(BUILD / "tests/doubles/fake_nvml.so", self.path)
        self.lines = []

    def tell(self, *lines):
        """These and no others; never half of it is there."""
        self.lines = list(lines)
        new = self.path.with_name("new")
        new.write_text("".join(f"{line}\n" for line in lines))
        new.rename(self.path.with_name(self.path.name + ".conf"))

    def add(self, *lines):
        self.tell(*self.lines, *lines)


@pytest.fixture
def nvml(place):
    library = Nvml(place)
    yield library
    library.tell()  # whatever hangs goes on


def make(mediator, nvml, *, bound=True, **settings):
    """A mediator whose pool A is on the CPU and whose pool B, if `bound`, on GPU 0."""
    options = {"nvml_library": nvml.path, "health_interval_ms": 100, **settings}
    m = make_registered(mediator, {1: ("A", LOW)}, start=False, **options)
    if bound:
        admin(m, "bind-device", "B", UUID + "0")
    return m.start()


def status(m):
    with control(m) as c:
        return c.call("status")


def gpus(m):
    return status(m)["gpus"]


def wait_gpu(m, index, condition, what):
    return wait_until(lambda: next((gpu for gpu in gpus(m)
                                    if gpu["index"] == index and condition(gpu)), None), what)


def ok(gpu):
    return gpu["state"] == "ok"


# --- the mediator -----------------------------------------------------------------------


def test_without_a_pool_on_a_gpu_nothing_is_watched(mediator, nvml):
    m = make(mediator, nvml, bound=False)
    told = status(m)
    assert told["gpus"] == []
    assert told["gpu_watch"] == {"on": False, "reason": "no pool is bound to a GPU"}
    admin(m, "bind-device", "B", "none")
    assert status(m)["gpu_watch"]["on"] is False


def test_the_status_tells_how_each_gpu_is(mediator, nvml):
    nvml.tell("devices 2", "name 1 H100", "value 1 memory_total 1000", "value 1 memory_used 400",
              "value 1 memory_reserved 100", "value 1 utilization 87", "value 1 temperature 71",
              "value 1 power 350500", "value 1 power_limit 400000", "value 1 ecc_corrected 3",
              "value 1 ecc_uncorrected 1", "value 1 throttle 68", "mig 1 MIG-aaaa")
    m = make(mediator, nvml)
    gpu = wait_gpu(m, 1, ok, "GPU 1")
    assert gpu.pop("age_ms") >= 0
    assert gpu == {
        "index": 1, "uuid": UUID + "1", "name": "H100", "pci_address": "0000:66:00.0",
        "state": "ok", "utilization_percent": 87, "memory_total_bytes": 1000,
        "memory_used_bytes": 400, "memory_reserved_bytes": 100, "temperature_c": 71,
        "power_mw": 350500, "power_limit_mw": 400000, "ecc_corrected": 3, "ecc_uncorrected": 1,
        "throttle": ["power-cap", "hw-thermal"], "mig": True, "mig_devices": ["MIG-aaaa"],
        "xids": {"count": 0, "last": None, "last_class": None, "last_meaning": None,
                 "last_time": None}, "losses": 0, "returns": 0}
    assert status(m)["gpu_watch"] == {
        "on": True, "interval_ms": 100,
        "driver": {"version": "550.54.15", "nvml_version": "12.550.54.15", "problem": None}}


def test_what_is_not_known_is_null_and_never_zero(mediator, nvml):
    nvml.tell("fail nvmlDeviceGetPowerUsage 999", "unsupported nvmlDeviceGetTotalEccErrors",
              "unsupported nvmlDeviceGetMigMode", "fail nvmlDeviceGetName 999",
              "fail nvmlDeviceGetUtilizationRates 4")
    gpu = wait_gpu(make(mediator, nvml), 0, ok, "GPU 0")
    unknown = {key for key, value in gpu.items() if value is None}
    assert unknown == {"power_mw", "ecc_corrected", "ecc_uncorrected", "mig", "mig_devices",
                       "name", "utilization_percent"}


def test_a_pool_that_is_bound_later_begins_the_watch(mediator, nvml):
    m = make(mediator, nvml, bound=False)
    assert status(m)["gpu_watch"]["on"] is False
    admin(m, "bind-device", "B", UUID + "0")
    wait_gpu(m, 0, ok, "GPU 0")
    assert status(m)["gpu_watch"]["on"] is True


def test_none_switches_the_watch_off(mediator, nvml):
    m = make(mediator, nvml, nvml_library="none")
    assert status(m)["gpu_watch"] == {"on": False, "reason": "nvml_library = none"}
    assert not m.messages("watched")


def test_a_library_that_is_not_there_is_a_warning_and_the_rest_works(mediator, nvml):
    m = make(mediator, nvml, nvml_library="/no/such/libnvidia-ml.so.1")
    entry = m.wait_message("the GPUs are not watched")
    assert entry["level"] == "warning" and "/no/such/libnvidia-ml.so.1" in entry["message"]
    assert "cannot load" in status(m)["gpu_watch"]["reason"]
    assert m.vm(1).ask("PING") == "1:PONG"
    admin(m, "reload")
    assert len(m.messages("the GPUs are not watched")) == 2


def test_a_driver_that_is_loaded_late_is_found(mediator, nvml):
    nvml.tell("fail nvmlInit_v2 9")
    m = make(mediator, nvml)
    assert "Driver Not Loaded" in m.wait_message("nothing is known of the GPUs")["message"]
    assert "Driver Not Loaded" in status(m)["gpu_watch"]["driver"]["problem"]
    nvml.tell()
    wait_gpu(m, 0, ok, "GPU 0")
    m.wait_message("the GPUs are watched: driver 550.54.15")
    assert len(m.messages("nothing is known")) == 1


# --- events --------------------------------------------------------------------------------


def test_an_xid_stands_in_the_log_with_what_it_means_and_what_to_do(mediator, nvml):
    nvml.tell("devices 2")
    m = make(mediator, nvml)
    wait_gpu(m, 1, ok, "GPU 1")
    nvml.add("xid 1 79")
    entry = m.wait_event("xid")
    assert (entry["xid"], entry["class"], entry["gpu"], entry["untold"]) == (79, "fatal",
                                                                             UUID + "1", 0)
    assert f"GPU 1 ({UUID}1): XID 79: the GPU has fallen off the bus: " in entry["message"]
    nvml.add("xid 0 31")
    assert m.wait_event("xid", count=2)["class"] == "application"
    xids = wait_gpu(m, 1, lambda gpu: gpu["xids"]["count"] == 1, "its XID")["xids"]
    assert (xids["last"], xids["last_class"]) == (79, "fatal")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", xids["last_time"])


def test_a_storm_of_xids_is_counted_and_does_not_fill_the_log(mediator, nvml):
    m = make(mediator, nvml)
    wait_gpu(m, 0, ok, "GPU 0")
    nvml.tell("xid 0 31 2000")
    wait_gpu(m, 0, lambda gpu: gpu["xids"]["count"] == 2000, "all of them")
    wait_until(lambda: sum(1 + entry["untold"] for entry in m.events("xid")) == 2000,
               "those that were not told")
    assert len(m.events("xid")) < 1000
    assert m.vm(1).ask("PING") == "1:PONG"


def test_a_gpu_that_is_lost_and_comes_back_stands_in_the_log(mediator, nvml):
    nvml.tell("devices 2")
    m = make(mediator, nvml)
    wait_gpu(m, 0, ok, "GPU 0")
    nvml.add("lost 0")
    assert m.wait_event("gpu-lost")["gpu"] == UUID + "0"
    gpu = wait_gpu(m, 0, lambda one: one["state"] == "lost", "lost")
    assert [gpu[key] for key in VALUES] == [None] * len(VALUES)
    assert (gpu["uuid"], gpu["losses"], gpu["returns"]) == (UUID + "0", 1, 0)
    assert wait_gpu(m, 1, ok, "GPU 1")["temperature_c"] == 35
    nvml.tell("devices 2")
    assert m.wait_event("gpu-back")["gpu"] == UUID + "0"
    gpu = wait_gpu(m, 0, lambda one: ok(one) and one["temperature_c"], "back")
    assert (gpu["losses"], gpu["returns"]) == (1, 1)
    assert len(m.events("gpu-lost")) == len(m.events("gpu-back")) == 1


def test_a_driver_that_hangs_keeps_nobody_waiting(mediator, nvml):
    nvml.tell(f"delay nvmlDeviceGetTemperature {FOREVER_MS}")
    m = make(mediator, nvml)
    for _ in range(3):
        assert m.vm(1).ask("PING") == "1:PONG"
        assert all(gpu["temperature_c"] is None for gpu in gpus(m))
    m.stop()


def test_a_driver_that_falls_silent_makes_its_values_unknown(mediator, nvml):
    m = make(mediator, nvml)
    wait_gpu(m, 0, ok, "GPU 0")
    nvml.tell(f"delay nvmlDeviceGetMemoryInfo_v2 {FOREVER_MS}")
    gpu = wait_gpu(m, 0, lambda one: one["state"] == "silent", "silence")
    assert [gpu[key] for key in VALUES] == [None] * len(VALUES)
    assert gpu["age_ms"] > 0
    nvml.tell()
    wait_gpu(m, 0, ok, "GPU 0 again")


# --- what follows --------------------------------------------------------------------------


@pytest.fixture
def cuda_library(place):
    """A libcuda that works: tests/doubles/fake_cuda.h."""
    path = place / "libcuda.so.1"
    shutil.copy(BUILD / "tests/doubles/fake_cuda.so", path)
    place.chmod(0o755)
    return path


@pytest.mark.parametrize("line", ["lost 0", "xid 0 119"])
def test_a_gpu_in_trouble_is_checked_before_it_gets_more_work(mediator, nvml, cuda_library, line):
    m = make(mediator, nvml, cuda_library=cuda_library)
    wait_gpu(m, 0, ok, "GPU 0")
    assert m.wait_event("gpu")["device"] == UUID + "0"
    nvml.tell(line)
    m.wait_event("gpu", count=2)  # it was asked again, and computes


def test_what_ends_a_program_only_is_no_reason_to_check_the_gpu(mediator, nvml, cuda_library):
    m = make(mediator, nvml, cuda_library=cuda_library)
    wait_gpu(m, 0, ok, "GPU 0")
    nvml.tell("xid 0 31", "xid 0 94")
    m.wait_event("xid", count=2)
    nvml.add("lost 0")
    m.wait_event("gpu-lost")
    m.wait_event("gpu", count=2)
    order = [entry["event"] for entry in m.events() if entry.get("event") in (
        "xid", "gpu", "gpu-lost")]
    assert order == ["gpu", "xid", "xid", "gpu-lost", "gpu"]


def test_a_gpu_that_comes_back_is_used_again_at_once(mediator, nvml, cuda_library):
    conf = cuda_library.with_name(cuda_library.name + ".conf")
    m = make(mediator, nvml, cuda_library=cuda_library)
    wait_gpu(m, 0, ok, "GPU 0")
    conf.write_text("fail cuInit * 999\n")
    nvml.tell("lost 0")
    m.wait_event("no-gpu")
    assert re.search(f"Device {UUID}0 cannot be used: .*CUDA_ERROR_UNKNOWN", shown(m, "status"))
    conf.write_text("")
    nvml.tell()
    m.wait_event("gpu-back")
    m.wait_event("gpu", count=2)


# --- vgpu-admin ------------------------------------------------------------------------------


def run(m, command, *words):
    return subprocess.run([str(ADMIN), command, "--config", str(m.config), *map(str, words)],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=WAIT_S,
                          check=False, env=dict(os.environ, LC_ALL="C"))


def shown(m, command="show-gpus", *words):
    done = run(m, command, *words)
    assert (done.returncode, done.stderr) == (OK, "")
    return done.stdout


def rows(text):
    """{header: cell} of each line of the table of GPUs."""
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if line.split()[:1] == ["GPU"])
    names = re.split(r"\s{2,}", lines[at].strip())
    return [dict(zip(names, re.split(r"\s{2,}", line.strip()))) for line in
            itertools.takewhile(lambda line: re.match(r" *\d+ ", line), lines[at + 1:])]


def test_show_gpus_asks_the_mediator_that_watches(mediator, nvml):
    nvml.tell("devices 2", "unsupported nvmlDeviceGetTotalEccErrors", "mig 1 MIG-aaaa",
              "fail nvmlDeviceGetTemperature 999", "value 0 throttle 4")
    m = make(mediator, nvml)
    wait_gpu(m, 1, ok, "GPU 1")
    text = shown(m)
    assert text.startswith("Source: the mediator, which looks every 0.1 s; driver 550.54.15.\n")
    first, second = rows(text)
    assert first == {"GPU": "0", "NAME": "Fake-GPU", "STATE": "ok", "LOAD": "0 %",
                     "MEMORY": "2048/81920 MiB", "TEMP": "-", "POWER": "71/700 W", "ECC": "-",
                     "XIDS": "0", "CLOCKS": "power-cap", "MIG": "off", "PCI": "0000:65:00.0",
                     "UUID": UUID + "0"}
    assert (second["MIG"], second["CLOCKS"]) == ("on: 1", "free")
    assert "GPU 1 has MIG-aaaa.\n" in text
    assert " has 0 contexts of at most 64.\n" in text
    told = json.loads(shown(m, "show-gpus", "--json"))
    assert (told["source"], len(told["gpus"])) == ("mediator", 2)
    assert 64 in {device.get("contexts_max") for device in told["devices"]}  # no CPU has any
    assert told["gpus"][0]["temperature_c"] is None


def test_show_gpus_reads_the_library_where_nothing_watches(mediator, nvml):
    m = make(mediator, nvml, bound=False)
    text = shown(m)
    assert text.startswith(f"Source: {nvml.path}, read by this program just now (the mediator "
                           "does not watch: no pool is bound to a GPU); driver 550.54.15.\n")
    assert [row["UUID"] for row in rows(text)] == [UUID + "0"]
    m.stop()
    assert "(no mediator told: " in shown(m)
    told = json.loads(shown(m, "show-gpus", "--json"))
    assert (told["source"], told["gpus"][0]["uuid"]) == ("library", UUID + "0")
    assert told["driver"]["version"] == "550.54.15" and "no mediator told" in told["reason"]


def test_show_gpus_says_what_is_wrong_with_a_gpu(mediator, nvml):
    nvml.tell("devices 2")
    m = make(mediator, nvml)
    wait_gpu(m, 1, ok, "GPU 1")
    nvml.add("xid 1 94", "lost 0")
    wait_gpu(m, 0, lambda gpu: gpu["state"] == "lost", "lost")
    wait_gpu(m, 1, lambda gpu: gpu["xids"]["count"], "its XID")
    text = shown(m)
    assert "GPU 0 is lost: it does not answer any more; reset it" in text
    assert "GPU 1: the last XID is 94 (attention): a memory error was contained" in text
    first, second = rows(text)
    assert {first[key] for key in ["LOAD", "MEMORY", "TEMP", "POWER", "ECC", "CLOCKS", "MIG"]} == {
        "-"}
    assert (first["STATE"], second["XIDS"]) == ("lost", "1")


def test_show_gpus_without_a_library_fails_and_says_what_to_do(mediator, nvml):
    m = make(mediator, nvml, bound=False, nvml_library="/no/such/libnvidia-ml.so.1")
    done = run(m, "show-gpus")
    assert (done.returncode, done.stdout) == (FAILED, "")
    assert "cannot load NVIDIA's management library (/no/such/libnvidia-ml.so.1" in done.stderr


def test_show_gpus_looks_at_nothing_where_that_is_switched_off(mediator, nvml):
    m = make(mediator, nvml, bound=False, nvml_library="none")
    done = run(m, "show-gpus")
    assert (done.returncode, done.stdout) == (FAILED, "")
    assert "nvml_library = none" in done.stderr


def test_show_gpus_on_a_host_without_any_says_so(mediator, nvml):
    nvml.tell("devices 0")
    m = make(mediator, nvml, bound=False)
    text = shown(m)
    assert "Problem: the driver knows no GPU.\n" in text and "No GPU is known.\n" in text
    assert json.loads(shown(m, "show-gpus", "--json"))["gpus"] == []


@pytest.mark.parametrize("works", [True, False])
def test_bind_device_tells_whether_the_device_works(mediator, nvml, cuda_library, works):
    if not works:
        cuda_library.with_name(cuda_library.name + ".conf").write_text("fail cuInit * 999\n")
    m = make(mediator, nvml, bound=False, cuda_library=cuda_library)
    told = shown(m, "bind-device", "B", UUID + "0")
    assert "Pool B" in told
    unfit = re.search(f"Device {UUID}0 cannot be used: .*CUDA_ERROR_UNKNOWN", told)
    assert bool(unfit) != works and ("cannot" in told) != works


def test_status_shows_the_gpus_that_are_watched(mediator, nvml):
    m = make(mediator, nvml)
    wait_gpu(m, 0, ok, "GPU 0")
    assert [row["UUID"] for row in rows(shown(m, "status"))] == [UUID + "0"]
    assert json.loads(shown(m, "status", "--json"))["gpus"][0]["uuid"] == UUID + "0"


def test_status_has_no_table_of_gpus_where_none_is_watched(mediator, nvml):
    assert "UUID" not in shown(make(mediator, nvml, bound=False), "status")


def test_show_gpus_takes_no_words(mediator, nvml):
    m = make(mediator, nvml, bound=False)
    assert run(m, "show-gpus", "0").returncode == USAGE


# --- for Prometheus ----------------------------------------------------------------------


def test_prometheus_is_told_how_each_gpu_is_and_nothing_that_is_not_known(mediator, nvml):
    nvml.tell("devices 2", "name 1 H100", "value 1 memory_total 1000", "value 1 memory_used 400",
              "value 1 utilization 87", "value 1 power 350500",
              "unsupported nvmlDeviceGetTemperature")
    m = make(mediator, nvml)
    wait_gpu(m, 1, ok, "GPU 1")
    one = {"gpu": UUID + "1"}
    assert told(m, "vgpu_gpu_info", name="H100", pci_address="0000:66:00.0", **one) == 1
    assert told(m, "vgpu_gpu_up", **one) == 1
    assert told(m, "vgpu_gpu_utilization_ratio", **one) == 0.87
    assert told(m, "vgpu_gpu_memory_bytes", **one) == 1000
    assert told(m, "vgpu_gpu_memory_used_bytes", **one) == 400
    assert told(m, "vgpu_gpu_temperature_celsius", **one) is None
    assert told(m, "vgpu_gpu_power_watts", **one) == 350.5
    assert told(m, "vgpu_gpu_resets_total", **one) == 0


def test_prometheus_is_told_of_errors_losses_and_resets(mediator, nvml):
    nvml.tell("devices 1")
    m = make(mediator, nvml)
    wait_gpu(m, 0, ok, "GPU 0")
    nvml.add("lost 0")
    wait_gpu(m, 0, lambda gpu: gpu["state"] == "lost", "GPU 0 lost")
    assert told(m, "vgpu_gpu_up") == 0 and told(m, "vgpu_gpu_losses_total") == 1
    assert told(m, "vgpu_gpu_power_watts") is None
    nvml.tell("devices 1")
    wait_gpu(m, 0, ok, "GPU 0 back")
    assert told(m, "vgpu_gpu_up") == 1 and told(m, "vgpu_gpu_resets_total") == 1
