/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A worker that misbehaves, for test_exec_hostile and test_exec_worker:
 * what it does is named by --backend.  It shows what a worker that guests' work has taken over
 * could do to the mediator.
 */
#include "exec/private.h"

#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

static struct exec_operation_message operation;

static struct exec_result_message good_result(void)
{
    struct exec_result_message result = {
        .magic = EXEC_MESSAGE_MAGIC,
        .version = EXEC_MESSAGE_VERSION,
        .sequence = operation.sequence,
        .success = 1,
        .message = "fake",
    };

    return result;
}

static void send_bytes(const void *data, size_t bytes)
{
    if (send(EXEC_SOCKET_FD, data, bytes, MSG_NOSIGNAL) < 0)
        _exit(EXIT_FAILURE);
}

static void send_text(const char *text)
{
    struct exec_result_message result = good_result();

    text_copy(result.message, sizeof(result.message), text);
    send_bytes(&result, sizeof(result));
}

static void wait_to_be_killed(void)
{
    for (;;)
        pause();
}

static void send_short(void)
{
    send_bytes("garbage", 7);
    wait_to_be_killed();
}

static void send_long(void)
{
    static char bytes[3000];
    struct exec_result_message result = good_result();

    memcpy(bytes, &result, sizeof(result)); /* a good one, and more behind it */
    send_bytes(bytes, sizeof(bytes));
    wait_to_be_killed();
}

static void send_empty(void)
{
    send_bytes("", 0);
    wait_to_be_killed();
}

static void send_other_sequence(void)
{
    struct exec_result_message result = good_result();

    result.sequence++;
    send_bytes(&result, sizeof(result));
    wait_to_be_killed();
}

static void send_other_version(void)
{
    struct exec_result_message result = good_result();

    result.version = 99;
    send_bytes(&result, sizeof(result));
    wait_to_be_killed();
}

static void send_endless_message(void)
{
    struct exec_result_message result = good_result();

    memset(result.message, 'x', sizeof(result.message));
    send_bytes(&result, sizeof(result));
    wait_to_be_killed();
}

static void send_odd_success(void)
{
    struct exec_result_message result = good_result();

    result.success = 7;
    send_bytes(&result, sizeof(result));
    wait_to_be_killed();
}

static void send_without_end(void)
{
    struct exec_result_message result = good_result();

    for (;;)
        send_bytes(&result, sizeof(result));
}

static void send_garbage_and_exit(void)
{
    send_bytes("garbage", 7);
    _exit(EXIT_SUCCESS);
}

static void send_and_exit(void)
{
    send_text("last words");
    _exit(EXIT_SUCCESS);
}

static void send_and_crash(void)
{
    send_text("last words");
    signal(SIGSEGV, SIG_DFL); /* a sanitizer's handler would turn it into an exit */
    raise(SIGSEGV);
}

static void crash(void)
{
    signal(SIGSEGV, SIG_DFL);
    raise(SIGSEGV);
}

static void exit_three(void)
{
    _exit(3);
}

static void close_socket(void)
{
    close(EXEC_SOCKET_FD);
    wait_to_be_killed();
}

static void claim_much_time(void)
{
    struct exec_result_message result = good_result();

    result.device_us = UINT64_MAX;
    send_bytes(&result, sizeof(result));
}

/* Sends the mediator a descriptor that it did not ask for. */
static void send_descriptor(void)
{
    struct exec_result_message result = good_result();
    struct iovec part = {&result, sizeof(result)};
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {.header = {.cmsg_len = CMSG_LEN(sizeof(int)),
                            .cmsg_level = SOL_SOCKET,
                            .cmsg_type = SCM_RIGHTS}};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof(control)};
    int fd = EXEC_RECORD_FD;

    memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
    if (sendmsg(EXEC_SOCKET_FD, &message, MSG_NOSIGNAL) < 0)
        _exit(EXIT_FAILURE);
}

static void report_descriptors(void)
{
    DIR *directory = opendir("/proc/self/fd");
    char text[VGPU_MESSAGE_MAX_BYTES + 1] = "";
    const struct dirent *entry;
    bool open_fds[256] = {false};

    while (directory && (entry = readdir(directory))) {
        int fd = atoi(entry->d_name);

        if (entry->d_name[0] != '.' && fd != dirfd(directory) && fd < 256)
            open_fds[fd] = true;
    }
    for (int fd = 0; fd < 256; fd++) {
        size_t used = strlen(text);

        if (open_fds[fd])
            snprintf(text + used, sizeof(text) - used, "%d ", fd);
    }
    send_text(text);
    closedir(directory);
}

static void report_environment(void)
{
    char text[VGPU_MESSAGE_MAX_BYTES + 1] = "";

    for (char **at = environ; *at; at++) {
        size_t used = strlen(text);

        snprintf(text + used, sizeof(text) - used, "%.*s ", (int)strcspn(*at, "="), *at);
    }
    send_text(text);
}

static void report_process(void)
{
    char text[128], directory[64] = "?";

    if (!getcwd(directory, sizeof(directory)))
        directory[0] = '\0';
    snprintf(text, sizeof(text), "leader=%d directory=%s", getsid(0) == getpid(), directory);
    send_text(text);
}

static const struct {
    const char *name;
    void (*misbehave)(void);
} behaviours[] = {
    {"short", send_short},
    {"long", send_long},
    {"empty", send_empty},
    {"sequence", send_other_sequence},
    {"version", send_other_version},
    {"endless", send_endless_message},
    {"success", send_odd_success},
    {"flood", send_without_end},
    {"garbage-exit", send_garbage_and_exit},
    {"result-exit", send_and_exit},
    {"result-crash", send_and_crash},
    {"crash", crash},
    {"exit3", exit_three},
    {"close", close_socket},
    {"time", claim_much_time},
    {"descriptor", send_descriptor},
    {"report-descriptors", report_descriptors},
    {"report-environment", report_environment},
    {"report-process", report_process},
};

int main(int argc, char **argv)
{
    const char *backend = "";

    for (int i = 1; i + 1 < argc; i++) {
        if (strcmp(argv[i], "--backend") == 0)
            backend = argv[i + 1];
    }
    if (strcmp(backend, "unasked") == 0) {
        operation.sequence = 1;
        send_text("nobody asked");
        wait_to_be_killed();
    }
    while (recv(EXEC_SOCKET_FD, &operation, sizeof(operation), 0) > 0) {
        for (size_t i = 0; i < VGPU_ARRAY_LENGTH(behaviours); i++) {
            if (strcmp(backend, behaviours[i].name) == 0)
                behaviours[i].misbehave();
        }
    }
    return EXIT_SUCCESS;
}
