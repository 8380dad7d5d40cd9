/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sessions on one to three devices in a random life, with the real scheduler, placement and
 * gates before contexts; only workers are not there: what runs returns when the test says so.
 *
 * Required: a device is never two's at once, who runs has the grants of all its devices, and
 * whoever waits gets through when the others come to their end.  No device stands idle while
 * somebody waits for it, and no two wait for each other, whatever is changed meanwhile.
 */
#include "unit.h"

#include "mediator/mediator.h"

#define DEVICES 3u
#define POOLS 5u
#define VMS 10u
#define SESSIONS 30u
#define STEPS 100000u
#define TURNS_MAX 10000u

struct player {
    union {
        struct session session;
        struct window_session window; /* as its VM lists it */
    };
    bool has_contexts;
    uint64_t runs, owed; /* owed: it waited for this one when nothing new came any more */
};

struct world {
    struct config config;
    struct mediator mediator;
    struct vm *vms[VMS];
    struct player players[SESSIONS];
    const struct player *holders[DEVICES];
};

static struct world world;
static uint64_t random_state;

static unsigned random_below(unsigned limit)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (unsigned)((random_state >> 33) % limit);
}

/* --- sessions without workers ----------------------------------------------------------- */

static void run(struct session *session, const struct sched_grant *grant)
{
    struct player *player = (struct player *)session;

    bool is_long = grant->device_us == SCHED_GRANT_LONG_US;

    for (unsigned i = 0; i < session->place_count; i++) {
        const struct vm_place *place = session->places[i];

        assert_ptr_equal(place->running, session);
        assert_ptr_equal(sched_running(world.mediator.sched, place->device), place->queued);
        assert_null(world.holders[place->device]);
        assert_int_equal(place->running_long, is_long);
        assert_true(!is_long || place->waiting_count == 0);
        world.holders[place->device] = player;
    }
    player->has_contexts = true;
    player->runs++;
}

static void give_up(struct player *player)
{
    for (unsigned i = 0; i < DEVICES; i++) {
        if (world.holders[i] == player)
            world.holders[i] = NULL;
    }
}

static void ignore(struct session *session)
{
    (void)session;
}

/* A bounded grant of several devices is not taken back: it could end before it began. */
static void take_back(struct session *session)
{
    assert_int_equal(session->state, SESSION_RUNNING);
    assert_true(session->place_count == 1 || session->place->running_long);
}

static void describe(const struct session *session, char *text, size_t bytes)
{
    (void)session;
    text_copy(text, bytes, "");
}

static bool needs_context(const struct session *session)
{
    (void)session;
    return true;
}

static uint32_t contexts(const struct session *session)
{
    return ((const struct player *)session)->has_contexts;
}

static bool may_move(const struct session *session)
{
    return contexts(session) == 0;
}

static bool is_at_work(struct session *session)
{
    return session->depth > 0;
}

static const struct session_ops player_ops = {.takes_many = true,
                                              .run = run,
                                              .revoke = take_back,
                                              .refuse = ignore,
                                              .needs_context = needs_context,
                                              .contexts = contexts,
                                              .rest = ignore,
                                              .may_move = may_move,
                                              .is_at_work = is_at_work,
                                              .describe = describe};

/* --- what an administrator changes ------------------------------------------------------- */

static void give_other_devices(struct config_pool *pool)
{
    static const struct {
        const char *names;
        unsigned count;
    } lists[] = {{"cpu:0 cpu:1 cpu:2", 3}, {"cpu:2 cpu:1 cpu:0", 3}, {"cpu:0", 1}, {"cpu:1", 1},
                 {"cpu:2 cpu:0", 2},       {"cpu:1 cpu:2", 2}};
    unsigned devices[CONFIG_POOL_DEVICES_MAX], list = random_below(VGPU_ARRAY_LENGTH(lists));
    struct vgpu_error error;

    text_copy(pool->device, sizeof(pool->device), lists[list].names);
    pool->session_devices = 1 + random_below(lists[list].count);
    placement_devices(&world.mediator, pool, devices);
    sched_update_pool(world.mediator.sched, pool->id, devices[0], SCHED_POOLS_SHARED, &error);
    for (unsigned i = 0; i < VMS; i++) {
        if (vm_pool(world.vms[i]) == pool->id)
            placement_update(world.vms[i]);
    }
}

static void change_something(void)
{
    struct vm *vm = world.vms[random_below(VMS)];
    struct vgpu_error error;

    if (random_below(5) == 0) {
        contexts_set_vm_cap(&world.mediator, random_below(4));
    } else if (random_below(3) == 0) {
        contexts_set_cap(&world.mediator, random_below(5));
    } else if (random_below(2) == 0) {
        give_other_devices(&world.mediator.pools[random_below(POOLS)]);
    } else {
        vm_update(vm, (char)('A' + random_below(POOLS)), random_below(3), &error);
        placement_update(vm);
    }
}

