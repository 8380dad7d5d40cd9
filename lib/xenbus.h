/* SPDX-License-Identifier: Apache-2.0 */
/*
 * xenbus.h - what a guest's program and the host's vgpu-xen both need of Xen, by the
 * kernel's own interfaces: so neither depends on Xen's libraries, which differ from one
 * release of Xen to the next.
 *
 *   XenStore        the wire protocol on /dev/xen/xenbus (xenbus.c)
 *   event channels  /dev/xen/evtchn (evtchn.c)
 *
 * All return 0 (or what they say), or -1 with errno.  A struct belongs to one thread.
 */
#ifndef VGPU_LIB_XENBUS_H
#define VGPU_LIB_XENBUS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define XENBUS_DEVICE "/dev/xen/xenbus"
#define XENBUS_PAYLOAD_MAX 4096u
#define XENBUS_PATH_BYTES 256u
#define XENBUS_TOKEN_BYTES 32u
#define XENBUS_EVENTS_MAX 64u

/* A change below something that is watched. */
struct xenbus_event {
    char path[XENBUS_PATH_BYTES];
    char token[XENBUS_TOKEN_BYTES];
};

struct xenbus_header {
    uint32_t type;
    uint32_t request;
    uint32_t transaction;
    uint32_t bytes; /* of what follows */
};

struct xenbus {
    int fd; /* readable: there may be an event */
    uint32_t request;
    bool lost_events; /* more came than were taken: look at everything */
    uint32_t event_count;
    struct xenbus_event events[XENBUS_EVENTS_MAX]; /* that came before a reply */
    size_t received;                               /* bytes of the message that arrives */
    struct {
        struct xenbus_header header;
        char payload[XENBUS_PAYLOAD_MAX + 1];
    } message;
};

/* `path`: the device, or a socket of xenstored. */
int xenbus_open(struct xenbus *bus, const char *path);
void xenbus_close(struct xenbus *bus);

/* A node's value as a string, cut to `bytes`.  ENOENT, EACCES, ... as XenStore says;
 * ETIMEDOUT when it says nothing for 10 s. */
int xenbus_read(struct xenbus *bus, const char *path, char *ret_value, size_t bytes);
int xenbus_write(struct xenbus *bus, const char *path, const char *value);
/* Any bytes: reading returns how many, at most `bytes`. */
int xenbus_read_bytes(struct xenbus *bus, const char *path, void *ret_value, size_t bytes);
int xenbus_write_bytes(struct xenbus *bus, const char *path, const void *value, size_t bytes);
int xenbus_make_directory(struct xenbus *bus, const char *path);
int xenbus_remove(struct xenbus *bus, const char *path);

/* Names, each with its NUL, one behind the other: returns their bytes, at most `bytes`. */
int xenbus_list(struct xenbus *bus, const char *path, char *ret_names, size_t bytes);

/* In the same form: "n0", "r5", ... the first is the owner. */
int xenbus_get_permissions(struct xenbus *bus, const char *path, char *ret_words, size_t bytes);
int xenbus_set_permissions(struct xenbus *bus, const char *path, unsigned owner, unsigned reader);
/* An empty directory that was not there before, of which `owner` has all rights and
 * `reader` may read.  In an area of a guest's it is the guest's until it has its rights:
 * EEXIST where something was put into it in that time, and then it is not left there. */
int xenbus_make_anew(struct xenbus *bus, const char *path, unsigned owner, unsigned reader);
/* The other one may write too. */
int xenbus_share(struct xenbus *bus, const char *path, unsigned owner, unsigned writer);

int xenbus_watch(struct xenbus *bus, const char *path, const char *token);
int xenbus_unwatch(struct xenbus *bus, const char *path, const char *token);

/* Does not wait: 1 and an event, 0 there is none. */
int xenbus_next_event(struct xenbus *bus, struct xenbus_event *ret_event);

/* --- event channels ------------------------------------------------------------------ */

int evtchn_open(void);
/* A port of ours that domain `domain` can bind to; returns it: `wanted_port` where nobody else
 * has that; 0: any. */
int evtchn_offer(int fd, unsigned domain, unsigned wanted_port);
/* A port of ours, bound to `port` of domain `domain`; returns it. */
int evtchn_bind(int fd, unsigned domain, unsigned port);
void evtchn_notify(int fd, unsigned port);
/* Takes what has come, so that `fd` is readable with the next event. */
void evtchn_drain(int fd);

/* A kernel whose domain was saved and restored has forgotten the ports of before.  Linux (up
 * to 6.1 at least) does not expect that such a port is closed: a BUG() ends the process that
 * does so, and one that does it by its own exit can never be reaped. */

/* Programs that look for such ports, leave them or get new ones do so one at a time; who
 * holds the others up for a second is not waited for any longer.  What it returns is for
 * evtchn_unlock(). */
int evtchn_lock(void);
void evtchn_unlock(int lock);

/* Nobody has got `port` meanwhile; when in doubt false. */
bool evtchn_is_free(unsigned port);
/* Closes `fd`, which has such ports, in a child that may die of it; it is not to be used any
 * more.  Where a kernel's bug stops the whole machine `fd` stays open instead. */
void evtchn_abandon(int fd);

#endif
