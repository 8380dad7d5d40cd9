# SPDX-License-Identifier: Apache-2.0
"""The control socket spoken in Python, apart from src/control/, and a mediator that
takes its VMs from a database."""

import json
import os
import socket
import subprocess

from support import BUILD, WAIT_S, wait_until

ADMIN = BUILD / "src/admin/vgpu-admin"


class Failed(Exception):
    """An answer with "ok":false."""

    def __init__(self, code, message):
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message


class Control:
    """One connection; everything about it can be done wrong."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(WAIT_S)
        wait_until(lambda: self._connect(str(path)), "room in the mediator's queue")
        self.last_id = 0
        self._rest = b""

    def _connect(self, path):
        try:
            self.socket.connect(path)
            return True
        except BlockingIOError:
            return False

    def send(self, data):
        self.socket.sendall(data)

    def ask(self, command, **arguments):
        """Sends a command; returns its id."""
        self.last_id += 1
        request = {"version": 1, "id": self.last_id, "command": command}
        if arguments:
            request["arguments"] = arguments
        self.send(json.dumps(request).encode() + b"\n")
        return self.last_id

    def receive(self):
        """The next line's object; None when the mediator hung up."""
        while b"\n" not in self._rest:
            try:
                data = self.socket.recv(1 << 16)
            except ConnectionResetError:
                data = b""
            if not data:
                return None
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)

    def result(self):
        answer = self.receive()
        assert answer is not None, "the mediator hung up"
        assert answer["version"] == 1
        if not answer["ok"]:
            raise Failed(answer["error"]["code"], answer["error"]["message"])
        return answer["result"]

    def call(self, command, **arguments):
        self.ask(command, **arguments)
        return self.result()

    def vm(self, vm_id):
        found, = self.call("status", vm_id=vm_id)["vms"]
        return found

    def close(self):
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def control_path(m):
    return m.state / "run/control.sock"


def control(m):
    return Control(control_path(m))


def admin(m, command, *words):
    """vgpu-admin on this mediator's database; it must succeed."""
    done = subprocess.run([str(ADMIN), command, "--config", str(m.config), "--toolstack", "none",
                           *map(str, words)], stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, timeout=WAIT_S, check=False,
                          env=dict(os.environ, LC_ALL="C"))
    assert done.returncode == 0, done.stderr
    return done.stdout


def make_registered(mediator, vms, start=True, **options):
    """A mediator of the fixture whose database has these VMs: {id: (pool, priority)}."""
    m = mediator(vms, start=False, **options)
    m.settings["database"] = m.directory / "vgpu.db"
    m.write_config()
    admin(m, "init")
    for vm_id, (pool, priority) in vms.items():
        admin(m, "register-vm", f"vm{vm_id}", "--vm-id", vm_id, "--pool", pool, "--priority",
              priority)
    return m.start() if start else m


def wait_running(m, vm_id):
    with control(m) as c:
        wait_until(lambda: c.vm(vm_id)["running"], f"vm{vm_id} runs")
