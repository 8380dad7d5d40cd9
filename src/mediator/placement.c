/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which devices of its pool a session works on.
 *
 *   session begins ─▶ the pool's devices that work ─┬─ spread: least device time outstanding,
 *          ▲                                        │          then fewest sessions, then least
 *          │                                        │          device time used lately
 *          │                                        └─ pack:   the first with room, or as spread
 *          │  ─▶ its VM's place on that device (made on first use)
 *          └── idle, holds nothing there, and gets work (spread only): to devices like its own
 *
 * Outstanding is what the sessions that wait or run there have to do: their operations, each as
 * long as theirs have been lately.
 *
 * Where the pool gives several to a session (session_devices) they are chosen in this way one
 * after the other, all of one kind; their places stand in the order of the devices' numbers.
 *
 * A session keeps its devices while it has something there.  If one is taken from the pool or
 * fails it goes on, with what it held lost, on others.
 */
#include "mediator/mediator.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LATELY_NS (10 * NS_PER_S) /* what was used counts half after so long */

/* An operation of a session that has run none yet; and a wait that is longer by less is not. */
#define OPERATION_US 1000u
#define OPERATIONS_LATELY 256u /* that say how long a session's next ones take */
#define EXPECTED_MAX_US (60 * NS_PER_S / NS_PER_US)

/* --- the load of a device ----------------------------------------------------------------- */

static void load_age(struct device_load *load, uint64_t now_ns)
{
    uint64_t halves = (now_ns - load->used_since_ns) / LATELY_NS;

    if (halves == 0)
        return;
    load->used_us = halves < 64 ? load->used_us >> halves : 0;
    load->used_since_ns += halves * LATELY_NS;
}

/* What has begun is told before the time that it takes. */
static void learn(struct session *session, uint64_t used_us, uint64_t operations)
{
    session->begun_operations += operations;
    if (used_us == 0)
        return;
    session->lately_us += used_us;
    session->lately_operations += session->begun_operations;
    session->begun_operations = 0;
    while (session->lately_operations > OPERATIONS_LATELY) {
        session->lately_us /= 2;
        session->lately_operations /= 2;
    }
}

static uint64_t expect_us(const struct session *session, uint32_t operations)
{
    uint64_t each_us = session->lately_operations > 0
                           ? session->lately_us / session->lately_operations + 1
                           : OPERATION_US;

    if (each_us > EXPECTED_MAX_US || each_us * operations > EXPECTED_MAX_US)
        return EXPECTED_MAX_US;
    return each_us * operations;
}

void placement_expect(struct session *session, uint32_t operations)
{
    uint64_t before_us = session->expected_us, now_us = expect_us(session, operations);

    session->expected_us = now_us;
    for (unsigned i = 0; i < session->place_count; i++) {
        struct vm_place *place = session->places[i];

        place->expected_us += now_us - before_us; /* may wrap, and wraps back */
        session->vm->mediator->loads[place->device].expected_us += now_us - before_us;
    }
}

/* Who has a device for as long as it is alone there comes and goes with work unseen: what it was
 * expected to do when it came is corrected by so much. */
static uint64_t unseen_us(struct session *session)
{
    uint64_t now_us = session->ops->is_at_work(session) ? expect_us(session, session->depth) : 0;

    return now_us - session->expected_us;
}

static uint64_t outstanding_us(const struct mediator *mediator, unsigned device)
{
    const struct sched_vm *queued = sched_running(mediator->sched, device);
    const struct vm_place *place = queued ? sched_vm_context(queued) : NULL;
    struct session *running = place && place->device == device ? place->running : NULL;
    bool is_long = running && running->state == SESSION_RUNNING && place->running_long;

    return mediator->loads[device].expected_us + (is_long ? unseen_us(running) : 0);
}

void placement_charge(struct session *session, uint64_t used_us, uint64_t operations)
{
    unsigned count = session->place_count;

    learn(session, used_us, operations);
    vm_count(session->vm, METRICS_DEVICE_US, used_us * (count > 0 ? count : 1));
    for (unsigned i = 0; i < count; i++) {
        struct device_load *load = &session->vm->mediator->loads[session->places[i]->device];

        load_age(load, clock_monotonic_ns());
        load->used_us += used_us;
        load->busy_us += used_us;
    }
}

