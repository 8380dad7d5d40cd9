/* SPDX-License-Identifier: Apache-2.0 */
#include "base/base.h"

#include <stdio.h>
#include <string.h>

bool text_parse_u64(const char *text, uint64_t min, uint64_t max, uint64_t *ret_value)
{
    uint64_t value = 0;

    if (*text == '\0')
        return false;
    for (; *text; text++) {
        uint64_t digit;

        if (*text < '0' || *text > '9')
            return false;
        digit = (uint64_t)(*text - '0');
        if (value > (UINT64_MAX - digit) / 10)
            return false;
        value = value * 10 + digit;
    }
    if (value < min || value > max)
        return false;
    *ret_value = value;
    return true;
}

void text_copy(char *target, size_t bytes, const char *text)
{
    size_t length = strnlen(text, bytes - 1);

    memcpy(target, text, length);
    target[length] = '\0';
}

void text_escape(char *target, size_t bytes, const char *text, size_t text_bytes)
{
    size_t used = 0;

    for (size_t i = 0; i < text_bytes; i++) {
        unsigned char c = (unsigned char)text[i];
        bool plain = c >= 0x20 && c < 0x7f;

        if (used + (plain ? 1 : 4) >= bytes)
            break;
        if (plain)
            target[used++] = (char)c;
        else
            used += (size_t)snprintf(target + used, bytes - used, "\\x%02x", c);
    }
    target[used] = '\0';
}

size_t text_character_bytes(const char *at)
{
    const unsigned char *bytes = (const unsigned char *)at;
    size_t length = bytes[0] < 0x80                        ? 1
                    : bytes[0] >= 0xc2 && bytes[0] < 0xe0  ? 2
                    : bytes[0] >= 0xe0 && bytes[0] < 0xf0  ? 3
                    : bytes[0] >= 0xf0 && bytes[0] <= 0xf4 ? 4
                                                           : 0;

    for (size_t i = 1; i < length; i++) {
        if ((bytes[i] & 0xc0) != 0x80)
            return 0;
    }
    /* Too long a form, half of a pair, or beyond what there is. */
    if ((bytes[0] == 0xe0 && bytes[1] < 0xa0) || (bytes[0] == 0xed && bytes[1] >= 0xa0) ||
        (bytes[0] == 0xf0 && bytes[1] < 0x90) || (bytes[0] == 0xf4 && bytes[1] >= 0x90))
        return 0;
    return length;
}

void text_end_whole(char *text)
{
    size_t length = strlen(text), at = length;

    while (at > 0 && length - at < 3 && ((unsigned char)text[at - 1] & 0xc0) == 0x80)
        at--;
    if (at > 0 && (unsigned char)text[at - 1] >= 0xc2 && text_character_bytes(text + at - 1) == 0)
        text[at - 1] = '\0';
}

void text_copy_utf8(char *target, size_t bytes, const char *text)
{
    size_t used = 0;

    while (*text) {
        size_t length = text_character_bytes(text);

        if (used + (length ? length : 4) >= bytes)
            break;
        if (length)
            memcpy(target + used, text, length);
        else
            snprintf(target + used, bytes - used, "\\x%02x", (unsigned char)*text);
        used += length ? length : 4;
        text += length ? length : 1;
    }
    target[used] = '\0';
}

bool text_word(const char *words, unsigned index, char *ret_word, size_t bytes)
{
    for (;; index--) {
        size_t length = strcspn(words, " ");

        if (length == 0 || (index == 0 && length >= bytes))
            return false;
        if (index == 0) {
            memcpy(ret_word, words, length);
            ret_word[length] = '\0';
            return true;
        }
        words += length + (words[length] == ' ');
    }
}

uint32_t text_crc32(const void *data, size_t bytes)
{
    const unsigned char *at = data;
    uint32_t crc = 0xffffffffu;

    for (size_t i = 0; i < bytes; i++) {
        crc ^= at[i];
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ (0xedb88320u & (0u - (crc & 1u)));
    }
    return ~crc;
}
