/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an operation costs the guest's library, for `valgrind --tool=callgrind`:
 * submits and takes COUNT pings, BATCH at once, and nothing else.
 *
 *   bench_ring SOCKET COUNT BATCH
 *
 * bench/window.py collects inside of vgpu_submit() or vgpu_poll() only, and divides.
 */
#include "vgpu/vgpu.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define BATCH_MAX 512
#define BATCH_US 2000

static int run(struct vgpu_session *session, unsigned long count, unsigned long batch,
               struct vgpu_problem *problem)
{
    const struct vgpu_descriptor ping = {.opcode = VGPU_OP_PING};
    struct vgpu_result results[BATCH_MAX];
    unsigned long submitted = 0, answered = 0;
    vgpu_ticket ticket;

    while (answered < count) {
        int got;

        if (batch > 1)
            vgpu_batch_begin(session);
        for (; submitted < count && submitted - answered < batch; submitted++) {
            if (vgpu_submit(session, &ping, NULL, NULL, &ticket, problem) < 0)
                return -1;
        }
        if (batch > 1)
            vgpu_batch_end(session);
        /* All are there by then, so a look that finds nothing is no operation's. */
        usleep(BATCH_US);
        got = vgpu_poll(session, results, (int)batch, problem);
        if (got < 0)
            return -1;
        answered += (unsigned long)got;
    }
    return 0;
}

int main(int argc, char **argv)
{
    struct vgpu_options options = VGPU_OPTIONS_DEFAULT;
    struct vgpu_session *session;
    struct vgpu_problem problem;
    unsigned long batch;
    int result;

    batch = argc == 4 ? strtoul(argv[3], NULL, 10) : 0;
    if (batch < 1 || batch > BATCH_MAX) {
        fprintf(stderr, "usage: bench_ring SOCKET COUNT BATCH   (BATCH: 1 to %d)\n", BATCH_MAX);
        return 2;
    }
    options.transport = VGPU_TRANSPORT_SOCKET;
    options.path = argv[1];
    if (vgpu_open(&options, &session, &problem) < 0) {
        fprintf(stderr, "bench_ring: %s\n", problem.text);
        return 1;
    }
    result = run(session, strtoul(argv[2], NULL, 10), batch, &problem);
    if (result < 0)
        fprintf(stderr, "bench_ring: %s\n", problem.text);
    vgpu_close(session);
    return result < 0;
}