static bool is_lighter(struct device_load *a, struct device_load *b)
{
    uint64_t now_ns = clock_monotonic_ns();

    if (a->sessions != b->sessions)
        return a->sessions < b->sessions;
    load_age(a, now_ns);
    load_age(b, now_ns);
    return a->used_us < b->used_us;
}

/* --- the pool's devices -------------------------------------------------------------------- */

const char *config_pool_device(const struct config_pool *pool, unsigned index,
                               char name[CONFIG_DEVICE_BYTES])
{
    return text_word(pool->device, index, name, CONFIG_DEVICE_BYTES) ? name : NULL;
}

unsigned placement_devices(struct mediator *mediator, const struct config_pool *pool,
                           unsigned ret_devices[CONFIG_POOL_DEVICES_MAX])
{
    char name[CONFIG_DEVICE_BYTES];
    struct vgpu_error ignored;
    unsigned count = 0;

    for (unsigned i = 0; i < CONFIG_POOL_DEVICES_MAX && config_pool_device(pool, i, name); i++) {
        int device = mediator_device_index(mediator, name, &ignored);

        if (device >= 0)
            ret_devices[count++] = (unsigned)device;
    }
    return count;
}

/* Those of this kind (NULL: of any) that work, or all; returns how many. */
static unsigned list_devices(struct mediator *mediator, const struct config_pool *pool,
                             const char *kind, bool working,
                             unsigned devices[CONFIG_POOL_DEVICES_MAX])
{
    unsigned count = placement_devices(mediator, pool, devices), kept = 0;

    for (unsigned i = 0; i < count; i++) {
        const char *name = mediator->devices[devices[i]];

        if ((!kind || strcmp(exec_backend_of(name), kind) == 0) &&
            (!working || devices_usable(mediator, name, NULL)))
            devices[kept++] = devices[i];
    }
    return kept;
}

bool placement_is_possible(struct mediator *mediator, const struct config_pool *pool)
{
    unsigned wanted = pool->session_devices, devices[CONFIG_POOL_DEVICES_MAX];

    if (wanted == 1)
        return list_devices(mediator, pool, NULL, true, devices) > 0;
    return list_devices(mediator, pool, "cuda", true, devices) >= wanted ||
           list_devices(mediator, pool, "cpu", true, devices) >= wanted;
}

static bool has_device(const struct vm *vm, unsigned device)
{
    const struct config_pool *pool = mediator_find_pool(vm->mediator, vm_pool(vm));
    unsigned devices[CONFIG_POOL_DEVICES_MAX];
    unsigned count = pool ? placement_devices(vm->mediator, pool, devices) : 0;

    for (unsigned i = 0; i < count; i++) {
        if (devices[i] == device)
            return true;
    }
    return false;
}

/* --- choosing ------------------------------------------------------------------------------ */

/* Those that work; all where not enough do, as one that comes back is taken anew. */
static unsigned candidates(struct mediator *mediator, const struct config_pool *pool,
                           unsigned wanted, unsigned devices[CONFIG_POOL_DEVICES_MAX])
{
    static const struct {
        const char *kind;
        bool working;
    } tries[] = {{"cuda", true}, {"cpu", true}, {"cuda", false}, {"cpu", false}};

    if (wanted == 1 && list_devices(mediator, pool, NULL, true, devices) > 0)
        return list_devices(mediator, pool, NULL, true, devices);
    for (size_t i = 0; wanted > 1 && i < VGPU_ARRAY_LENGTH(tries); i++) {
        unsigned count = list_devices(mediator, pool, tries[i].kind, tries[i].working, devices);

        if (count >= wanted)
            return count;
    }
    return list_devices(mediator, pool, NULL, false, devices);
}

