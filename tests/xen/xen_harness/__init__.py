# SPDX-License-Identifier: Apache-2.0
"""A real Xen for tests/xen: hypervisor, Dom0 and guests, all inside one QEMU.

    packages   Xen and its kernel out of Debian's packages, cached      packages.py
    image      the initramfs of Dom0 and that of its guests, cached     image.py
    Dom0       the machine: boot, run commands, files in and out        dom0.py
    Domain     a PV or PVH guest of it: create, run commands, destroy   domain.py
    Host       mediator, vgpu-xen and their registry in Dom0            host.py
    Load       a guest's program that works, and checks every answer    load.py

What is not about Xen comes from tests/vm/harness.  QEMU translates all code itself
(TCG): nested virtualisation is rarely to be had.  So a test judges what is right, never
how fast it is.
"""

from .dom0 import Dom0
from .domain import Domain
from .host import Host
from .load import Load
from .packages import PackagesMissing

__all__ = ["Dom0", "Domain", "Host", "Load", "PackagesMissing"]
