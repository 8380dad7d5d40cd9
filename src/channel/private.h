/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside channel/: the parts of the file channel.
 *
 *   file.c            the channel: its thread, its queues
 *   file_loop.c       inside the thread: which VM is looked at when
 *   file_vm.c         one VM: accept, answer, recover, exactly once
 *   file_directory.c  one VM's directory: hostile files, safely read and written
 *   file_watch.c      when to look again: inotify and adaptive polling
 *   journal.c         what was accepted and not yet answered
 */
#ifndef VGPU_CHANNEL_PRIVATE_H
#define VGPU_CHANNEL_PRIVATE_H

#include "channel/channel.h"

#include <sys/queue.h>
#include <sys/stat.h>
#include <uthash.h>

/* --- journal.c --------------------------------------------------------------- */

enum journal_state {
    JOURNAL_IDLE = 0,  /* nothing is owed to the VM */
    JOURNAL_ACCEPTED,  /* a request is being taken or runs; with `answer`: it is refused */
    JOURNAL_ANSWERING, /* `answer` is known; it may or may not stand in the file */
};

/* Which contents of which file were taken, so that they are not taken twice.  The
 * size is there because the time moves in ticks, of milliseconds or of seconds. */
struct file_identity {
    uint64_t inode;
    int64_t mtime_ns;
    int64_t size_bytes;
};

/* All that must outlive the mediator about one VM's request.  Numbers and
 * texts only: it is written to disk as it stands. */
struct journal_entry {
    uint32_t state; /* enum journal_state */
    uint32_t vm_id;
    uint64_t sequence;
    uint64_t arrival_ns;
    struct file_identity taken;
    uint8_t from_command_file;
    uint8_t has_claim;
    char claimed_pool;
    uint8_t claimed_priority;
    uint8_t standing; /* behind ACCEPTED: the request could not be taken out of its file */
    char command[VGPU_COMMAND_MAX_BYTES + 1];
    char answer[PROTOCOL_RESPONSE_LINE_BYTES];
};

struct journal {
    struct record_file file;
    struct journal_entry entry;
};

/*
 * Opens (and makes, mode 0600) `vm-<identity>.journal` in the directory `state_fd`, or
 * `vm<id>.journal` where `identity` is 0, and reads the newest entry; a new journal is
 * IDLE with sequence 0.  A file that is there but is no journal of this VM is refused,
 * never overwritten.
 */
int journal_open(struct journal *journal, int state_fd, uint32_t vm_id, uint64_t identity,
                 struct vgpu_error *error);

/* Writes journal->entry; with `sync` it is on disk afterwards. */
int journal_store(struct journal *journal, bool sync, struct vgpu_error *error);
void journal_close(struct journal *journal);

static inline bool file_identity_equal(const struct file_identity *a, const struct file_identity *b)
{
    return a->inode == b->inode && a->mtime_ns == b->mtime_ns && a->size_bytes == b->size_bytes;
}

/* --- file_directory.c --------------------------------------------------------- */

/* Largest request.txt that is read: anything longer is refused anyway. */
#define DIRECTORY_READ_MAX_BYTES 1024u

struct directory_owner {
    uid_t uid;   /* (uid_t)-1: leave */
    gid_t gid;   /* (gid_t)-1: leave */
    mode_t mode; /* of the directory; files get it without the x bits */
};

enum directory_look {
    DIRECTORY_ABSENT,  /* no such file, or empty */
    DIRECTORY_DATA,    /* *ret_text, *ret_bytes and *ret_identity are filled */
    DIRECTORY_HOSTILE, /* something that is no plain file; error says what */
    DIRECTORY_FAILED,  /* the share failed (errno in error->code); try later */
};

/* One VM's directory, held open. */
struct directory {
    int fd;
    uint64_t inode;
    struct directory_owner owner;
};

/* Makes `name` under `share_fd` with owner and mode if it is missing, or sets
 * them if they differ. */
int directory_make(int share_fd, const char *name, const struct directory_owner *owner,
                   struct vgpu_error *error);

