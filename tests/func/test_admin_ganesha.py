# SPDX-License-Identifier: Apache-2.0
"""The exports that vgpu-admin writes are taken by a real nfs-ganesha, while it runs."""

import os
import pathlib
import re
import shutil
import subprocess
import time

import pytest

from admin_support import Host

START_S = 90

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a network namespace"),
    pytest.mark.skipif(not shutil.which("ganesha.nfsd"), reason="there is no nfs-ganesha here"),
    pytest.mark.skipif(not os.path.exists("/etc/mtab"), reason="nfs-ganesha needs /etc/mtab"),
]

CONFIG = """\
NFS_CORE_PARAM {{
    Protocols = 4;
    NFS_Port = 2049;
    Enable_NLM = false;
    Enable_RQUOTA = false;
    Enable_UDP = false;
    mount_path_pseudo = true;
    fsid_device = true;
    Nb_Worker = 2;
}}
NFSV4 {{ Graceless = true; RecoveryRoot = {place}/recovery; RecoveryBackend = fs; }}
NFS_KRB5 {{ Active_krb5 = false; }}
EXPORT_DEFAULTS {{ SecType = sys; Transports = TCP; Attr_Expiration_Time = 0; }}
LOG {{
    Default_Log_Level = EVENT;
    COMPONENTS {{ EXPORT = DEBUG; CONFIG = INFO; }}
    Facility {{ name = FILE; destination = "{place}/ganesha.log"; enable = active; }}
}}
%include "{place}/exports/vgpu.conf"
"""


class Ganesha:
    """A server in a network of its own, as a context."""

    def __init__(self, place):
        self.place = pathlib.Path(place)
        self.log = self.place / "ganesha.log"
        self.seen = 0

    def __enter__(self):
        (self.place / "recovery").mkdir()
        config = self.place / "ganesha.conf"
        config.write_text(CONFIG.format(place=self.place))
        self.process = subprocess.Popen(
            ["unshare", "-n", "ganesha.nfsd", "-F", "-f", config, "-p", self.place / "ganesha.pid",
             "-L", self.log], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL)
        self.wait("NFS SERVER INITIALIZED")
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def wait(self, pattern):
        """Until the log has such a line behind those that were waited for before."""
        deadline = time.monotonic() + START_S
        while True:
            text = self.log.read_text(errors="replace") if self.log.exists() else ""
            match = re.compile(pattern).search(text, self.seen)
            if match:
                self.seen = match.end()
                return text
            assert self.process.poll() is None and time.monotonic() < deadline, (
                f"no '{pattern}' in:\n{text[-4000:]}")
            time.sleep(0.02)


def test_a_running_server_follows_the_registry(place):
    host = Host(place)
    host.configure(exports_kind="ganesha", exports_dir=host.directory / "exports",
                   exports_reload="none")
    host.good("init")
    host.good("register-vm", "web1", "--vm-id", "7", "--owner", "100007", "--address", "10.77.0.11")
    with Ganesha(place) as ganesha:
        text = ganesha.log.read_text(errors="replace")
        assert re.search(r"Export 7 created at pseudo \(/vm7\) with path \(.*/share/vm7\).*"
                         r"all_squash.*anon_uid=100007, anon_gid=100007", text)
        host.configure(exports_kind="ganesha", exports_dir=host.directory / "exports",
                       exports_reload=f"/bin/kill -HUP {ganesha.process.pid}")
        host.good("register-vm", "web2", "--vm-id", "8", "--owner", "100008")
        ganesha.wait(r"Export 8 created at pseudo \(/vm8\).*anon_uid=100008")
        host.good("set-vm-id", "7", "9", "--yes")
        ganesha.wait(r"Export 9 created at pseudo \(/vm9\).*anon_uid=100007")
        ganesha.wait(r"Unexport .*/share/vm7, Pseudo /vm7")
        host.good("remove-vm", "web2")
        ganesha.wait(r"Unexport .*/share/vm8, Pseudo /vm8")
