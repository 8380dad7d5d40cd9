/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a cubin takes of a GPU's memory.
 *
 *   ELF header ─▶ section headers ─▶ code, constants, arrays with values     in the file
 *                                    arrays without (.nv.global)             a size, no bytes
 *              ─▶ program headers ─▶ the same by segments
 *
 * A guest wrote it, or may have: what it says of one section is not held against what it says of
 * another, and no name decides what counts, so that none is a way to count less.  That counts the
 * shared memory that kernels declare, too, which is small, and symbols, which came as bytes
 * anyway.
 */
#include "exec/cubin.h"

#include <elf.h>
#include <string.h>

/* Section types from here to SHT_LOUSER are the GPU's own: some of newer compilers' have a size
 * and no bytes, as SHT_NOBITS. */
static bool may_have_no_bytes(uint32_t type)
{
    return type == SHT_NOBITS || type >= SHT_LOPROC;
}

static uint64_t add(uint64_t a, uint64_t b)
{
    uint64_t sum;

    return __builtin_add_overflow(a, b, &sum) ? UINT64_MAX : sum;
}

static bool lies_within(uint64_t offset, uint64_t part_bytes, uint64_t bytes)
{
    return offset <= bytes && part_bytes <= bytes - offset;
}

/* A table of `count` headers, of `each` bytes by the file's word and `wanted` by ours. */
static bool table_is_well(uint64_t offset, uint64_t count, uint64_t each, uint64_t wanted,
                          uint64_t bytes)
{
    uint64_t table_bytes;

    return count == 0 || (each == wanted && !__builtin_mul_overflow(count, each, &table_bytes) &&
                          lies_within(offset, table_bytes, bytes));
}

/* Where there are more sections than the header can tell, the first one does. */
static bool count_sections(const uint8_t *image, uint64_t bytes, const Elf64_Ehdr *header,
                           uint64_t *ret_count)
{
    Elf64_Shdr first;

    *ret_count = header->e_shnum;
    if (header->e_shnum != 0 || header->e_shoff == 0)
        return true;
    if (!lies_within(header->e_shoff, sizeof(first), bytes))
        return false;
    memcpy(&first, image + header->e_shoff, sizeof(first));
    *ret_count = first.sh_size;
    return true;
}

static bool add_sections(const uint8_t *image, uint64_t bytes, const Elf64_Ehdr *header,
                         uint64_t *ret_bytes)
{
    uint64_t count, all_bytes = 0;

    if (!count_sections(image, bytes, header, &count) ||
        !table_is_well(header->e_shoff, count, header->e_shentsize, sizeof(Elf64_Shdr), bytes))
        return false;
    for (uint64_t i = 1; i < count; i++) { /* the first is none */
        Elf64_Shdr section;

        memcpy(&section, image + header->e_shoff + i * sizeof(section), sizeof(section));
        if (!may_have_no_bytes(section.sh_type) &&
            !lies_within(section.sh_offset, section.sh_size, bytes))
            return false;
        all_bytes = add(all_bytes, section.sh_size);
    }
    *ret_bytes = all_bytes;
    return true;
}

static bool add_segments(const uint8_t *image, uint64_t bytes, const Elf64_Ehdr *header,
                         uint64_t *ret_bytes)
{
    uint64_t all_bytes = 0;

    if (!table_is_well(header->e_phoff, header->e_phnum, header->e_phentsize, sizeof(Elf64_Phdr),
                       bytes))
        return false;
    for (uint64_t i = 0; i < header->e_phnum; i++) {
        Elf64_Phdr segment;

        memcpy(&segment, image + header->e_phoff + i * sizeof(segment), sizeof(segment));
        if (!lies_within(segment.p_offset, segment.p_filesz, bytes))
            return false;
        if (segment.p_type == PT_LOAD)
            all_bytes = add(all_bytes, segment.p_memsz > segment.p_filesz ? segment.p_memsz
                                                                          : segment.p_filesz);
    }
    *ret_bytes = all_bytes;
    return true;
}

static uint64_t larger(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

bool cubin_is(const void *image, uint64_t bytes)
{
    return bytes >= SELFMAG && memcmp(image, ELFMAG, SELFMAG) == 0;
}

enum vgpu_status cubin_bytes(const void *image, uint64_t bytes, uint64_t *ret_bytes)
{
    uint64_t sections_bytes, segments_bytes;
    Elf64_Ehdr header;

    if (!cubin_is(image, bytes) || bytes < sizeof(header))
        return VGPU_BAD_IMAGE;
    memcpy(&header, image, sizeof(header));
    if (header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_ident[EI_DATA] != ELFDATA2LSB ||
        !add_sections(image, bytes, &header, &sections_bytes) ||
        !add_segments(image, bytes, &header, &segments_bytes))
        return VGPU_BAD_IMAGE;
    *ret_bytes = larger(bytes, larger(sections_bytes, segments_bytes));
    return VGPU_OK;
}
