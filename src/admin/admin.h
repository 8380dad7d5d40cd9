/* SPDX-License-Identifier: Apache-2.0 */
/*
 * admin/ - vgpu-admin: one table of commands, one file each (cmd_NAME.c).
 *
 *   main.c      options that all commands have, help, failures
 *   open.c      the database, with who changes it
 *   commands.c  the table; a new command is a cmd_NAME.c, a line here and in meson.build
 *   settings.c  what the mediator's configuration says: share, run_dir, exports
 *   actor.c     who runs this, for the audit
 *   values.c    what options' values may be
 *   output.c    aligned tables for people, JSON for programs, one place for both
 *   objects.c   the JSON objects of VMs, pools and the rest
 *   ask.c       yes or no, refused where nobody can be asked
 *   change.c    one changed VM: transaction, mediator, toolstack, answer
 *   change_pool.c    the same for a pool
 *   publish.c   the toolstack's copy of a VM's device
 *   live.c      the running mediator: told after each change, or said to be down
 *   gpu_view.c  GPUs as a table
 *   share.c     a VM's directory in the share
 *   exports.c   its export: one file a VM
 *   state.c     what the mediator keeps of a VM that goes
 *   tenants.c   no two VMs' files for one owner or one address
 *   owners.c    a user for each of Xen's VMs, where nobody names one
 *   renumber.c  what needs a stopped VM, with the way back from each step
 *   renumber_journal.c  what is left of one that was killed
 *
 * Exit codes: 0 done; 1 refused or failed, nothing changed; 2 usage; 3 no such VM,
 * pool or device; 4 already there; 5 the database cannot be used; 6 the mediator or
 * toolstack is needed and not there; 7 a person said no; 8 preflight found failures.
 */
#ifndef VGPU_ADMIN_H
#define VGPU_ADMIN_H

#include "base/base.h"
#include "store/store.h"
#include "toolstack/toolstack.h"

#include <argp.h>
#include <jansson.h>

enum admin_exit {
    ADMIN_OK = 0,
    ADMIN_FAILED = 1,
    ADMIN_USAGE = 2,
    ADMIN_NOT_FOUND = 3,
    ADMIN_EXISTS = 4,
    ADMIN_DATABASE = 5,
    ADMIN_NOT_RUNNING = 6,
    ADMIN_DECLINED = 7,
    ADMIN_CHECKS_FAILED = 8,
};

#define ADMIN_WORDS_MAX 4
/* xen_owner_base may be MIN..MAX, and no default owner is above MAX. */
#define ADMIN_OWNER_BASE_MIN 65536u
#define ADMIN_OWNER_BASE_DEFAULT 2100000000u
#define ADMIN_OWNER_MAX 2147352575u

#define ADMIN_DEFAULT_CONFIG "/etc/vgpu/mediator.conf"

enum exports_kind {
    EXPORTS_NONE,
    EXPORTS_GANESHA,
    EXPORTS_KERNEL,
};

/* What all commands share. */
struct admin {
    const char *database;  /* --database */
    const char *socket;    /* --socket, of the mediator */
    const char *config;    /* --config, of the mediator: share, run_dir */
    const char *toolstack; /* --toolstack; NULL: found out */
    const char *uri;       /* --connect, libvirt's */
    bool json;             /* --json */
    bool yes;              /* --yes */
    bool quiet;            /* --quiet */
    const struct admin_command *command;
    const char *words[ADMIN_WORDS_MAX]; /* what is no option, when the command's own parser */
    unsigned word_count;                /* does not take ARGP_KEY_ARG */
    char usage[VGPU_ERROR_BYTES];       /* what admin_usage() said */
    bool opened;                        /* the database: EINVAL is no usage error any more */
    int failed_exit;                    /* what admin_fail() returns; 0: by the error's code */
    const char *mediator;               /* "applied", "pending", "down" or "elsewhere": what */
                                        /* live_apply() found; NULL before */

    /* settings.c: from the configuration and its defaults */
    char share[4096]; /* "" when there is no configuration or the file channel is off */
    char run_dir[4096];
    char state_dir[4096];
    char database_path[4096];
    char socket_path[4096];
    char cuda_library[4096]; /* "": where the loader finds it */
    char nvml_library[4096]; /* "": the usual one; "none" */
    char toolstack_name[32];
    enum exports_kind exports_kind;
    char exports_dir[4096];
    char worker_user[64];     /* a name or a number, whom sessions' workers run as */
    uint32_t xen_owner_base;  /* below the numbers of default owners (owners.c) */
    char exports_reload[512]; /* command and arguments; "" by the kind */
};

