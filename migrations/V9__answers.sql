-- What a history has to know of itself so that it can say what its table was at a time or a position: since when it is complete,
-- where it is not, how far commit times can be out of order, and where the values of a column stand that was added or renamed.

-- Each time the existing rows of a table were recorded completely.
CREATE TABLE waltrail.baseline (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    history     text NOT NULL,              -- as SQL writes its name
    slot        text NOT NULL,
    point       pg_lsn NOT NULL,            -- consistent point: what committed before it is in the rows
    taken_at    timestamptz NOT NULL,       -- the change_timestamp of the rows
    last_number bigint NOT NULL,            -- highest cdc_id of the history once the rows were complete; 0 for none
    after_gap   bigint NOT NULL             -- highest id in waltrail.gap of this history before the point; 0 for none
);
CREATE INDEX ON waltrail.baseline (history, id);

-- Until this commit time (source's clock) the history is known to be whole; NULL: not known.
ALTER TABLE waltrail.gap ADD COLUMN whole_at timestamptz;
-- A commit time by the source's clock that no transaction has that ends past watched.whole_lsn; NULL: not known.
ALTER TABLE waltrail.watched ADD COLUMN whole_time timestamptz;

-- The most by which a commit time lay before that of an earlier commit; NULL: not known, for what began before this migration.
ALTER TABLE waltrail.checkpoint ADD COLUMN disorder interval;
ALTER TABLE waltrail.checkpoint ALTER COLUMN disorder SET DEFAULT '0';

-- What says where the values of held rows stand; it is run before they are added.
ALTER TABLE waltrail.held ADD COLUMN opening text;

-- The columns of each source table as its catalogs had them when waltrail last prepared: an array of
-- {"attnum": 3, "name": "b", "type": 23, "modifier": -1, "column": "b", "value": "5", "known": true}. "column" is the history column of the value after a
-- change, null where it is not recorded. "value" is what rows have that existed when the column was added, as text; it is not
-- known where "known" is false.
CREATE TABLE waltrail.layout (
    history    text PRIMARY KEY,
    source_oid oid NOT NULL,
    files      text NOT NULL,               -- pg_class.relfilenode of what holds the rows: another one after a rewrite
    columns    jsonb NOT NULL
);

-- Where the values of an attribute stand in the rows with after_number < cdc_id <= until_number: in a history column, or they
-- are this constant. until_number is NULL for the rows that are being written.
CREATE TABLE waltrail.column_range (
    history        text NOT NULL,
    attnum         smallint NOT NULL,       -- pg_attribute.attnum on the source, which a rename does not change
    after_number   bigint NOT NULL,
    until_number   bigint,
    source_column  text,                    -- its name in these rows; NULL: they are from before it
    source_type    oid,                     -- and its type, with the modifier
    source_modifier integer,
    history_column text,                    -- NULL: none has the values
    value          text,                    -- then they are this, as text
    known          boolean NOT NULL DEFAULT true,   -- false: the source has values for these rows that no log carries
    PRIMARY KEY (history, attnum, after_number)
);

-- For each present column of a source table: the rows whose values stand elsewhere than in its own history column.
CREATE VIEW waltrail.inherited AS
WITH present AS (
    SELECT l.history, c.attnum, c.name AS source_column, c."column" AS own, c.value, c.known
      FROM waltrail.layout l,
           pg_catalog.jsonb_to_recordset(l.columns)
               AS c (attnum smallint, name text, "column" text, value text, known boolean)
     WHERE c."column" IS NOT NULL
)
SELECT p.history, p.source_column, r.after_number, coalesce(r.until_number, 9223372036854775807) AS until_number,
       r.history_column, r.value, r.known
  FROM present p JOIN waltrail.column_range r ON r.history = p.history AND r.attnum = p.attnum
 WHERE r.history_column IS DISTINCT FROM p.own
UNION ALL
-- No row of the stream has had the column yet.
SELECT p.history, p.source_column, coalesce(r.reached, 0), 9223372036854775807, NULL, p.value, p.known
  FROM present p
  LEFT JOIN LATERAL (SELECT pg_catalog.max(u.until_number) AS reached, pg_catalog.bool_or(u.until_number IS NULL) AS is_open
                       FROM waltrail.column_range u WHERE u.history = p.history AND u.attnum = p.attnum) r ON true
 WHERE r.is_open IS NOT TRUE;

-- The highest cdc_id of a history; 0 where it has none.
CREATE FUNCTION waltrail.last_number(of_history text)
RETURNS bigint LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    number text;
    last   bigint;
BEGIN
    -- The name may have a prefix, and the source a column of the plain name.
    SELECT pg_catalog.min(a.attname::text) INTO number
      FROM pg_catalog.pg_attribute a
      JOIN pg_catalog.pg_attribute k ON k.attrelid = a.attrelid AND NOT k.attisdropped
       AND k.attname = pg_catalog.replace(a.attname::text, 'cdc_id', 'change_type')
     WHERE a.attrelid = pg_catalog.to_regclass(of_history) AND a.attname ~ '^[a-z0-9_]{0,16}cdc_id$'
       AND NOT a.attisdropped AND a.atttypid IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype)
    HAVING pg_catalog.count(*) = 1;
    IF number IS NULL THEN
        RETURN 0;
    END IF;
    EXECUTE pg_catalog.format('SELECT pg_catalog.max(%I) FROM %s', number, pg_catalog.to_regclass(of_history)) INTO last;
    RETURN coalesce(last, 0);
