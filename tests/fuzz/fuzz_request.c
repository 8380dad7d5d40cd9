/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any bytes as request.txt and as command.txt, and what follows from them: the
 * command understood, the answer written.  Not crashing is not enough; the
 * header's promises are required of every input.
 */
#include "fuzz.h"

#include "protocol/protocol.h"

#include <math.h>
#include <string.h>

#define OWN_VM_ID 7u
#define UNTOUCHED 0x5a

static const struct protocol_context own = {.vm_id = OWN_VM_ID, .pools = "AB"};

static bool is_printable(const char *text)
{
    for (; *text; text++) {
        if (*text < 0x20 || *text > 0x7e)
            return false;
    }
    return true;
}

static bool is_untouched(const void *memory, size_t bytes)
{
    const unsigned char *at = memory;

    for (size_t i = 0; i < bytes; i++) {
        if (at[i] != UNTOUCHED)
            return false;
    }
    return true;
}

static void require_message(const struct vgpu_error *error)
{
    size_t bytes = strnlen(error->message, sizeof(error->message));

    FUZZ_REQUIRE(error->code != 0);
    FUZZ_REQUIRE(bytes > 0 && bytes < sizeof(error->message));
    FUZZ_REQUIRE(is_printable(error->message));
}

/* One line, one status, one newline at the end, whatever the message holds. */
static void require_answer(bool success, const char *message, size_t bytes)
{
    struct protocol_response response = {.success = success};
    char line[PROTOCOL_RESPONSE_LINE_BYTES];
    size_t shown = bytes < sizeof(response.message) ? bytes : sizeof(response.message);
    size_t used;

    memcpy(response.message, message, shown);
    memset(line, UNTOUCHED, sizeof(line));
    used = protocol_format_response(&response, line, sizeof(line));
    FUZZ_REQUIRE(used >= 3 && used < sizeof(line));
    FUZZ_REQUIRE(line[used] == '\0' && strlen(line) == used);
    FUZZ_REQUIRE(line[0] == (success ? VGPU_STATUS_CHAR_SUCCESS : VGPU_STATUS_CHAR_ERROR));
    FUZZ_REQUIRE(line[1] == ':');
    FUZZ_REQUIRE(strchr(line, '\n') == line + used - 1);
    line[used - 1] = '\0';
    FUZZ_REQUIRE(is_printable(line));
}

static void require_understood(const char *text, const struct protocol_command *command)
{
    switch (command->operation) {
    case OPERATION_VECTOR_ADD:
        FUZZ_REQUIRE(isfinite(command->numbers[0]) && isfinite(command->numbers[1]));
        break;
    case OPERATION_MATRIX_MUL:
        FUZZ_REQUIRE(command->size >= 1 && command->size <= PROTOCOL_MATRIX_MAX);
        break;
    case OPERATION_SPIN:
        FUZZ_REQUIRE(command->size <= PROTOCOL_SPIN_MAX_MS);
        break;
    case OPERATION_PING:
    case OPERATION_TEST:
        FUZZ_REQUIRE(command->text >= text && command->text <= text + strlen(text));
        break;
    case OPERATION_GPU_INFO:
        break;
    default:
        FUZZ_REQUIRE(!"an operation of the list");
    }
    FUZZ_REQUIRE(command->text != NULL);
}

static void try_command(const char *text)
{
    struct protocol_command command;
    struct vgpu_error error;

    memset(&command, UNTOUCHED, sizeof(command));
    memset(&error, UNTOUCHED, sizeof(error));
    if (protocol_parse_command(text, &command, &error) == 0) {
        require_understood(text, &command);
        require_answer(true, command.text, strlen(command.text));
    } else {
        FUZZ_REQUIRE(is_untouched(&command, sizeof(command)));
        require_message(&error);
        require_answer(false, error.message, strlen(error.message));
    }
    FUZZ_REQUIRE(protocol_parse_command(text, &command, NULL) == 0 ||
                 is_untouched(&command, sizeof(command)));
}