static unsigned least_outstanding(const struct mediator *mediator, const unsigned *devices,
                                  unsigned count)
{
    uint64_t least_us = UINT64_MAX;
    unsigned least = 0;

    for (unsigned i = 0; i < count; i++) {
        uint64_t device_us = outstanding_us(mediator, devices[i]);

        if (device_us < least_us) {
            least_us = device_us;
            least = i;
        }
    }
    return least;
}

/* Which of `count` devices, 1 or more, has least to do. */
static unsigned lightest_of(struct mediator *mediator, const unsigned *devices, unsigned count)
{
    unsigned best = least_outstanding(mediator, devices, count);
    uint64_t least_us = outstanding_us(mediator, devices[best]);

    for (unsigned i = 0; i < count; i++) {
        if (outstanding_us(mediator, devices[i]) - least_us < OPERATION_US &&
            is_lighter(&mediator->loads[devices[i]], &mediator->loads[devices[best]]))
            best = i;
    }
    return best;
}

/* Which of them is to be taken. */
static unsigned best_of(struct mediator *mediator, const struct config_pool *pool,
                        const unsigned *devices, unsigned count)
{
    for (unsigned i = 0; pool->pack && i < count; i++) {
        if (mediator->loads[devices[i]].sessions < mediator->config->sessions_per_device)
            return i;
    }
    return lightest_of(mediator, devices, count);
}

static int compare_devices(const void *a, const void *b)
{
    unsigned first = *(const unsigned *)a, second = *(const unsigned *)b;

    return first < second ? -1 : first > second;
}

/* Returns how many there are, up to `wanted`, in the order of their numbers. */
static unsigned choose(const struct vm *vm, unsigned wanted,
                       unsigned ret_devices[CONFIG_POOL_DEVICES_MAX])
{
    struct mediator *mediator = vm->mediator;
    const struct config_pool *pool = mediator_find_pool(mediator, vm_pool(vm));
    unsigned devices[CONFIG_POOL_DEVICES_MAX], chosen = 0;
    unsigned count = pool ? candidates(mediator, pool, wanted, devices) : 0;

    while (chosen < wanted && count > 0) {
        unsigned best = best_of(mediator, pool, devices, count);

        ret_devices[chosen++] = devices[best];
        count--;
        memmove(&devices[best], &devices[best + 1], (count - best) * sizeof(devices[0]));
    }
    qsort(ret_devices, chosen, sizeof(ret_devices[0]), compare_devices);
    return chosen;
}

static struct vm_place *find_place(const struct vm *vm, unsigned device)
{
    struct vm_place *place;

    STAILQ_FOREACH (place, &vm->places, in_vm) {
        if (place->device == device)
            return place;
    }
    return NULL;
}

struct vm_place *placement_add(struct vm *vm, unsigned device, char pool, unsigned priority,
                               struct vgpu_error *error)
{
    struct vm_place *place = calloc(1, sizeof(*place));

    if (!place) {
        error_set(error, ENOMEM, "no memory for a place of VM %u", vm->vm_id);
        return NULL;
    }
    place->queued = sched_add_vm(vm->mediator->sched, vm->vm_id, pool, priority, place, error);
    if (!place->queued) {
        free(place);
        return NULL;
    }
    place->vm = vm;
    place->device = device;
    sched_pin_vm(vm->mediator->sched, place->queued, device, error);
    sched_set_weight(vm->mediator->sched, place->queued, vm->settings.weight);
    TAILQ_INIT(&place->waiting);
    TAILQ_INIT(&place->gated);
    STAILQ_INSERT_TAIL(&vm->places, place, in_vm);
    return place;
}

/* NULL: no memory for one more. */
static struct vm_place *place_on(struct vm *vm, unsigned device)
{
    struct vm_place *place = find_place(vm, device);
    struct vgpu_error error;

    return place ? place : placement_add(vm, device, vm_pool(vm), vm_priority(vm), &error);
}

static void enter_place(struct session *session, struct vm_place *place)
{
    session->places[session->place_count++] = place;
    session->place = session->places[0];
    place->sessions++;
    session->vm->mediator->loads[place->device].sessions++;
}

