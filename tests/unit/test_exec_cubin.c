/* SPDX-License-Identifier: Apache-2.0 */
/* What a cubin takes of a device: by its sections and segments, whatever they are called. */
#include "unit.h"

#include "exec/cubin.h"

#include <elf.h>

#define SECTIONS 4u
#define MIB (1ull << 20)

struct cubin {
    Elf64_Ehdr header;
    Elf64_Phdr segment;
    Elf64_Shdr sections[SECTIONS]; /* the first is none */
    uint8_t code[256];
};

/* Code, and an array of a MiB that has no bytes. */
static struct cubin good(void)
{
    struct cubin cubin = {
        .header = {.e_ident = {ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS64, ELFDATA2LSB,
                               EV_CURRENT},
                   .e_type = ET_EXEC,
                   .e_phoff = offsetof(struct cubin, segment),
                   .e_phentsize = sizeof(Elf64_Phdr),
                   .e_phnum = 1,
                   .e_shoff = offsetof(struct cubin, sections),
                   .e_shentsize = sizeof(Elf64_Shdr),
                   .e_shnum = SECTIONS},
        .segment = {.p_type = PT_LOAD, .p_filesz = 256, .p_memsz = 256},
    };

    cubin.sections[1] = (Elf64_Shdr){.sh_type = SHT_PROGBITS,
                                     .sh_offset = offsetof(struct cubin, code),
                                     .sh_size = sizeof(cubin.code)};
    cubin.sections[2] = (Elf64_Shdr){.sh_type = SHT_NOBITS, .sh_size = MIB};
    return cubin;
}

static uint64_t bytes_of(const struct cubin *cubin)
{
    uint64_t bytes = 0;

    assert_int_equal(cubin_bytes(cubin, sizeof(*cubin), &bytes), VGPU_OK);
    return bytes;
}

static void must_be_refused(const struct cubin *cubin)
{
    uint64_t bytes = 7;

    assert_int_equal(cubin_bytes(cubin, sizeof(*cubin), &bytes), VGPU_BAD_IMAGE);
    assert_int_equal(bytes, 7);
}

static void arrays_without_bytes_count_beside_code(void **state)
{
    struct cubin cubin = good();

    (void)state;
    assert_int_equal(bytes_of(&cubin), MIB + sizeof(cubin.code));
    cubin.sections[3] = (Elf64_Shdr){.sh_type = SHT_NOBITS, .sh_size = 3 * MIB};
    assert_int_equal(bytes_of(&cubin), 4 * MIB + sizeof(cubin.code));
}

static void code_that_several_sections_share_counts_for_each(void **state)
{
    struct cubin cubin = good();

    (void)state;
    cubin.sections[3] = cubin.sections[1];
    assert_int_equal(bytes_of(&cubin), MIB + 2 * sizeof(cubin.code));
}

static void the_gpus_own_types_may_have_no_bytes(void **state)
{
    struct cubin cubin = good();

    (void)state;
    cubin.sections[3] =
        (Elf64_Shdr){.sh_type = SHT_LOPROC + 7, .sh_offset = 1u << 30, .sh_size = 2 * MIB};
    assert_int_equal(bytes_of(&cubin), 3 * MIB + sizeof(cubin.code));
}

static void segments_count_where_they_are_more(void **state)
{
    struct cubin cubin = good();

    (void)state;
    cubin.segment.p_memsz = 9 * MIB;
    assert_int_equal(bytes_of(&cubin), 9 * MIB);
    cubin.segment.p_type = PT_NOTE;
    assert_int_equal(bytes_of(&cubin), MIB + sizeof(cubin.code));
}

static void it_is_never_less_than_its_image(void **state)
{
    struct cubin cubin = good();

    (void)state;
    cubin.header.e_shnum = cubin.header.e_phnum = 0;
    cubin.header.e_shoff = 0;
    assert_int_equal(bytes_of(&cubin), sizeof(cubin));
}

static void sizes_that_are_too_many_are_the_most(void **state)
{
    struct cubin cubin = good();

    (void)state;
    cubin.sections[3] = (Elf64_Shdr){.sh_type = SHT_NOBITS, .sh_size = UINT64_MAX - 5};
    assert_true(bytes_of(&cubin) == UINT64_MAX);
}

static void more_sections_than_its_header_can_tell_are_found(void **state)
{
    struct cubin cubin = good();

    (void)state;
    cubin.header.e_shnum = 0;
    cubin.sections[0].sh_size = SECTIONS;
    assert_int_equal(bytes_of(&cubin), MIB + sizeof(cubin.code));
    cubin.sections[0].sh_size = UINT64_MAX / sizeof(Elf64_Shdr) + 2;
    must_be_refused(&cubin);
}

static void what_lies_outside_is_refused(void **state)
{
    struct cubin cubin = good();

    (void)state;
    cubin.sections[1].sh_size++;
    must_be_refused(&cubin);
    cubin = good();
    cubin.sections[1].sh_offset = UINT64_MAX - 100;
    must_be_refused(&cubin);
    cubin = good();
    cubin.header.e_shoff = sizeof(cubin) - 1;
    must_be_refused(&cubin);
    cubin = good();
    cubin.header.e_shnum = 200;
    must_be_refused(&cubin);
    cubin = good();
    cubin.header.e_phoff = UINT64_MAX - 8;
    must_be_refused(&cubin);
    cubin = good();
    cubin.segment.p_filesz = sizeof(cubin) + 1;
    must_be_refused(&cubin);
}

static void headers_of_other_kinds_are_refused(void **state)
{
    struct cubin cubin = good();

    (void)state;
    cubin.header.e_shentsize = 40;
    must_be_refused(&cubin);
    cubin = good();
    cubin.header.e_phentsize = 32;
    must_be_refused(&cubin);
    cubin = good();
    cubin.header.e_ident[EI_CLASS] = ELFCLASS32;
    must_be_refused(&cubin);
    cubin = good();
    cubin.header.e_ident[EI_DATA] = ELFDATA2MSB;
    must_be_refused(&cubin);
    cubin = good();
    cubin.header.e_ident[0] = 0;
    must_be_refused(&cubin);
}

static void half_a_header_is_refused(void **state)
{
    struct cubin cubin = good();
    uint64_t bytes = 7;

    (void)state;
    for (size_t some = 0; some < sizeof(cubin.header); some++)
        assert_int_equal(cubin_bytes(&cubin, some, &bytes), VGPU_BAD_IMAGE);
    assert_false(cubin_is(&cubin, 3));
    assert_true(cubin_is(&cubin, 4));
    assert_int_equal(bytes, 7);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(arrays_without_bytes_count_beside_code),
        cmocka_unit_test(code_that_several_sections_share_counts_for_each),
        cmocka_unit_test(the_gpus_own_types_may_have_no_bytes),
        cmocka_unit_test(segments_count_where_they_are_more),
        cmocka_unit_test(it_is_never_less_than_its_image),
        cmocka_unit_test(sizes_that_are_too_many_are_the_most),
        cmocka_unit_test(more_sections_than_its_header_can_tell_are_found),
        cmocka_unit_test(what_lies_outside_is_refused),
        cmocka_unit_test(headers_of_other_kinds_are_refused),
        cmocka_unit_test(half_a_header_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