/* --- the world --------------------------------------------------------------------------- */

static const char *const pool_devices[POOLS] = {"cpu:0 cpu:1 cpu:2", "cpu:2 cpu:1 cpu:0", "cpu:1",
                                                "cpu:2 cpu:0", "cpu:0 cpu:1 cpu:2"};
static const uint32_t pool_numbers[POOLS] = {2, 2, 1, 1, 3};

static void begin(uint32_t cap, uint32_t vm_cap)
{
    const struct sched_config sched = {.grant_max_ops = 1000,
                                       .grant_max_inflight = 1,
                                       .grant_device_us = 2000,
                                       .long_grants = true};
    struct mediator *mediator = &world.mediator;
    struct vgpu_error error;

    memset(&world, 0, sizeof(world));
    config_init(&world.config);
    mediator->config = &world.config;
    uv_loop_init(&mediator->loop);
    mediator->sched = sched_new(&sched);
    contexts_init(mediator, cap, vm_cap);
    for (unsigned i = 0; i < POOLS; i++) {
        struct config_pool *pool = &mediator->pools[mediator->pool_count++];

        *pool = (struct config_pool){.id = (char)('A' + i), .session_devices = pool_numbers[i]};
        text_copy(pool->device, sizeof(pool->device), pool_devices[i]);
        assert_int_equal(sched_add_pool(mediator->sched, pool->id, 0, &error), 0);
    }
    for (unsigned i = 0; i < VMS; i++) {
        world.vms[i] = vm_new(mediator, i + 1, (char)('A' + i % POOLS), i % 3, true, &error);
        assert_non_null(world.vms[i]);
    }
    for (unsigned i = 0; i < SESSIONS; i++) {
        session_init(&world.players[i].session, world.vms[i % VMS], &player_ops);
        TAILQ_INSERT_TAIL(&world.vms[i % VMS]->windows, &world.players[i].window, in_vm);
    }
}

static void end(void)
{
    for (unsigned i = 0; i < SESSIONS; i++) {
        placement_leave(&world.players[i].session);
        TAILQ_REMOVE(&world.vms[i % VMS]->windows, &world.players[i].window, in_vm);
    }
    for (unsigned i = 0; i < VMS; i++) {
        file_session_close(world.vms[i]->file);
        uv_run(&world.mediator.loop, UV_RUN_DEFAULT);
        vm_free(world.vms[i]);
    }
    sched_free(world.mediator.sched);
    metrics_free(&world.mediator);
    uv_loop_close(&world.mediator.loop);
    config_free(&world.config);
}

static void finish(struct player *player, uint32_t depth_left)
{
    player->has_contexts = random_below(4) == 0;
    give_up(player);
    session_returned(&player->session, random_below(2000), depth_left);
}

/* No VM has more than it may, and each is counted. */
static void check_shares(bool changes)
{
    uint32_t held[DEVICES] = {0};

    for (unsigned i = 0; i < VMS; i++) {
        const struct vm_contexts *contexts;

        SLIST_FOREACH (contexts, &world.vms[i]->contexts, in_vm) {
            uint32_t cap = world.mediator.gates[contexts->device].owner_cap;

            held[contexts->device] += contexts->owner.held;
            assert_true(changes || cap == 0 || contexts->owner.held <= cap);
        }
    }
    for (unsigned i = 0; i < DEVICES; i++)
        assert_int_equal(held[i], world.mediator.gates[i].held);
}

/* Who has some of its devices waits for one of a higher number: no two wait for each other. */
static void check_order(const struct session *session)
{
    for (unsigned i = 0; i < session->held; i++)
        assert_true(session->places[i]->device < session->place->device);
}

static void check_waiting(const struct session *session)
{
    const struct vm_place *place = session->place;

    if (session->state == SESSION_GATED)
        assert_int_equal(session->seats[session->gated_at].device, place->device);
    if (session->state != SESSION_WAITING)
        return;
    check_order(session);
    /* A place that was moved waits for what still runs where it was. */
    assert_true(place->running || sched_running(world.mediator.sched, place->device));
}