/* Where there is no memory for a place, those do for which there is; one in any case. */
static void enter_places(struct session *session, const unsigned *devices, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        struct vm_place *place = place_on(session->vm, devices[i]);

        if (place)
            enter_place(session, place);
    }
    if (session->place_count == 0)
        enter_place(session, STAILQ_FIRST(&session->vm->places));
}

void placement_leave(struct session *session)
{
    placement_expect(session, 0);
    for (unsigned i = 0; i < session->place_count; i++) {
        session->places[i]->sessions--;
        session->vm->mediator->loads[session->places[i]->device].sessions--;
    }
    session->place_count = 0;
    session->place = NULL;
}

static unsigned wanted_by(const struct session *session)
{
    const struct config_pool *pool =
        mediator_find_pool(session->vm->mediator, vm_pool(session->vm));

    return pool && session->ops->takes_many ? pool->session_devices : 1;
}

void placement_choose(struct session *session)
{
    unsigned devices[CONFIG_POOL_DEVICES_MAX], wanted = wanted_by(session), count;

    placement_leave(session); /* it is no load to itself */
    count = choose(session->vm, wanted, devices);
    session->lacks_devices = count < wanted;
    enter_places(session, devices, count);
}

/* --- anew ------------------------------------------------------------------------------------ */

/* Of its pool's devices that work those on which it can go on without its guest seeing it, and at
 * once: another device's time is no gain to who then waits for a context there. */
static unsigned list_alike(const struct session *session, const struct config_pool *pool,
                           unsigned devices[CONFIG_POOL_DEVICES_MAX])
{
    struct mediator *mediator = session->vm->mediator;
    const char *now = mediator->devices[session->places[0]->device];
    unsigned count = list_devices(mediator, pool, NULL, true, devices), kept = 0;

    for (unsigned i = 0; i < count; i++) {
        if (devices_are_alike(mediator, mediator->devices[devices[i]], now) &&
            contexts_has_room(session, devices[i]))
            devices[kept++] = devices[i];
    }
    return kept;
}

static bool has(const unsigned *devices, unsigned count, unsigned device)
{
    for (unsigned i = 0; i < count; i++) {
        if (devices[i] == device)
            return true;
    }
    return false;
}

/* It is no load to its own device now. */
static bool is_better(struct mediator *mediator, unsigned device, unsigned now)
{
    return outstanding_us(mediator, device) + OPERATION_US <= outstanding_us(mediator, now) ||
           mediator->loads[device].sessions < mediator->loads[now].sessions;
}

/* Where the pool has only one device nothing is to be chosen. */
static bool may_choose_anew(const struct session *session, const struct config_pool *pool)
{
    return pool && !pool->pack && strchr(pool->device, ' ') && session->place_count == 1 &&
           session->ops->may_move(session);
}

void placement_rebalance(struct session *session)
{
    struct mediator *mediator = session->vm->mediator;
    const struct config_pool *pool = mediator_find_pool(mediator, vm_pool(session->vm));
    unsigned devices[CONFIG_POOL_DEVICES_MAX], count, now, best;

    if (!may_choose_anew(session, pool))
        return;
    now = session->places[0]->device;
    count = list_alike(session, pool, devices);
    if (count == 0)
        return;
    placement_leave(session);
    best = devices[lightest_of(mediator, devices, count)];
    if (best != now && has(devices, count, now) && !is_better(mediator, best, now))
        best = now;
    enter_places(session, &best, 1);
    if (session->place->device != now && session->ops->moved)
        session->ops->moved(session);
}

/* The mediator's number of a device of this name that is the VM's pool's; -1: there is none. */
static int find_device(const struct vm *vm, const char *name)
{
    for (unsigned i = 0; i < vm->mediator->device_count; i++) {
        if (strcmp(vm->mediator->devices[i], name) == 0 && has_device(vm, i))
            return (int)i;
    }
    return -1;
}

