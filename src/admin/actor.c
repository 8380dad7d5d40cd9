/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who runs this, for the audit.  The kernel keeps the user who logged in across su
 * and sudo (loginuid); without it root may be told by sudo who asked.  Anybody can
 * set SUDO_USER, so it counts for root alone.
 */
#include "admin/admin.h"

#include <fcntl.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void user_name(uid_t uid, char *text, size_t bytes)
{
    const struct passwd *user = getpwuid(uid);

    if (user)
        text_escape(text, bytes, user->pw_name, strlen(user->pw_name));
    else
        snprintf(text, bytes, "uid %u", (unsigned)uid);
}

static bool login_uid(uid_t *ret_uid)
{
    int fd = open("/proc/self/loginuid", O_RDONLY | O_CLOEXEC);
    char text[16] = "";
    uint64_t uid;
    bool known;

    known = fd >= 0 && read(fd, text, sizeof(text) - 1) > 0;
    fd_close(&fd);
    text[strcspn(text, "\n")] = '\0';
    /* The largest number means that nobody has logged in. */
    if (!known || !text_parse_u64(text, 0, UINT32_MAX - 1, &uid))
        return false;
    *ret_uid = (uid_t)uid;
    return true;
}

const char *actor_name(void)
{
    static char name[STORE_ACTOR_BYTES];
    char user[STORE_ACTOR_BYTES - 8];
    const char *sudo = getenv("SUDO_USER");
    uid_t uid = getuid(), login;

    if (uid == 0 && login_uid(&login) && login != 0) {
        user_name(login, user, sizeof(user));
        snprintf(name, sizeof(name), "%s (%s)", user, sudo ? "sudo" : "root");
    } else if (uid == 0 && sudo && sudo[0] && strcmp(sudo, "root") != 0) {
        text_escape(user, sizeof(user), sudo, strlen(sudo));
        snprintf(name, sizeof(name), "%s (sudo)", user);
    } else {
        user_name(uid, name, sizeof(name));
    }
    return name;
}