static void one_step(bool changes)
{
    struct player *player = &world.players[random_below(SESSIONS)];
    struct vgpu_error error;

    if (player->session.state == SESSION_IDLE && random_below(2)) {
        session_wait(&player->session, 1 + random_below(3));
    } else if (player->session.state == SESSION_IDLE) {
        player->has_contexts = false; /* it had nothing to do for long */
        contexts_settle(&player->session);
    } else if (player->session.state == SESSION_RUNNING && random_below(2)) {
        finish(player, random_below(3));
    } else if (player->session.state != SESSION_RUNNING && random_below(20) == 0) {
        session_withdraw(&player->session);
    } else if (random_below(50) == 0) {
        vm_update(player->session.vm, vm_pool(player->session.vm), random_below(3), &error);
    }
    if (changes && random_below(30) == 0)
        change_something();
    mediator_dispatch(&world.mediator);
    for (unsigned i = 0; i < SESSIONS; i++)
        check_waiting(&world.players[i].session);
    check_shares(changes);
}

/* Nothing new comes; what runs ends, and gives its contexts up. */
static unsigned drain(void)
{
    unsigned turns = 0, busy;

    do {
        busy = 0;
        for (unsigned i = 0; i < SESSIONS; i++) {
            struct player *player = &world.players[i];

            busy += player->session.state != SESSION_IDLE;
            player->has_contexts = false;
            if (player->session.state == SESSION_RUNNING) {
                give_up(player);
                session_returned(&player->session, 1, 0);
            } else {
                contexts_settle(&player->session);
            }
        }
        mediator_dispatch(&world.mediator);
    } while (busy > 0 && ++turns < TURNS_MAX);
    return turns;
}

static void live(uint32_t cap, uint32_t vm_cap, bool changes, uint64_t seed)
{
    random_state = seed;
    begin(cap, vm_cap);
    for (unsigned i = 0; i < STEPS; i++)
        one_step(changes);
    for (unsigned i = 0; i < SESSIONS; i++) {
        const struct session *session = &world.players[i].session;
        bool waits = session->state == SESSION_WAITING || session->state == SESSION_GATED;

        world.players[i].owed = world.players[i].runs + waits;
    }
    assert_in_range(drain(), 0, SESSIONS * 2);
    assert_int_equal(sched_waiting(world.mediator.sched, 0), 0);
    assert_int_equal(world.mediator.running, 0);
    for (unsigned i = 0; i < SESSIONS; i++)
        assert_true(world.players[i].runs == world.players[i].owed);
    for (unsigned i = 0; i < DEVICES; i++) {
        assert_null(world.holders[i]);
        assert_null(sched_running(world.mediator.sched, i));
        assert_int_equal(world.mediator.gates[i].held, 0);
        assert_int_equal(world.mediator.gates[i].admitted, 0);
        assert_int_equal(contexts_waiting(&world.mediator, i), 0);
        assert_null(world.mediator.gates[i].reserved);
    }
    assert_null(world.mediator.gathering);
    end();
}

static void sessions_of_one_and_of_several_devices_get_through(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 5; seed++)
        live(0, 0, false, seed * 88172645463325252u);
}

static void with_few_contexts_they_get_through_as_well(void **state)
{
    (void)state;
    for (uint32_t cap = 1; cap <= 4; cap++) {
        for (uint64_t seed = 1; seed <= 3; seed++)
            live(cap, 0, false, seed * 88172645463325252u);
    }
}

static void with_few_contexts_a_vm_they_get_through_as_well(void **state)
{
    (void)state;
    for (uint32_t vm_cap = 1; vm_cap <= 2; vm_cap++) {
        for (uint32_t cap = 0; cap <= 4; cap += 2)
            live(cap, vm_cap, false, 88172645463325252u);
    }
}

static void whatever_is_changed_meanwhile_they_get_through(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 5; seed++)
        live(2, 0, true, seed * 88172645463325252u);
}

/* --- a full cap ---------------------------------------------------------------------------- */

/* Two sessions with one device each come and go on each of two devices, so that its only context
 * always is somebody's; player 0 needs one on both.  VMs 2 and 7 are on the one, 3 and 8 on the
 * other. */
static struct player *begin_contest(unsigned priority_of_gang)
{
    static const unsigned singles[] = {2, 7, 3, 8};
    struct vgpu_error error;

    begin(1, 0);
    text_copy(world.mediator.pools[0].device, CONFIG_POOL_DEVICE_BYTES, "cpu:0 cpu:1");
    text_copy(world.mediator.pools[3].device, CONFIG_POOL_DEVICE_BYTES, "cpu:0");
    for (unsigned i = 0; i < VMS; i++)
        vm_update(world.vms[i], vm_pool(world.vms[i]), i == 0 ? priority_of_gang : 1, &error);
    for (unsigned i = 0; i < VGPU_ARRAY_LENGTH(singles); i++) {
        session_wait(&world.players[singles[i]].session, 1);
        mediator_dispatch(&world.mediator);
    }
    session_wait(&world.players[0].session, 1);
    mediator_dispatch(&world.mediator);
    return &world.players[0];
}