/* Opens `name` under `share_fd`; symbolic links are refused. */
int directory_open(struct directory *directory, int share_fd, const char *name,
                   const struct directory_owner *owner, struct vgpu_error *error);
void directory_close(struct directory *directory);

/* True when the directory open as `fd` is the one open as `ancestor_fd`, or lies
 * below it. */
bool directory_is_below(int fd, int ancestor_fd);

/* True when `name` under `share_fd` is no longer the directory that is open. */
bool directory_replaced(const struct directory *directory, int share_fd, const char *name);

/* A cheap look: is there a file `name` with contents (or something hostile)?
 * `force_open` opens it even if it looks empty, to make NFS ask the server. */
enum directory_look directory_read(const struct directory *directory, const char *name,
                                   bool force_open, char text[DIRECTORY_READ_MAX_BYTES],
                                   size_t *ret_bytes, struct file_identity *ret_identity,
                                   struct vgpu_error *error);

/* Empties `name` if it still is the file `identity` tells; a file with several
 * names is removed instead, so that no other name's contents are lost. */
int directory_take(const struct directory *directory, const char *name,
                   const struct file_identity *identity, struct vgpu_error *error);

/* Removes what stands in the place of a file: link, pipe, socket, device,
 * empty directory.  Returns 0, also when nothing is there; -1 with errno when it
 * stays. */
int directory_remove_hostile(const struct directory *directory, const char *name);

/* Tells which file `name` is without reading it; false when it is not there. */
bool directory_identify(const struct directory *directory, const char *name, bool force_open,
                        struct file_identity *ret_identity);

/*
 * Makes `text` (lines with their newlines) the contents of `name`, in place, so
 * that a reader sees the old first line or the new one.  Makes the file when it is
 * missing, replaces it when it is hostile.  *ret_identity tells the file as it is
 * afterwards.
 */
int directory_write(const struct directory *directory, const char *name, const char *text,
                    struct file_identity *ret_identity, struct vgpu_error *error);

/* Makes `name` with these contents if nothing stands there; leaves anything else
 * alone, also what a client writes at the same time. */
int directory_furnish(const struct directory *directory, const char *name, const char *contents,
                      struct vgpu_error *error);

/* Gives `name`, if it is a plain file with one name, to directory->owner. */
void directory_give(const struct directory *directory, const char *name);

/* Empties `name` if it is a plain file. */
int directory_empty(const struct directory *directory, const char *name, struct vgpu_error *error);

/* --- file_watch.c -------------------------------------------------------------- */

/*
 * Says when to look at the directories again: at once when inotify reports a
 * change (on local file systems), else after an interval that is short while
 * requests come and grows while none do.
 */
struct file_watch;

struct file_watch_events {
    /* Look now.  `listing` is true when directories may have come or gone. */
    void (*look)(bool listing, void *context);
    /* Somebody read the answer that file_watch_answer() gave this handle. */
    void (*answer_read)(int handle, void *context);
    void *context;
};

int file_watch_new(uv_loop_t *loop, const char *share, uint32_t poll_min_ms, uint32_t poll_max_ms,
                   const struct file_watch_events *events, struct file_watch **ret_watch,
                   struct vgpu_error *error);

/* True when changes are reported (a local file system). */
bool file_watch_is_local(const struct file_watch *watch);

/* Watches the directory open as `fd`, that of VM `vm_id`.  Returns a handle for
 * file_watch_remove(), or -1 when it can only be polled. */
int file_watch_add(struct file_watch *watch, int fd, uint32_t vm_id);

/* Reports the next read of response.txt in the directory open as `fd`, once:
 * a client that goes on reading must not wake the channel each time.  Returns
 * the handle that answer_read() names, or -1 when reads cannot be seen. */
int file_watch_answer(struct file_watch *watch, int fd);
void file_watch_remove(struct file_watch *watch, int handle);

/* A look found work (`busy`) or none; sets the time of the next one, at most
 * `limit_ms` from now (UINT32_MAX: no limit). */
