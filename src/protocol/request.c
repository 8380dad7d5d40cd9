/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From the bytes of request.txt or command.txt to one request.
 *
 *   " \n A:2:7:PING a:b \r\n\n"      what the file holds
 *        └─────┬──────┘              line_find(): the one line, without the
 *              │                     white space around it
 *     A │ 2 │ 7 │ PING a:b           three fields; the command is the rest,
 *                                    colons included
 *
 * A line counts only when a newline follows it: a client that writes in place
 * may be caught in the middle.  The checks go from coarse (several lines,
 * bytes that no text has) to fine (this vm_id), so that the reason that is
 * given is the first thing to repair.
 */
#include "protocol/private.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#define FIELD_COUNT 3
#define VM_ID_MAX_DIGITS 10

struct slice {
    const char *at;
    size_t bytes;
};

static bool is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

/* Cuts the white space around the text; tells whether a newline was in what
 * followed it. */
static struct slice line_find(const char *text, size_t bytes, bool *ret_ended)
{
    struct slice line = {text, bytes};
    bool ended = false;

    while (line.bytes > 0 && is_blank(line.at[line.bytes - 1])) {
        line.bytes--;
        if (line.at[line.bytes] == '\n')
            ended = true;
    }
    while (line.bytes > 0 && is_blank(line.at[0])) {
        line.at++;
        line.bytes--;
    }
    *ret_ended = ended;
    return line;
}

static size_t line_count(struct slice line)
{
    size_t count = 0;
    bool in_line = false;

    for (size_t i = 0; i < line.bytes; i++) {
        if (line.at[i] == '\n') {
            in_line = false;
        } else if (!in_line && !is_blank(line.at[i])) {
            in_line = true;
            count++;
        }
    }
    return count;
}

/* Printable ASCII only.  `text` is the file's beginning: people count bytes
 * from there, from 1. */
static int line_check_bytes(struct slice line, const char *text, struct vgpu_error *error)
{
    for (size_t i = 0; i < line.bytes; i++) {
        unsigned char c = (unsigned char)line.at[i];
        size_t position = (size_t)(line.at - text) + i + 1;

        if (c == 0)
            return error_set(error, EINVAL, "NUL byte at byte %zu: write text only", position);
        if (c < 0x20 || c == 0x7f)
            return error_set(error, EINVAL, "control character \\x%02x at byte %zu", c, position);
        if (c > 0x7f)
            return error_set(error, EINVAL, "byte \\x%02x at byte %zu is not ASCII", c, position);
    }
    return 0;
}

/*
 * The part that both files have in common.  PROTOCOL_REQUEST means that
 * *ret_line is one line of printable ASCII; the fields are still to be read.
 */
static enum protocol_verdict line_read(const char *text, size_t bytes, size_t max_bytes,
                                       struct slice *ret_line, struct vgpu_error *error)
{
    bool ended = false;
    struct slice line = line_find(text, bytes, &ended);
    size_t count = line_count(line);

    if (line.bytes == 0)
        return PROTOCOL_EMPTY;
    if (count > 1) {
        error_set(error, EINVAL, "request has %zu lines: send one, wait for its answer", count);
        return PROTOCOL_MALFORMED;
    }
    if (!ended && line.bytes > max_bytes) {
        error_set(error, EMSGSIZE, "request has %zu bytes and no newline: at most %zu are allowed",
                  line.bytes, max_bytes);
        return PROTOCOL_MALFORMED;
    }
    *ret_line = line;
    if (!ended)
        return PROTOCOL_INCOMPLETE;
    return line_check_bytes(line, text, error) < 0 ? PROTOCOL_MALFORMED : PROTOCOL_REQUEST;
}

/* "A", "A or B", "A, B or C" */
static const char *pools_describe(const char *pools, char *text, size_t bytes)
{
    size_t count = strlen(pools);
    size_t used = 0;

    text[0] = '\0';
    for (size_t i = 0; i < count && used + 6 < bytes; i++) {
        const char *joint = i == 0 ? "" : i + 1 == count ? " or " : ", ";
        size_t joint_bytes = strlen(joint);

        memcpy(text + used, joint, joint_bytes);
        used += joint_bytes;
        text[used++] = pools[i];
        text[used] = '\0';
    }
    return text;
}

static int pool_read(struct slice field, const char *pools, char *ret_pool,
                     struct vgpu_error *error)
{
    char quote[PROTOCOL_QUOTE_BYTES];
    char known[128];

    if (field.bytes != 1 || !strchr(pools, field.at[0]))
        return error_set(error, EINVAL, "pool '%s' does not exist: use %s",
                         protocol_quote(quote, field.at, field.bytes),
                         pools_describe(pools, known, sizeof(known)));
    *ret_pool = field.at[0];
    return 0;
}

