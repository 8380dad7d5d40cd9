/* SPDX-License-Identifier: Apache-2.0 */
/* What stands in XenStore: a guest's words, which may be any, and the host's about it. */
#include "xen/xen.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DIRECTORY_EXPECTED "a grant reference for each 1024 pages of the slot, one blank between"

static int refuse(struct vgpu_error *error, const char *key, const char *value,
                  const char *expected)
{
    char shown[64];

    text_escape(shown, sizeof(shown), value, strlen(value)); /* and cut */
    return error_set(error, EINVAL, "%s is '%s', expected %s", key, shown, expected);
}

/* One reference for each page of the directory; written as we write it, or refused. */
static int parse_directory(const char *text, struct xen_request *request, struct vgpu_error *error)
{
    uint32_t pages = request->slot_bytes / VGPU_PAGE_BYTES;
    char word[12], written[VGPU_XEN_DIRECTORY_PAGES_MAX * sizeof(word)] = "";
    uint64_t number = 0;

    request->directory_count = (pages - 1) / VGPU_XEN_REFERENCES_A_PAGE + 1;
    for (uint32_t i = 0; i < request->directory_count; i++) {
        size_t used = strlen(written);

        if (!text_word(text, i, word, sizeof(word)) ||
            !text_parse_u64(word, 0, UINT32_MAX, &number))
            return refuse(error, VGPU_XEN_DIRECTORY, text, DIRECTORY_EXPECTED);
        request->directory[i] = (uint32_t)number;
        snprintf(written + used, sizeof(written) - used, "%s%u", i ? " " : "",
                 request->directory[i]);
    }
    return strcmp(text, written) == 0 ? 0
                                      : refuse(error, VGPU_XEN_DIRECTORY, text, DIRECTORY_EXPECTED);
}

int xen_request_parse(const struct xen_words *words, struct xen_request *ret_request,
                      struct vgpu_error *error)
{
    struct xen_request request = {0};
    uint64_t number;

    if (strcmp(words->version, VGPU_XEN_VERSION) != 0)
        return refuse(error, VGPU_XEN_PROTOCOL, words->version, VGPU_XEN_VERSION);
    if (!text_parse_u64(words->slot_bytes, VGPU_SLOT_MIN_BYTES, VGPU_XEN_SLOT_MAX_BYTES, &number) ||
        number % VGPU_PAGE_BYTES != 0)
        return refuse(error, VGPU_XEN_SLOT_BYTES, words->slot_bytes,
                      "434176 to 67108864 bytes in whole pages of 4096");
    request.slot_bytes = (uint32_t)number;
    if (!text_parse_u64(words->event_channel, 1, UINT32_MAX, &number))
        return refuse(error, VGPU_XEN_EVENT_CHANNEL, words->event_channel, "a port's number");
    request.port = (uint32_t)number;
    if (parse_directory(words->directory, &request, error) < 0)
        return -1;
    *ret_request = request;
    return 0;
}

static bool is_hex(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
}

bool xen_name_is_valid(const char *name)
{
    for (unsigned i = 0; i < VGPU_XEN_NAME_CHARS; i++) {
        if (!is_hex(name[i])) /* also at its NUL */
            return false;
    }
    return name[VGPU_XEN_NAME_CHARS] == '\0';
}

bool xen_uuid_of_path(const char *path, char ret_uuid[37])
{
    const char *uuid = path + 4;

    if (strncmp(path, "/vm/", 4) != 0 || strlen(uuid) != 36)
        return false;
    for (unsigned i = 0; i < 36; i++) {
        bool is_dash = i == 8 || i == 13 || i == 18 || i == 23;
        char c = uuid[i] >= 'A' && uuid[i] <= 'F' ? (char)(uuid[i] - 'A' + 'a') : uuid[i];

        if (is_dash ? c != '-' : !is_hex(c))
            return false;
        ret_uuid[i] = c;
    }
    ret_uuid[36] = '\0';
    return true;
}

/* The first word's domain owns the node and may do all; its letter is for all others. */
bool xen_only_host_writes(const char *words, size_t bytes, unsigned host)
{
    bool is_first = true;

    for (size_t at = 0; at < bytes; at += strnlen(words + at, bytes - at) + 1) {
        uint64_t domain;
        bool writes = words[at] == 'w' || words[at] == 'b';
        char number[16];

        text_copy(number, sizeof(number), at + 1 < bytes ? words + at + 1 : "");
        if (!text_parse_u64(number, 0, UINT16_MAX, &domain))
            return false;
        if (is_first && (writes || (domain != 0 && domain != host)))
            return false;
        if (!is_first && writes && domain != 0 && domain != host)
            return false;
        is_first = false;
    }
    return !is_first;
}
