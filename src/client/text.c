/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Small helpers on text and time.  What comes from a file or a command line is
 * never shown on a terminal before text_show() has made it harmless.
 */
#include "client.h"

#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

int64_t clock_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * CLIENT_NS_PER_S + now.tv_nsec;
}

/* Smallest code point that needs so many bytes: anything less is overlong. */
static const uint32_t utf8_least[] = {0, 0, 0x80, 0x800, 0x10000};

size_t text_utf8_length(const char *text, size_t bytes)
{
    const unsigned char *at = (const unsigned char *)text;
    size_t length;
    uint32_t point;

    if (bytes == 0)
        return 0;
    if (at[0] < 0x80)
        return 1;
    if (at[0] < 0xc2 || at[0] > 0xf4)
        return 0;
    length = at[0] < 0xe0 ? 2 : at[0] < 0xf0 ? 3 : 4;
    if (length > bytes)
        return 0;
    point = at[0] & (0x7fu >> length);
    for (size_t i = 1; i < length; i++) {
        if ((at[i] & 0xc0) != 0x80)
            return 0;
        point = point << 6 | (at[i] & 0x3fu);
    }
    if (point < utf8_least[length] || point > 0x10ffff || (point >= 0xd800 && point <= 0xdfff))
        return 0;
    return length;
}

/* C0, DEL, and the C1 controls that UTF-8 writes as 0xc2 0x80..0x9f. */
static bool is_control(const char *text, size_t length)
{
    const unsigned char *at = (const unsigned char *)text;

    if (length == 1)
        return at[0] < 0x20 || at[0] == 0x7f;
    return length == 2 && at[0] == 0xc2 && at[1] < 0xa0;
}

void text_show(char *out, size_t out_bytes, const char *text, size_t bytes)
{
    size_t used = 0;

    while (bytes > 0) {
        size_t length = text_utf8_length(text, bytes);

        if (length > 0 && !is_control(text, length)) {
            if (used + length >= out_bytes)
                break;
            memcpy(out + used, text, length);
            used += length;
        } else {
            if (used + 4 >= out_bytes)
                break;
            snprintf(out + used, out_bytes - used, "\\x%02x", (unsigned char)*text);
            used += 4;
            length = 1;
        }
        text += length;
        bytes -= length;
    }
    out[used] = '\0';
}

bool text_parse_u32(const char *text, uint32_t least, uint32_t most, uint32_t *ret_value)
{
    uint64_t value = 0;

    if (!*text)
        return false;
    for (; *text; text++) {
        if (*text < '0' || *text > '9')
            return false;
        value = value * 10 + (uint64_t)(*text - '0');
        if (value > most)
            return false;
    }
    if (value < least)
        return false;
    *ret_value = (uint32_t)value;
    return true;
}

bool text_parse_seconds(const char *text, int64_t *ret_ns)
{
    int64_t ns = 0, unit = CLIENT_NS_PER_S;
    bool point = false, digit = false;

    for (; *text; text++) {
        if (*text == '.' && !point) {
            point = true;
            continue;
        }
        if (*text < '0' || *text > '9')
            return false;
        digit = true;
        if (point)
            unit /= 10;
        ns = point ? ns + unit * (*text - '0') : ns * 10 + unit * (*text - '0');
        if (ns > 86400 * CLIENT_NS_PER_S)
            return false;
    }
    if (!digit || ns < CLIENT_NS_PER_MS)
        return false;
    *ret_ns = ns;
    return true;
}

static const char *const priority_names[VGPU_PRIORITY_COUNT] = {"low", "medium", "high"};

bool text_parse_priority(const char *text, unsigned *ret_priority)
{
    for (unsigned i = 0; i < VGPU_PRIORITY_COUNT; i++) {
        if (strcasecmp(text, priority_names[i]) == 0 ||
            (text[0] == (char)('0' + i) && text[1] == '\0')) {
            *ret_priority = i;
            return true;
        }
    }
    return false;
}

const char *text_priority_name(unsigned priority)
{
    return priority < VGPU_PRIORITY_COUNT ? priority_names[priority] : "unknown";
}

bool text_normalize_path(const char *path, char *out, size_t out_bytes)
{
    char whole[2 * PATH_MAX], here[PATH_MAX] = "";
    size_t used = 0;

    if (!*path || (*path != '/' && !getcwd(here, sizeof(here))))
        return false;
    if (snprintf(whole, sizeof(whole), "%s/%s", here, path) >= (int)sizeof(whole))
        return false;
    for (const char *at = whole; *at;) {
        size_t part = strcspn(at, "/");

        if (part > 0 && !(part == 1 && *at == '.')) {
            if (used + 1 + part >= out_bytes)
                return false;
            out[used++] = '/';
            memcpy(out + used, at, part);
            used += part;
        }
        at += part;
        at += *at == '/';
    }
    if (used == 0 && out_bytes > 1)
        out[used++] = '/';
    out[used] = '\0';
    return true;
}
