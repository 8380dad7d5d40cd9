/* SPDX-License-Identifier: Apache-2.0 */
/*
 * control/ - how vgpu-admin (and other local programs) talk to a running mediator:
 * one JSON object a line over a unix stream socket, run_dir/control.sock.
 *
 *   {"version":1,"id":7,"command":"test-mode","arguments":{"action":"on"}}
 *   {"version":1,"id":7,"ok":true,"result":{...}}
 *   {"version":1,"id":7,"ok":false,"error":{"code":"no-such-vm","message":"..."}}
 *
 * The client's half and what both halves share live here; the mediator's half is
 * src/mediator/control.c, and vgpu-relay's, for a mediator in another domain,
 * src/relay/control.c.  docs/control.md lists the commands.  The socket belongs
 * to root and the group vgpu (0660); the peer's credentials are checked besides.
 *
 * Not thread-safe: one thread owns a struct control.
 */
#ifndef VGPU_CONTROL_H
#define VGPU_CONTROL_H

#include "base/base.h"

#include <jansson.h>
#include <limits.h>
#include <sys/un.h>

#define CONTROL_VERSION 1
#define CONTROL_SOCKET_NAME "control.sock"
#define CONTROL_DEFAULT_PATH "/run/vgpu/control.sock"
#define CONTROL_REQUEST_MAX_BYTES 16384u
#define CONTROL_ANSWER_MAX_BYTES (8u << 20) /* 10,000 VMs */
#define CONTROL_CONNECTIONS_MAX 16u
#define CONTROL_RESERVED 4u         /* of these, for root and the mediator's own user */
#define CONTROL_REQUESTS_PER_S 100u /* a connection; more wait */

struct control;
struct ucred;

/* Connects and says hello.  error.code: ENOENT or ECONNREFUSED when no mediator
 * listens, EACCES, EPROTO for another version, EBUSY for too many connections,
 * ETIMEDOUT. */
int control_connect(const char *path, struct control **ret_control, struct vgpu_error *error);
void control_close(struct control *control);

/* One command and its result, which the caller owns (json_decref()).  `arguments`
 * may be NULL and is not taken over.  When the mediator refused: -1, error.code
 * EREMOTEIO, the message is the mediator's, and `code` (when not NULL) its code.  After
 * any other failure the connection has ended (ENOTCONN from then on). */
int control_call(struct control *control, const char *command, json_t *arguments, int timeout_ms,
                 json_t **ret_result, char code[64], struct vgpu_error *error);

/* The address of the socket at `path`.  Where that is too long for one, it goes by
 * *ret_directory_fd, which stays open until bind(2) or connect(2); else -1. */
int control_address(const char *path, struct sockaddr_un *ret_address, int *ret_directory_fd,
                    struct vgpu_error *error);

/* --- listen.c: a server's socket ------------------------------------------------------- */

struct control_listener {
    int fd; /* does not block; -1: none */
    char path[PATH_MAX + 16];
    dev_t device;
    ino_t inode; /* of the name, so that only our own is removed */
    gid_t group; /* (gid_t)-1: there is none */
};

/* Makes `directory` and the socket in it, in the place of one that is there.  `group` is a
 * name or a number; where there is none of this name the socket is root's alone. */
int control_listen(struct control_listener *listener, const char *directory, const char *group,
                   struct vgpu_error *error);
void control_listen_end(struct control_listener *listener);

/* Whether the peer of connection `fd` may speak. */
bool control_is_allowed(const struct control_listener *listener, int fd, struct ucred *ret_peer);

#endif /* VGPU_CONTROL_H */
