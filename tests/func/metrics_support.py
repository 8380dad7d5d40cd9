# SPDX-License-Identifier: Apache-2.0
"""The mediator's numbers, read as Prometheus does."""

import http.client
import re
import socket

from support import WAIT_S


class UnixHttp(http.client.HTTPConnection):
    """HTTP over a local socket."""

    def __init__(self, path):
        super().__init__("localhost", timeout=WAIT_S)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def socket_path(m):
    return m.state / "run/metrics.sock"


def page(m, path="/metrics", method="GET"):
    connection = UnixHttp(socket_path(m))
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def text_of(m):
    status, text = page(m)
    assert status == 200
    return text


def samples(text):
    """{(name, ((label, value), ...)): number}"""
    found = {}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        name, labels, value = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line).groups()
        pairs = tuple(sorted(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', labels or "")))
        assert (name, pairs) not in found, line
        found[name, pairs] = float(value)
    return found


def told(m, metric, **labels):
    """The one number of this name that has these labels; None: there is none."""
    found = [value for (name, pairs), value in samples(text_of(m)).items()
             if name == metric and labels.items() <= dict(pairs).items()]
    assert len(found) <= 1, (metric, labels, found)
    return found[0] if found else None
