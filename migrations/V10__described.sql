-- Whether a table was described before says nothing: where the transaction ended that dropped a column is looked up in the WAL.
ALTER TABLE waltrail.described DROP COLUMN again;
DROP FUNCTION waltrail.noted(text, pg_lsn, bigint, boolean);

CREATE FUNCTION waltrail.noted(for_history text, commit_lsn pg_lsn, by_xid bigint)
RETURNS void LANGUAGE sql SET search_path = '' AS $$
    INSERT INTO waltrail.described (history, lsn, xid, number)
    VALUES (for_history, commit_lsn, by_xid, waltrail.last_number(for_history))
    ON CONFLICT (history, lsn) DO UPDATE SET number = excluded.number
$$;

REVOKE ALL ON FUNCTION waltrail.noted(text, pg_lsn, bigint) FROM PUBLIC;
