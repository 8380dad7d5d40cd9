/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Users and groups of this host, as administrators write them: by name or number.
 */
#include "base/base.h"

#include <grp.h>
#include <pwd.h>
#include <string.h>

static bool parse_user(const char *text, uid_t *ret_uid, gid_t *ret_gid)
{
    const struct passwd *user;
    uint64_t id;

    if (text_parse_u64(text, 0, UINT32_MAX - 1, &id)) {
        *ret_uid = (uid_t)id;
        *ret_gid = (gid_t)id;
        return true;
    }
    user = getpwnam(text);
    if (!user)
        return false;
    *ret_uid = user->pw_uid;
    *ret_gid = user->pw_gid;
    return true;
}

bool account_parse_group(const char *text, gid_t *ret_gid)
{
    const struct group *group;
    uint64_t id;

    if (text_parse_u64(text, 0, UINT32_MAX - 1, &id)) {
        *ret_gid = (gid_t)id;
        return true;
    }
    group = getgrnam(text);
    if (group)
        *ret_gid = group->gr_gid;
    return group != NULL;
}

bool account_parse_owner(const char *text, uid_t *ret_uid, gid_t *ret_gid)
{
    char copy[128], *colon;
    uid_t uid;
    gid_t gid;

    if (strlen(text) >= sizeof(copy))
        return false;
    text_copy(copy, sizeof(copy), text);
    colon = strchr(copy, ':');
    if (colon)
        *colon++ = '\0';
    if (!parse_user(copy, &uid, &gid) || (colon && !account_parse_group(colon, &gid)))
        return false;
    *ret_uid = uid;
    *ret_gid = gid;
    return true;
}
