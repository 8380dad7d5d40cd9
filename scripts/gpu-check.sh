#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# All that can only be checked on a real GPU, by one command from a clean tree:
#
#   scripts/gpu-check.sh [--bundle|--any-bundle] [OPTIONS of tests/gpu/check.py]
#
#   --bundle      use build-gpu/bundle.tar.xz also where this could be built
#   --any-bundle  the same, were it made from other sources than those here
#
# Where the development packages are, it builds; else it unpacks the bundle that
# scripts/gpu-bundle has made elsewhere.  Nothing is installed on this machine.
# Each check has a result line; files go to $OUT, or to build-gpu/results/.
set -eu
cd "$(dirname "$0")/.."

how=
case ${1:-} in
--bundle) how=--unpack ;;
--any-bundle) how=--unpack-any ;;
-h | --help)
    sed -n '3,12s/^# \{0,1\}//p' "$0"
    exec python3 tests/gpu/check.py --help
    ;;
esac
[ -z "$how" ] || shift

# shellcheck source=scripts/gpu-programs.sh
. scripts/gpu-programs.sh
gpu_programs "$how"
exec "$python" tests/gpu/check.py "$@"
