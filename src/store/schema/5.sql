-- SPDX-License-Identifier: Apache-2.0
-- Version 5: sessions with several devices of their pool.

ALTER TABLE pools ADD COLUMN session_devices INTEGER NOT NULL DEFAULT 1 CHECK (
    typeof(session_devices) = 'integer' AND session_devices BETWEEN 1 AND 8);
