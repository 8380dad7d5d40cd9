/* SPDX-License-Identifier: Apache-2.0 */
/*
 * renumber.c for cmd_set_vm_id.c: a VM's number changes everywhere or nowhere.
 */
#ifndef VGPU_ADMIN_RENUMBER_H
#define VGPU_ADMIN_RENUMBER_H

#include "admin/admin.h"

/* What a killed call left for the next one. */
struct renumber_journal {
    uint32_t from, to;
    uint64_t inode; /* of the directory `from`; 0: there was none */
    uint64_t ran;   /* 1: and is to run again */
};

struct renumber {
    struct admin *admin;
    uint32_t vm_id;      /* the new one */
    unsigned timeout_ms; /* for the guest to shut down */
    bool force;          /* power it off then */

    /* renumber_prepare() */
    struct store *store;
    struct store_vm before;
    struct toolstack *toolstack; /* NULL: none, or it does not know the VM */
    struct toolstack_vm machine;
    struct renumber_journal journal; /* where interrupted */
    bool interrupted;                /* an earlier call for this VM was */
    bool finishing;                  /* it had come to its commit: `before` is what was */

    /* what is done, for the way back */
    struct store_vm after;
    struct share_undo share;
    bool stopped, published, committed;
    int turn; /* at the share; -1: not ours */
};

/* Looks at everything, changes nothing. */
int renumber_prepare(struct renumber *renumber, struct vgpu_error *error);

/* On -1 all is as it was, or the message says what is not. */
int renumber_run(struct renumber *renumber, struct vgpu_error *error);
void renumber_free(struct renumber *renumber);

/* It runs now, or ran when an earlier call was interrupted, and is to run afterwards. */
bool renumber_restarts(const struct renumber *renumber);

/* --- renumber_journal.c --------------------------------------------------------------- */

/* Of the VM that was registered then. */
int renumber_journal_write(const struct admin *admin, uint64_t created_us,
                           const struct renumber_journal *journal, struct vgpu_error *error);
bool renumber_journal_read(const struct admin *admin, uint64_t created_us,
                           struct renumber_journal *ret_journal);
void renumber_journal_remove(const struct admin *admin, uint64_t created_us);

#endif /* VGPU_ADMIN_RENUMBER_H */
