/* SPDX-License-Identifier: Apache-2.0 */
/*
 * protocol/ - text requests and responses, and the window channel's descriptors.
 *
 * Everything here reads bytes that a guest wrote: any byte may stand anywhere,
 * and the answer to nonsense is a reason, never a guess.  Pure: no I/O, no
 * allocation, no state; safe from any thread.
 */
#ifndef VGPU_PROTOCOL_H
#define VGPU_PROTOCOL_H

#include "base/base.h"
#include "vgpu/file_channel.h"
#include "vgpu/window.h"

/* A request as a guest claims it.  The claims are validated, never believed
 * for a registered VM. */
struct protocol_request {
    char pool;
    uint8_t priority;
    uint32_t vm_id;
    char command[VGPU_COMMAND_MAX_BYTES + 1];
};

enum protocol_verdict {
    PROTOCOL_EMPTY,      /* nothing but white space at its end: no request */
    PROTOCOL_INCOMPLETE, /* no newline yet: half a line is not a request */
    PROTOCOL_REQUEST,    /* *ret_request is filled */
    PROTOCOL_MALFORMED,  /* *error says what was expected and what came */
};

/* What a channel knows of itself when it parses. */
struct protocol_context {
    uint32_t vm_id;    /* whose channel this is; a claim that differs is refused */
    const char *pools; /* the pools' letters, e.g. "AB" */
};

/*
 * Parses the contents of request.txt: `pool:priority:vm_id:command` or
 * `pool:priority:vm_id:num1:num2`.  The first three colons end the three
 * fields; everything after the third one is the command, further colons
 * included (`A:2:7:3:4` has the command `3:4`, `A:2:7:PING a:b` has `PING a:b`).
 *
 * White space (blank, tab, CR, LF) around the line is not part of it: a line
 * may end with "\n" or "\r\n", and blank lines before and after it are
 * ignored, as are blanks between the third colon and the command.  Inside, the
 * fields are taken literally: `A`, not `a` or ` A`.  Only a line that a "\n"
 * follows is a request; without one it is INCOMPLETE, whatever it says, until
 * it is longer than any request can be.  No bytes, or white space alone, with
 * or without newline, is EMPTY.
 *
 * Refused with a reason: an unknown pool, a priority that is not 0..2, a
 * vm_id that is not the channel's, an empty command or one of more than
 * VGPU_COMMAND_MAX_BYTES bytes, control characters (tabs inside the line too),
 * NUL bytes, bytes outside ASCII, several lines (also when the last of them is
 * not ended yet).  Messages count bytes from 1 at the start of the file.
 *
 * Whether the command is known is not looked at here: a command is
 * understood where it runs, by protocol_parse_command().
 *
 * *ret_request is filled only for REQUEST, *error only for MALFORMED; a
 * message is printable ASCII, with what the guest wrote escaped and cut short.
 */
enum protocol_verdict protocol_parse_request(const char *text, size_t bytes,
                                             const struct protocol_context *context,
                                             struct protocol_request *ret_request,
                                             struct vgpu_error *error);

/*
 * Parses the contents of command.txt, the first protocol's file: a number, or
 * any command, with the same rules for white space and bytes.  A digit alone is
 * complete without a newline, because the first clients wrote none; who writes
 * `1:2` must write it at once or rename.  Fills only ret_request->command and
 * ->vm_id; pool and priority are left as the caller set them.
 */
enum protocol_verdict protocol_parse_command_file(const char *text, size_t bytes,
                                                  const struct protocol_context *context,
                                                  struct protocol_request *ret_request,
                                                  struct vgpu_error *error);

/* What a command asks a worker to do. */
enum protocol_operation {
    OPERATION_VECTOR_ADD, /* two numbers, or none: the self-check */
    OPERATION_MATRIX_MUL, /* n, default 64 */
    OPERATION_GPU_INFO,
    OPERATION_PING,   /* optional text, echoed */
    OPERATION_SPIN,   /* milliseconds */
    OPERATION_REDUCE, /* elements */
    OPERATION_TEST,   /* TEST_*: succeeds and echoes */
};

#define PROTOCOL_MATRIX_MAX 1024u
#define PROTOCOL_REDUCE_MAX (1u << 24)
#define PROTOCOL_SPIN_MAX_MS 600000u

struct protocol_command {
    enum protocol_operation operation;
    bool has_numbers;  /* VECTOR_ADD with two numbers */
    double numbers[2]; /* finite */
    uint32_t size;     /* MATRIX_MUL: n; SPIN: milliseconds; REDUCE: elements */
    const char *text;  /* PING: what follows the name; TEST: all of the command;
                        * into the command, "" if none */
};

/*
 * Understands a command: names (`VECTOR_ADD [a b]`, `MATRIX_MUL [n]`,
 * `GPU_INFO`, `PING [text]`, `SPIN ms`, `TEST_*`), the first protocol's
 * numbers (`1`: VECTOR_ADD, `2`: GPU_INFO) and `num1:num2` (VECTOR_ADD).
 * Names are matched in any case; one or more blanks part the arguments.  a, b,
 * num1 and num2 are decimal (`3`, `-0.5`, `2e6`) and finite in every locale: no
 * hexadecimal, no inf, no nan, no blanks around the colon.
 * Returns 0, or -1 with a message that names the commands or the arguments that
 * were expected.  ret_command->text points into `command`.
 */
int protocol_parse_command(const char *command, struct protocol_command *ret_command,
                           struct vgpu_error *error);

/* "VECTOR_ADD [a b], MATRIX_MUL [n], ...": for messages and help. */
const char *protocol_command_list(void);

/* An answer: status and one line of text. */
struct protocol_response {
    bool success;
    char message[VGPU_MESSAGE_MAX_BYTES + 1];
};

/*
 * Writes `1:message\n` or `2:message\n` with everything outside printable
 * ASCII escaped, and cut where escapes make it longer than the maximum.
 * Returns the bytes without NUL; `bytes` must be at least
 * PROTOCOL_RESPONSE_LINE_BYTES.
 */
#define PROTOCOL_RESPONSE_LINE_BYTES (2 + VGPU_MESSAGE_MAX_BYTES + 1 + 1)
size_t protocol_format_response(const struct protocol_response *response, char *line, size_t bytes);

/* "low", "medium", "high"; NULL for anything else. */
const char *protocol_priority_name(unsigned priority);

/* Parses 0..2 or low/medium/high (any case). */
bool protocol_parse_priority(const char *text, uint8_t *ret_priority);

/* --- the window channel ------------------------------------------------------- */

/*
 * Is this an operation, and can its fields have these values?  `descriptor` is a
 * private copy: what is checked here must not change afterwards.  `slot_bytes` is
 * the host's own knowledge, at least VGPU_SLOT_MIN_BYTES, as is the number of devices
 * that the session has, from 1.
 *
 * VGPU_OK; VGPU_BAD_OPCODE; VGPU_INVALID for flags, sizes and unused words that
 * cannot be; VGPU_BAD_HANDLE for a device that it has not; VGPU_BAD_ADDRESS for a
 * place that is not in the slot's arena or heap (names and parameters of launches:
 * in the arena).  After VGPU_OK all places in the slot may be used as they are.
 * What only a device knows (its addresses, handles, names of kernels) is not
 * looked at.
 */
enum vgpu_status protocol_check_descriptor(const struct vgpu_descriptor *descriptor,
                                           uint64_t slot_bytes, unsigned device_count);

#endif /* VGPU_PROTOCOL_H */
