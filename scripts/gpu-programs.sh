# shellcheck shell=sh
# SPDX-License-Identifier: Apache-2.0
# For scripts/gpu-check.sh and scripts/bench-gpu, to be sourced at the repository's root:
# the programs, built here or out of the bundle, and the Python that has pytest.
#
#   gpu_programs HOW    '' builds where that can be; --unpack, --unpack-any take the bundle
#
# Sets VGPU_BUILD_DIR and what else the tests want, and $python.

gpu_say() { echo "gpu: $*" >&2; }

gpu_build() {
    gpu_say "building"
    mkdir -p build-gpu
    [ -e build-gpu/build/build.ninja ] ||
        meson setup -Dbuildtype=debugoptimized build-gpu/build >build-gpu/build.log
    ninja -C build-gpu/build >build-gpu/build.log || { cat build-gpu/build.log; return 1; }
    export VGPU_BUILD_DIR="$PWD/build-gpu/build"
    if scripts/gpu-images build-gpu/images >>build-gpu/build.log 2>&1; then
        export VGPU_TEST_IMAGES="$PWD/build-gpu/images"
    else
        gpu_say "no cubin and no fatbin: build-gpu/build.log says why"
    fi
}

gpu_unpack() {
    gpu_say "unpacking the bundle"
    gpu_place=$(scripts/gpu-bundle "$1")
    export VGPU_BUILD_DIR="$gpu_place/build" VGPU_GUEST_IMAGE="$gpu_place/vm" \
        VGPU_DEVICE_SO="$gpu_place/vm/vgpu-stub.so" VGPU_TEST_IMAGES="$gpu_place/images" \
        VGPU_ACCEL=tcg PATH="$gpu_place/qemu/bin:$PATH"
}

gpu_programs() {
    if [ -z "$1" ] && scripts/deps check build test 2>/dev/null; then
        gpu_build
    else
        gpu_unpack "${1:---unpack}"
    fi
    python=/usr/bin/python3
    "$python" -c 'import pytest' 2>/dev/null || python=python3
}