/* What both files promise for each verdict. */
static void require_verdict(enum protocol_verdict verdict, const struct protocol_request *request,
                            const struct vgpu_error *error)
{
    if (verdict == PROTOCOL_REQUEST) {
        size_t bytes = strnlen(request->command, sizeof(request->command));

        FUZZ_REQUIRE(bytes > 0 && bytes <= VGPU_COMMAND_MAX_BYTES);
        FUZZ_REQUIRE(is_printable(request->command));
        FUZZ_REQUIRE(request->command[0] != ' ' && request->command[bytes - 1] != ' ');
        FUZZ_REQUIRE(request->vm_id == OWN_VM_ID);
        try_command(request->command);
    } else {
        FUZZ_REQUIRE(is_untouched(request, sizeof(*request)));
    }
    if (verdict == PROTOCOL_MALFORMED)
        require_message(error);
    else
        FUZZ_REQUIRE(is_untouched(error, sizeof(*error)));
}

/* The line says OWN_VM_ID in its third field: read here in another way, because
 * the parser fills in its own vm_id. */
static bool claims_own_vm_id(const char *text, size_t bytes)
{
    char claim[VGPU_REQUEST_MAX_BYTES + 1] = "";
    const char *first = memchr(text, ':', bytes);
    const char *second = first ? memchr(first + 1, ':', bytes - (size_t)(first + 1 - text)) : NULL;
    size_t left = second ? bytes - (size_t)(second + 1 - text) : 0;
    char *end = claim;

    if (left == 0)
        return false;
    memcpy(claim, second + 1, left < VGPU_REQUEST_MAX_BYTES ? left : VGPU_REQUEST_MAX_BYTES);
    return strtoull(claim, &end, 10) == OWN_VM_ID && *end == ':';
}

static void try_request_file(const char *text, size_t bytes)
{
    struct protocol_request request;
    struct vgpu_error error;
    enum protocol_verdict verdict;

    memset(&request, UNTOUCHED, sizeof(request));
    memset(&error, UNTOUCHED, sizeof(error));
    verdict = protocol_parse_request(text, bytes, &own, &request, &error);
    require_verdict(verdict, &request, &error);
    if (verdict == PROTOCOL_REQUEST) {
        FUZZ_REQUIRE(request.priority <= 2);
        FUZZ_REQUIRE(request.pool == 'A' || request.pool == 'B');
        FUZZ_REQUIRE(memchr(text, '\n', bytes) != NULL);
        FUZZ_REQUIRE(claims_own_vm_id(text, bytes));
    }
    /* The verdict does not depend on whether somebody wants the reason. */
    FUZZ_REQUIRE(protocol_parse_request(text, bytes, &own, &request, NULL) == verdict);
}

static void try_command_file(const char *text, size_t bytes)
{
    struct protocol_request request;
    struct vgpu_error error;
    enum protocol_verdict verdict;

    memset(&request, UNTOUCHED, sizeof(request));
    memset(&error, UNTOUCHED, sizeof(error));
    verdict = protocol_parse_command_file(text, bytes, &own, &request, &error);
    require_verdict(verdict, &request, &error);
    if (verdict == PROTOCOL_REQUEST)
        FUZZ_REQUIRE(request.pool == UNTOUCHED && request.priority == UNTOUCHED);
}

/* What a program may hand over without a file: any string. */
static void try_string(const char *data, size_t bytes)
{
    char *text = malloc(bytes + 1);
    uint8_t priority = UNTOUCHED;

    if (!text)
        abort();
    memcpy(text, data, bytes);
    text[bytes] = '\0';
    try_command(text);
    if (protocol_parse_priority(text, &priority))
        FUZZ_REQUIRE(priority <= 2 && protocol_priority_name(priority));
    else
        FUZZ_REQUIRE(priority == UNTOUCHED);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    const char *text = (const char *)data;

    try_request_file(text, bytes);
    try_command_file(text, bytes);
    try_string(text, bytes);
    require_answer(true, text, bytes);
    return 0;
}
