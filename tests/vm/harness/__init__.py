# SPDX-License-Identifier: Apache-2.0
"""Real guests, real NFS and the mediator, for tests/vm and for the demo.

    Lab        one share, its NFS server, its guests and its mediator   lab.py
    Guest      a virtual machine: boot, run commands, read its console  guest.py
    Agent      a machine that runs commands for us                      agent.py
    Network    a network namespace a VM, one for the server             network.py
    NfsServer  nfs-ganesha with one export a VM                         nfs.py
    Mediator   vgpu-mediator with a configuration, its JSON log         mediator.py
    image      kernel and initramfs of the guests, cached               image.py
    WindowLab  guests with windows and their mediator, without NFS      windows.py
    Account    window-load in a guest, checked against what really ran  accounts.py
    LibvirtLab a libvirtd of its own, mediator, vgpu-admin              libvirt.py
    accel      does KVM really work here?                               accel.py
    process    starting and ending processes so that none is left       process.py

Only Python's own library is used.  Everything is ended by process id, and the
kernel ends it too when this process dies without a chance to clean up.
"""

from .accel import accelerator
from .guest import Guest, GuestError
from .lab import Lab
from .mediator import Mediator
from .network import Network
from .nfs import NfsServer

__all__ = ["Guest", "GuestError", "Lab", "Mediator", "Network", "NfsServer", "accelerator"]
