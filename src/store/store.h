/* SPDX-License-Identifier: Apache-2.0 */
/*
 * store/ - the registry: which VM belongs to which pool, with which priority and
 * limits, kept in one SQLite file (WAL) that vgpu-admin writes and vgpu-mediator
 * reads.
 *
 *   vgpu-admin ──transaction──▶ vgpu.db ◀──reads──  vgpu-mediator
 *       └──────── control socket: "read it again" ────────▲
 *
 *   store.c      open, create, transactions, backup and restore
 *   schema.c     the schema's versions (schema/N.sql) and how one becomes the next
 *   check.c      what a value may be, said in words before SQLite says it in its own
 *   vms.c, pools.c, devices.c, events.c    one table each
 *   limits.c     the limits that a VM can have, one line each
 *
 * Rules:
 * - Each change is one transaction together with its audit event, or nothing.  What
 *   is as it was is no change and makes no event.
 * - A change names the columns that it means (struct store_vm_change), so two
 *   administrators who change different things both win; who changes the same
 *   comes after the other.
 * - Constraints are in the schema too: what another program writes is held to them.
 * - After -1 the database is as it was.  error.code: EINVAL bad value, ENOENT no
 *   such VM or pool, EEXIST name, id or UUID taken, EBUSY another administrator
 *   holds it (after 10 s), ENOSPC disk full, EPROTO a schema that is newer than this
 *   program (or older, for a reader), EBADMSG a damaged or foreign file, EACCES who
 *   may not, EUCLEAN a killed writer's remains that this reader may not clear up.
 *
 * Not thread-safe: one thread owns a struct store.  Several processes may have
 * the same file open.
 */
#ifndef VGPU_STORE_H
#define VGPU_STORE_H

#include "base/base.h"

#define STORE_NAME_BYTES 64
#define STORE_DESCRIPTION_BYTES 256
#define STORE_UUID_BYTES 37 /* 8-4-4-4-12 in lower case, NUL */
#define STORE_DEVICE_BYTES 64
#define STORE_POOL_DEVICES_MAX 8
#define STORE_POOL_DEVICE_BYTES (STORE_POOL_DEVICES_MAX * STORE_DEVICE_BYTES)
#define STORE_ACTOR_BYTES 64
#define STORE_ACTION_BYTES 32
#define STORE_STATE_BYTES 2048 /* before and after of an event, JSON */
#define STORE_REASON_BYTES 256
#define STORE_PRIORITY_DEFAULT 1
#define STORE_POOL_DEFAULT 'A'
#define STORE_VM_ID_MAX 0x7fffffffu /* 1..; 0 is nobody */
#define STORE_SESSIONS_MAX 64u
#define STORE_DEVICE_MEMORY_MIB_MAX (1u << 20) /* of a VM */
#define STORE_OPERATION_LIMIT_MS_MAX 86400000u
#define STORE_WEIGHT_MAX 1000u
#define STORE_WEIGHT_DEFAULT 100u
#define STORE_REQUEST_RATE_MAX 10000000u
#define STORE_QUEUE_DEPTH_MAX 1000000u
#define STORE_INFLIGHT_OPS_MAX 65536u
#define STORE_INFLIGHT_KIB_MAX (1u << 30)
#define STORE_AGING_MS_MAX 86400000u
#define STORE_POOL_MEMORY_MIB_MAX (1ull << 30)
#define STORE_DEFAULT_PATH "/var/lib/vgpu/vgpu.db"

/* Bits of store_vm.channels. */
#define STORE_CHANNEL_FILE 1u
#define STORE_CHANNEL_WINDOW 2u
#define STORE_CHANNEL_XEN 4u

enum store_sharing {
    STORE_SHARED,      /* pools on one device share its queue */
    STORE_INDEPENDENT, /* they take turns */
};

enum store_policy {
    STORE_POLICY_DEFAULT, /* the mediator's */
    STORE_POLICY_STRICT,
    STORE_POLICY_WFQ,
    STORE_POLICY_FIFO,
    STORE_POLICY_ROUND_ROBIN,
};

enum store_vm_state {
    STORE_VM_ACTIVE,
    STORE_VM_QUARANTINED, /* its requests are refused with the reason */
};

