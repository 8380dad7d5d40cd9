-- SPDX-License-Identifier: Apache-2.0
-- A database of schema version 1 as a first release left it, kept as it was: it is
-- never changed when the schema changes.
CREATE TABLE pools (
    id TEXT PRIMARY KEY NOT NULL CHECK (typeof(id) = 'text' AND id GLOB '[A-Z]'),
    name TEXT NOT NULL UNIQUE CHECK (
        typeof(name) = 'text' AND length(name) BETWEEN 1 AND 63 AND name NOT GLOB '*[^ -~]*'),
    description TEXT NOT NULL DEFAULT '' CHECK (
        typeof(description) = 'text' AND length(CAST(description AS BLOB)) <= 255)
);
CREATE TABLE vms (
    vm_id INTEGER PRIMARY KEY NOT NULL CHECK (vm_id BETWEEN 1 AND 2147483647),
    uuid TEXT UNIQUE CHECK (
        uuid IS NULL OR (typeof(uuid) = 'text' AND length(uuid) = 36
        AND uuid NOT GLOB '*[^0-9a-f-]*')),
    name TEXT UNIQUE CHECK (
        name IS NULL OR (typeof(name) = 'text' AND length(name) BETWEEN 1 AND 63
        AND name NOT GLOB '*[^ -~]*')),
    pool TEXT NOT NULL DEFAULT 'A' REFERENCES pools (id),
    priority INTEGER NOT NULL DEFAULT 1 CHECK (
        typeof(priority) = 'integer' AND priority BETWEEN 0 AND 2),
    created_us INTEGER NOT NULL CHECK (typeof(created_us) = 'integer' AND created_us >= 0)
);
CREATE INDEX vms_by_pool ON vms (pool);
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    time_us INTEGER NOT NULL CHECK (typeof(time_us) = 'integer' AND time_us >= 0),
    actor TEXT NOT NULL CHECK (
        typeof(actor) = 'text' AND length(CAST(actor AS BLOB)) <= 63),
    action TEXT NOT NULL CHECK (
        typeof(action) = 'text' AND length(CAST(action AS BLOB)) <= 31),
    vm_id INTEGER,
    pool TEXT,
    before TEXT CHECK (before IS NULL OR length(CAST(before AS BLOB)) <= 2047),
    after TEXT CHECK (after IS NULL OR length(CAST(after AS BLOB)) <= 2047)
);
CREATE TRIGGER events_keep BEFORE UPDATE ON events BEGIN
    SELECT RAISE(ABORT, 'events are never changed');
END;
CREATE TRIGGER events_stay BEFORE DELETE ON events BEGIN
    SELECT RAISE(ABORT, 'events are never deleted');
END;
INSERT INTO pools VALUES ('A', 'Pool A', ''), ('B', 'Pool B', 'batch');
INSERT INTO vms VALUES
    (1, '0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0', 'web', 'A', 2, 1700000000000000),
    (7, NULL, NULL, 'B', 0, 1700000001000000);
INSERT INTO events (time_us, actor, action, vm_id, pool, before, after) VALUES
    (1700000000000000, 'root', 'register-vm', 1, 'A', NULL, '{"vm_id":1}'),
    (1700000001000000, 'alice', 'register-vm', 7, 'B', NULL, '{"vm_id":7}');
PRAGMA application_id = 1984385109;
PRAGMA user_version = 1;
