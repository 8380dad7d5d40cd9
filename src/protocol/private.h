/* SPDX-License-Identifier: Apache-2.0 */
/* protocol/private.h - what the room's own files share. */
#ifndef VGPU_PROTOCOL_PRIVATE_H
#define VGPU_PROTOCOL_PRIVATE_H

#include "protocol/protocol.h"

/* Guest text as it may stand in a message: escaped, and "..." where it was
 * too long to be shown whole. */
#define PROTOCOL_QUOTE_BYTES 48
const char *protocol_quote(char quote[PROTOCOL_QUOTE_BYTES], const char *text, size_t bytes);

/* Equal but for the case of ASCII letters, in every locale. */
bool protocol_same_name(const char *text, size_t bytes, const char *name);

#endif /* VGPU_PROTOCOL_PRIVATE_H */
