# SPDX-License-Identifier: Apache-2.0
"""A FUSE file system whose file cannot be closed: its server never answers FLUSH.

    with FuseTrap(directory) as trap:
        fd = trap.open()      # whoever closes it waits until the trap ends
"""

import contextlib
import ctypes
import os
import pathlib
import struct
import threading

LOOKUP, GETATTR, OPEN, FLUSH, INIT = 1, 3, 14, 25, 26
ENOSYS = 38
ROOT, FILE = 1, 2
HEADER = struct.Struct("<IIQQIIII")
ATTRIBUTES = struct.Struct("<QQQQQQIIIIIIIIII")
MNT_FORCE, MNT_DETACH = 1, 2

libc = ctypes.CDLL(None, use_errno=True)


def attributes(node):
    mode = 0o40755 if node == ROOT else 0o100644
    return ATTRIBUTES.pack(node, 0, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


class FuseTrap:
    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        self.device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self.device},rootmode=40000,user_id=0,group_id=0,allow_other"
        if libc.mount(b"trap", str(self.directory).encode(), b"fuse", 0, options.encode()) != 0:
            code = ctypes.get_errno()
            os.close(self.device)
            raise OSError(code, os.strerror(code))
        self.flushed = threading.Event()
        self._server = threading.Thread(target=self._serve, daemon=True)
        self._server.start()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        # Ends all that waits, whoever it is, our own thread too.
        libc.umount2(str(self.directory).encode(), MNT_FORCE)
        libc.umount2(str(self.directory).encode(), MNT_DETACH)
        self._server.join(10)
        os.close(self.device)

    def open(self):
        return os.open(self.directory / "file", os.O_RDONLY | os.O_CLOEXEC)

    def _answer(self, unique, data=b"", error=0):
        os.write(self.device, struct.pack("<IiQ", 16 + len(data), -error, unique) + data)

    def _serve(self):
        with contextlib.suppress(OSError):  # aborted, unmounted
            while True:
                request = os.read(self.device, 1 << 17)
                _, opcode, unique, node, *_ = HEADER.unpack_from(request)
                if opcode == INIT:
                    self._answer(unique, struct.pack("<IIIIHHIIHHI", 7, 31, 65536, 0, 16, 12, 65536,
                                                     1, 0, 0, 0) + bytes(28))
                elif opcode == LOOKUP:
                    self._answer(unique, struct.pack("<QQQQII", FILE, 1, 60, 60, 0, 0)
                                 + attributes(FILE))
                elif opcode == GETATTR:
                    self._answer(unique, struct.pack("<QII", 60, 0, 0) + attributes(node))
                elif opcode == OPEN:
                    self._answer(unique, struct.pack("<QII", 1, 0, 0))
                elif opcode == FLUSH:
                    self.flushed.set()
                else:
                    self._answer(unique, error=ENOSYS)
