//! Rows of a history as a person asks about them: what a change was, of which row, and the values before and after it. Pure.

/// A value, or that it is not known: NULL is a value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Cell {
    Known(Option<String>),
    #[default]
    Unknown,
}

impl Cell {
    pub(crate) fn of(value: Option<String>, is_known: bool) -> Self {
        match is_known {
            true => Self::Known(value),
            false => Self::Unknown,
        }
    }

    pub(crate) fn is_known(&self) -> bool {
        *self != Self::Unknown
    }

    /// The text of a value that is neither unknown nor NULL.
    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Self::Known(Some(text)) => Some(text),
            Self::Known(None) | Self::Unknown => None,
        }
    }

    /// Bytes of memory, about.
    pub(crate) fn size(&self) -> usize {
        size_of::<Self>() + self.text().map_or(0, str::len)
    }
}

/// The values of a row of the table, in the order of the ledger's columns.
pub(crate) type Version = Vec<Cell>;

/// The values of a key, as text.
pub(crate) type Key = Vec<String>;

/// What a row of the history says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The row is there: an INSERT, an existing row, a repair.
    Put,
    Update,
    Delete,
    /// Every row is gone.
    Truncate,
    /// Changes are missing.
    Gap,
}

impl Kind {
    pub(crate) fn of(change_type: &str) -> Self {
        use crate::schema::plan::change_type;
        match change_type {
            change_type::UPDATE => Self::Update,
            change_type::DELETE => Self::Delete,
            change_type::TRUNCATE => Self::Truncate,
            change_type::GAP => Self::Gap,
            // The name of existing rows is the configuration's to choose.
            _ => Self::Put,
        }
    }
}

/// A row of a history, with what the rows before it say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub number: i64,
    pub change_type: String,
    pub kind: Kind,
    /// In the session's time zone.
    pub time: Option<String>,
    /// ISO 8601, in UTC.
    pub utc: Option<String>,
    pub commit_lsn: Option<String>,
    /// Its order among the rows of all tables.
    pub commit_number: Option<i64>,
    pub tx_seq: Option<i64>,
    pub xid: Option<String>,
    /// A JSON object.
    pub context: Option<String>,
    /// The key after the change; before it for a DELETE.
    pub key: Option<Key>,
    /// The key before the change, where that is another.
    pub former_key: Option<Key>,
    /// The row before the change; none where there was none. Cells are unknown where the history does not say.
    pub before: Option<Version>,
    /// The row after the change; none where there is none.
    pub after: Option<Version>,
    /// Columns whose value the WAL did not carry.
    pub lacking: Vec<usize>,
}
