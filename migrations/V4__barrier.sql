-- A row a slot that is written, synchronously, to know that everything committed before is durable. Not the checkpoint's: a
-- commit that waits for a standby keeps its row locked.
CREATE TABLE waltrail.barrier (
    slot      text PRIMARY KEY,
    passed_at timestamptz NOT NULL
) WITH (fillfactor = 10);                   -- one row, updated often: room for HOT updates in its page