struct admin_command {
    const char *name;
    const char *arguments; /* "VM POOL [NAME]": for the usage line, and how many there must be */
    const char *summary;   /* one line of the list of commands */
    const char *group;     /* "VMs", "Pools", "Live", "Host", "Database" */
    /* argv[0] is "vgpu-admin NAME".  Returns an admin_exit. */
    int (*run)(struct admin *admin, int argc, char **argv);
};

/* The table, ended by a NULL name (commands.c). */
extern const struct admin_command admin_commands[];

/* --- main.c: for all commands ------------------------------------------------------ */

/* argp_parse() of a command with --help, --json, --yes and their like added; `argp`
 * may be NULL.  Options of the command's own parser return admin_usage() for a bad
 * value.  Returns 0, or the admin_exit to end with (all is said then). */
int admin_parse(struct admin *admin, const struct argp *argp, int argc, char **argv, void *input);

/* A person said no: nothing is done, and that is said. */
int admin_decline(struct admin *admin);

/* admin_fail() where the database is changed already and the mediator would not have
 * it. */
int admin_fail_applied(struct admin *admin, const struct vgpu_error *error);

/* "--priority = urgent: expected ..."; is EINVAL, for parsers to return. */
error_t admin_usage(struct admin *admin, const char *format, ...) VGPU_PRINTF(2, 3);

/* A usage error behind admin_parse(): said; returns the exit code. */
int admin_refuse(struct admin *admin, const char *message);

/* Says the error (text or JSON, on standard error) and gives the exit code that its
 * errno value means. */
int admin_fail(struct admin *admin, const struct vgpu_error *error);

/* Opens the database for this command; the actor is filled in. */
int admin_open_store(struct admin *admin, enum store_access access, struct store **ret_store,
                     struct vgpu_error *error);

/* Puts what was done and changed no row into the audit, where there is a database; `before`
 * and `after` are JSON objects or "".  A failure is said, and is none of the command. */
void admin_record(struct admin *admin, const char *before, const char *after);

/* --- settings.c, actor.c, values.c --------------------------------------------------- */

int settings_read(struct admin *admin, struct vgpu_error *error);

/* "root", "alice", "alice (sudo)". */
const char *actor_name(void);

/* -1 with what may be; a number's 0 is written "default" or "none", of which `zero` is the one that
 * is told. */
int value_channels(const char *text, uint32_t *ret_channels, struct vgpu_error *error);
int value_owner(const char *text, int64_t *ret_uid, int64_t *ret_gid, struct vgpu_error *error);
int value_mode(const char *text, uint32_t *ret_mode, struct vgpu_error *error);
int value_number(const char *text, uint64_t max, const char *zero, uint64_t *ret_number,
                 struct vgpu_error *error);
int value_state(const char *text, enum store_vm_state *ret_state, struct vgpu_error *error);
int value_placement(const char *text, bool *ret_pack, struct vgpu_error *error);
int value_session_devices(const char *text, uint32_t *ret_number, struct vgpu_error *error);
int value_sharing(const char *text, enum store_sharing *ret_sharing, struct vgpu_error *error);
int value_yes_no(const char *text, bool *ret_yes, struct vgpu_error *error);
int value_since(const char *text, uint64_t now_us, uint64_t *ret_us, struct vgpu_error *error);
/* "cpu:0,cpu:1", as the store has it: "cpu:0 cpu:1". */
int value_devices(const char *text, char ret_devices[STORE_POOL_DEVICE_BYTES],
                  struct vgpu_error *error);
/* The kind by the name. */
int value_device(const char *text, struct store_device *ret_device, struct vgpu_error *error);
/* IP or IP/PREFIX, which is looked at and dropped; in the usual notation. */
int value_address(const char *text, char ret_address[64], struct vgpu_error *error);

/* --- output.c ------------------------------------------------------------------------ */

/* A table: columns are set once, cells row by row; printed aligned, numbers right. */
struct output_column {
    const char *key;    /* in JSON */
    const char *header; /* for people */
    bool right;
};

struct output;
struct output *output_new(struct admin *admin, const struct output_column *columns, size_t count);
void output_text(struct output *output, const char *text); /* the next cell */
void output_number(struct output *output, uint64_t number);
void output_end_row(struct output *output);
void output_print(struct output *output, const char *none); /* `none`: said when empty */
void output_free(struct output *output);

/* One JSON object as the whole result; prints and frees it. */
void output_json(json_t *object);

/* A sentence for people; nothing under --json or --quiet. */
void output_say(struct admin *admin, const char *format, ...) VGPU_PRINTF(2, 3);

/* As a word of a shell's command: in single quotes unless it is plain; cut to fit. */
void output_quote(const char *text, char *quoted, size_t bytes);

/* --- objects.c ------------------------------------------------------------------------ */

