/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pages that the host writes, for a guest that may be moved while it runs.
 *
 * Who moves a running guest copies its memory, then again what the guest has written
 * meanwhile, until little is left; then the guest stops for the rest.  What somebody else
 * writes into pages that he has mapped is in no such list (Xen's grants: a page counts as
 * written when the mapping ends, which is after the last look).  So an answer could be there
 * before the move and gone after it, and nobody would know.
 *
 *   submit:  a bit for each page that the operation writes into the slot
 *   take:    its answer is seen ─▶ one byte of each such page is written, unchanged
 *            ─▶ transport->confirm(): still here?  Then page and answer go with the guest
 *
 * When the guest was moved in between, nothing is taken: those operations are lost.
 *
 * Bits are cleared when nothing is in flight.  A quiet operation's end is told by none of its
 * own: its pages stay noted until the session begins anew.  A program that never lets its
 * operations end has all the pages that they wrote to written with each answer: some 20 ns
 * each.
 */
#include "private.h"

#include <stdlib.h>
#include <string.h>

#define BITS 64u

static size_t word_count(const struct vgpu_session *session)
{
    return (session->slot_bytes / VGPU_PAGE_BYTES + BITS - 1) / BITS;
}

int written_open(struct vgpu_session *session)
{
    session->written = calloc(word_count(session), sizeof(*session->written));
    return session->written ? 0 : -1;
}

void written_close(struct vgpu_session *session)
{
    free(session->written);
    session->written = NULL;
}

void written_forget(struct vgpu_session *session)
{
    if (session->written)
        memset(session->written, 0, word_count(session) * sizeof(*session->written));
    session->writes_quietly = false;
}

/* The host refuses what does not lie in the slot. */
static void note_range(struct vgpu_session *session, uint64_t offset, uint64_t bytes)
{
    if (bytes == 0 || offset >= session->slot_bytes || bytes > session->slot_bytes - offset)
        return;
    for (uint64_t page = offset / VGPU_PAGE_BYTES; page <= (offset + bytes - 1) / VGPU_PAGE_BYTES;
         page++)
        session->written[page / BITS] |= 1ull << page % BITS;
}

void written_note(struct vgpu_session *session, const struct vgpu_descriptor *descriptor)
{
    if (session->sent == 0 && !session->writes_quietly)
        written_forget(session);
    if (descriptor->opcode == VGPU_OP_COPY_OUT)
        note_range(session, descriptor->copy.target, descriptor->copy.bytes);
    else if (descriptor->opcode == VGPU_OP_TEXT)
        note_range(session, descriptor->text.answer_offset, descriptor->text.answer_bytes);
    else
        return;
    session->writes_quietly |= descriptor->flags & VGPU_FLAG_QUIET;
}

/* A write for the processor, whatever the host writes there at the same time. */
static void touch(uint8_t *page)
{
    __asm__ volatile("lock orb $0, %0" : "+m"(*page)::"cc");
}

void written_touch(struct vgpu_session *session)
{
    for (size_t i = 0; i < word_count(session); i++) {
        for (uint64_t bits = session->written[i]; bits; bits &= bits - 1)
            touch(session->slot + (i * BITS + (size_t)__builtin_ctzll(bits)) * VGPU_PAGE_BYTES);
    }
}
