/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who types a name wrong is told those that are nearest: by the number of letters to
 * change, add or leave out (Levenshtein's distance), case not counted; a name that
 * only goes on where the typed one ends is near, too.
 */
#include "store/private.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

static unsigned min3(unsigned a, unsigned b, unsigned c)
{
    unsigned smaller = a < b ? a : b;

    return smaller < c ? smaller : c;
}

static unsigned distance_of(const char *a, const char *b)
{
    unsigned row[STORE_NAME_BYTES];
    size_t columns = strnlen(b, STORE_NAME_BYTES - 1);

    for (size_t j = 0; j <= columns; j++)
        row[j] = (unsigned)j;
    for (size_t i = 0; a[i] && i < STORE_NAME_BYTES; i++) {
        unsigned diagonal = row[0];

        row[0] = (unsigned)i + 1;
        for (size_t j = 1; j <= columns; j++) {
            unsigned above = row[j];
            bool same = tolower((unsigned char)a[i]) == tolower((unsigned char)b[j - 1]);

            row[j] = min3(diagonal + !same, above + 1, row[j - 1] + 1);
            diagonal = above;
        }
    }
    return row[columns];
}

void near_offer(struct near *near, const char *text, const char *name)
{
    size_t length = strlen(text);
    unsigned distance = distance_of(text, name), place;

    if (length >= 2 && strncasecmp(text, name, length) == 0)
        distance = 1;
    if (!name[0] || distance > 1 + length / 4)
        return;
    for (place = near->count; place > 0 && near->best[place - 1].distance > distance; place--) {
        if (place < NEAR_MAX)
            near->best[place] = near->best[place - 1];
    }
    if (place >= NEAR_MAX)
        return;
    near->best[place].distance = distance;
    text_copy(near->best[place].name, STORE_NAME_BYTES, name);
    if (near->count < NEAR_MAX)
        near->count++;
}

void near_words(const struct near *near, char *target, size_t bytes)
{
    size_t used = 0;

    target[0] = '\0';
    for (unsigned i = 0; i < near->count && used < bytes; i++)
        used += (size_t)snprintf(target + used, bytes - used, "%s'%s'",
                                 i == 0 ? "; did you mean " : " or ", near->best[i].name);
    if (near->count && used < bytes)
        snprintf(target + used, bytes - used, "?");
}
