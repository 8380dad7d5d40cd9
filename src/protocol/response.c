/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Answers as lines, and the names of priorities.  An answer may carry what a
 * guest sent (PING, error texts), and a guest's program reads it line by line:
 * so it is escaped here, in the one place that all answers pass.
 */
#include "protocol/private.h"

#include <assert.h>
#include <string.h>

static const char *const priority_names[] = {"low", "medium", "high"};

size_t protocol_format_response(const struct protocol_response *response, char *line, size_t bytes)
{
    char *message = line + 2;

    assert(bytes >= PROTOCOL_RESPONSE_LINE_BYTES);
    (void)bytes;
    line[0] = response->success ? VGPU_STATUS_CHAR_SUCCESS : VGPU_STATUS_CHAR_ERROR;
    line[1] = ':';
    text_escape(message, VGPU_MESSAGE_MAX_BYTES + 1, response->message,
                strnlen(response->message, sizeof(response->message)));
    memcpy(message + strlen(message), "\n", sizeof("\n"));
    return strlen(line);
}

const char *protocol_priority_name(unsigned priority)
{
    return priority < VGPU_ARRAY_LENGTH(priority_names) ? priority_names[priority] : NULL;
}

bool protocol_parse_priority(const char *text, uint8_t *ret_priority)
{
    size_t bytes = strlen(text);

    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(priority_names); i++) {
        if (protocol_same_name(text, bytes, priority_names[i]) ||
            (bytes == 1 && text[0] == (char)('0' + i))) {
            *ret_priority = (uint8_t)i;
            return true;
        }
    }
    return false;
}
