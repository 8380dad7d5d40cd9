-- SPDX-License-Identifier: Apache-2.0
-- Version 2: devices, capacity, limits, quarantine.

CREATE TABLE devices (
    name TEXT PRIMARY KEY NOT NULL CHECK (
        typeof(name) = 'text' AND length(name) BETWEEN 1 AND 63 AND name NOT GLOB '*[^ -~]*'),
    kind TEXT NOT NULL CHECK (kind IN ('cpu', 'gpu', 'mig')),
    description TEXT NOT NULL DEFAULT '' CHECK (
        typeof(description) = 'text' AND length(CAST(description AS BLOB)) <= 255)
);

INSERT INTO devices (name, kind, description) VALUES ('cpu', 'cpu', 'the host''s processor');

ALTER TABLE pools ADD COLUMN enabled INTEGER NOT NULL DEFAULT 1 CHECK (
    typeof(enabled) = 'integer' AND enabled BETWEEN 0 AND 1);
ALTER TABLE pools ADD COLUMN sharing TEXT NOT NULL DEFAULT 'shared' CHECK (
    sharing IN ('shared', 'independent'));
ALTER TABLE pools ADD COLUMN device TEXT REFERENCES devices (name);
ALTER TABLE pools ADD COLUMN vms_max INTEGER NOT NULL DEFAULT 0 CHECK (
    typeof(vms_max) = 'integer' AND vms_max BETWEEN 0 AND 2147483647);
ALTER TABLE pools ADD COLUMN device_memory_max_mib INTEGER NOT NULL DEFAULT 0 CHECK (
    typeof(device_memory_max_mib) = 'integer'
    AND device_memory_max_mib BETWEEN 0 AND 1073741824);
UPDATE pools SET device = 'cpu';

ALTER TABLE vms ADD COLUMN sessions_max INTEGER NOT NULL DEFAULT 0 CHECK (
    typeof(sessions_max) = 'integer' AND sessions_max BETWEEN 0 AND 64);
ALTER TABLE vms ADD COLUMN device_memory_mib INTEGER NOT NULL DEFAULT 0 CHECK (
    typeof(device_memory_mib) = 'integer' AND device_memory_mib BETWEEN 0 AND 1048576);
ALTER TABLE vms ADD COLUMN operation_limit_ms INTEGER NOT NULL DEFAULT 0 CHECK (
    typeof(operation_limit_ms) = 'integer' AND operation_limit_ms BETWEEN 0 AND 86400000);
ALTER TABLE vms ADD COLUMN state TEXT NOT NULL DEFAULT 'active' CHECK (
    state IN ('active', 'quarantined'));
ALTER TABLE vms ADD COLUMN reason TEXT NOT NULL DEFAULT '' CHECK (
    typeof(reason) = 'text' AND length(CAST(reason AS BLOB)) <= 255);
ALTER TABLE vms ADD COLUMN changed_us INTEGER NOT NULL DEFAULT 0 CHECK (
    typeof(changed_us) = 'integer' AND changed_us >= 0);
UPDATE vms SET changed_us = created_us;
