-- SPDX-License-Identifier: Apache-2.0
-- Version 6: how a pool chooses who runs next; shares, rates and bounds of a VM; until when
-- a quarantine lasts.

-- Empty: the mediator's key of this name.
ALTER TABLE pools ADD COLUMN policy TEXT NOT NULL DEFAULT '' CHECK (
    policy IN ('', 'strict', 'wfq', 'fifo', 'round-robin'));
ALTER TABLE pools ADD COLUMN aging_ms INTEGER NOT NULL DEFAULT 0 CHECK (
    typeof(aging_ms) = 'integer' AND aging_ms BETWEEN 0 AND 86400000);
ALTER TABLE pools ADD COLUMN demand INTEGER NOT NULL DEFAULT 0 CHECK (
    typeof(demand) = 'integer' AND demand BETWEEN 0 AND 1);

ALTER TABLE vms ADD COLUMN weight INTEGER NOT NULL DEFAULT 0 CHECK (
    typeof(weight) = 'integer' AND weight BETWEEN 0 AND 1000);
ALTER TABLE vms ADD COLUMN request_rate INTEGER NOT NULL DEFAULT 0 CHECK (
    typeof(request_rate) = 'integer' AND request_rate BETWEEN 0 AND 10000000);
ALTER TABLE vms ADD COLUMN request_burst INTEGER NOT NULL DEFAULT 0 CHECK (
    typeof(request_burst) = 'integer' AND request_burst BETWEEN 0 AND 10000000);
ALTER TABLE vms ADD COLUMN device_share_percent INTEGER NOT NULL DEFAULT 0 CHECK (
    typeof(device_share_percent) = 'integer' AND device_share_percent BETWEEN 0 AND 100);
ALTER TABLE vms ADD COLUMN queue_depth_max INTEGER NOT NULL DEFAULT 0 CHECK (
    typeof(queue_depth_max) = 'integer' AND queue_depth_max BETWEEN 0 AND 1000000);
ALTER TABLE vms ADD COLUMN inflight_ops_max INTEGER NOT NULL DEFAULT 0 CHECK (
    typeof(inflight_ops_max) = 'integer' AND inflight_ops_max BETWEEN 0 AND 65536);
ALTER TABLE vms ADD COLUMN inflight_kib_max INTEGER NOT NULL DEFAULT 0 CHECK (
    typeof(inflight_kib_max) = 'integer' AND inflight_kib_max BETWEEN 0 AND 1073741824);
ALTER TABLE vms ADD COLUMN quarantine_until_us INTEGER NOT NULL DEFAULT 0 CHECK (
    typeof(quarantine_until_us) = 'integer' AND quarantine_until_us >= 0
    AND (quarantine_until_us = 0 OR state = 'quarantined'));
