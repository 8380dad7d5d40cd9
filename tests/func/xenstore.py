# SPDX-License-Identifier: Apache-2.0
"""A XenStore of the tests' own, for vgpu-xen and without Xen: nodes with owners, watches
and xenstored's wire protocol on a socket.

The test is the toolstack and the guests: what it writes as a guest belongs to that
domain, as in a real one.  Transactions, quotas and parts of long lists are not there;
nothing of ours uses them.
"""

import collections
import contextlib
import socket
import struct
import threading

DIRECTORY, READ, GET_PERMISSIONS, WATCH, UNWATCH = 1, 2, 3, 4, 5
WRITE, MKDIR, REMOVE, SET_PERMISSIONS, EVENT, ERROR = 11, 12, 13, 14, 15, 16
PAYLOAD_MAX = 4096


class Refused(Exception):
    """Its word is the answer: ENOENT, ..."""


class Node:
    def __init__(self, permissions):
        self.value = b""
        self.permissions = permissions  # ["n0", "r7"]: the first is the owner
        self.children = {}


class XenStore(contextlib.AbstractContextManager):
    """`asked` counts the questions, by their type and the domain whose area they are about."""

    def __init__(self, path):
        self.path = str(path)
        self.asked = collections.Counter()
        self._lock = threading.RLock()
        self._root = Node(["n0"])
        self._watches = []  # (connection, path, token)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen()
        self._threads = []
        self._connections = []
        self.on_directory = lambda path: None  # when one of ours has made it, before it goes on
        self._start(self._accept)
        self.write("/local/domain/0/domid", "0")

    def __exit__(self, *_):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()
        for thread in self._threads:
            thread.join()

    # --- what a test does with it ---------------------------------------------------

    def write(self, path, value, domain=0):
        with self._lock:
            self._make(path, domain).value = str(value).encode()
            self._tell(path)

    def read(self, path):
        """None where there is none."""
        with self._lock:
            node = self._find(path)
            return None if node is None else node.value.decode()

    def names(self, path):
        with self._lock:
            node = self._find(path)
            return [] if node is None else list(node.children)

    def permissions(self, path):
        with self._lock:
            return list(self._find(path).permissions)

    def set_permissions(self, path, *words):
        with self._lock:
            self._find(path).permissions = list(words)

    def remove(self, path):
        with self._lock:
            parent, _, name = path.rpartition("/")
            node = self._find(parent)
            if node is not None and node.children.pop(name, None) is not None:
                self._tell(path, is_removed=True)

    def tell(self, special):
        """@introduceDomain, @releaseDomain."""
        with self._lock:
            self._tell(special)

    def hang_up(self):
        """As if it had died."""
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    # --- nodes ------------------------------------------------------------------------

    def _find(self, path):
        node = self._root
        for name in path.strip("/").split("/"):
            node = node.children.get(name)
            if node is None:
                return None
        return node

    def _make(self, path, domain=0):
        """With its parents.  Permissions are the parent's, and a guest owns what it makes."""
        node = self._root
        for name in path.strip("/").split("/"):
            if name not in node.children:
                words = list(node.permissions)
                if domain:
                    words[0] = words[0][0] + str(domain)
                node.children[name] = Node(words)
            node = node.children[name]
        return node

    def _tell(self, path, is_removed=False):
        for connection, watched, token in list(self._watches):
            is_below = (path + "/").startswith(watched + "/")
            if is_below or (is_removed and watched.startswith(path + "/")):
                shown = path if is_below else watched
                self._send(connection, EVENT, 0, f"{shown}\0{token}\0".encode())

    # --- the wire ------------------------------------------------------------------------

    def _start(self, function, *arguments):
        thread = threading.Thread(target=function, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with self._lock:
                    self._connections.append(connection)
                self._start(self._serve, connection)

    def _send(self, connection, kind, request, payload):
        with contextlib.suppress(OSError):
            connection.sendall(struct.pack("<IIII", kind, request, 0, len(payload)) + payload)

    def _serve(self, connection):
        file = connection.makefile("rb")
        with contextlib.suppress(OSError):
            while len(header := file.read(16)) == 16:
                kind, request, _, length = struct.unpack("<IIII", header)
                payload = file.read(length)
                with self._lock:
                    try:
                        self._send(connection, kind, request,
                                   self._answer(connection, kind, payload))
                    except Refused as refused:
                        self._send(connection, ERROR, request, f"{refused}\0".encode())
                    if kind == WATCH:  # which tells at once that all may have changed
                        path, token = payload.decode().split("\0")[:2]
                        self._send(connection, EVENT, 0, f"{path}\0{token}\0".encode())
        with self._lock:
            self._watches = [one for one in self._watches if one[0] is not connection]
            self._connections.remove(connection)
        file.close()
        connection.close()

    def _answer(self, connection, kind, payload):
        path, _, rest = payload.partition(b"\0")
        path = path.decode()
        if not path.startswith(("/", "@")):
            path = f"/local/domain/0/{path}"
        self._count(kind, path)
        if kind in (WATCH, UNWATCH):
            return self._change_watch(connection, kind, path, rest.rstrip(b"\0").decode())
        if kind in (WRITE, MKDIR):
            node = self._make(path)
            if kind == WRITE:
                node.value = rest
            self._tell(path)
            if kind == MKDIR:
                self.on_directory(path)
            return b"OK\0"
        node = self._find(path)
        if node is None:
            raise Refused("ENOENT")
        if kind == REMOVE:
            self.remove(path)
            return b"OK\0"
        if kind == SET_PERMISSIONS:
            node.permissions = rest.decode().rstrip("\0").split("\0")
            return b"OK\0"
        return self._look(kind, node)

    @staticmethod
    def _look(kind, node):
        if kind == READ:
            return node.value
        words = node.children if kind == DIRECTORY else node.permissions
        payload = "".join(f"{word}\0" for word in words).encode()
        if len(payload) > PAYLOAD_MAX:
            raise Refused("E2BIG")
        return payload

    def _change_watch(self, connection, kind, path, token):
        one = (connection, path, token)
        if kind == WATCH:
            self._watches.append(one)
        elif one in self._watches:
            self._watches.remove(one)
        else:
            raise Refused("ENOENT")
        return b"OK\0"

    def _count(self, kind, path):
        words = path.split("/")
        domain = words[3] if path.startswith("/local/domain/") and len(words) > 3 else ""
        self.asked[kind, domain] += 1