void placement_adopt(struct session *session, const char *names)
{
    unsigned devices[CONFIG_POOL_DEVICES_MAX], count = 0;
    char name[CONFIG_DEVICE_BYTES];

    while (count < CONFIG_POOL_DEVICES_MAX && text_word(names, count, name, sizeof(name))) {
        int device = find_device(session->vm, name);

        if (device < 0)
            break;
        devices[count++] = (unsigned)device;
    }
    if (count == 0 || text_word(names, count, name, sizeof(name))) {
        placement_choose(session);
        return;
    }
    qsort(devices, count, sizeof(devices[0]), compare_devices);
    enter_places(session, devices, count);
}

/* --- staying --------------------------------------------------------------------------------- */

/* Not where its device is not the pool's, or has failed and another one works. */
static bool place_holds(const struct vm_place *place)
{
    const struct vm *vm = place->vm;
    const struct config_pool *pool = mediator_find_pool(vm->mediator, vm_pool(vm));

    if (!has_device(vm, place->device))
        return false;
    return !devices_failed(vm->mediator, vm->mediator->devices[place->device]) ||
           !placement_is_possible(vm->mediator, pool);
}

bool placement_stands(const struct session *session)
{
    for (unsigned i = 0; i < session->place_count; i++) {
        if (session->places[i]->left ||
            (i > 0 && session->places[i]->device <= session->places[i - 1]->device))
            return false;
    }
    return session->place_count > 0;
}

static bool all_hold(const struct session *session)
{
    for (unsigned i = 0; i < session->place_count; i++) {
        if (!place_holds(session->places[i]))
            return false;
    }
    return session->place_count > 0;
}

/* There were too few for it, and are enough now. */
static bool must_begin_anew(const struct session *session)
{
    struct mediator *mediator = session->vm->mediator;
    const struct config_pool *pool = mediator_find_pool(mediator, vm_pool(session->vm));

    return session->lacks_devices && pool && placement_is_possible(mediator, pool);
}

bool placement_holds(const struct session *session)
{
    return all_hold(session) && !must_begin_anew(session);
}

bool placement_allows(const struct vm *vm, const char *names)
{
    char name[CONFIG_DEVICE_BYTES];

    for (unsigned i = 0; text_word(names, i, name, sizeof(name)); i++) {
        /* The processor answers where there is no other. */
        if (find_device(vm, name) < 0 && strcmp(name, "cpu") != 0)
            return false;
    }
    return true;
}

bool placement_takes(const struct session *session)
{
    const struct mediator *mediator = session->vm->mediator;

    if (!placement_holds(session) || session->place_count != wanted_by(session))
        return false;
    for (unsigned i = 0; i < session->place_count; i++) {
        if (!devices_usable(mediator, mediator->devices[session->places[i]->device], NULL))
            return false;
    }
    return true;
}

/* Not on its places' devices, but on the processor. */
static bool must_use_cpu(const struct session *session)
{
    struct mediator *mediator = session->vm->mediator;
    const struct config_pool *pool = mediator_find_pool(mediator, vm_pool(session->vm));
    bool usable = true;

    for (unsigned i = 0; i < session->place_count; i++) {
        unsigned device = session->places[i]->device;

        if (!has_device(session->vm, device))
            return true;
        usable = usable && devices_usable(mediator, mediator->devices[device], NULL);
    }
    /* Else its VMs are refused, and their sessions wait for it. */
    return !pool ||
           (mediator->config->gpu_missing_cpu && !usable && !placement_is_possible(mediator, pool));
}

static void write_names(const struct session *session, bool cpu,
                        char names[CONFIG_POOL_DEVICE_BYTES])
{
    size_t used = 0;

    names[0] = '\0';
    for (unsigned i = 0; i < session->place_count; i++) {
        const char *name = cpu ? "cpu" : session->vm->mediator->devices[session->places[i]->device];

        used += (size_t)snprintf(names + used, CONFIG_POOL_DEVICE_BYTES - used, "%s%s",
                                 i > 0 ? " " : "", name);
    }
    if (session->place_count == 0)
        text_copy(names, CONFIG_POOL_DEVICE_BYTES, "cpu");
}

