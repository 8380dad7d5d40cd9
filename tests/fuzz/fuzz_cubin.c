/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any bytes as a cubin: what it takes of the device is never less than the image, and never less
 * than what its first section without bytes says.  Nothing beyond the image is read, which a
 * sanitizer sees.
 */
#include "fuzz.h"

#include "exec/cubin.h"

#include <elf.h>
#include <string.h>

/* Of a cubin that was found well: what its second section header says, if there is one. */
static uint64_t second_section_bytes(const uint8_t *data)
{
    Elf64_Ehdr header;
    Elf64_Shdr section;

    memcpy(&header, data, sizeof(header));
    if (header.e_shnum < 2)
        return 0;
    memcpy(&section, data + header.e_shoff + sizeof(section), sizeof(section));
    return section.sh_size;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    uint64_t device_bytes = 7;
    enum vgpu_status status = cubin_bytes(data, bytes, &device_bytes);

    FUZZ_REQUIRE(status == VGPU_OK || status == VGPU_BAD_IMAGE);
    FUZZ_REQUIRE(status == VGPU_OK ? cubin_is(data, bytes) : device_bytes == 7);
    if (status != VGPU_OK)
        return 0;
    FUZZ_REQUIRE(device_bytes >= bytes);
    FUZZ_REQUIRE(device_bytes >= second_section_bytes(data));
    return 0;
}