/* Who holds the device has done a turn, gives its context up and has more to do. */
static void turn_of(unsigned device)
{
    struct player *player = (struct player *)world.holders[device];

    if (!player || player->session.place_count > 1)
        return;
    player->has_contexts = false;
    give_up(player);
    session_returned(&player->session, 1, 1);
    mediator_dispatch(&world.mediator);
}

static void end_contest(void)
{
    assert_in_range(drain(), 0, SESSIONS * 2);
    assert_int_equal(world.mediator.gates[0].admitted + world.mediator.gates[0].held, 0);
    end();
}

static void one_of_several_devices_gets_through_a_full_cap(void **state)
{
    (void)state;
    for (unsigned priority = 1; priority <= 2; priority++) {
        const struct player *gang = begin_contest(priority);

        for (unsigned turn = 0; turn < 4; turn++)
            turn_of(turn % 2);
        assert_int_equal(gang->runs, 1);
        end_contest();
    }
}

/* Nobody gives one up on device 1, where it waits. */
static void what_is_kept_for_one_others_go_round(void **state)
{
    const struct player *gang = begin_contest(1);
    uint64_t runs = world.players[3].runs + world.players[8].runs;

    (void)state;
    world.mediator.gates[0].cap = 2;
    for (unsigned turn = 0; turn < 10; turn++) {
        turn_of(0);
        assert_int_equal(world.mediator.gates[0].admitted, 1);
    }
    assert_int_equal(world.players[3].runs + world.players[8].runs, runs + 10);
    turn_of(1);
    turn_of(0);
    assert_int_equal(gang->runs, 1);
    end_contest();
}

static void one_that_is_refused_keeps_nothing(void **state)
{
    const struct player *gang = begin_contest(1);

    (void)state;
    turn_of(0);
    assert_ptr_equal(world.mediator.gathering, &gang->session);
    assert_int_equal(world.mediator.gates[0].admitted, 1);
    assert_null(world.holders[0]);
    vm_set_refusal(gang->session.vm, "a test");
    mediator_dispatch(&world.mediator);
    assert_null(world.mediator.gathering);
    assert_int_equal(world.mediator.gates[0].admitted, 0);
    assert_non_null(world.holders[0]);
    end_contest();
}

static void one_of_higher_priority_gathers_first(void **state)
{
    struct player *gang = begin_contest(1), *other = &world.players[5];
    struct vgpu_error error;

    (void)state;
    turn_of(0);
    vm_update(other->session.vm, 'A', 2, &error);
    session_wait(&other->session, 1);
    mediator_dispatch(&world.mediator);
    assert_ptr_equal(world.mediator.gathering, &other->session);
    for (unsigned turn = 0; turn < 4; turn++)
        turn_of(turn % 2);
    assert_true(other->runs == 1 && gang->runs == 0);
    end_contest();
}

static void one_whose_vm_has_as_many_as_it_may_gathers_nothing(void **state)
{
    struct player *has, *waits;

    (void)state;
    begin(0, 1);
    has = &world.players[0];
    waits = &world.players[10]; /* of the same VM, on one of its devices and another one */
    session_wait(&has->session, 1);
    mediator_dispatch(&world.mediator);
    give_up(has);
    session_returned(&has->session, 1, 0); /* it keeps its contexts */
    session_wait(&waits->session, 1);
    mediator_dispatch(&world.mediator);
    assert_true(contexts_waits_for_own(&waits->session));
    assert_string_equal(contexts_limit_of(&waits->session), "contexts_per_vm");
    assert_null(world.mediator.gathering);
    has->has_contexts = false;
    contexts_settle(&has->session);
    mediator_dispatch(&world.mediator);
    assert_int_equal(waits->runs, 1);
    assert_in_range(drain(), 0, SESSIONS);
    end();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sessions_of_one_and_of_several_devices_get_through),
        cmocka_unit_test(with_few_contexts_they_get_through_as_well),
        cmocka_unit_test(with_few_contexts_a_vm_they_get_through_as_well),
        cmocka_unit_test(whatever_is_changed_meanwhile_they_get_through),
        cmocka_unit_test(one_of_several_devices_gets_through_a_full_cap),
        cmocka_unit_test(what_is_kept_for_one_others_go_round),
        cmocka_unit_test(one_that_is_refused_keeps_nothing),
        cmocka_unit_test(one_of_higher_priority_gathers_first),
        cmocka_unit_test(one_whose_vm_has_as_many_as_it_may_gathers_nothing),
    };
    struct vgpu_error error;

    log_open(NULL, LOG_FORMAT_TEXT, LOG_LEVEL_ERROR, &error);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
