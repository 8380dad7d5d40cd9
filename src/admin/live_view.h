/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What status, queue and top share: the mediator's numbers as a person reads them.
 */
#ifndef VGPU_ADMIN_LIVE_VIEW_H
#define VGPU_ADMIN_LIVE_VIEW_H

#include "admin/admin.h"

#define VIEW_TEXT_BYTES 32

/* Members of the mediator's objects; "" and 0 where there is none. */
const char *view_text(const json_t *object, const char *key);
uint64_t view_number(const json_t *object, const char *key);
bool view_flag(const json_t *object, const char *key);

/* 870 us, 12.3 ms, 4.5 s; "" for 0. */
void view_duration(uint64_t us, char text[VIEW_TEXT_BYTES]);

/* 3 min, 5 h, 12 days. */
void view_uptime(uint64_t s, char text[VIEW_TEXT_BYTES]);

/* The times that matter for this VM: of file requests' answers, or, where there were
 * none, from work to its grant. */
const json_t *view_times(const json_t *vm);

/* "vgpu-mediator 0.1.0, process 812, up 3 h", with what is special about it. */
void view_say_mediator(struct admin *admin, const json_t *mediator);

/* A line for each of the status' devices that cannot be used. */
void view_say_unusable(struct admin *admin, const json_t *devices);

/* The same, and for each GPU among them: its contexts, and who waits for one. */
void view_say_devices(struct admin *admin, const json_t *devices);

#endif /* VGPU_ADMIN_LIVE_VIEW_H */
