-- What `waltrail adopt` compares with after an upgrade of the source: its major version, and whether the slot was a failover
-- slot, when the stream was last started.
ALTER TABLE waltrail.checkpoint
    ADD COLUMN source_major integer,
    ADD COLUMN slot_failover boolean;

-- Each upgrade of a source that was adopted: where the history ended in the former cluster, and where it goes on in the new
-- one.
CREATE TABLE waltrail.adopted (
    id                     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    slot                   text NOT NULL,
    adopted_at             timestamptz NOT NULL DEFAULT clock_timestamp(),
    from_system_identifier bigint NOT NULL,
    from_timeline          integer NOT NULL,
    from_major             integer NOT NULL,
    from_end_lsn           pg_lsn NOT NULL,
    from_reported_lsn      pg_lsn NOT NULL,
    from_commit_timestamp  timestamptz,
    to_system_identifier   bigint NOT NULL,
    to_timeline            integer NOT NULL,
    to_major               integer NOT NULL,
    to_lsn                 pg_lsn NOT NULL
);