END $$;

-- Said in the target transaction of the first row that has these columns, before it: an array as in waltrail.layout.
-- `known_last`: not before the row that is written next, but after the one of this number.
CREATE FUNCTION waltrail.arrived(for_history text, described jsonb, known_last bigint DEFAULT NULL)
RETURNS void LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    last bigint := 0;
    ends smallint[];
BEGIN
    UPDATE waltrail.column_range r SET source_type = d.type, source_modifier = d.modifier
      FROM pg_catalog.jsonb_to_recordset(described) AS d (attnum smallint, name text, type oid, modifier integer)
     WHERE r.history = for_history AND r.attnum = d.attnum AND r.until_number IS NULL AND r.source_column = d.name
       AND (r.source_type, r.source_modifier) IS DISTINCT FROM (d.type, d.modifier);
    -- What is open and is not described so any more.
    SELECT pg_catalog.array_agg(r.attnum) INTO ends
      FROM waltrail.column_range r
     WHERE r.history = for_history AND r.until_number IS NULL
       AND NOT EXISTS (SELECT FROM pg_catalog.jsonb_to_recordset(described) AS d (attnum smallint, name text, "column" text)
                        WHERE d.attnum = r.attnum AND d.name = r.source_column
                          AND d."column" IS NOT DISTINCT FROM r.history_column);
    IF ends IS NULL AND NOT EXISTS (
        SELECT FROM pg_catalog.jsonb_to_recordset(described) AS d (attnum smallint)
         WHERE NOT EXISTS (SELECT FROM waltrail.column_range r WHERE r.history = for_history AND r.attnum = d.attnum
                              AND r.until_number IS NULL))
    THEN
        RETURN;
    END IF;
    IF EXISTS (SELECT FROM waltrail.column_range r WHERE r.history = for_history) THEN
        last := coalesce(known_last, waltrail.last_number(for_history));
    END IF;
    -- A range without rows is none.
    DELETE FROM waltrail.column_range r
     WHERE r.history = for_history AND r.until_number IS NULL AND r.attnum = ANY (ends) AND r.after_number >= last;
    UPDATE waltrail.column_range r SET until_number = last
     WHERE r.history = for_history AND r.until_number IS NULL AND r.attnum = ANY (ends);
    -- Rows of which no range says anything are from before the column.
    INSERT INTO waltrail.column_range (history, attnum, after_number, until_number, value, known)
    SELECT for_history, d.attnum, coalesce(r.reached, 0), last, d.value, d.known
      FROM pg_catalog.jsonb_to_recordset(described) AS d (attnum smallint, value text, known boolean)
      LEFT JOIN LATERAL (SELECT pg_catalog.max(u.until_number) AS reached, pg_catalog.bool_or(u.until_number IS NULL) AS is_open
                           FROM waltrail.column_range u WHERE u.history = for_history AND u.attnum = d.attnum) r ON true
     WHERE r.is_open IS NOT TRUE AND coalesce(r.reached, 0) < last;
    INSERT INTO waltrail.column_range
        (history, attnum, after_number, source_column, source_type, source_modifier, history_column, known)
    SELECT for_history, d.attnum, last, d.name, d.type, d.modifier, d."column", d."column" IS NOT NULL
      FROM pg_catalog.jsonb_to_recordset(described)
           AS d (attnum smallint, name text, type oid, modifier integer, "column" text)
     WHERE NOT EXISTS (SELECT FROM waltrail.column_range r
                        WHERE r.history = for_history AND r.attnum = d.attnum AND r.until_number IS NULL);
