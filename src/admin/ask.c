/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A question whose answer is yes or no.  Where nobody sits at a terminal nothing is
 * taken for a yes: scripts say --yes.
 */
#include "admin/admin.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#define TRIES 3

int ask_yes(struct admin *admin, const char *question, struct vgpu_error *error)
{
    char line[64];

    if (admin->yes)
        return 1;
    if (!isatty(STDIN_FILENO))
        return error_set(error, EINVAL,
                         "%s Nobody can be asked, as there is no terminal: say --yes", question);
    for (int i = 0; i < TRIES; i++) {
        fprintf(stderr, "%s (yes/no) ", question);
        if (!fgets(line, sizeof(line), stdin))
            return 0;
        line[strcspn(line, "\n")] = '\0';
        if (strcasecmp(line, "yes") == 0)
            return 1;
        if (strcasecmp(line, "no") == 0)
            return 0;
        fprintf(stderr, "Please answer yes or no.\n");
    }
    return 0;
}
