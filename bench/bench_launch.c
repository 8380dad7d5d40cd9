/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a launch costs, for `valgrind --tool=callgrind` of a session's worker, or of this:
 *
 *   bench_launch SOCKET COUNT EVERY
 *
 * launches an empty kernel COUNT times, asks for a synchronisation behind each EVERY of them and
 * waits for none before the last: so the worker always has the next operation, and no look at
 * an empty ring is counted.  Then it says "done" and waits for the end of its input, with the
 * session open.  bench/launches.py divides.
 */
#include "probe.h"

#include <stdlib.h>

static void count(struct vgpu_session *session, const struct vgpu_result *result, void *context)
{
    unsigned long *answered = context;

    (void)session;
    MUST(result->status == VGPU_OK);
    ++*answered;
}

static void launch(struct vgpu_session *session, uint64_t memory)
{
    static const uint32_t one[3] = {1, 1, 1};
    const uint64_t parameters[] = {memory, 1};

    GOOD(vgpu_launch(session, 0, "increment", one, one, parameters, 2, &problem));
}

static unsigned long run(struct vgpu_session *session, uint64_t memory, unsigned long times,
                         unsigned long every)
{
    const struct vgpu_descriptor sync = {.opcode = VGPU_OP_STREAM_SYNC};
    unsigned long answered = 0;

    for (unsigned long i = 1; i <= times; i++) {
        launch(session, memory);
        if (i % every == 0)
            GOOD(vgpu_submit(session, &sync, count, &answered, NULL, &problem));
    }
    GOOD(vgpu_stream_sync(session, 0, &problem));
    return answered;
}

int main(int argc, char **argv)
{
    struct vgpu_options options = VGPU_OPTIONS_DEFAULT;
    struct vgpu_session *session;
    unsigned long times = argc == 4 ? strtoul(argv[2], NULL, 10) : 0;
    unsigned long every = argc == 4 ? strtoul(argv[3], NULL, 10) : 0;

    if (times < 1 || every < 1) {
        fprintf(stderr, "usage: bench_launch SOCKET COUNT EVERY   (both 1 or more)\n");
        return 2;
    }
    options.transport = VGPU_TRANSPORT_SOCKET;
    options.path = argv[1];
    options.open_timeout_ms = 60000; /* a worker under callgrind starts slowly */
    GOOD(vgpu_open(&options, &session, &problem));
    MUST(run(session, allocate(session, 4096), times, every) == times / every);
    puts("done");
    fflush(stdout);
    while (getchar() != EOF)
        ;
    vgpu_close(session);
    return 0;
}
