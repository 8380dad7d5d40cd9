/* SPDX-License-Identifier: Apache-2.0 */
/* Text commands: the command and room for its answer lie in the arena's first
 * half, shared out like the heap. */
#include "private.h"

#include <string.h>

#define ANSWER_MAX_BYTES 16384u

static int check(const char *command, size_t answer_bytes, struct vgpu_problem *problem)
{
    size_t bytes = strlen(command);

    if (bytes < 1 || bytes > VGPU_TEXT_MAX_BYTES)
        return problem_set(problem, VGPU_PROBLEM_ARGUMENT,
                           "a text command has 1 to %u bytes, this one %zu", VGPU_TEXT_MAX_BYTES,
                           bytes);
    if (answer_bytes < 1)
        return problem_set(problem, VGPU_PROBLEM_ARGUMENT,
                           "there is no room for an answer: expected 1 byte or more");
    return 0;
}

static int answer_of(struct vgpu_session *session, const struct vgpu_result *result,
                     uint64_t offset, uint32_t room, char *answer, struct vgpu_problem *problem)
{
    uint64_t bytes = result->value < room ? result->value : room;

    if (result->status != VGPU_OK && result->status != VGPU_COMMAND_FAILED)
        return session_problem_of(session, problem, result->status, "text command");
    memcpy(answer, session->slot + offset, bytes);
    answer[bytes] = '\0';
    return result->status == VGPU_OK ? 0 : 1;
}

int vgpu_text(struct vgpu_session *session, const char *command, char *answer, size_t answer_bytes,
              struct vgpu_problem *problem)
{
    uint32_t room = answer_bytes > ANSWER_MAX_BYTES ? ANSWER_MAX_BYTES : (uint32_t)answer_bytes - 1;
    struct vgpu_descriptor descriptor = {.opcode = VGPU_OP_TEXT};
    struct vgpu_result result;
    vgpu_ticket ticket = 0;
    uint64_t offset;
    int status = -1;

    if (!session_usable(session))
        return session_refuse(session, problem);
    if (check(command, answer_bytes, problem) < 0)
        return -1;
    offset = heap_take(&session->texts, VGPU_TEXT_MAX_BYTES + room);
    if (!offset)
        return problem_set(problem, VGPU_PROBLEM_FULL,
                           "the arena has no room for one more text command at once");
    descriptor.text.command_offset = offset;
    descriptor.text.command_bytes = (uint32_t)strlen(command);
    descriptor.text.answer_offset = offset + VGPU_TEXT_MAX_BYTES;
    descriptor.text.answer_bytes = room;
    memcpy(session->slot + offset, command, descriptor.text.command_bytes);
    if (own_submit(session, &descriptor, &ticket, problem) == 0 &&
        own_wait(session, ticket, &result, problem) == 0)
        status = answer_of(session, &result, offset + VGPU_TEXT_MAX_BYTES, room, answer, problem);
    heap_give(&session->texts, offset);
    return status;
}
