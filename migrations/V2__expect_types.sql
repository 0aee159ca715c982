-- Fails when columns of a history table are no longer of the types that binary rows were made for: their bytes could
-- mean something else. Asked in the transaction that wrote the rows, whose lock keeps the table as it is till the end.
CREATE FUNCTION waltrail.expect_types(history regclass, columns text[], types oid[])
RETURNS void LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    IF EXISTS (
        SELECT FROM unnest(columns, types) AS wanted (name, type)
          LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = history AND a.attname = wanted.name
         WHERE a.atttypid IS DISTINCT FROM wanted.type
    ) THEN
        RAISE EXCEPTION 'the history table % was altered while it was written', history USING ERRCODE = 'WTR02';
    END IF;
END $$;