static int priority_read(struct slice field, uint8_t *ret_priority, struct vgpu_error *error)
{
    char quote[PROTOCOL_QUOTE_BYTES];

    if (field.bytes != 1 || field.at[0] < '0' || field.at[0] > '2')
        return error_set(error, EINVAL, "priority '%s' is not 0 (low), 1 (medium) or 2 (high)",
                         protocol_quote(quote, field.at, field.bytes));
    *ret_priority = (uint8_t)(field.at[0] - '0');
    return 0;
}

static int vm_id_read(struct slice field, uint32_t own_vm_id, struct vgpu_error *error)
{
    char digits[VM_ID_MAX_DIGITS + 1] = "";
    char quote[PROTOCOL_QUOTE_BYTES];
    uint64_t value;

    if (field.bytes <= VM_ID_MAX_DIGITS)
        memcpy(digits, field.at, field.bytes);
    if (!text_parse_u64(digits, 0, UINT32_MAX, &value))
        return error_set(error, EINVAL,
                         "vm_id '%s' is not a number of 0 to 4294967295: "
                         "this directory's vm_id is %" PRIu32,
                         protocol_quote(quote, field.at, field.bytes), own_vm_id);
    if (value != own_vm_id)
        return error_set(error, EPERM, "vm_id %" PRIu64 " is not this directory's vm_id %" PRIu32,
                         value, own_vm_id);
    return 0;
}

static int command_read(struct slice rest, char command[VGPU_COMMAND_MAX_BYTES + 1],
                        struct vgpu_error *error)
{
    while (rest.bytes > 0 && rest.at[0] == ' ') {
        rest.at++;
        rest.bytes--;
    }
    if (rest.bytes == 0)
        return error_set(error, EINVAL, "command is empty: use %s", protocol_command_list());
    if (rest.bytes > VGPU_COMMAND_MAX_BYTES)
        return error_set(error, EMSGSIZE, "command has %zu bytes: at most %d are allowed",
                         rest.bytes, VGPU_COMMAND_MAX_BYTES);
    memcpy(command, rest.at, rest.bytes);
    command[rest.bytes] = '\0';
    return 0;
}

/* Cuts the fields before the first three colons; the rest stays in *line. */
static int fields_split(struct slice *line, struct slice fields[FIELD_COUNT],
                        const struct protocol_context *context, struct vgpu_error *error)
{
    char quote[PROTOCOL_QUOTE_BYTES];
    struct slice rest = *line;

    for (int i = 0; i < FIELD_COUNT; i++) {
        const char *colon = memchr(rest.at, ':', rest.bytes);

        if (!colon)
            return error_set(error, EINVAL,
                             "request '%s' has %d of 4 fields: "
                             "write pool:priority:vm_id:command, e.g. %c:1:%" PRIu32 ":VECTOR_ADD",
                             protocol_quote(quote, line->at, line->bytes), i + 1,
                             context->pools[0] ? context->pools[0] : 'A', context->vm_id);
        fields[i] = (struct slice){rest.at, (size_t)(colon - rest.at)};
        rest.bytes -= fields[i].bytes + 1;
        rest.at = colon + 1;
    }
    *line = rest;
    return 0;
}

enum protocol_verdict protocol_parse_request(const char *text, size_t bytes,
                                             const struct protocol_context *context,
                                             struct protocol_request *ret_request,
                                             struct vgpu_error *error)
{
    struct protocol_request request = {.vm_id = context->vm_id};
    struct slice line, fields[FIELD_COUNT];
    enum protocol_verdict verdict = line_read(text, bytes, VGPU_REQUEST_MAX_BYTES, &line, error);

    if (verdict != PROTOCOL_REQUEST)
        return verdict;
    if (fields_split(&line, fields, context, error) < 0 ||
        pool_read(fields[0], context->pools, &request.pool, error) < 0 ||
        priority_read(fields[1], &request.priority, error) < 0 ||
        vm_id_read(fields[2], context->vm_id, error) < 0 ||
        command_read(line, request.command, error) < 0)
        return PROTOCOL_MALFORMED;
    *ret_request = request;
    return PROTOCOL_REQUEST;
}

enum protocol_verdict protocol_parse_command_file(const char *text, size_t bytes,
                                                  const struct protocol_context *context,
                                                  struct protocol_request *ret_request,
                                                  struct vgpu_error *error)
{
    char command[VGPU_COMMAND_MAX_BYTES + 1] = "";
    struct slice line;
    enum protocol_verdict verdict = line_read(text, bytes, VGPU_COMMAND_MAX_BYTES, &line, error);

    /* The first clients wrote their number without a newline. */
    if (verdict == PROTOCOL_INCOMPLETE && line.bytes == 1 && line.at[0] >= '0' && line.at[0] <= '9')
        verdict = PROTOCOL_REQUEST;
    if (verdict != PROTOCOL_REQUEST)
        return verdict;
    if (command_read(line, command, error) < 0)
        return PROTOCOL_MALFORMED;
    memcpy(ret_request->command, command, sizeof(command));
    ret_request->vm_id = context->vm_id;
    return PROTOCOL_REQUEST;
}
