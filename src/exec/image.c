/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Images of modules that come in parts, as a guest's slot may be smaller than one:
 *
 *   MODULE_PART  at 0      ─▶ a private copy begins, as large as the whole will be
 *   MODULE_PART  at 4096   ─▶ goes behind what is there
 *   MODULE_LOAD  offset 0  ─▶ takes it, when it is whole
 *   MODULE_LOAD  elsewhere ─▶ takes a private copy of what the slot has there
 *
 * All that a session has under way is bounded, and so is what all sessions of its VM have of the
 * host's memory for it, until it is loaded.  It counts against the VM's device memory, as the
 * module will; both before there is any memory for it.  Parts come in order: what is there is one
 * range from the image's beginning.
 */
#include "exec/device.h"

#include <stdlib.h>
#include <string.h>

static struct image *find(struct images *images, uint32_t handle)
{
    for (unsigned i = 0; i < IMAGES_MAX; i++) {
        if (images->all[i].bytes && images->all[i].handle == handle)
            return &images->all[i];
    }
    return NULL;
}

static struct image *find_unused(struct images *images)
{
    for (unsigned i = 0; i < IMAGES_MAX; i++) {
        if (!images->all[i].bytes)
            return &images->all[i];
    }
    return NULL;
}

/* Room for an image, with a text's NUL behind it, whatever it says; NULL: there is none. */
static uint8_t *room_get(struct images *images, uint64_t whole_bytes)
{
    uint8_t *bytes;

    if (whole_bytes > VGPU_IMAGE_MAX_BYTES - images->whole_bytes ||
        !share_reserve_image(images->share, whole_bytes))
        return NULL;
    bytes = malloc(whole_bytes + 1);
    if (!bytes) {
        share_release_image(images->share, whole_bytes);
        return NULL;
    }
    images->whole_bytes += whole_bytes;
    return bytes;
}

void images_free(struct images *images, uint8_t *bytes, uint64_t whole_bytes)
{
    free(bytes);
    images->whole_bytes -= whole_bytes;
    share_release_image(images->share, whole_bytes);
}

/* Its bytes are the caller's, and count no longer as memory of the device. */
static uint8_t *give(struct images *images, struct image *image)
{
    uint8_t *bytes = image->bytes;

    share_release(images->share, image->whole_bytes);
    *image = (struct image){.bytes = NULL};
    return bytes;
}

static enum vgpu_status begin(struct images *images, uint32_t handle, uint64_t whole_bytes,
                              struct image **ret_image)
{
    struct image *image = find_unused(images);

    if (!image)
        return VGPU_TOO_MANY;
    if (!share_reserve(images->share, whole_bytes))
        return VGPU_OUT_OF_MEMORY;
    image->bytes = room_get(images, whole_bytes);
    if (!image->bytes) {
        share_release(images->share, whole_bytes);
        return VGPU_OUT_OF_MEMORY;
    }
    image->handle = handle;
    image->whole_bytes = whole_bytes;
    image->gathered_bytes = 0;
    *ret_image = image;
    return VGPU_OK;
}

enum vgpu_status images_add(struct images *images, uint32_t handle, const uint8_t *part,
                            uint64_t part_bytes, uint64_t at, uint64_t whole_bytes)
{
    struct image *image;
    enum vgpu_status status = VGPU_OK;

    if (at == 0)
        images_drop(images, handle);
    image = find(images, handle);
    if (at == 0)
        status = begin(images, handle, whole_bytes, &image);
    if (status != VGPU_OK)
        return status;
    if (!image || at != image->gathered_bytes || whole_bytes != image->whole_bytes ||
        part_bytes > image->whole_bytes - at)
        return VGPU_INVALID;
    memcpy(image->bytes + at, part, part_bytes);
    image->gathered_bytes += part_bytes;
    return VGPU_OK;
}

enum vgpu_status images_take(struct images *images, uint32_t handle, uint64_t whole_bytes,
                             uint8_t **ret_bytes)
{
    struct image *image = find(images, handle);

    if (!image)
        return VGPU_BAD_HANDLE;
    if (image->gathered_bytes != whole_bytes || image->whole_bytes != whole_bytes)
        return VGPU_INVALID;
    *ret_bytes = give(images, image);
    (*ret_bytes)[whole_bytes] = '\0';
    return VGPU_OK;
}

enum vgpu_status images_copy(struct images *images, const uint8_t *source, uint64_t whole_bytes,
                             uint8_t **ret_bytes)
{
    uint8_t *bytes;

    if (!share_reserve(images->share, whole_bytes))
        return VGPU_OUT_OF_MEMORY;
    bytes = room_get(images, whole_bytes);
    if (bytes) {
        memcpy(bytes, source, whole_bytes);
        bytes[whole_bytes] = '\0';
        *ret_bytes = bytes;
    }
    share_release(images->share, whole_bytes);
    return bytes ? VGPU_OK : VGPU_OUT_OF_MEMORY;
}

static void drop(struct images *images, struct image *image)
{
    uint64_t whole_bytes = image->whole_bytes;

    images_free(images, give(images, image), whole_bytes);
}

bool images_drop(struct images *images, uint32_t handle)
{
    struct image *image = find(images, handle);

    if (image)
        drop(images, image);
    return image != NULL;
}

void images_clear(struct images *images)
{
    for (unsigned i = 0; i < IMAGES_MAX; i++) {
        if (images->all[i].bytes)
            drop(images, &images->all[i]);
    }
}
