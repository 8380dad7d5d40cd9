/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a worker domain says is shown on the terminals of Dom0's administrators: nothing of
 * it may steer one.
 */
#include "relay/relay.h"

#include <stdlib.h>
#include <string.h>

/* C0, DEL, and C1 as UTF-8 has them. */
static bool is_control(const unsigned char *at)
{
    return at[0] < ' ' || at[0] == 0x7F || (at[0] == 0xC2 && at[1] < 0xA0);
}

static void clean_string(json_t *string)
{
    char *text = strdup(json_string_value(string));

    if (!text)
        return;
    for (unsigned char *at = (unsigned char *)text; *at; at++) {
        if (!is_control(at))
            continue;
        if (*at == 0xC2)
            *at++ = '?';
        *at = '?';
    }
    json_string_set(string, text);
    free(text);
}

static bool is_clean(const char *key)
{
    for (const unsigned char *at = (const unsigned char *)key; *at; at++) {
        if (is_control(at))
            return false;
    }
    return true;
}

static void clean_object(json_t *object)
{
    const char *key;
    json_t *member;
    void *next;

    json_object_foreach_safe(object, next, key, member)
    {
        if (is_clean(key))
            relay_clean(member);
        else
            json_object_del(object, key);
    }
}

/* As deep as jansson reads. */
void relay_clean(json_t *value)
{
    size_t index;
    json_t *member;

    if (json_is_string(value)) {
        clean_string(value);
    } else if (json_is_object(value)) {
        clean_object(value);
    } else if (json_is_array(value)) {
        json_array_foreach(value, index, member) relay_clean(member);
    }
}
