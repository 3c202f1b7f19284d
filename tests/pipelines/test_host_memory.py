"""Freed memory stays with the process where the C library can be told so, and elsewhere nothing happens."""

import subprocess
import sys

import pytest

from diffusers_ct.pipelines import host_memory
from diffusers_ct.pipelines.host_memory import keep_freed_memory, kept_bytes

FAULTS = """
import resource
import torch
from diffusers_ct.pipelines.host_memory import keep_freed_memory, kept_bytes

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(64 * 2**20, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

# The least of some: the heap may have to grow a second time, for what lies between two tensors.
mapped_anew = min(faults() for _ in range(5))
kept = keep_freed_memory()
print(kept, mapped_anew, min(faults() for _ in range(5)), kept_bytes())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux")
def test_a_large_tensor_gets_the_memory_of_the_last_one():
    said = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True).stdout.split()
    if said[0] != "True":
        pytest.skip("another C library")
    assert int(said[1]) > 30 * max(int(said[2]), 1)
    assert 64 * 2**20 <= int(said[3]) < 2**30  # what the tensor left


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_elsewhere_nothing_is_done(monkeypatch, platform):
    def refuse(name):
        raise AssertionError("opened")

    monkeypatch.setattr(host_memory.sys, "platform", platform)
    monkeypatch.setattr(host_memory.ctypes, "CDLL", refuse)
    assert keep_freed_memory() is False and kept_bytes() == 0


def test_another_c_library_is_no_error(monkeypatch):
    monkeypatch.setattr(host_memory.sys, "platform", "linux")
    monkeypatch.setattr(host_memory.ctypes, "CDLL", lambda name: object())
    assert keep_freed_memory() is False and kept_bytes() == 0
