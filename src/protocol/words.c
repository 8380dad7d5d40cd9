/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Words that a guest wrote: comparing them with ours, showing them to people.
 */
#include "protocol/private.h"

#include <string.h>

static char upper(char c)
{
    return c >= 'a' && c <= 'z' ? (char)(c - 'a' + 'A') : c;
}

bool protocol_same_name(const char *text, size_t bytes, const char *name)
{
    for (size_t i = 0; i < bytes; i++) {
        if (name[i] == '\0' || upper(text[i]) != upper(name[i]))
            return false;
    }
    return name[bytes] == '\0';
}

const char *protocol_quote(char quote[PROTOCOL_QUOTE_BYTES], const char *text, size_t bytes)
{
    /* Room for all that could be shown: what does not fit the quote is cut,
     * and only then "..." stands behind it. */
    char whole[4 * PROTOCOL_QUOTE_BYTES + 1];
    size_t shown = bytes < PROTOCOL_QUOTE_BYTES ? bytes : PROTOCOL_QUOTE_BYTES;

    text_escape(whole, sizeof(whole), text, shown);
    if (shown == bytes && strlen(whole) < PROTOCOL_QUOTE_BYTES) {
        text_copy(quote, PROTOCOL_QUOTE_BYTES, whole);
    } else {
        text_escape(quote, PROTOCOL_QUOTE_BYTES - 3, text, shown);
        memcpy(quote + strlen(quote), "...", sizeof("..."));
    }
    return quote;
}