void file_watch_looked(struct file_watch *watch, bool busy, uint32_t limit_ms);

/* Ends it; its memory is freed when the loop has closed its handles. */
void file_watch_stop(struct file_watch *watch);

/* --- file_vm.c ------------------------------------------------------------------ */

/* One VM of the file channel. */
struct file_vm {
    uint32_t vm_id;
    uint64_t identity; /* whose number it is; 0: the number's */
    bool registered;
    bool unusable; /* its journal could not be opened, or is under another number now */
    struct directory_owner owner;
    char name[16];              /* "vm<id>" */
    struct directory directory; /* fd -1: not there now */
    struct journal journal;     /* file.fd -1: not open */
    int watch;                  /* file_watch_add()'s handle */
    bool take_pending;          /* the accepted request could not be emptied yet */
    struct unterminated_line {  /* a line without its end */
        struct file_identity identity;
        uint64_t since_ns;            /* monotonic; 0: none */
    } unterminated[2];                /* in request.txt and in command.txt */
    struct file_identity handled[2];  /* in each: taken or refused, but it cannot be removed */
    struct file_identity answer_file; /* response.txt with our answer in it */
    uint64_t hold_until_ns;           /* monotonic; 0: no answer is held */
    bool answer_unread;
    int answer_watch;     /* file_watch_answer()'s handle */
    bool met;             /* what an earlier mediator owed it is known */
    bool reconciled;      /* files and journal of an earlier mediator were brought together */
    bool trouble;         /* the share failed and it was logged */
    bool journal_trouble; /* the journal failed and it was logged */
    uint64_t settled;     /* up to this sequence an earlier VM of the number was answered */
};

/* What one look at a VM's directory found. */
struct file_candidate {
    struct file_vm *vm;
    bool from_command_file;
    bool hostile; /* not a plain file of sane size */
    bool refused; /* error holds the reason */
    struct protocol_request request;
    struct file_identity identity;
    struct vgpu_error error;
};

/* What a look needs to know. */
struct file_rules {
    const char *pools;
    bool accept_unregistered;
    bool force_open; /* sizes may be stale: ask the server */
    uint32_t response_hold_ms;
    uint32_t unterminated_hold_ms;
};

enum file_delivery {
    FILE_DELIVERY_DONE,     /* the answer stands in response.txt */
    FILE_DELIVERY_WITHHELD, /* the client has already put a new request there */
    FILE_DELIVERY_LATER,    /* the share failed: try again */
};

void file_vm_init(struct file_vm *vm, uint32_t vm_id, const struct directory_owner *owner,
                  bool registered);
void file_vm_close(struct file_vm *vm);

/* Trouble with the VM's directory is logged when it begins and when it ends. */
void file_vm_report_trouble(struct file_vm *vm, const struct vgpu_error *error);

/* Returns true and fills *ret_candidate when there is something to accept. */
bool file_vm_look(struct file_vm *vm, const struct file_rules *rules, uint64_t now_ns,
                  struct file_candidate *ret_candidate);

/*
 * Accepts or refuses: journal (synced), 0:Ready, request emptied.  A refused
 * one is then ready for file_vm_deliver().  Returns false when the journal cannot
 * be written: that is logged, and the request stays where it is.
 */
bool file_vm_accept(struct file_vm *vm, const struct file_candidate *candidate);

/* The answer to the accepted request is known; file_vm_deliver() comes next.
 * A journal that cannot be written costs at most a second answer after a
 * crash, so it is logged, not returned. */
void file_vm_set_answer(struct file_vm *vm, const struct protocol_response *response);

/* Writes the answer where the client reads it, once. */
enum file_delivery file_vm_deliver(struct file_vm *vm, const struct file_rules *rules);

/* Brings files and journal of an earlier mediator together.  Afterwards the
 * state is IDLE (nothing owed), ACCEPTED (run it) or ANSWERING (deliver). */
void file_vm_recover(struct file_vm *vm, const struct file_rules *rules);

