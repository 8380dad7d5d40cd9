# SPDX-License-Identifier: Apache-2.0
"""Adds a VM's vgpu-stub to the arguments of XCP-ng's qemu-wrapper.

    xenopsd --> qemu-wrapper-vgpu --> this --> the platform's qemu-wrapper --> QEMU
                                       |
             XenStore, /local/domain/N/platform: vgpu-id, vgpu-pool, vgpu-priority

XAPI writes these keys from the VM's platform map.  Each value is checked against a
pattern before it becomes part of an argument, and their nodes must be Dom0's own: a
domain that could write them would choose its pool.  No text is passed on as it is.

A VM without keys starts as ever.  One whose keys cannot be right does not start, and
neither does one whose QEMU lacks the device (a platform update has replaced it): a VM
must not run as another one than it was registered as, or silently without its device.

For Python 2.7 (XCP-ng 8.2) and 3: what both understand.
"""

import mmap
import os
import re
import sys

WRAPPER = os.environ.get("VGPU_QEMU_WRAPPER", "/usr/lib64/xen/bin/qemu-wrapper")
QEMU = os.environ.get("VGPU_QEMU", "/usr/lib64/xen/bin/qemu-system-i386")
DEVICE_MARK = b"virtual GPU of vgpu-mediator"  # the device's description
VM_ID_MAX = 2 ** 31 - 1
# The platform gives the display slot 2 behind us on the command line, and low slots to
# disks and networks: a device without a place would take one of theirs.
PCI_SLOT = "0x1c"

PATTERNS = {"vgpu-id": "[1-9][0-9]{0,9}", "vgpu-pool": "[A-Z]",
            "vgpu-priority": "low|medium|high|[0-2]"}
RESTORING = ("-loadvm", "-incoming")


class Refused(Exception):
    """The VM must not start; the words say why and what to do."""


def checked(key, value):
    if not re.match("(?:" + PATTERNS[key] + r")\Z", value) or \
            (key == "vgpu-id" and int(value) > VM_ID_MAX):
        raise Refused("platform:%s is %r: expected %s. 'vgpu-admin publish VM' writes it anew"
                      % (key, value[:64], PATTERNS[key]))
    return value


def device_of(platform):
    """The value of -device for these keys and values (all text); None: no vgpu key."""
    leftovers = [key for key in sorted(platform)
                 if key not in PATTERNS and "vgpu-stub" in platform[key]]
    if leftovers:
        raise Refused("platform:%s holds a vgpu-stub as free text, from an older set-up: take it "
                      "out with 'xe vm-param-remove uuid=U param-name=platform param-key=%s'"
                      % (leftovers[0][:64], leftovers[0][:64]))
    missing = [key for key in sorted(PATTERNS) if key not in platform]
    if len(missing) == len(PATTERNS):
        return None
    if missing:
        raise Refused("platform:%s is missing beside the other vgpu keys: "
                      "'vgpu-admin publish VM' writes all of them" % missing[0])
    return "vgpu-stub,vm_id=%s,pool_id=%s,priority=%s,addr=%s" % (
        checked("vgpu-id", platform["vgpu-id"]), checked("vgpu-pool", platform["vgpu-pool"]),
        checked("vgpu-priority", platform["vgpu-priority"]), PCI_SLOT)


def domain_of(argv):
    """The domain's number, as the platform's wrapper finds it."""
    for place, word in enumerate(argv[:-1]):
        if word == "-xen-domid" and re.match(r"[1-9][0-9]{0,4}\Z", argv[place + 1]):
            return int(argv[place + 1])
    raise Refused("there is no '-xen-domid N' in the arguments: this xenopsd is arranged "
                  "differently; see docs/xcp-ng.md")


def as_text(value):
    """XenStore's binding gives text in Python 2 and, in some releases, bytes in 3."""
    return value if isinstance(value, str) else value.decode("ascii", "backslashreplace")


def check_owner(store, path):
    """permissions[0] is the owner and what is allowed to all who are not named behind."""
    permissions = store.get_permissions("", path)
    if not permissions or permissions[0]["dom"] != 0 or \
            any(entry["write"] for entry in permissions):
        raise Refused("%s is not Dom0's alone to write: no pool is taken from there" % path)


def read_platform(store, domain):
    """{key: value} of the domain's platform map."""
    path = "/local/domain/%d/platform" % domain
    platform = {}
    for key in store.ls("", path) or []:
        value = store.read("", path + "/" + as_text(key))
        if value is not None:
            platform[as_text(key)] = as_text(value)
    for key in PATTERNS:
        if key in platform:
            check_owner(store, path + "/" + key)
    return platform


def qemu_has_device(path):
    try:
        with open(path, "rb") as program:
            mapped = mmap.mmap(program.fileno(), 0, access=mmap.ACCESS_READ)
            found = mapped.find(DEVICE_MARK) >= 0
            mapped.close()
            return found
    except (OSError, IOError, ValueError) as problem:
        raise Refused("%s cannot be looked at: %s" % (path, problem))


def added_arguments(argv, store):
    """What comes behind the arguments of the platform's wrapper.

    A VM that is resumed was saved without the device, as one with it cannot be saved:
    it goes on without.
    """
    if any(word in RESTORING for word in argv):
        return []
    device = device_of(read_platform(store, domain_of(argv)))
    if device is None:
        return []
    if any("vgpu-stub" in word for word in argv):
        raise Refused("its arguments have a vgpu-stub already, from an older set-up: "
                      "see docs/xcp-ng.md")
    if not qemu_has_device(QEMU):
        raise Refused("%s has no vgpu-stub, perhaps since an update of the platform: install the "
                      "qemu package with the device again, or take the VM's device out; "
                      "'vgpu-admin preflight --only xen-device-model' shows it" % QEMU)
    return ["-device", device]


def main(argv):
    import xen.lowlevel.xs  # only there in a Dom0

    store = xen.lowlevel.xs.xs()
    try:
        added = added_arguments(argv, store)
    except Refused as refused:
        sys.stderr.write("qemu-wrapper-vgpu: the VM does not start: %s\n" % refused)
        return 1
    finally:
        store.close()
    if added:
        sys.stderr.write("qemu-wrapper-vgpu: adds %s\n" % " ".join(added))
    sys.stderr.flush()
    os.execv(WRAPPER, [WRAPPER] + argv[1:] + added)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv))
