-- The checkpoint: one row a replication slot, moved in the same transaction as the history rows that it covers.
CREATE TABLE waltrail.checkpoint (
    slot              text PRIMARY KEY,
    system_identifier bigint NOT NULL,      -- the cluster that is followed
    timeline          integer NOT NULL,
    end_lsn           pg_lsn,               -- end of the last transaction in the history; NULL while the slot is being made
    reported_lsn      pg_lsn,               -- highest position that may have been confirmed to the source
    commit_timestamp  timestamptz,          -- commit time of that last transaction, by the source's clock
    updated_at        timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 10);                   -- one row, updated often: room for HOT updates in its page

-- Moves the checkpoint, and fails when it does not stand where the caller believes it stands: two writers
-- can then never both commit the same transactions.
CREATE FUNCTION waltrail.advance(for_slot text, seen pg_lsn, reached pg_lsn, committed timestamptz)
RETURNS void LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    UPDATE waltrail.checkpoint
       SET end_lsn = reached,
           reported_lsn = greatest(reported_lsn, reached),
           commit_timestamp = committed,
           updated_at = clock_timestamp()
     WHERE slot = for_slot AND end_lsn = seen;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the checkpoint of slot % does not stand at %: somebody else has moved it', for_slot, seen
            USING ERRCODE = 'WTR01';
    END IF;
END $$;
