/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A window session's worker that breaks the rules of its messages: the backend's name
 * says how.  It accepts the mediator as a worker does, says what it should not, and
 * waits to be ended.
 */
#include "exec/session_private.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static struct session_message of(enum session_message_type type)
{
    return (struct session_message){
        .magic = SESSION_MESSAGE_MAGIC, .version = SESSION_MESSAGE_VERSION, .type = (uint16_t)type};
}

static void say(int fd, const struct session_message *message, size_t bytes)
{
    if (send(fd, message, bytes, MSG_NOSIGNAL) < 0)
        exit(3);
}

static void say_type(int fd, enum session_message_type type)
{
    struct session_message message = of(type);

    if (type == SESSION_WORK)
        message.work.depth = 1;
    if (type == SESSION_FAULTED) /* no NUL, nothing to print */
        memset(message.faulted.reason, 0x1b, sizeof(message.faulted.reason));
    say(fd, &message, sizeof(message));
}

static void misbehave(int fd, const char *how)
{
    struct session_message message = of(SESSION_HELLO);

    if (strcmp(how, "half") == 0) {
        say(fd, &message, sizeof(message) / 2);
    } else if (strcmp(how, "magic") == 0) {
        message.magic++;
        say(fd, &message, sizeof(message));
    } else if (strcmp(how, "version") == 0) {
        message.version++;
        say(fd, &message, sizeof(message));
    } else if (strcmp(how, "early") == 0) {
        say_type(fd, SESSION_WORK);
    } else {
        say_type(fd, SESSION_HELLO);
    }
    if (strcmp(how, "hello-again") == 0)
        say_type(fd, SESSION_HELLO);
    else if (strcmp(how, "returns-nothing") == 0)
        say_type(fd, SESSION_RETURNED);
    else if (strcmp(how, "unknown") == 0)
        say_type(fd, (enum session_message_type)99);
    else if (strcmp(how, "grants") == 0)
        say_type(fd, SESSION_GRANT);
    else if (strcmp(how, "faults-twice") == 0 || strcmp(how, "faults") == 0)
        say_type(fd, SESSION_FAULTED);
    else if (strcmp(how, "work-twice") == 0)
        say_type(fd, SESSION_WORK);
    if (strcmp(how, "faults-twice") == 0)
        say_type(fd, SESSION_FAULTED);
    else if (strcmp(how, "work-twice") == 0)
        say_type(fd, SESSION_WORK);
    else if (strcmp(how, "hangs-up") == 0)
        close(fd);
}

int main(int argc, char **argv)
{
    const char *how = "";
    int fd;

    for (int i = 1; i + 1 < argc; i++) {
        if (strcmp(argv[i], "--backend") == 0)
            how = argv[i + 1];
    }
    fd = accept(SESSION_LISTENER_FD, NULL, NULL);
    if (fd < 0)
        return 2;
    misbehave(fd, how);
    for (;;)
        pause();
}
