/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the values of options may be, with the words for what may not.  Names, ids,
 * UUIDs, pools and priorities are the store's to judge.
 */
#include "admin/admin.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define US_PER_S 1000000ull

static int bad(struct vgpu_error *error, const char *value, const char *expected)
{
    char shown[128];

    text_escape(shown, sizeof(shown), value, strlen(value));
    return error_set(error, EINVAL, "'%s': expected %s", shown, expected);
}

/* Words between blanks, commas or plus signs. */
int value_channels(const char *text, uint32_t *ret_channels, struct vgpu_error *error)
{
    static const char expected[] = "file, window, xen or several with commas between, or none";
    uint32_t channels = 0;
    char copy[64], *state, *word;

    if (strcmp(text, "none") == 0) {
        *ret_channels = 0;
        return 0;
    }
    if (!text[0] || strlen(text) >= sizeof(copy))
        return bad(error, text, expected);
    text_copy(copy, sizeof(copy), text);
    for (word = strtok_r(copy, ", +", &state); word; word = strtok_r(NULL, ", +", &state)) {
        if (strcmp(word, "file") == 0)
            channels |= STORE_CHANNEL_FILE;
        else if (strcmp(word, "window") == 0)
            channels |= STORE_CHANNEL_WINDOW;
        else if (strcmp(word, "xen") == 0)
            channels |= STORE_CHANNEL_XEN;
        else
            return bad(error, text, expected);
    }
    if (!channels)
        return bad(error, text, expected);
    *ret_channels = channels;
    return 0;
}

int value_owner(const char *text, int64_t *ret_uid, int64_t *ret_gid, struct vgpu_error *error)
{
    uid_t uid;
    gid_t gid;

    if (strcmp(text, "default") == 0) {
        *ret_uid = *ret_gid = -1;
        return 0;
    }
    if (!account_parse_owner(text, &uid, &gid))
        return bad(error, text,
                   "user or user:group, by name or number, that exists on this host, or default");
    if (uid == 0 || gid == 0)
        return bad(error, text,
                   "an owner that is not root: whoever is root in the guest writes as the owner; "
                   "best a number that no account has, as 100007 for VM 7");
    *ret_uid = uid;
    *ret_gid = gid;
    return 0;
}

int value_mode(const char *text, uint32_t *ret_mode, struct vgpu_error *error)
{
    char *end;
    unsigned long mode = strtoul(text, &end, 8);

    if (text[0] < '0' || text[0] > '7' || *end || mode > 0777 || (mode & 0700) != 0700)
        return bad(error, text, "an octal mode from 0700 to 0775");
    if (mode & 0002)
        return bad(error, text, "a mode that does not let everybody write (least privilege: 0700)");
    *ret_mode = (uint32_t)mode;
    return 0;
}

int value_number(const char *text, uint64_t max, const char *zero, uint64_t *ret_number,
                 struct vgpu_error *error)
{
    char expected[96];

    if (strcmp(text, "default") == 0 || strcmp(text, "none") == 0) {
        *ret_number = 0;
        return 0;
    }
    if (text_parse_u64(text, 1, max, ret_number))
        return 0;
    snprintf(expected, sizeof(expected), "a whole number from 1 to %llu, or %s",
             (unsigned long long)max, zero);
    return bad(error, text, expected);
}

int value_state(const char *text, enum store_vm_state *ret_state, struct vgpu_error *error)
{
    if (strcmp(text, "active") == 0)
        *ret_state = STORE_VM_ACTIVE;
    else if (strcmp(text, "quarantined") == 0)
        *ret_state = STORE_VM_QUARANTINED;
    else
        return bad(error, text, "active or quarantined");
    return 0;
}

int value_sharing(const char *text, enum store_sharing *ret_sharing, struct vgpu_error *error)
{
    if (strcmp(text, "shared") == 0)
        *ret_sharing = STORE_SHARED;
    else if (strcmp(text, "independent") == 0)
        *ret_sharing = STORE_INDEPENDENT;
    else
        return bad(error, text, "shared or independent");
    return 0;
}

int value_placement(const char *text, bool *ret_pack, struct vgpu_error *error)
{
    if (strcmp(text, "spread") != 0 && strcmp(text, "pack") != 0)
        return bad(error, text, "spread or pack");
    *ret_pack = text[0] == 'p';
    return 0;
}

int value_session_devices(const char *text, uint32_t *ret_number, struct vgpu_error *error)
{
    uint64_t number;

    if (!text_parse_u64(text, 1, STORE_POOL_DEVICES_MAX, &number))
        return bad(error, text, "a number of 1 to 8");
    *ret_number = (uint32_t)number;
    return 0;
}

int value_yes_no(const char *text, bool *ret_yes, struct vgpu_error *error)
{
    if (strcmp(text, "yes") == 0)
        *ret_yes = true;
    else if (strcmp(text, "no") == 0)
        *ret_yes = false;
    else
        return bad(error, text, "yes or no");
    return 0;
}

static uint64_t unit_s(char unit)
{
    switch (unit) {
    case 's':
        return 1;
    case 'm':
        return 60;
    case 'h':
        return 3600;
    case 'd':
        return 86400;
    default:
        return 0;
    }
}

