/* SPDX-License-Identifier: Apache-2.0 */
/* The mediator's numbers as a person reads them. */
#include "admin/live_view.h"

#include <stdio.h>

const char *view_text(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));

    return text ? text : "";
}

uint64_t view_number(const json_t *object, const char *key)
{
    json_int_t number = json_integer_value(json_object_get(object, key));

    return number > 0 ? (uint64_t)number : 0;
}

bool view_flag(const json_t *object, const char *key)
{
    return json_is_true(json_object_get(object, key));
}

void view_duration(uint64_t us, char text[VIEW_TEXT_BYTES])
{
    if (us == 0)
        text[0] = '\0';
    else if (us < 1000)
        snprintf(text, VIEW_TEXT_BYTES, "%llu us", (unsigned long long)us);
    else if (us < 1000000)
        snprintf(text, VIEW_TEXT_BYTES, "%.1f ms", (double)us / 1e3);
    else
        snprintf(text, VIEW_TEXT_BYTES, "%.1f s", (double)us / 1e6);
}

void view_uptime(uint64_t s, char text[VIEW_TEXT_BYTES])
{
    if (s < 120)
        snprintf(text, VIEW_TEXT_BYTES, "%llu s", (unsigned long long)s);
    else if (s < 7200)
        snprintf(text, VIEW_TEXT_BYTES, "%llu min", (unsigned long long)s / 60);
    else if (s < 172800)
        snprintf(text, VIEW_TEXT_BYTES, "%llu h", (unsigned long long)s / 3600);
    else
        snprintf(text, VIEW_TEXT_BYTES, "%llu days", (unsigned long long)s / 86400);
}

const json_t *view_times(const json_t *vm)
{
    const json_t *answer = json_object_get(vm, "answer");

    return view_number(answer, "count") > 0 ? answer : json_object_get(vm, "grant");
}

static void say_test_mode(struct admin *admin, const json_t *test)
{
    if (!view_flag(test, "on"))
        return;
    if (view_flag(test, "asks"))
        output_say(admin,
                   "Test mode asks: are the requests of %zu VMs simultaneous? (vgpu-admin "
                   "test-mode answer)",
                   json_array_size(json_object_get(test, "waiting")));
    else
        output_say(admin, "Test mode is on: %s, until %llu VMs wait.",
                   view_flag(test, "holding") ? "requests are held" : "requests run",
                   (unsigned long long)view_number(test, "hold_until"));
}

void view_say_mediator(struct admin *admin, const json_t *mediator)
{
    const char *database = view_text(mediator, "database");
    char uptime[VIEW_TEXT_BYTES];

    view_uptime(view_number(mediator, "uptime_s"), uptime);
    output_say(admin, "vgpu-mediator %s, process %llu, up %s; %s%s",
               view_text(mediator, "mediator"), (unsigned long long)view_number(mediator, "pid"),
               uptime, database[0] ? "database " : "no database: VMs stand in its configuration",
               database);
    if (!view_flag(mediator, "ready"))
        output_say(admin, "It settles what an earlier mediator left: nothing runs yet.");
    if (view_flag(mediator, "stopping"))
        output_say(admin, "It is being stopped.");
    say_test_mode(admin, json_object_get(mediator, "test_mode"));
}

static void say_contexts(struct admin *admin, const json_t *device)
{
    unsigned long long held = view_number(device, "contexts");
    unsigned long long most = view_number(device, "contexts_max");
    unsigned long long waiting = view_number(device, "contexts_waiting");
    unsigned long long bytes = view_number(device, "context_bytes");
    char limit[VIEW_TEXT_BYTES] = "", wait[VIEW_TEXT_BYTES + 32] = "", size[VIEW_TEXT_BYTES] = "";

    if (bytes > 0)
        snprintf(size, sizeof(size), ", %llu MiB each", bytes >> 20);
    if (most > 0)
        snprintf(limit, sizeof(limit), " of at most %llu", most);
    if (waiting > 0)
        snprintf(wait, sizeof(wait), "; %llu session%s for one", waiting,
                 waiting == 1 ? " waits" : "s wait");
    output_say(admin, "Device %s has %llu context%s%s%s%s.", view_text(device, "name"), held,
               held == 1 ? "" : "s", limit, size, wait);
}

void view_say_unusable(struct admin *admin, const json_t *devices)
{
    const json_t *device;
    size_t i;

    json_array_foreach(devices, i, device)
    {
        if (view_text(device, "reason")[0])
            output_say(admin, "Device %s cannot be used: %s.", view_text(device, "name"),
                       view_text(device, "reason"));
    }
}

void view_say_devices(struct admin *admin, const json_t *devices)
{
    const json_t *device;
    size_t i;

    view_say_unusable(admin, devices);
    json_array_foreach(devices, i, device)
    {
        if (json_object_get(device, "contexts"))
            say_contexts(admin, device);
    }
}
