/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any 64 bytes as a descriptor, any size of slot: what the check lets pass lies where
 * it may, by arithmetic that cannot overflow.  Input: slot's pages (2 bytes), then
 * descriptors.
 */
#include "fuzz.h"

#include "protocol/protocol.h"

#include <string.h>

static bool is_inside(unsigned __int128 offset, unsigned __int128 bytes, uint64_t begin,
                      uint64_t end)
{
    return offset >= begin && offset + bytes <= end;
}

static void require_in_slot(uint64_t offset, uint64_t bytes, uint64_t slot_bytes)
{
    FUZZ_REQUIRE(is_inside(offset, bytes, VGPU_SLOT_ARENA, slot_bytes));
}

static void require_launch(const struct vgpu_descriptor *descriptor)
{
    uint64_t name = descriptor->launch.name_bytes, parameters = descriptor->launch.parameters_bytes;

    FUZZ_REQUIRE(name >= 1 && name <= VGPU_NAME_MAX_BYTES);
    FUZZ_REQUIRE(parameters <= VGPU_PARAMETERS_MAX_BYTES && parameters % 8 == 0);
    FUZZ_REQUIRE(is_inside(descriptor->launch.name_offset, name, VGPU_SLOT_ARENA, VGPU_SLOT_HEAP));
    FUZZ_REQUIRE(parameters == 0 || is_inside(descriptor->launch.parameters_offset, parameters,
                                              VGPU_SLOT_ARENA, VGPU_SLOT_HEAP));
    for (int i = 0; i < 3; i++)
        FUZZ_REQUIRE(descriptor->launch.grid[i] != 0 && descriptor->launch.block[i] != 0);
}

static void require_good(const struct vgpu_descriptor *descriptor, uint64_t slot_bytes)
{
    FUZZ_REQUIRE((descriptor->flags & ~VGPU_FLAG_ALL) == 0);
    switch (descriptor->opcode) {
    case VGPU_OP_TEXT:
        FUZZ_REQUIRE(descriptor->text.command_bytes >= 1 &&
                     descriptor->text.command_bytes <= VGPU_TEXT_MAX_BYTES);
        require_in_slot(descriptor->text.command_offset, descriptor->text.command_bytes,
                        slot_bytes);
        require_in_slot(descriptor->text.answer_offset, descriptor->text.answer_bytes, slot_bytes);
        break;
    case VGPU_OP_COPY_IN:
        if (descriptor->copy.bytes > 0)
            require_in_slot(descriptor->copy.source, descriptor->copy.bytes, slot_bytes);
        break;
    case VGPU_OP_COPY_OUT:
        if (descriptor->copy.bytes > 0)
            require_in_slot(descriptor->copy.target, descriptor->copy.bytes, slot_bytes);
        break;
    case VGPU_OP_SET:
        FUZZ_REQUIRE((unsigned __int128)descriptor->set.count * descriptor->set.width <=
                     UINT64_MAX);
        break;
    case VGPU_OP_MODULE_PART:
        FUZZ_REQUIRE(descriptor->module.whole_bytes <= VGPU_IMAGE_MAX_BYTES);
        FUZZ_REQUIRE(is_inside(descriptor->module.part_at, descriptor->module.image_bytes, 0,
                               descriptor->module.whole_bytes));
        require_in_slot(descriptor->module.image_offset, descriptor->module.image_bytes,
                        slot_bytes);
        break;
    case VGPU_OP_MODULE_LOAD:
        if (descriptor->module.image_offset == 0) {
            FUZZ_REQUIRE(descriptor->module.image_bytes <= VGPU_IMAGE_MAX_BYTES);
            break;
        }
        require_in_slot(descriptor->module.image_offset, descriptor->module.image_bytes,
                        slot_bytes);
        break;
    case VGPU_OP_LAUNCH:
        require_launch(descriptor);
        break;
    default:
        FUZZ_REQUIRE(descriptor->opcode >= VGPU_OP_PING && descriptor->opcode <= VGPU_OP_LAUNCH);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    uint64_t slot_bytes = VGPU_SLOT_MIN_BYTES;
    unsigned devices;

    if (bytes < 2)
        return 0;
    devices = 1 + data[0] % VGPU_SESSION_DEVICES_MAX;
    slot_bytes += (uint64_t)(data[0] | data[1] << 8) * VGPU_PAGE_BYTES;
    for (size_t at = 2; at + sizeof(struct vgpu_descriptor) <= bytes;
         at += sizeof(struct vgpu_descriptor)) {
        struct vgpu_descriptor descriptor, before;
        enum vgpu_status status;

        memcpy(&descriptor, data + at, sizeof(descriptor));
        before = descriptor;
        status = protocol_check_descriptor(&descriptor, slot_bytes, devices);
        FUZZ_REQUIRE(memcmp(&before, &descriptor, sizeof(before)) == 0);
        FUZZ_REQUIRE(status == VGPU_OK || status == VGPU_INVALID || status == VGPU_BAD_OPCODE ||
                     status == VGPU_BAD_HANDLE || status == VGPU_BAD_ADDRESS);
        FUZZ_REQUIRE(status != VGPU_OK || descriptor.device < devices);
        if (status == VGPU_OK)
            require_good(&descriptor, slot_bytes);
    }
    return 0;
}