struct store_pool {
    char id; /* 'A'..'Z' */
    char name[STORE_NAME_BYTES];
    char description[STORE_DESCRIPTION_BYTES];
    bool enabled; /* false: no VM joins it, its VMs' requests are refused */
    enum store_sharing sharing;
    /* Up to STORE_POOL_DEVICES_MAX of the devices table, each once, with one space between;
     * "" unbound */
    char device[STORE_POOL_DEVICE_BYTES];
    bool pack; /* sessions fill one device after the other; else the least loaded is taken */
    uint32_t session_devices;       /* that a window session has, 1..STORE_POOL_DEVICES_MAX */
    uint32_t vms_max;               /* 0: no bound */
    uint64_t device_memory_max_mib; /* the sum of its VMs' limits, of which each then needs
                                       one; 0: no bound */
    enum store_policy policy;
    uint32_t aging_ms; /* strict: so long a wait raises the priority by one; 0: never */
    bool demand;       /* wfq: grants grow and shrink with what is asked for */
    uint32_t vm_count; /* read only */
};

/* 0 means the mediator's default, or no bound.  Each is of all its sessions together. */
struct store_limits {
    uint32_t sessions_max;
    uint32_t device_memory_mib;
    uint32_t operation_limit_ms;   /* longest device time of one operation */
    uint32_t weight;               /* of its share under wfq, 1..1000; 0: 100 */
    uint32_t request_rate;         /* requests and operations a second; 0: no bound */
    uint32_t request_burst;        /* of them at once; 0: a tenth of a second's, at least one */
    uint32_t device_share_percent; /* of a device's time, 1..100; 0: no bound */
    uint32_t queue_depth_max;      /* requests that wait; 0: no bound */
    uint32_t inflight_ops_max;     /* operations in flight on its devices; 0: no bound */
    uint32_t inflight_kib_max;     /* ... and what they move; 0: no bound */
};

/* A limit by its name: what all that show, judge, keep or take one go by. */
struct store_limit {
    const char *name; /* of its column, and in JSON */
    const char *words, *unit;
    const char *unset; /* what 0 is called: "default", "no bound" */
    size_t offset;     /* in struct store_limits, of an uint32_t */
    uint32_t max;      /* from 1 to so much */
    unsigned field;    /* of struct store_vm_change */
};

#define STORE_LIMITS 10u

extern const struct store_limit store_limits[STORE_LIMITS];

/* Its value in `limits`; 0: default, or no bound. */
uint32_t store_limit_get(const struct store_limits *limits, const struct store_limit *limit);
void store_limit_set(struct store_limits *limits, const struct store_limit *limit, uint32_t value);

/* NULL: there is none of this name. */
const struct store_limit *store_limit_find(const char *name);

struct store_vm {
    uint32_t vm_id;
    char uuid[STORE_UUID_BYTES]; /* "" when it has none */
    char name[STORE_NAME_BYTES];
    char pool;
    uint8_t priority; /* 0 low, 1 medium, 2 high */
    struct store_limits limits;
    enum store_vm_state state;
    char reason[STORE_REASON_BYTES]; /* of its quarantine */
    uint64_t quarantine_until_us;    /* since 1970; 0: until somebody releases it */
    uint32_t channels;               /* STORE_CHANNEL_* */
    int64_t owner_uid;               /* of its directory and socket; -1: the mediator's default */
    int64_t owner_gid;
    uint32_t mode;       /* of its directory and socket, e.g. 0700 */
    uint64_t created_us; /* since 1970 */
    uint64_t changed_us;
};

enum store_device_kind { STORE_DEVICE_CPU, STORE_DEVICE_GPU, STORE_DEVICE_MIG };

struct store_device {
    char name[STORE_DEVICE_BYTES]; /* "cpu", "cpu:1", "GPU-<uuid>", "MIG-<uuid>", "0000:01:00.0" */
    enum store_device_kind kind;
    char description[STORE_DESCRIPTION_BYTES];
    bool withdrawn; /* no pool uses it; read only but by store_withdraw_device() */
};

struct store_event {
    uint64_t id; /* rises */
    uint64_t time_us;
    char actor[STORE_ACTOR_BYTES];   /* "root", "alice (sudo)" */
    char action[STORE_ACTION_BYTES]; /* the command: "set-pool" */
    uint32_t vm_id;                  /* 0: none */
    char pool;                       /* '\0': none */
    char before[STORE_STATE_BYTES];  /* JSON objects, "" when there was or is nothing */
    char after[STORE_STATE_BYTES];
};

