/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What glibc 2.17 (XCP-ng's Dom0) and its headers lack of what we use.  The build puts
 * this before every source where the C library lacks one of these functions, and tells
 * which by VGPU_LACKS_*; elsewhere nobody sees it.
 *
 * The system calls go to the kernel directly, which knows them (4.19 there).
 */
#ifndef VGPU_BASE_OLD_LIBC_H
#define VGPU_BASE_OLD_LIBC_H

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#if !defined(SYS_memfd_create) && defined(__x86_64__)
#define SYS_memfd_create 319
#endif
#if !defined(SYS_renameat2) && defined(__x86_64__)
#define SYS_renameat2 316
#endif

#ifndef F_ADD_SEALS
#define F_ADD_SEALS 1033
#define F_GET_SEALS 1034
#define F_SEAL_SEAL 0x0001
#define F_SEAL_SHRINK 0x0002
#define F_SEAL_GROW 0x0004
#define F_SEAL_WRITE 0x0008
#endif
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif
#ifndef MFD_CLOEXEC
#define MFD_CLOEXEC 0x0001U
#define MFD_ALLOW_SEALING 0x0002U
#endif
#ifndef RENAME_NOREPLACE
#define RENAME_NOREPLACE 1
#endif
#ifndef O_TMPFILE
#define O_TMPFILE (020000000 | O_DIRECTORY)
#endif

#ifdef VGPU_LACKS_REALLOCARRAY
/* ENOMEM also where count * bytes is more than a size_t; the old memory stays then. */
static inline void *reallocarray(void *memory, size_t count, size_t bytes)
{
    if (bytes != 0 && count > SIZE_MAX / bytes) {
        errno = ENOMEM;
        return NULL;
    }
    return realloc(memory, count * bytes);
}
#endif

#ifdef VGPU_LACKS_MEMFD_CREATE
static inline int memfd_create(const char *name, unsigned flags)
{
    return (int)syscall(SYS_memfd_create, name, flags);
}
#endif

#ifdef VGPU_LACKS_RENAMEAT2
static inline int renameat2(int old_directory, const char *old_name, int new_directory,
                            const char *new_name, unsigned flags)
{
    return (int)syscall(SYS_renameat2, old_directory, old_name, new_directory, new_name, flags);
}
#endif

#endif /* VGPU_BASE_OLD_LIBC_H */
