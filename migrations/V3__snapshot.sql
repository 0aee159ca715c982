-- The initial snapshot: how far each captured table is, and the changes that wait until its existing rows are recorded.
CREATE TABLE waltrail.snapshot (
    slot              text NOT NULL,
    history           text NOT NULL,
    source            text NOT NULL,
    state             text NOT NULL CHECK (state IN (
        'waiting',                          -- to be copied; nothing is done
        'copying',                          -- an attempt is on its way
        'copied',                           -- the rows are recorded; changes held meanwhile are being added
        'done')),                           -- changes go to the history directly
    attempt           integer NOT NULL DEFAULT 0,
    consistent_point  pg_lsn,               -- what committed before it is in the rows, what came after is a change
    snapshot_time     timestamptz,
    rows_estimated    bigint,
    bytes_estimated   bigint,
    rows              bigint NOT NULL DEFAULT 0,
    bytes             bigint NOT NULL DEFAULT 0,
    started_at        timestamptz,
    finished_at       timestamptz,
    PRIMARY KEY (slot, history)
);

-- Target transactions that committed rows of an attempt that is not complete: those rows are to be removed.
CREATE TABLE waltrail.snapshot_part (
    slot     text NOT NULL,
    history  text NOT NULL,
    xid      xid8 NOT NULL,
    PRIMARY KEY (slot, history, xid)
);

-- Changes of tables whose existing rows are not recorded yet: the data of a COPY and the statement that takes it.
CREATE TABLE waltrail.held (
    slot     text NOT NULL,
    history  text NOT NULL,
    seq      bigint GENERATED ALWAYS AS IDENTITY,
    lsn      pg_lsn NOT NULL,               -- commit position of the first transaction in it
    copy     text NOT NULL,
    guard    text,                          -- the statement that proves the types of binary rows
    rows     bytea NOT NULL,
    PRIMARY KEY (slot, history, seq)
);
-- Written once, read once.
ALTER TABLE waltrail.held ALTER COLUMN rows SET STORAGE EXTERNAL;

-- Said in each target transaction that wrote rows of an attempt; with `last` they are all there. Fails when the attempt
-- is no longer the one that counts, so that rows of two attempts never stand together.
CREATE FUNCTION waltrail.copied(
    for_slot text, for_history text, by_attempt integer, last boolean, all_rows bigint, all_bytes bigint)
RETURNS void LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    UPDATE waltrail.snapshot s
       SET state = CASE WHEN last THEN 'copied' ELSE s.state END,
           rows = all_rows, bytes = all_bytes,
           finished_at = CASE WHEN last THEN clock_timestamp() END
     WHERE s.slot = for_slot AND s.history = for_history AND s.attempt = by_attempt AND s.state = 'copying';
    IF NOT FOUND THEN
        RAISE EXCEPTION 'attempt % to record the existing rows of % was given up', by_attempt, for_history
            USING ERRCODE = 'WTR03';
    END IF;
    IF last THEN
        DELETE FROM waltrail.snapshot_part p WHERE p.slot = for_slot AND p.history = for_history;
    ELSE
        INSERT INTO waltrail.snapshot_part VALUES (for_slot, for_history, pg_catalog.pg_current_xact_id());
    END IF;
END $$;

-- Takes held rows away, in the transaction that adds them to the history. Fails when somebody else has taken them, or
-- when the existing rows are not recorded, which a crash of this server can bring about.
CREATE FUNCTION waltrail.take_held(for_slot text, for_history text, taken bigint[])
RETURNS void LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    found_rows bigint;
BEGIN
    IF NOT EXISTS (SELECT FROM waltrail.snapshot s
                    WHERE s.slot = for_slot AND s.history = for_history AND s.state = 'copied') THEN
        RAISE EXCEPTION 'the existing rows of % are not recorded', for_history USING ERRCODE = 'WTR03';
    END IF;
    DELETE FROM waltrail.held h WHERE h.slot = for_slot AND h.history = for_history AND h.seq = ANY (taken);
    GET DIAGNOSTICS found_rows = ROW_COUNT;
    IF found_rows <> pg_catalog.cardinality(taken) THEN
        RAISE EXCEPTION 'held changes of % were taken by somebody else', for_history USING ERRCODE = 'WTR03';
    END IF;
END $$;

-- From now on changes go to the history directly; what is still held lies before the snapshot.
CREATE FUNCTION waltrail.joined(for_slot text, for_history text)
RETURNS void LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    DELETE FROM waltrail.held h WHERE h.slot = for_slot AND h.history = for_history;
    UPDATE waltrail.snapshot s SET state = 'done'
     WHERE s.slot = for_slot AND s.history = for_history AND s.state IN ('copied', 'done');
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the existing rows of % are not recorded', for_history USING ERRCODE = 'WTR03';
    END IF;
END $$;