/* "90m" ago, or a time of UTC. */
int value_since(const char *text, uint64_t now_us, uint64_t *ret_us, struct vgpu_error *error)
{
    static const char *const formats[] = {"%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S",
                                          "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%d"};
    size_t length = strlen(text);
    char digits[16];
    uint64_t number, unit = length ? unit_s(text[length - 1]) : 0;

    if (unit && length < sizeof(digits)) {
        text_copy(digits, length, text);
        if (text_parse_u64(digits, 1, 1000000000, &number)) {
            uint64_t ago_us = number * unit * US_PER_S;

            *ret_us = ago_us < now_us ? now_us - ago_us : 1;
            return 0;
        }
    }
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(formats); i++) {
        struct tm broken = {0};
        const char *end = strptime(text, formats[i], &broken);

        if (end && !*end && broken.tm_year >= 70) {
            *ret_us = (uint64_t)timegm(&broken) * US_PER_S;
            return 0;
        }
    }
    return bad(error, text,
               "so long ago (90s, 15m, 2h, 7d) or a time of UTC, as "
               "2026-01-31T12:00:00Z");
}

/* Not a guest's: nobody's, everybody's, this host's own, or a group's. */
static bool is_one_guests(int family, const unsigned char *binary)
{
    const struct in6_addr *six = (const void *)binary;

    if (family == AF_INET)
        return binary[0] != 0 && binary[0] != 127 && binary[0] < 224;
    return !IN6_IS_ADDR_UNSPECIFIED(six) && !IN6_IS_ADDR_LOOPBACK(six) &&
           !IN6_IS_ADDR_MULTICAST(six) && !IN6_IS_ADDR_V4MAPPED(six);
}

/* All zero or, for IPv4, all one behind the prefix: the subnet's own, nobody's. */
static bool is_subnets(int family, const unsigned char *binary, unsigned prefix)
{
    unsigned bits = family == AF_INET ? 32 : 128;
    bool zeros = true, ones = family == AF_INET;

    for (unsigned i = prefix; i < bits; i++) {
        bool one = binary[i / 8] & 0x80 >> i % 8;

        zeros = zeros && !one;
        ones = ones && one;
    }
    return prefix + 1 < bits && (zeros || ones); /* two hosts, or one, are a whole subnet */
}

/* "IP/PREFIX"; without a prefix the longest. */
static bool split_address(const char *text, char address[64], unsigned *ret_prefix)
{
    const char *slash = strchr(text, '/');
    size_t length = slash ? (size_t)(slash - text) : strlen(text);
    uint64_t prefix = 128;

    if (length >= 64 || (slash && !text_parse_u64(slash + 1, 1, 128, &prefix)))
        return false;
    text_copy(address, length + 1, text);
    *ret_prefix = (unsigned)prefix;
    return true;
}

int value_address(const char *text, char ret_address[64], struct vgpu_error *error)
{
    unsigned char binary[16] __attribute__((aligned(4)));
    int family = AF_UNSPEC;
    char address[64];
    unsigned prefix;

    if (split_address(text, address, &prefix))
        family = inet_pton(AF_INET, address, binary) == 1    ? AF_INET
                 : inet_pton(AF_INET6, address, binary) == 1 ? AF_INET6
                                                             : AF_UNSPEC;
    if (family == AF_UNSPEC || !is_one_guests(family, binary) ||
        (strchr(text, '/') && family == AF_INET && prefix > 32))
        return bad(error, text, "the guest's IP address, as 10.77.0.11 or 10.77.0.11/24");
    if (strchr(text, '/') && is_subnets(family, binary, prefix))
        return bad(error, text,
                   "the guest's own IP address, and this is its subnet's (network or broadcast)");
    inet_ntop(family, binary, ret_address, 64);
    return 0;
}

int value_devices(const char *text, char ret_devices[STORE_POOL_DEVICE_BYTES],
                  struct vgpu_error *error)
{
    char devices[STORE_POOL_DEVICE_BYTES];
    struct store_device device;
    size_t used = 0, bytes;
    unsigned count = 0;

    for (const char *at = text; at; at = at[bytes] ? at + bytes + 1 : NULL) {
        char name[STORE_DEVICE_BYTES] = "";

        bytes = strcspn(at, ",");
        if (++count > STORE_POOL_DEVICES_MAX || bytes >= sizeof(name))
            return bad(error, text, "at most 8 devices with commas between");
        memcpy(name, at, bytes);
        if (value_device(name, &device, error) < 0)
            return -1;
        used +=
            (size_t)snprintf(devices + used, sizeof(devices) - used, "%s%s", used ? " " : "", name);
    }
    memcpy(ret_devices, devices, used + 1);
    return 0;
}

int value_device(const char *text, struct store_device *ret_device, struct vgpu_error *error)
{
    struct store_device device = {.kind = STORE_DEVICE_GPU};

    if (store_check_device(text, error) < 0)
        return -1;
    if (strncmp(text, "cpu", 3) == 0)
        device.kind = STORE_DEVICE_CPU;
    else if (strncmp(text, "MIG-", 4) == 0)
        device.kind = STORE_DEVICE_MIG;
    text_copy(device.name, sizeof(device.name), text);
    *ret_device = device;
    return 0;
}
