"""Pages of code that loading ran are let go of, and no others."""

from __future__ import annotations

import subprocess
import sys

import pytest

from verify import code_pages
from verify.code_pages import release_code

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which pages a process has of its own")

MAPPED = """\
7f0000000000-7f0000004000 r-xp 00001000 fe:01 4711                       /lib/a library.so
Size:                 16 kB
Private_Clean:        16 kB
Private_Dirty:         0 kB
Anonymous:             0 kB
Swap:                  0 kB
VmFlags: rd ex mr mw me
7f0000004000-7f0000005000 r--p 00005000 fe:01 4711                       /lib/relocated.so
Size:                  4 kB
Private_Dirty:         4 kB
Anonymous:             4 kB
Swap:                  0 kB
VmFlags: rd mr mw me ac
7f0000005000-7f0000006000 r--p 00005000 fe:01 4711                       /lib/swapped.so
Size:                  4 kB
Private_Dirty:         0 kB
Anonymous:             0 kB
Swap:                  4 kB
VmFlags: rd mr mw me ac
7f0000006000-7f0000007000 rw-p 00006000 fe:01 4711                       /lib/data.so
Private_Dirty:         0 kB
Anonymous:             0 kB
Swap:                  0 kB
7f0000007000-7f0000008000 r--s 00006000 fe:01 4711                       /dev/shm/shared
Private_Dirty:         0 kB
Anonymous:             0 kB
Swap:                  0 kB
7f0000008000-7f0000009000 r--p 00000000 00:00 0
Private_Dirty:         0 kB
Anonymous:             0 kB
Swap:                  0 kB
7f0000009000-7f000000a000 r--p 00000000 fe:01 12                         /lib/constants.so
Private_Dirty:         0 kB
Anonymous:             0 kB
Swap:                  0 kB
ffffffffff600000-ffffffffff601000 r-xp 00000000 00:00 0                  [vsyscall]
Private_Dirty:         0 kB
Anonymous:             0 kB
Swap:                  0 kB
"""


def test_only_read_only_mappings_of_files_without_own_pages_are_let_go_of() -> None:
    assert list(code_pages._clean(MAPPED)) == [(0x7F0000000000, 0x7F0000004000), (0x7F0000009000, 0x7F000000A000)]


LOADED = """
from pathlib import Path
from verify.startup import quick_imports

def files():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssFile:")) / 2**10

import torch
before = files()
with quick_imports():
    pass
print(before - files())
print((torch.ones(3, 3) @ torch.ones(3)).sum().item())
"""


@LINUX
def test_a_process_of_ours_lets_go_of_what_loading_ran_and_computes_on() -> None:
    freed, total = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True).stdout.split()
    assert float(freed) > 20
    assert float(total) == 9


# A page of a file's private mapping that was written to before it became read-only is the process's own: letting go of it would bring the file's back.
WRITTEN = """
import ctypes, mmap, os, sys
from verify.code_pages import release_code

with open(sys.argv[1], "r+b") as file:
    mapped = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE)
mapped[:5] = b"ours!"
address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), len(mapped), mmap.PROT_READ) == 0
assert release_code()
print(mapped[:5].decode())
"""


@LINUX
def test_pages_of_the_process_itself_stay(tmp_path) -> None:
    path = tmp_path / "mapped"
    path.write_bytes(b"file " * 2000)
    assert subprocess.run([sys.executable, "-c", WRITTEN, path], capture_output=True, text=True, check=True).stdout == "ours!\n"


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not release_code()


def test_a_system_that_does_not_tell_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(code_pages, "_MAPS", tmp_path / "missing")
    assert not release_code()