struct store;

/* Who changes what, for the audit; copied.  Without one nothing can be changed. */
struct store_actor {
    const char *who;
    const char *action;
};

enum store_access {
    STORE_READ,         /* an older schema is refused with what to run */
    STORE_READ_BRIEFLY, /* the same, for who must not wait: EBUSY after half a second */
    STORE_WRITE,        /* an older schema is migrated first */
};

/* --- store.c ------------------------------------------------------------------- */

/* Makes the file (mode 0640, group kept from its directory) with pools A and B on
 * device "cpu".  EEXIST when there is one: it stays as it is. */
int store_create(const char *path, const struct store_actor *actor, struct vgpu_error *error);

int store_open(const char *path, enum store_access access, struct store **ret_store,
               struct vgpu_error *error);
void store_close(struct store *store);
void store_set_actor(struct store *store, const struct store_actor *actor);

/* Several calls as one transaction.  A writer's begin waits for another writer; a
 * reader's is one snapshot of the database, without which two lists can be of two
 * states.  A call that fails in its middle takes only itself back. */
int store_begin(struct store *store, struct vgpu_error *error);
int store_commit(struct store *store, struct vgpu_error *error);
void store_rollback(struct store *store);

/* A whole copy while others write; `path` is made anew (EEXIST) and is complete or
 * not there. */
int store_backup(struct store *store, const char *path, struct vgpu_error *error);

/* Puts a backup's content in the place of the present one, as one transaction that
 * others see whole or not at all; the present events are kept and the restore is
 * one more.  The backup is checked first (integrity, schema; an older one is
 * migrated in a copy). */
int store_restore(struct store *store, const char *path, struct vgpu_error *error);

/* Integrity, constraints, schema version; for preflight. */
int store_verify(struct store *store, struct vgpu_error *error);
unsigned store_schema_version(void);

/* --- vms.c ---------------------------------------------------------------------- */

/* Bits of store_vm_change.fields. */
enum {
    STORE_VM_POOL = 1 << 0,
    STORE_VM_PRIORITY = 1 << 1,
    STORE_VM_NAME = 1 << 2,
    STORE_VM_UUID = 1 << 3,
    STORE_VM_STATE = 1 << 4, /* reason and end of quarantine */
    STORE_VM_CHANNELS = 1 << 5,
    STORE_VM_OWNER = 1 << 6, /* uid, gid, mode */
    STORE_VM_SESSIONS_MAX = 1 << 7,
    STORE_VM_DEVICE_MEMORY = 1 << 8,
    STORE_VM_OPERATION_LIMIT = 1 << 9,
    STORE_VM_ID = 1 << 10, /* values.vm_id is the new one */
    STORE_VM_WEIGHT = 1 << 11,
    STORE_VM_REQUEST_RATE = 1 << 12,
    STORE_VM_REQUEST_BURST = 1 << 13,
    STORE_VM_DEVICE_SHARE = 1 << 14,
    STORE_VM_QUEUE_DEPTH = 1 << 15,
    STORE_VM_INFLIGHT_OPS = 1 << 16,
    STORE_VM_INFLIGHT_KIB = 1 << 17,
};

struct store_vm_change {
    unsigned fields;
    struct store_vm values; /* those that `fields` names */
};

/* Defaults: pool A, priority medium, both common channels, owner -1, mode 0700. */
void store_vm_init(struct store_vm *vm);

/* The smallest number that no VM has. */
int store_choose_vm_id(struct store *store, uint32_t *ret_vm_id, struct vgpu_error *error);

/* vm->vm_id 0: store_choose_vm_id()'s, written back to vm. */
int store_add_vm(struct store *store, struct store_vm *vm, struct vgpu_error *error);
int store_change_vm(struct store *store, uint32_t vm_id, const struct store_vm_change *change,
                    struct store_vm *ret_before, struct store_vm *ret_after,
                    struct vgpu_error *error); /* the two may be NULL */
int store_remove_vm(struct store *store, uint32_t vm_id, struct store_vm *ret_before,
                    struct vgpu_error *error);
int store_get_vm(struct store *store, uint32_t vm_id, struct store_vm *ret_vm,
                 struct vgpu_error *error);

