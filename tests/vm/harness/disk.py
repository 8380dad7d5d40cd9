# SPDX-License-Identifier: Apache-2.0
"""A guest's disk whose power can be cut, with what a real disk may lose then.

    disk = Disk(directory, files={"store_probe": path})   # ext4
    guest = Guest(..., options=disk.options())             # as `vda`
    guest.stop()                                           # SIGKILL in mid-write
    cut = disk.cut(LOST)                                   # the disk after that

To kill QEMU loses the guest's memory and nothing of what it gave to its disk: the
host's page cache keeps that.  A real disk has a cache, too, and loses it.  So QEMU
logs each write and each flush (blklogwrites), and a disk after a cut is made from
the log: what a flush has confirmed is there; of all later writes none (LOST), some
(SOME, at random), or all (KEPT).  An older instant, `at` the so-and-so-manieth
entry of the log, is made the same way.
"""

import pathlib
import random
import shutil
import struct
import subprocess

from . import tool

MAGIC = 0x6A736677736872
FLUSH, DISCARD, MARK = 1, 4, 8
LOST, SOME, KEPT = "lost", "some", "kept"


class Entry:
    def __init__(self, sector, flags, data):
        self.sector = sector
        self.flags = flags
        self.data = data


def read_log(path):
    """Its entries as far as they were written; (sector size, [Entry])."""
    log = path.read_bytes()
    magic, version, _, sector_bytes = struct.unpack_from("<QQQI", log)
    assert (magic, version) == (MAGIC, 1)
    entries, at = [], sector_bytes
    while at + 32 <= len(log):
        sector, count, flags, _ = struct.unpack_from("<QQQQ", log, at)
        size = 0 if flags & DISCARD else count * sector_bytes
        at += sector_bytes
        if (count == 0 and flags == 0) or at + size > len(log):
            break  # room that was taken for an entry when the power went
        entries.append(Entry(sector, flags, log[at:at + size]))
        at += size
    return sector_bytes, entries


def libraries(program):
    """A program's shared libraries and its loader, by ldd(1)."""
    words = tool.run(["ldd", program]).split()
    return sorted({pathlib.Path(word) for word in words if word.startswith("/")})


class Disk:
    def __init__(self, directory, programs=(), mib=32, path=None):
        self.directory = pathlib.Path(directory)
        self.path = pathlib.Path(path or self.directory / "disk.raw")
        self._log = self.path.with_suffix(".log")
        self._base = self.path.with_suffix(".base")
        if path is None:
            self._make(programs, mib)

    def _make(self, programs, mib):
        """The programs and their libraries lie in its root; see run()."""
        content = self.directory / "content"
        content.mkdir()
        for program in programs:
            for file in [pathlib.Path(program), *libraries(program)]:
                shutil.copy(file, content / file.name)
        tool.run(["mke2fs", "-q", "-t", "ext4", "-J", "size=4", "-E",
                  "lazy_itable_init=0,lazy_journal_init=0", "-d", content, self.path, f"{mib}M"])
        shutil.rmtree(content)

    def options(self, name="vda", logged=True):
        """QEMU's: a virtio disk, cache=writeback, writes logged from here on."""
        where = f"driver=file,filename={self.path}"
        if logged:
            copy(self.path, self._base)
            self._log.write_bytes(b"")
            where = (f"driver=blklogwrites,file.driver=file,file.filename={self.path},"
                     f"log.driver=file,log.filename={self._log}")
        return ["-blockdev", f"{where},node-name={name}",
                "-device", f"virtio-blk-pci,drive={name},serial={name},write-cache=on"]

    def entries(self):
        return read_log(self._log)[1]

    def cut(self, path, later=KEPT, at=None, chance=random):
        """The disk as it is after a cut: a new Disk."""
        sector_bytes, entries = read_log(self._log)
        if at is not None:
            entries = entries[:at]
        flushed = max((number for number, entry in enumerate(entries) if entry.flags & FLUSH),
                      default=-1)
        copy(self._base, path)
        with open(path, "r+b") as file:
            for number, entry in enumerate(entries):
                stays = number <= flushed or later == KEPT or \
                    (later == SOME and chance.random() < 0.5)
                if stays and entry.data:
                    file.seek(entry.sector * sector_bytes)
                    file.write(entry.data)
        return Disk(self.directory, path=path)


def copy(source, target):
    subprocess.run(["cp", "--sparse=always", source, target], check=True)


def mount_script(name, directory):
    """Mounts the disk that was given this name, whatever letter it got."""
    return (f"modprobe virtio_blk; modprobe ext4; mkdir -p {directory}; "
            f"for d in /sys/block/vd*; do [ $(cat $d/serial) = {name} ] && "
            f"mount -t ext4 /dev/${{d##*/}} {directory}; done; "
            f"grep -q ' {directory} ' /proc/mounts")


def run(program, directory):
    """A command line for a program of the disk, with the libraries of the disk."""
    return f"{directory}/ld-linux-x86-64.so.2 --library-path {directory} {directory}/{program}"
