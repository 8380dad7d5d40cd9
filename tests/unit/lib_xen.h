/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A Xen guest's kernel and its host in the test's own process: Xen's devices are stood in for
 * (link with lib_xen_dep), a thread is XenStore and vgpu-xen, and lib_host's worker is behind.
 *
 *   /dev/xen/xenbus    nodes and watches of one domain
 *   /dev/xen/gntalloc  each a memfd; pages count as shared until they are closed and unmapped
 *   /dev/xen/evtchn    ports from 10 on, the lowest that is free
 *
 * lib_xen_restore() is what a guest sees of `xl save` and `xl restore`.
 */
#ifndef VGPU_TESTS_LIB_XEN_H
#define VGPU_TESTS_LIB_XEN_H

#include "lib_host.h"

#define LIB_XEN_FIRST_PORT 10u

/* Another one: with a host that offers the channel, and 1024 pages. */
void lib_xen_open(void);
void lib_xen_close(void);

/* --- the host ------------------------------------------------------------------------------ */

/* Takes and answers operations, or leaves that to lib_host_run(). */
void lib_xen_by_hand(bool is_by_hand);
struct lib_host *lib_xen_worker(void);

void lib_xen_set_offer(bool is_offered);
/* `code` 0: takes sessions; VGPU_PROBLEM_*: refuses them with it. */
void lib_xen_set_refusal(int code);
void lib_xen_set_silence(bool is_silent);
/* What the library does meanwhile, for another thread of the test. */
bool lib_xen_offer_is_awaited(void);
bool lib_xen_session_is_asked_for(void);
void lib_xen_await(bool (*condition)(void));
/* Ends the session that is open, as when its broker ended. */
void lib_xen_end_session(void);

/* --- the guest's kernel --------------------------------------------------------------------- */

void lib_xen_restore(void);
void lib_xen_set_pages_max(unsigned pages);
unsigned lib_xen_pages(void);

/* Somebody else has `port`. */
void lib_xen_take_port(unsigned port);
/* The one of the session that the host has connected last, and how many programs have. */
unsigned lib_xen_port(void);
unsigned lib_xen_ports(void);
/* How many children have closed ports that the kernel had forgotten. */
unsigned lib_xen_abandoned(void);
/* How often forgotten ports were closed where the kernel would have ended the program, or given
 * back with pages where they are another's. */
unsigned lib_xen_harm(void);

#endif
