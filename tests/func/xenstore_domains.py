# SPDX-License-Identifier: Apache-2.0
"""The XenStore of the tests with a socket for each domain: what a domain asks there is judged
by the nodes' permissions and by the bounds of a domain without privileges, as xenstored does.
"""

import contextlib
import pathlib
import socket

from xenstore import (DIRECTORY, EVENT, GET_PERMISSIONS, MKDIR, READ, REMOVE, SET_PERMISSIONS,
                      WRITE, Refused, XenStore)

NODE_BYTES_MAX = 2048  # xenstored's default, with name, permissions and children
READ_LETTERS, WRITE_LETTERS = "rb", "wb"


def may(node, domain, letters):
    """The first word is the owner, and its letter is for all who have no word of their own."""
    words = node.permissions
    if domain in (0, int(words[0][1:])):
        return True
    own = [word[0] for word in words[1:] if int(word[1:]) == domain]
    return (own or [words[0][0]])[0] in letters


class SharedStore(XenStore):
    def __init__(self, path):
        self._domain_of = {}
        self._listeners = []
        super().__init__(path)

    def __exit__(self, *arguments):
        for listener in self._listeners:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        super().__exit__(*arguments)

    def socket_of(self, domain):
        """A path; who connects there is this domain."""
        path = f"{self.path}.{domain}"
        pathlib.Path(path).unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(path)
        listener.listen()
        self._listeners.append(listener)
        self._start(self._accept_domain, listener, domain)
        return path

    def node(self, path):
        with self._lock:
            return self._find(path)

    def _accept_domain(self, listener, domain):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with self._lock:
                    self._connections.append(connection)
                    self._domain_of[connection] = domain
                self._start(self._serve, connection)

    # --- who may what ---------------------------------------------------------------

    def _nearest(self, path):
        """The node, or the nearest above it that exists."""
        while (node := self._find(path)) is None:
            path = path.rpartition("/")[0]
        return node

    def _need(self, path, domain, letters):
        if not may(self._nearest(path), domain, letters):
            raise Refused("EACCES")

    def _answer(self, connection, kind, payload):
        domain = self._domain_of.get(connection, 0)
        if domain == 0:
            return super()._answer(connection, kind, payload)
        path, zero, rest = payload.partition(b"\0")
        path = path.decode()
        if path.startswith("@"):
            raise Refused("EACCES")
        if not path.startswith("/"):
            path = f"/local/domain/{domain}/{path}"
        if kind in (READ, DIRECTORY, GET_PERMISSIONS):
            self._need(path, domain, READ_LETTERS)
        elif kind in (WRITE, MKDIR, REMOVE, SET_PERMISSIONS):
            self._need(path, domain, WRITE_LETTERS)
        if kind in (WRITE, MKDIR):
            node = self._make(path, domain)
            if kind == WRITE:
                node.value = rest
            self._judge_size(path)
            self._tell(path)
            return b"OK\0"
        return super()._answer(connection, kind, path.encode() + zero + rest)

    def _judge_size(self, path):
        for place in (path, path.rpartition("/")[0]):
            node = self._find(place)
            children = sum(len(name) + 1 for name in node.children)
            if len(node.value) + children + len(place) + 48 > NODE_BYTES_MAX:
                raise Refused("ENOSPC")

    def _tell(self, path, is_removed=False):
        node = None if path.startswith("@") else self._nearest(path)
        for connection, watched, token in list(self._watches):
            domain = self._domain_of.get(connection, 0)
            is_below = (path + "/").startswith(watched + "/")
            is_above = is_removed and watched.startswith(path + "/")
            if (is_below or is_above) and (domain == 0 or may(node, domain, READ_LETTERS)):
                shown = path if is_below else watched
                self._send(connection, EVENT, 0, f"{shown}\0{token}\0".encode())