END $$;

-- Where the stream described a table since the source was last looked at: a column may have been dropped and made again under its
-- name, which the stream does not say. The catalogs do, at the next look.
CREATE TABLE waltrail.described (
    history text NOT NULL,
    lsn     pg_lsn NOT NULL,                -- commit position of the transaction
    xid     bigint NOT NULL,                -- and its id
    again   boolean NOT NULL,               -- it was described before, by the same session
    number  bigint NOT NULL,                -- the highest cdc_id then
    PRIMARY KEY (history, lsn)
);

CREATE FUNCTION waltrail.noted(for_history text, commit_lsn pg_lsn, by_xid bigint, is_again boolean)
RETURNS void LANGUAGE sql SET search_path = '' AS $$
    INSERT INTO waltrail.described VALUES (for_history, commit_lsn, by_xid, is_again, waltrail.last_number(for_history))
    ON CONFLICT (history, lsn) DO UPDATE SET again = excluded.again, number = excluded.number
$$;

-- Another table takes the place of the source: its attributes go on with the ranges of those of the same name.
CREATE FUNCTION waltrail.renumbered(for_history text, described jsonb)
RETURNS void LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    kept waltrail.column_range[];
BEGIN
    SELECT pg_catalog.array_agg(r) INTO kept FROM waltrail.column_range r WHERE r.history = for_history;
    DELETE FROM waltrail.column_range r WHERE r.history = for_history;
    INSERT INTO waltrail.column_range
    SELECT for_history, d.attnum, k.after_number, k.until_number, k.source_column, k.source_type, k.source_modifier,
           k.history_column, k.value, k.known
      FROM pg_catalog.unnest(kept) AS k
      JOIN pg_catalog.unnest(kept) AS o ON o.attnum = k.attnum AND o.until_number IS NULL
      JOIN pg_catalog.jsonb_to_recordset(described) AS d (attnum smallint, name text) ON d.name = o.source_column;
END $$;

-- The newest commit time up to which a history is surely whole, if it is whole up to this position; NULL: not known.
CREATE FUNCTION waltrail.whole_until(for_slot text, for_history text, whole_lsn pg_lsn)
RETURNS timestamptz LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT greatest(
        (SELECT w.whole_time FROM waltrail.watched w WHERE w.slot = for_slot AND w.whole_lsn <= whole_until.whole_lsn),
        (SELECT c.commit_timestamp FROM waltrail.checkpoint c WHERE c.slot = for_slot AND c.end_lsn <= whole_until.whole_lsn),
        (SELECT pg_catalog.max(b.taken_at) FROM waltrail.baseline b
          WHERE b.slot = for_slot AND b.history = for_history AND b.point <= whole_until.whole_lsn))
$$;

