-- SPDX-License-Identifier: Apache-2.0
-- Version 3: a VM's channels and whose they are; capacity held by the schema, too;
-- the history of a renumbered VM.

ALTER TABLE vms ADD COLUMN channels INTEGER NOT NULL DEFAULT 3 CHECK (
    typeof(channels) = 'integer' AND channels BETWEEN 0 AND 7);
ALTER TABLE vms ADD COLUMN owner_uid INTEGER NOT NULL DEFAULT -1 CHECK (
    typeof(owner_uid) = 'integer' AND owner_uid BETWEEN -1 AND 4294967294);
ALTER TABLE vms ADD COLUMN owner_gid INTEGER NOT NULL DEFAULT -1 CHECK (
    typeof(owner_gid) = 'integer' AND owner_gid BETWEEN -1 AND 4294967294);
-- 448 is 0700, 509 is 0775; never writable for everybody.
ALTER TABLE vms ADD COLUMN mode INTEGER NOT NULL DEFAULT 448 CHECK (
    typeof(mode) = 'integer' AND mode BETWEEN 448 AND 509 AND mode & 2 = 0);

ALTER TABLE events ADD COLUMN new_vm_id INTEGER;
CREATE INDEX events_by_vm ON events (vm_id);
CREATE INDEX events_by_new_vm ON events (new_vm_id) WHERE new_vm_id IS NOT NULL;

CREATE TRIGGER vms_join BEFORE INSERT ON vms BEGIN
    SELECT RAISE(ABORT, 'the pool is disabled') FROM pools
        WHERE id = NEW.pool AND NOT enabled;
    SELECT RAISE(ABORT, 'the pool is full') FROM pools
        WHERE id = NEW.pool AND vms_max > 0
        AND vms_max <= (SELECT count(*) FROM vms WHERE pool = NEW.pool);
    SELECT RAISE(ABORT, 'the pool has not so much device memory') FROM pools
        WHERE id = NEW.pool AND device_memory_max_mib > 0
        AND (NEW.device_memory_mib = 0 OR device_memory_max_mib < NEW.device_memory_mib
            + (SELECT coalesce(sum(device_memory_mib), 0) FROM vms WHERE pool = NEW.pool));
END;

CREATE TRIGGER vms_move BEFORE UPDATE OF pool ON vms WHEN OLD.pool <> NEW.pool BEGIN
    SELECT RAISE(ABORT, 'the pool is disabled') FROM pools
        WHERE id = NEW.pool AND NOT enabled;
    SELECT RAISE(ABORT, 'the pool is full') FROM pools
        WHERE id = NEW.pool AND vms_max > 0
        AND vms_max <= (SELECT count(*) FROM vms WHERE pool = NEW.pool);
END;

CREATE TRIGGER vms_grow BEFORE UPDATE OF pool, device_memory_mib ON vms BEGIN
    SELECT RAISE(ABORT, 'the pool has not so much device memory') FROM pools
        WHERE id = NEW.pool AND device_memory_max_mib > 0
        AND (NEW.device_memory_mib = 0 OR device_memory_max_mib < NEW.device_memory_mib
            + (SELECT coalesce(sum(device_memory_mib), 0) FROM vms
                WHERE pool = NEW.pool AND vm_id <> OLD.vm_id));
END;

CREATE TRIGGER pools_hold BEFORE UPDATE OF vms_max, device_memory_max_mib ON pools BEGIN
    SELECT RAISE(ABORT, 'the pool has more VMs')
        WHERE NEW.vms_max > 0
        AND NEW.vms_max < (SELECT count(*) FROM vms WHERE pool = OLD.id);
    SELECT RAISE(ABORT, 'the VMs of the pool have more device memory')
        WHERE NEW.device_memory_max_mib > 0
        AND (NEW.device_memory_max_mib
                < (SELECT coalesce(sum(device_memory_mib), 0) FROM vms WHERE pool = OLD.id)
            OR EXISTS (SELECT 1 FROM vms WHERE pool = OLD.id AND device_memory_mib = 0));
END;