/* The answer was read, or reads cannot be seen: from now on it is held for
 * response_hold_ms.  An answer that nobody read stands until the next request:
 * its client may be cut off by a server that is away. */
void file_vm_hold_answer(struct file_vm *vm, const struct file_rules *rules);

/* Puts 0:Ready back when the answer was held long enough. */
void file_vm_restore_ready(struct file_vm *vm, const struct file_rules *rules, uint64_t now_ns);

/* When the VM must be looked at again by itself; UINT64_MAX: never. */
uint64_t file_vm_deadline_ns(const struct file_vm *vm, const struct file_rules *rules);

/* True when the client has changed response.txt since the answer. */
bool file_vm_answer_replaced(const struct file_vm *vm, const struct file_rules *rules);

/* Empties request, command and response file. */
void file_vm_empty_files(struct file_vm *vm);

/* Fills the event for an accepted request. */
void file_vm_describe_request(const struct file_vm *vm, bool recovered,
                              struct channel_request *ret_request);

/* --- file.c and file_loop.c -------------------------------------------------------- */

#define FILE_POOLS_BYTES 27 /* A to Z, NUL */

/* A message from the mediator's thread to the channel's. */
struct file_order {
    STAILQ_ENTRY(file_order) link;
    enum {
        FILE_ORDER_ANSWER,
        FILE_ORDER_SET_VM,
        FILE_ORDER_SET_POOLS,
        FILE_ORDER_SYNC,
        FILE_ORDER_STOP,
    } type;
    uint32_t vm_id;
    uint64_t sequence; /* SYNC: its token */
    struct protocol_response response;
    struct file_channel_vm vm; /* SET_VM */
    bool registered;
    char pools[FILE_POOLS_BYTES]; /* SET_POOLS */
    bool cleanup;
};

/* A message from the channel's thread to the mediator's. */
struct file_report {
    STAILQ_ENTRY(file_report) link;
    enum file_report_type {
        FILE_REPORT_REQUEST,
        FILE_REPORT_ANSWERED,
        FILE_REPORT_REFUSED,
        FILE_REPORT_RECOVERED,
        FILE_REPORT_SYNCED,
        FILE_REPORT_STOPPED,
    } type;
    struct channel_request request; /* REQUEST; else its vm_id and sequence, or the token */
    bool withheld;
    char line[PROTOCOL_RESPONSE_LINE_BYTES]; /* ANSWERED, REFUSED: no newline */
};

struct file_entry {
    struct file_vm vm;
    UT_hash_handle hh;
};

/* What the channel's thread owns; nobody else touches it while it runs. */
struct file_loop {
    uv_loop_t loop;
    uv_async_t wake;
    struct file_watch *watch;
    struct file_rules rules;
    const struct file_channel_config *config; /* outlives the loop */
    int share_fd, state_fd;
    char pools[FILE_POOLS_BYTES];
    struct file_entry *vms; /* uthash by vm_id */
    uint32_t rotation;      /* who is first among equals, moves with each look */
    bool open;              /* `loop` has handles */
    bool share_trouble;     /* the share is gone and it was logged */
    bool stopping;          /* no further requests are taken */
    uint64_t cleanup_until_ns;
    uv_timer_t cleanup_timer;
    /* Called on this thread.  Reports reach the mediator together, at flush(). */
    void (*report)(const struct file_report *report, void *context);
    void (*flush)(void *context);
    struct file_order *(*next_order)(void *context); /* NULL: none; caller frees */
    void *context;
};

/* Opens share and state, makes the registered VMs' directories and opens their
 * journals.  Runs on the mediator's thread, before the channel's exists. */
int file_loop_prepare(struct file_loop *loop, const struct file_channel_config *config,
                      struct vgpu_error *error);

/* The thread: recovers, then looks and answers until it is told to stop. */
void file_loop_run(struct file_loop *loop);

/* From any thread: an order waits. */
void file_loop_wake(struct file_loop *loop);

/* After file_loop_run() has returned, or instead of it. */
void file_loop_free(struct file_loop *loop);

#endif /* VGPU_CHANNEL_PRIVATE_H */
