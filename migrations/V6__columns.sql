-- History columns whose name does not follow from the rule: the value of a source column after a change stands in the column
-- of its name, the value before it in `old_<name>`. Recorded are shortened names, columns made beside the first one when a
-- type changed, and columns of the source's own that are called `old_...`.
CREATE TABLE waltrail.home (
    history         text NOT NULL,          -- the history table, as SQL writes its name
    source_column   text NOT NULL,
    former          boolean NOT NULL,       -- it holds the value before the change
    history_column  text NOT NULL,
    PRIMARY KEY (history, history_column)
);
