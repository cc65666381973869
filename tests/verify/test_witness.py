from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from bounds.errors import OutputError
from verify.witness import vnncomp_text, write_atomically

POSIX = pytest.mark.skipif(os.name == "nt", reason="devices, pipes and links as POSIX has them")
# Devices are always named through a link in the test's own folder: what replaces its target by mistake replaces that link only.


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_every_float_reads_back() -> None:
    x, y = np.array([[0.1, -0.0], [1e-45, 3.4e38]], np.float32), np.array([1 / 3, np.nextafter(1.0, 2.0)])
    pairs = vnncomp_text(x, y).strip()[2:-2].replace(")\n(", ";").split(";")
    assert [pair.split()[0] for pair in pairs] == ["X_0", "X_1", "X_2", "X_3", "Y_0", "Y_1"]
    assert [float(pair.split()[1]) for pair in pairs] == [*x.ravel().astype(np.float64).tolist(), *y.tolist()]


@POSIX
def test_a_link_stays_and_the_file_behind_it_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "file", tmp_path / "link"
    target.write_text("old")
    link.symlink_to("there/file")
    write_atomically(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert names(tmp_path) == ["link", "there"]
    assert names(tmp_path / "there") == ["file"]
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OutputError, match="loop: cannot be written"):
        write_atomically(tmp_path / "loop", b"new")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_device_is_written_to_and_stays_a_device(tmp_path: Path) -> None:
    for name in ("full", "null"):
        (tmp_path / name).symlink_to(f"/dev/{name}")
    write_atomically(tmp_path / "null", b"gone")
    with pytest.raises(OutputError, match=r"full: cannot be written \(No space left on device\)"):
        write_atomically(tmp_path / "full", b"too much")
    for name in ("full", "null"):
        assert (tmp_path / name).is_symlink()
        assert stat.S_ISCHR(os.stat(f"/dev/{name}").st_mode)
    assert names(tmp_path) == ["full", "null"]


@POSIX
def test_a_pipe_with_a_name_hands_it_on(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", list[bytes]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    write_atomically(pipe, b"through")
    reader.join(30)
    assert read == [b"through"]
    assert stat.S_ISFIFO(os.stat(pipe).st_mode)


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="no /dev/stdout here")
@pytest.mark.parametrize("to_file", [True, False])
def test_standard_output_by_name(tmp_path: Path, root: Path, to_file: bool) -> None:
    """What is printed before and after stays beside it, whether the output goes to a file or a pipe."""
    (tmp_path / "out").symlink_to("/dev/stdout")
    script = (
        "import sys; from verify.witness import write_atomically\n"
        "print('before', flush=True)\n"
        f"write_atomically({str(tmp_path / 'out')!r}, b'told\\n')\n"
        "print('after')"
    )
    with (tmp_path / "file").open("wb") as file:
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=root, stdout=file if to_file else subprocess.PIPE, stderr=subprocess.PIPE, check=False
        )
    assert (done.returncode, done.stderr) == (0, b"")
    assert ((tmp_path / "file").read_bytes() if to_file else done.stdout) == b"before\ntold\nafter\n"
    assert (tmp_path / "out").is_symlink()


@POSIX
def test_a_descriptor_that_is_not_open_is_told(tmp_path: Path) -> None:
    (tmp_path / "closed").symlink_to("/dev/fd/987654")
    with pytest.raises(OutputError, match="closed: cannot be written"):
        write_atomically(tmp_path / "closed", b"x")
    with pytest.raises(OutputError, match="cannot be written"):
        write_atomically(tmp_path, b"x")
    assert names(tmp_path) == ["closed"]
