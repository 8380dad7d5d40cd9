-- SPDX-License-Identifier: Apache-2.0
-- Version 4: pools of several devices, devices that are withdrawn.

-- After the first, which is in `device`: names with one space between.
ALTER TABLE pools ADD COLUMN more_devices TEXT NOT NULL DEFAULT '' CHECK (
    typeof(more_devices) = 'text' AND length(more_devices) <= 447
    AND (more_devices = '' OR device IS NOT NULL));
ALTER TABLE pools ADD COLUMN placement TEXT NOT NULL DEFAULT 'spread' CHECK (
    placement IN ('spread', 'pack'));

ALTER TABLE devices ADD COLUMN withdrawn INTEGER NOT NULL DEFAULT 0 CHECK (
    typeof(withdrawn) = 'integer' AND withdrawn BETWEEN 0 AND 1);
