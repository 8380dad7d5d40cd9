/* SPDX-License-Identifier: Apache-2.0 */
/* A session as memory: see raw.h. */
#include "raw.h"

#include "private.h"

struct raw_slot raw_slot(const struct vgpu_session *session)
{
    return (struct raw_slot){.memory = session->slot, .bytes = session->slot_bytes};
}

void raw_ring(struct vgpu_session *session)
{
    session->transport->ring(session);
}

const char *raw_look(struct vgpu_session *session)
{
    if (session_usable(session))
        session->transport->sleep(session, 0);
    return session_usable(session) ? NULL : session->end.text;
}
