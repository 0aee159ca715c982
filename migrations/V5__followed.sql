-- Each table that is followed, as it was on the source when it was last seen whole. What differs at the next look may have
-- kept changes out of the stream.
CREATE TABLE waltrail.followed (
    slot       text NOT NULL,
    history    text NOT NULL,
    source_oid oid NOT NULL,                -- by which a table is known again when it is renamed
    source     text NOT NULL,
    seen       jsonb NOT NULL,              -- its key, its replica identity, how it is published, its partitions
    PRIMARY KEY (slot, history)
);

-- The publication likewise, and the position of the source's WAL at which all of this was last seen whole.
CREATE TABLE waltrail.watched (
    slot        text PRIMARY KEY,
    publication jsonb NOT NULL,
    whole_lsn   pg_lsn NOT NULL,
    whole_at    timestamptz NOT NULL
) WITH (fillfactor = 10);                   -- one row, updated often: room for HOT updates in its page

-- Ranges of the source's WAL of which changes may be missing in a history. While one is not accepted, waltrail does not start.
CREATE TABLE waltrail.gap (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    slot        text NOT NULL,
    history     text NOT NULL,
    reason      text NOT NULL,
    from_lsn    pg_lsn NOT NULL,
    to_lsn      pg_lsn NOT NULL,
    found_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    accepted_at timestamptz                 -- when a person ran `waltrail accept-gap`
);
CREATE INDEX ON waltrail.gap (slot, history);