json_t *output_vm(const struct store_vm *vm); /* the object of a VM, one shape everywhere */
json_t *output_pool(const struct store_pool *pool);
json_t *output_device(const struct store_device *device);
json_t *output_event(const struct store_event *event);
const char *output_priority(unsigned priority); /* "high" */
const char *output_state(enum store_vm_state state);
const char *output_placement(const struct store_pool *pool);
const char *output_sharing(enum store_sharing sharing);
void output_channels(uint32_t channels, char *text, size_t bytes);        /* "file window" */
void output_time(uint64_t time_us, char text[32]);                        /* 2026-01-31T12:00:00Z */
void output_vm_name(const struct store_vm *vm, char *text, size_t bytes); /* "VM 7 (web1)" */

/* --- ask.c ------------------------------------------------------------------------------ */

/* 1 yes, 0 no, -1 nobody can be asked: no terminal and no --yes. */
int ask_yes(struct admin *admin, const char *question, struct vgpu_error *error);

/* --- live.c ----------------------------------------------------------------------------- */

/* After a change of the database: the running mediator reads it again and has applied
 * it when this returns.  Without a mediator that is said, and is no failure. */
int live_apply(struct admin *admin, struct vgpu_error *error);

/* admin_fail() where "not found" or "there already" may be the work of an earlier call
 * that was killed before it told the mediator: it is told now. */
int live_fail(struct admin *admin, const struct vgpu_error *error);

/* The mediator's status with all VMs, in order of their numbers, page by page.  The caller owns
 * it. */
int live_status(struct admin *admin, json_t **ret_status, struct vgpu_error *error);

/* A command of the control socket whose result is needed.  error.code: as control_call() has it,
 * but ENOENT for a VM or pool that the mediator does not know, EINVAL for a wrong configuration. */
int live_call(struct admin *admin, const char *command, json_t *arguments, json_t **ret_result,
              struct vgpu_error *error);

/* --- change.c, publish.c ---------------------------------------------------------------- */

struct vm_change {
    struct store_vm_change store;
    const char *pool;           /* by letter or name; NULL: `store` says it */
    bool keep_owner, keep_mode; /* the other part of STORE_VM_OWNER alone is meant */
    bool keep_reason;           /* of a VM that is in quarantine already */
    const char *address;        /* of the guest, for its export; NULL: as it was */
    bool force;                 /* another VM may have the owner or the address too */
};

struct pool_change {
    struct store_pool_change store;
    bool devices; /* store.values.device is put into the table of devices first */
};

/* The devices that the change names, as far as the table does not have them yet. */
int put_devices(struct store *store, const struct pool_change *change, struct vgpu_error *error);

/* The pool that admin->words[0] names is changed; the answer is given. */
int change_pool(struct admin *admin, const struct pool_change *change);

/* The device that admin->words[0] names is withdrawn or returned; the answer is given. */
int change_device(struct admin *admin, bool withdrawn);

/* The VM that admin->words[0] names is changed; the answer is given. */
int change_vm(struct admin *admin, const struct vm_change *change);

/* The end of each change: the mediator's part of the answer is added and all is
 * printed.  Takes `object` over; `sentence` is for people. */
void change_answer(struct admin *admin, json_t *object, const char *sentence);

/* The toolstack that the options name, or that is here. */
int publish_open(struct admin *admin, struct toolstack **ret_toolstack, struct vgpu_error *error);

/* By what the toolstack knows it: xl's domains may have no UUID of their own. */
const char *publish_handle(const struct toolstack_vm *found);

/* ENOTSUP where other arguments override the device in a definition, so that what is
 * written there counts for nothing; the message says what to take out. */
int publish_check(const struct toolstack_vm *found, struct vgpu_error *error);

/* What the toolstack's definition of this VM is to say. `old` may be NULL. */
void publish_device(struct admin *admin, const struct store_vm *vm,
                    const struct toolstack_device *old, struct toolstack_device *ret_device);

/* A definition that has a device says the registered values from its next start on;
 * without toolstack, VM or device there is nothing to do.  What fails is a note. */
void publish_changed(struct admin *admin, const struct store_vm *vm);

/* A toolstack's machine is this VM: by UUID, or by name where one has none. */
bool publish_is_same(const struct toolstack_vm *machine, const struct store_vm *vm);

/* What a person has to do to definitions behind a change of many VMs. */
struct publish_left {
    json_t *stale;        /* numbers of VMs whose definition does not say what is registered */
    json_t *unregistered; /* names of machines that have a vgpu-stub and no VM */
};

/* Compares all definitions with `vms`; both are empty where there is no toolstack or it
 * does not answer.  The caller owns the two. */
void publish_find_left(struct admin *admin, const struct store_vm *vms, size_t count,
                       struct publish_left *ret_left);

/* The name of the machine that this VM was and whose definition still has a device; ""
 * where there is none, or no toolstack that knows. */
