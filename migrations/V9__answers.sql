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
-- The source's clock when everything was last seen whole: at or before watched.whole_lsn.
ALTER TABLE waltrail.watched ADD COLUMN whole_time timestamptz;

-- The most by which a commit time lay before that of an earlier commit; NULL: not known, for what began before this migration.
ALTER TABLE waltrail.checkpoint ADD COLUMN disorder interval;
ALTER TABLE waltrail.checkpoint ALTER COLUMN disorder SET DEFAULT '0';

-- What says where the values of held rows stand; it is run before they are added.
ALTER TABLE waltrail.held ADD COLUMN opening text;

-- The columns of each source table as its catalogs had them when waltrail last prepared: an array of
-- {"attnum": 3, "name": "b", "column": "b", "value": "5", "known": true}. "column" is the history column of the value after a
-- change, null where it is not recorded. "value" is what rows have that existed when the column was added, as text.
CREATE TABLE waltrail.layout (
    history    text PRIMARY KEY,
    source_oid oid NOT NULL,
    columns    jsonb NOT NULL
);

-- Where the values of an attribute stand in the rows with after_number < cdc_id <= until_number: in a history column, or they
-- are this constant. until_number is NULL for the rows that are being written.
CREATE TABLE waltrail.column_range (
    history        text NOT NULL,
    attnum         smallint NOT NULL,       -- pg_attribute.attnum on the source, which a rename does not change
    after_number   bigint NOT NULL,
    until_number   bigint,
    history_column text,                    -- NULL: none has them
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

-- Said in the target transaction of the first row that has these columns, before it: [{"attnum", "column", "value", "known"}].
CREATE FUNCTION waltrail.arrived(for_history text, described jsonb)
RETURNS void LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    last bigint;
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_catalog.jsonb_to_recordset(described) AS d (attnum smallint, "column" text)
          FULL JOIN (SELECT * FROM waltrail.column_range u WHERE u.history = for_history AND u.until_number IS NULL) r
            ON r.attnum = d.attnum AND r.history_column = d."column"
         WHERE r.attnum IS NULL OR d.attnum IS NULL
    ) THEN
        RETURN;
    END IF;
    IF NOT EXISTS (SELECT FROM waltrail.column_range r WHERE r.history = for_history) THEN
        last := 0;
    ELSE
        last := waltrail.last_number(for_history);
    END IF;
    -- A range without rows is none.
    DELETE FROM waltrail.column_range r
     WHERE r.history = for_history AND r.until_number IS NULL AND r.after_number = last
       AND NOT EXISTS (SELECT FROM pg_catalog.jsonb_to_recordset(described) AS d (attnum smallint, "column" text)
                        WHERE d.attnum = r.attnum AND d."column" = r.history_column);
    UPDATE waltrail.column_range r SET until_number = last
     WHERE r.history = for_history AND r.until_number IS NULL
       AND NOT EXISTS (SELECT FROM pg_catalog.jsonb_to_recordset(described) AS d (attnum smallint, "column" text)
                        WHERE d.attnum = r.attnum AND d."column" = r.history_column);
    -- Rows from before the column, as far as no range says anything of them.
    INSERT INTO waltrail.column_range (history, attnum, after_number, until_number, value, known)
    SELECT for_history, d.attnum, coalesce(r.reached, 0), last, d.value, coalesce(d.known, true)
      FROM pg_catalog.jsonb_to_recordset(described) AS d (attnum smallint, value text, known boolean)
      LEFT JOIN LATERAL (SELECT pg_catalog.max(u.until_number) AS reached, pg_catalog.bool_or(u.until_number IS NULL) AS is_open
                           FROM waltrail.column_range u WHERE u.history = for_history AND u.attnum = d.attnum) r ON true
     WHERE r.is_open IS NOT TRUE AND coalesce(r.reached, 0) < last;
    INSERT INTO waltrail.column_range (history, attnum, after_number, history_column)
    SELECT for_history, d.attnum, last, d."column"
      FROM pg_catalog.jsonb_to_recordset(described) AS d (attnum smallint, "column" text)
     WHERE NOT EXISTS (SELECT FROM waltrail.column_range r
                        WHERE r.history = for_history AND r.attnum = d.attnum AND r.until_number IS NULL);
END $$;

-- The newest commit time up to which a history is surely whole, if it is whole up to this position; NULL: not known.
CREATE FUNCTION waltrail.whole_until(for_slot text, for_history text, whole_lsn pg_lsn)
RETURNS timestamptz LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT greatest(
        (SELECT w.whole_time FROM waltrail.watched w WHERE w.slot = for_slot AND w.whole_lsn = whole_until.whole_lsn),
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

REVOKE ALL ON FUNCTION waltrail.last_number(text) FROM PUBLIC;
REVOKE ALL ON FUNCTION waltrail.arrived(text, jsonb) FROM PUBLIC;
REVOKE ALL ON FUNCTION waltrail.whole_until(text, text, pg_lsn) FROM PUBLIC;

-- Default privileges can have granted them.
REVOKE ALL ON waltrail.baseline, waltrail.layout, waltrail.column_range, waltrail.inherited FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA waltrail FROM PUBLIC;