-- As migration V3 has it; with `last`, the rows are a baseline of the history.
CREATE OR REPLACE FUNCTION waltrail.copied(
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
        -- A transaction that was left out past the point is a gap after these rows.
        INSERT INTO waltrail.baseline (history, slot, point, taken_at, last_number, after_gap)
        SELECT s.history, s.slot, s.consistent_point, s.snapshot_time, waltrail.last_number(s.history),
               coalesce((SELECT pg_catalog.max(g.id) FROM waltrail.gap g
                          WHERE g.history = s.history
                            AND (g.to_lsn < s.consistent_point OR g.to_lsn = s.consistent_point AND g.from_lsn < g.to_lsn)), 0)
          FROM waltrail.snapshot s WHERE s.slot = for_slot AND s.history = for_history;
    ELSE
        INSERT INTO waltrail.snapshot_part VALUES (for_slot, for_history, pg_catalog.pg_current_xact_id());
    END IF;
END $$;

-- The baselines of before this migration, but those after which changes were found missing.
DO $$
DECLARE
    s     record;
    query text;
    last  bigint;
BEGIN
    FOR s IN SELECT * FROM waltrail.snapshot n
              WHERE n.state IN ('copied', 'done') AND n.finished_at IS NOT NULL AND n.snapshot_time IS NOT NULL
                AND n.consistent_point > '0/0' AND pg_catalog.to_regclass(n.history) IS NOT NULL
                AND NOT EXISTS (SELECT FROM waltrail.gap g WHERE g.history = n.history AND g.found_at > n.finished_at)
    LOOP
        SELECT pg_catalog.min(pg_catalog.format('SELECT pg_catalog.max(%I) FROM %s WHERE %I = CAST(%L::timestamptz%s AS %s)',
                   n.attname, a.attrelid::regclass, a.attname, s.snapshot_time,
                   CASE a.atttypid WHEN 'timestamptz'::regtype THEN '' ELSE ' AT TIME ZONE ''UTC''' END,
                   pg_catalog.format_type(a.atttypid, a.atttypmod)))
          INTO query
          FROM pg_catalog.pg_attribute a
          JOIN pg_catalog.pg_attribute k ON k.attrelid = a.attrelid AND NOT k.attisdropped
           AND k.attname = pg_catalog.replace(a.attname::text, 'change_timestamp', 'change_type')
          JOIN pg_catalog.pg_attribute n ON n.attrelid = a.attrelid AND NOT n.attisdropped
           AND n.attname = pg_catalog.replace(a.attname::text, 'change_timestamp', 'cdc_id')
         WHERE a.attrelid = pg_catalog.to_regclass(s.history) AND a.attname ~ '^[a-z0-9_]{0,16}change_timestamp$'
           AND NOT a.attisdropped AND a.atttypid IN ('timestamptz'::regtype, 'timestamp'::regtype)
           AND n.atttypid IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype)
        HAVING pg_catalog.count(*) = 1;
        last := 0;
        IF query IS NOT NULL THEN
            BEGIN
                EXECUTE query INTO last;
            EXCEPTION WHEN insufficient_privilege THEN
                CONTINUE;
            END;
        END IF;
        INSERT INTO waltrail.baseline (history, slot, point, taken_at, last_number, after_gap)
        SELECT s.history, s.slot, s.consistent_point, s.snapshot_time, coalesce(last, 0),
               coalesce((SELECT pg_catalog.max(g.id) FROM waltrail.gap g WHERE g.history = s.history), 0);
    END LOOP;
END $$;

REVOKE ALL ON FUNCTION waltrail.last_number(text) FROM PUBLIC;
REVOKE ALL ON FUNCTION waltrail.arrived(text, jsonb, bigint) FROM PUBLIC;
REVOKE ALL ON FUNCTION waltrail.noted(text, pg_lsn, bigint, boolean) FROM PUBLIC;
REVOKE ALL ON FUNCTION waltrail.renumbered(text, jsonb) FROM PUBLIC;
REVOKE ALL ON FUNCTION waltrail.whole_until(text, text, pg_lsn) FROM PUBLIC;

-- Default privileges can have granted them.
REVOKE ALL ON waltrail.baseline, waltrail.layout, waltrail.column_range, waltrail.inherited FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA waltrail FROM PUBLIC;