void publish_find_removed(struct admin *admin, const struct store_vm *vm,
                          char ret_name[TOOLSTACK_NAME_BYTES]);

/* Says it, with the commands that mend it. */
void publish_note_left(const struct admin *admin, const struct publish_left *left);

/* --- state.c ------------------------------------------------------------------------------- */

/* Of a VM that is registered no more: its journal and session record go.  Call it when
 * the mediator knows (live_apply()); what cannot be removed is met by nobody. */
void state_forget(const struct admin *admin, const struct store_vm *vm);

/* --- share.c, exports.c ------------------------------------------------------------------- */

/* What a change of the share did, for the way back. */
struct share_undo {
    bool made, mended, moved, retired;
    uint32_t from, to;
    uid_t uid; /* of the directory before it was mended */
    gid_t gid;
    mode_t mode;
    char aside[64]; /* below the share */
    bool exported;
    char *export_from, *export_to; /* what the files held; NULL: were not there */
};

/* Administrators take turns at the share, by this and not by the database's lock: an NFS
 * server may take long to be told, and other changes must not wait for it.  So a change
 * of rows is tried and taken back, the share is changed, and only then are the rows
 * written as they were tried.  fd_close() gives the turn back. */
int share_lock(struct admin *admin, int *ret_fd, struct vgpu_error *error);

/* EBUSY when the row is another now than it was when the change was tried. */
int share_check_row(const struct store_vm *tried, const struct store_vm *now,
                    struct vgpu_error *error);

/* Directory and export of a VM: make (or mend), move (renumber), retire (moved aside
 * with its files, never deleted).  Nothing where the file channel is off or `share`
 * is "".  `address` is the guest's, NULL: as it was.  Each can be undone until
 * share_done(); on -1 it is undone already. */
int share_make(struct admin *admin, const struct store_vm *vm, const char *address,
               struct share_undo *undo, struct vgpu_error *error);

/* Of a VM that was not there before: an address comes from the caller alone, and what
 * stands in its place is moved aside (undo->aside) unless it is as good as empty. */
int share_make_new(struct admin *admin, const struct store_vm *vm, const char *address,
                   struct share_undo *undo, struct vgpu_error *error);
int share_move(struct admin *admin, const struct store_vm *before, const struct store_vm *after,
               struct share_undo *undo, struct vgpu_error *error);

/* Many VMs change their numbers at once, so each directory with its export goes aside
 * first: begin, before anything is changed; park each that changes or goes, under its old
 * number; turn; settle each under its new one (NULL: it is retired); end.  Each step may
 * be repeated after a kill, and does nothing where it was done. */
int share_begin_exchange(struct admin *admin, struct vgpu_error *error);
void share_cancel_exchange(struct admin *admin); /* before the first is parked */
int share_park(struct admin *admin, const struct store_vm *vm, struct vgpu_error *error);
int share_turn_exchange(struct admin *admin, struct vgpu_error *error);
int share_settle(struct admin *admin, const struct store_vm *before, const struct store_vm *after,
                 struct vgpu_error *error);
int share_end_exchange(struct admin *admin, struct vgpu_error *error);

/* After a share_move() that was killed: what stands under the number of `after` and is
 * the directory with this inode (0: an empty one) goes back, and so does the export. */
int share_rewind(struct admin *admin, const struct store_vm *before, const struct store_vm *after,
                 uint64_t inode, struct vgpu_error *error);

/* Of the VM's directory; 0: there is none. */
uint64_t share_inode(const struct admin *admin, const struct store_vm *vm);
int share_retire(struct admin *admin, const struct store_vm *vm, struct share_undo *undo,
                 struct vgpu_error *error);
int share_undo(struct admin *admin, struct share_undo *undo, struct vgpu_error *error);
void share_done(struct share_undo *undo);

/* tenants.c: EEXIST where the directory of `vm` would have another VM's owner, under Xen its
 * sessions too, or its export another's address (NULL: no new one).  `before`: the VM as it was,
 * whose owner stays as somebody chose it; NULL for a new one. */
int tenant_check(const struct admin *admin, struct store *store, const struct store_vm *before,
                 const struct store_vm *vm, const char *address, struct vgpu_error *error);

/* owners.c: true where VMs are Xen's, whose sessions need an owner that is not root. */
bool owner_is_needed(const struct admin *admin);

/* Gives a VM without an owner one of its own where it needs one, and a number (vm_id 0)
 * with it.  Between begin and commit, so that no other VM gets the same. */
int owner_complete(const struct admin *admin, struct store *store, struct store_vm *vm,
                   struct vgpu_error *error);

/* The mediator makes a missing directory of a VM that it still knows: gone as well
 * once it knows better. */
void share_sweep(struct admin *admin, uint32_t vm_id);

#endif /* VGPU_ADMIN_H */
