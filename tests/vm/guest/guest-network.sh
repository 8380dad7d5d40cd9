#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# guest-network: brings up the one network card, with the fixed addresses of
# QEMU's user-mode network.
set -e
[ -d /sys/class/net/eth0 ] || modprobe virtio_net
n=0
until [ -d /sys/class/net/eth0 ]; do
    n=$((n + 1))
    [ $n -lt 200 ] || { echo "guest-network: no network card" >&2; exit 1; }
    usleep 10000
done
ip link set lo up
ip link set eth0 up
ip addr show dev eth0 | grep -q 10.0.2.15 || ip addr add 10.0.2.15/24 dev eth0
ip route | grep -q default || ip route add default via 10.0.2.2
