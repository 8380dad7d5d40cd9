# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=sh
# Read by scripts/build-device and scripts/build-qemu: the source of exactly the
# QEMU that is installed, unpacked once into .cache/qemu-<version>/source.
#
#   sources of the machine's apt, as deb-src ──▶ private lists ──▶ qemu_*.dsc
#        (nothing under /etc or /var changes)                         │
#                       .cache/qemu-<version>/source  ◀── dpkg-source ┘
#
# A shared object that a program loads must be built from that program's own
# headers, so any other version is refused, never approximated.
#
# Sets: qemu_version (7.2+dfsg-7+deb12u18, no epoch: it is part of paths, and a
# colon would split LD_PRELOAD), qemu_full_version (with epoch), qemu_cache.

qemu_package=qemu-system-x86

fail() {
    echo "${0##*/}: $*" >&2
    exit 1
}

say() {
    echo "${0##*/}: $*"
}

# Debian's own tools, whatever else comes first on PATH: QEMU's configure takes
# the first python3 that it finds.
# shellcheck disable=SC2034 # for the scripts that read this one
system_path=/usr/sbin:/usr/bin:/sbin:/bin

# Only a finished step leaves its name behind; a step that was cut short is done
# again from its beginning.
run_logged() {
    log=$1
    shift
    "$@" >"$log" 2>&1 && return
    tail -n 40 "$log" >&2
    fail "failed: $1 (the whole output is in $log)"
}

qemu_find_installed() {
    # The first words of the format are the state: a package that was removed
    # keeps its version in dpkg's list.
    qemu_full_version=$(dpkg-query -W \
        -f '${db:Status-Status} ${source:Version}\n' $qemu_package 2>/dev/null |
        sed -n 's/^installed //p' | head -n 1)
    [ -n "$qemu_full_version" ] || fail "$qemu_package is not installed:" \
        "run scripts/deps install vm device"
    qemu_version=${qemu_full_version#*:}
    # shellcheck disable=SC2154 # root is set by the script that reads this one
    qemu_cache=${VGPU_CACHE_DIR:-$root/.cache}/qemu-$qemu_version
}

# Two builds at once wait for each other; the lock goes with the process.
qemu_lock() {
    mkdir -p "$qemu_cache"
    exec 9>"$qemu_cache/lock"
    if ! flock -n 9; then
        say "another build is at work in ${qemu_cache#"$root"/}: waiting"
        flock 9
    fi
}

# The machine's own package sources, rewritten to sources of source packages.
# One-line and deb822 files differ, and apt knows them by their suffix.
apt_write_sources() {
    target=$1
    mkdir -p "$target"
    apt_list=''
    apt_parts=''
    eval "$(apt-config shell apt_list Dir::Etc::sourcelist/f \
        apt_parts Dir::Etc::sourceparts/d)"
    for file in "$apt_list" "$apt_parts"*.list; do
        [ -f "$file" ] || continue
        sed -nE 's/^[[:space:]]*deb(-src)?[[:space:]]/deb-src /p' "$file" |
            sort -u >"$target/line-$(basename "$file" .list).list"
    done
    for file in "$apt_parts"*.sources; do
        [ -f "$file" ] || continue
        sed 's/^Types:.*/Types: deb-src/I' "$file" \
            >"$target/$(basename "$file")"
    done
}

# apt-get with its lists, caches and sources in our own directory: needs no
# root and leaves the machine's state alone.
apt_private() {
    apt-get -q -o Dir::Etc::sourcelist=/dev/null \
        -o Dir::Etc::sourceparts="$apt_dir/sources" \
        -o Dir::State::lists="$apt_dir/lists" \
        -o Dir::Cache="$apt_dir/cache" \
        -o APT::Sandbox::User=root -o Acquire::Languages=none \
        -o Acquire::Retries=3 "$@"
}

qemu_download() {
    apt_dir=$qemu_cache/apt
    rm -rf "$apt_dir"
    mkdir -p "$apt_dir/lists/partial" "$apt_dir/cache/archives/partial"
    apt_write_sources "$apt_dir/sources"
    say "looking for the source of QEMU $qemu_full_version"
    # A foreign source without source packages fails here and does not matter:
    # what counts is whether the version is found.
    apt_private update >"$apt_dir/update.log" 2>&1 || true
    offered=$(apt-cache -o Dir::Etc::sourcelist=/dev/null \
        -o Dir::Etc::sourceparts="$apt_dir/sources" \
        -o Dir::State::lists="$apt_dir/lists" -o Dir::Cache="$apt_dir/cache" \
        showsrc --only-source qemu 2>/dev/null |
        sed -n 's/^Version: //p' | sort -u | tr '\n' ' ')
    [ -n "$offered" ] || fail "this machine's package sources gave no source" \
        "package of qemu: check the network and 'apt-get update', then repeat" \
        "(apt's output is in $apt_dir/update.log)"
    case " $offered " in
    *" $qemu_full_version "*) ;;
    *) fail "QEMU $qemu_full_version is installed, but the package sources" \
        "offer the source of: ${offered% }. Bring both to one version:" \
        "apt-get update && apt-get install --only-upgrade $qemu_package" ;;
    esac
    rm -rf "$qemu_cache/dsc"
    mkdir -p "$qemu_cache/dsc.partial"
    say "downloading"
    (
        cd "$qemu_cache/dsc.partial" || exit
        run_logged "$apt_dir/source.log" apt_private source --download-only \
            --only-source "qemu=$qemu_full_version"
    )
    mv "$qemu_cache/dsc.partial" "$qemu_cache/dsc"
    rm -rf "$apt_dir"
}

# Leaves the unpacked and patched source of the installed version in
# $qemu_cache/source.
qemu_unpack() {
    [ -d "$qemu_cache/source" ] && return
    [ -d "$qemu_cache/dsc" ] || qemu_download
    say "unpacking"
    rm -rf "$qemu_cache/source.partial"
    # apt has checked the files against the signed index.
    run_logged "$qemu_cache/unpack.log" dpkg-source --no-check -x \
        "$qemu_cache"/dsc/qemu_*.dsc "$qemu_cache/source.partial"
    unpacked=$(cd "$qemu_cache/source.partial" &&
        dpkg-parsechangelog -S Version)
    [ "$unpacked" = "$qemu_full_version" ] || fail "the source is version" \
        "$unpacked, the installed QEMU is $qemu_full_version:" \
        "remove $qemu_cache and repeat"
    mv "$qemu_cache/source.partial" "$qemu_cache/source"
    # dpkg-source leaves the upstream archive beside what it unpacks.
    rm -rf "$qemu_cache/dsc" "$qemu_cache"/qemu_*.orig.tar.* \
        "$qemu_cache/unpack.log"
}
