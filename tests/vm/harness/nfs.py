# SPDX-License-Identifier: Apache-2.0
"""nfs-ganesha in the server's namespace: one export a VM, and no more.

Least privilege, as docs/nfs.md recommends it for a real host:

* an export a VM, for that VM's address only; to all others it does not exist;
* every user of the VM becomes the one owner of its directory (Squash = All),
  so root in a guest is nobody on the host;
* NFSv4 only: one port, no portmapper, no separate lock daemon.

Attributes are not cached in the server (Attr_Expiration_Time = 0), because
the mediator changes the files beneath it.
"""

import os
import pathlib
import signal
import socket
import time

from .network import SERVER
from .process import Process

START_TIMEOUT_S = 90

_GLOBAL = """\
NFS_CORE_PARAM {{
    Protocols = 4;
    Bind_addr = {server};
    NFS_Port = 2049;
    Enable_NLM = false;
    Enable_RQUOTA = false;
    Enable_UDP = false;
    mount_path_pseudo = true;
    fsid_device = true;
    Nb_Worker = 8;
}}
NFSV4 {{
    Graceless = true;
    Lease_Lifetime = 10;
    Grace_Period = 10;
    Delegations = false;
    Minor_Versions = 0, 1, 2;
    Only_Numeric_Owners = true;
    RecoveryRoot = {directory}/recovery;
    RecoveryBackend = fs;
}}
NFS_KRB5 {{ Active_krb5 = false; }}
MDCACHE {{ Dir_Chunk = 0; }}
EXPORT_DEFAULTS {{ SecType = sys; Transports = TCP; Attr_Expiration_Time = 0; }}
LOG {{
    Default_Log_Level = EVENT;
    Facility {{ name = FILE; destination = "{directory}/ganesha.log"; enable = active; }}
}}
"""

_EXPORT = """\
EXPORT {{
    Export_Id = {export_id};
    Path = {path};
    Pseudo = /vm{vm_id};
    Protocols = 4;
    Access_Type = None;
    Squash = All;
    Anonymous_Uid = {uid};
    Anonymous_Gid = {gid};
    FSAL {{ Name = VFS; }}
    CLIENT {{ Clients = {address}; Access_Type = RW; }}
}}
"""


class Export:
    def __init__(self, vm_id, path, address, uid, gid):
        self.vm_id, self.path, self.address, self.uid, self.gid = vm_id, path, address, uid, gid


class NfsServer:
    def __init__(self, directory, network, exports):
        self.directory = pathlib.Path(directory)
        self.network = network
        self.exports = list(exports)
        self.process = None
        self.start_s = None

    def start(self):
        """Missing directories are made, as the mediator makes them."""
        if not os.path.exists("/etc/mtab"):
            raise RuntimeError("nfs-ganesha looks for file systems in /etc/mtab, which is missing "
                               "here (containers): ln -s ../proc/self/mounts /etc/mtab")
        (self.directory / "recovery").mkdir(parents=True, exist_ok=True)
        text = _GLOBAL.format(server=SERVER, directory=self.directory)
        for number, export in enumerate(self.exports, 1):
            path = pathlib.Path(export.path)
            if not path.exists():
                path.mkdir(mode=0o700)
                os.chown(path, export.uid, export.gid)
            text += _EXPORT.format(export_id=number, **vars(export))
        config = self.directory / "ganesha.conf"
        config.write_text(text)
        started = time.monotonic()
        self.process = Process(
            "ganesha", ["ganesha.nfsd", "-F", "-f", config, "-p", self.directory / "ganesha.pid",
                        "-L", self.directory / "ganesha.log"],
            log=self.directory / "ganesha.out", namespace=self.network.server)
        self._wait_listening()
        self.start_s = time.monotonic() - started
        return self

    def _wait_listening(self):
        """Until its port is open in the server's namespace."""
        wanted = f"{socket.htonl(int.from_bytes(socket.inet_aton(SERVER), 'big')):08X}:0801"
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._listening(wanted):
            if not self.process.running() or time.monotonic() > deadline:
                raise RuntimeError(f"nfs-ganesha does not serve:\n{self.log_tail()}")
            time.sleep(0.02)

    def _listening(self, wanted):
        for name in ["tcp", "tcp6"]:
            try:
                table = pathlib.Path(f"/proc/{self.network.server}/net/{name}").read_text()
            except OSError:
                continue
            for line in table.splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and fields[1].endswith(wanted[-13:]):
                    return True
        return False

    def log_tail(self, lines=40):
        text = ""
        for name in ["ganesha.out", "ganesha.log"]:
            path = self.directory / name
            if path.exists():
                text += f"--- {name}\n" + "\n".join(
                    path.read_text(errors="replace").splitlines()[-lines:]) + "\n"
        return text

    def stop(self, kill=False):
        if self.process is not None:
            self.process.stop(patience=10, first=signal.SIGKILL if kill else signal.SIGTERM)
            self.process = None

    def running(self):
        return self.process is not None and self.process.running()