void placement_devices_of(const struct session *session, char names[CONFIG_POOL_DEVICE_BYTES])
{
    write_names(session, must_use_cpu(session), names);
}

/* Each of `names` is one of `others`; their numbers are alike. */
static bool are_alike(const char *names, const char *others)
{
    char name[CONFIG_DEVICE_BYTES], other[CONFIG_DEVICE_BYTES];
    unsigned count = 0;

    for (; text_word(names, count, name, sizeof(name)); count++) {
        bool found = false;

        for (unsigned i = 0; !found && text_word(others, i, other, sizeof(other)); i++)
            found = devices_are_one(name, other);
        if (!found)
            return false;
    }
    return (count == 0 || text_word(others, count - 1, other, sizeof(other))) &&
           !text_word(others, count, other, sizeof(other));
}

bool placement_fits(const struct session *session, const char *names)
{
    char own[CONFIG_POOL_DEVICE_BYTES];

    if (must_begin_anew(session))
        return false;
    write_names(session, !placement_holds(session) || must_use_cpu(session), own);
    return are_alike(names, own);
}

static void wait_again(struct session *session)
{
    uint32_t depth = session->depth;

    session_withdraw(session);
    session_wait(session, depth);
}

/* What waits for a context of the old device waits for one of the new one.  They are so many:
 * one that waits again stands at the end of the list. */
static void move_gated(struct vm_place *place)
{
    struct session *session;

    TAILQ_FOREACH (session, &place->waiting, in_order)
        contexts_leave(session); /* it is seen to with its grant */
    for (uint32_t left = place->gated_count; left > 0; left--)
        wait_again(TAILQ_FIRST(&place->gated));
}

/* All that stands in this place goes to another device, in the order of its arrival. */
static void move_place(struct vm_place *place, unsigned device)
{
    struct mediator *mediator = place->vm->mediator;
    struct vgpu_error ignored;

    mediator->loads[place->device].sessions -= place->sessions;
    mediator->loads[device].sessions += place->sessions;
    mediator->loads[place->device].expected_us -= place->expected_us;
    mediator->loads[device].expected_us += place->expected_us;
    place->device = device;
    sched_pin_vm(mediator->sched, place->queued, device, &ignored);
    move_gated(place);
}

/* What runs there is moved when it is back; a grant that has no end of its own is called back. */
static void move_waiting(struct vm_place *place)
{
    struct session *session, *next;

    if (place->running_long)
        vm_revoke(place, TRACE_REASON_OTHERS_WAIT);
    for (session = TAILQ_FIRST(&place->waiting); session; session = next) {
        next = TAILQ_NEXT(session, in_order);
        wait_again(session);
    }
    move_gated(place);
}

/* Those on several devices give back what they have got of them, and wait anew when their
 * places are settled. */
static void lift_waiting(struct vm *vm)
{
    struct window_session *ws;

    TAILQ_FOREACH (ws, &vm->windows, in_vm) {
        ws->session.lifted =
            (ws->session.state == SESSION_WAITING || ws->session.state == SESSION_GATED) &&
            ws->session.place_count > 1 && !all_hold(&ws->session);
        if (ws->session.lifted)
            session_withdraw(&ws->session);
    }
}

static void put_back(struct vm *vm)
{
    struct window_session *ws;

    TAILQ_FOREACH (ws, &vm->windows, in_vm) {
        if (ws->session.lifted)
            session_wait(&ws->session, ws->session.depth);
        ws->session.lifted = false;
    }
}

void placement_update(struct vm *vm)
{
    unsigned devices[CONFIG_POOL_DEVICES_MAX];
    struct vm_place *place;

    lift_waiting(vm);
    STAILQ_FOREACH (place, &vm->places, in_vm) {
        bool moves = !place_holds(place) && choose(vm, 1, devices) > 0;

        place->left = moves && find_place(vm, devices[0]);
        if (place->left)
            move_waiting(place);
        else if (moves)
            move_place(place, devices[0]);
    }
    put_back(vm);
}
