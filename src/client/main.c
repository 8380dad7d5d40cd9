/* SPDX-License-Identifier: Apache-2.0 */
/* vgpu-client: see client.h for the way through this room. */
#include "client.h"

int command_fail(const struct options *options, const struct failure *failure)
{
    struct json json;

    if (options->json) {
        json_begin(&json, stdout);
        json_end(&json, failure->exit_code, failure);
        return failure->exit_code;
    }
    fprintf(stderr, "vgpu-client: %s\n", failure->text);
    if (failure->remedy[0])
        fprintf(stderr, "  remedy   %s\n", failure->remedy);
    return failure->exit_code;
}

static int run(const struct options *options)
{
    switch (options->action) {
    case ACTION_INFO:
        return command_info(options);
    case ACTION_DOCTOR:
        return command_doctor(options);
    case ACTION_BENCH:
        return command_bench(options);
    default:
        return command_request(options);
    }
}

int main(int argc, char **argv)
{
    struct options options;
    struct failure failure = {0};
    int result;

    if (options_parse(argc, argv, &options, &failure) < 0)
        return command_fail(&options, &failure);
    result = run(&options);
    if (fflush(stdout) != 0 || ferror(stdout)) {
        fprintf(stderr, "vgpu-client: cannot write to standard output\n");
        return result ? result : CLIENT_EXIT_SYSTEM;
    }
    return result;
}