/* By id, UUID or name, in this order.  ENOENT names near ones when there are. */
int store_find_vm(struct store *store, const char *text, struct store_vm *ret_vm,
                  struct vgpu_error *error);

/* All by vm_id; the caller frees *ret_vms with free(). */
int store_list_vms(struct store *store, struct store_vm **ret_vms, size_t *ret_count,
                   struct vgpu_error *error);

/* --- pools.c -------------------------------------------------------------------- */

enum {
    STORE_POOL_NAME = 1 << 0,
    STORE_POOL_DESCRIPTION = 1 << 1,
    STORE_POOL_ENABLED = 1 << 2,
    STORE_POOL_SHARING = 1 << 3,
    STORE_POOL_DEVICE = 1 << 4,
    STORE_POOL_VMS_MAX = 1 << 5,
    STORE_POOL_DEVICE_MEMORY = 1 << 6,
    STORE_POOL_PLACEMENT = 1 << 7,
    STORE_POOL_SESSION_DEVICES = 1 << 8,
    STORE_POOL_POLICY = 1 << 9,
    STORE_POOL_AGING = 1 << 10,
    STORE_POOL_DEMAND = 1 << 11,
};

struct store_pool_change {
    unsigned fields;
    struct store_pool values;
};

void store_pool_init(struct store_pool *pool);
int store_add_pool(struct store *store, const struct store_pool *pool, struct vgpu_error *error);
int store_change_pool(struct store *store, char id, const struct store_pool_change *change,
                      struct store_pool *ret_before, struct store_pool *ret_after,
                      struct vgpu_error *error);
/* Only an empty one, and never the last. */
int store_remove_pool(struct store *store, char id, struct vgpu_error *error);

/* By id or name. */
int store_find_pool(struct store *store, const char *text, struct store_pool *ret_pool,
                    struct vgpu_error *error);
int store_list_pools(struct store *store, struct store_pool **ret_pools, size_t *ret_count,
                     struct vgpu_error *error);

/* "default", "strict", "wfq", "fifo", "round-robin". */
const char *store_policy_name(enum store_policy policy);

/* --- devices.c ------------------------------------------------------------------- */

/* Adds or describes anew. */
int store_put_device(struct store *store, const struct store_device *device,
                     struct vgpu_error *error);
/* Withdraws a device, or returns it.  ENOENT when there is none of this name. */
int store_withdraw_device(struct store *store, const char *name, bool withdrawn,
                          struct store_device *ret_device, struct vgpu_error *error);
int store_list_devices(struct store *store, struct store_device **ret_devices, size_t *ret_count,
                       struct vgpu_error *error);

/* --- events.c -------------------------------------------------------------------- */

struct store_event_filter {
    uint32_t vm_id;     /* 0: any */
    const char *action; /* NULL: any */
    uint64_t since_us;  /* 0: from the first */
    uint32_t limit;     /* the newest so many; 0: all */
};

/* Oldest first. */
int store_list_events(struct store *store, const struct store_event_filter *filter,
                      struct store_event **ret_events, size_t *ret_count, struct vgpu_error *error);

/* Deletes the events before this instant, which nothing else does; one more says how many
 * they were.  `ret_count` may be NULL. */
int store_prune_events(struct store *store, uint64_t before_us, uint64_t *ret_count,
                       struct vgpu_error *error);

/* Something that changed no row: "restart-vm", "bind-vfio". */
int store_add_event(struct store *store, const struct store_event *event, struct vgpu_error *error);

/* --- check.c ---------------------------------------------------------------------- */

/* What may be, with the words for what may not; all pure. */
int store_check_name(const char *name, struct vgpu_error *error);
int store_check_uuid(const char *uuid, char ret_uuid[STORE_UUID_BYTES], struct vgpu_error *error);
int store_check_vm_id(const char *text, uint32_t *ret_vm_id, struct vgpu_error *error);
int store_check_priority(const char *text, uint8_t *ret_priority, struct vgpu_error *error);
int store_check_pool_id(const char *text, char *ret_pool, struct vgpu_error *error);
int store_check_device(const char *name, struct vgpu_error *error);
int store_check_policy(const char *text, enum store_policy *ret_policy, struct vgpu_error *error);

#endif /* VGPU_STORE_H */
