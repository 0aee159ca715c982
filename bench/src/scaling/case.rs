//! What grows, and the loads that show it.

/// What grows in one table of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Series {
    /// Rows in a transaction.
    Rows,
    /// Bytes in a row.
    Width,
    /// Captured tables that a batch touches.
    Tables,
    /// Changes of a table that is not captured, in the same transactions.
    Beside,
    /// The same, in transactions of their own.
    Apart,
}

impl Series {
    /// All of them, in the order of the report.
    pub const ALL: [Self; 5] = [
        Self::Rows,
        Self::Width,
        Self::Tables,
        Self::Beside,
        Self::Apart,
    ];

    /// As it is called on the command line and in the CSV.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Rows => "rows",
            Self::Width => "width",
            Self::Tables => "tables",
            Self::Beside => "beside",
            Self::Apart => "apart",
        }
    }

    /// What grows, in words.
    #[must_use]
    pub fn heading(self) -> &'static str {
        match self {
            Self::Rows => "rows per transaction",
            Self::Width => "bytes per row",
            Self::Tables => "captured tables in turn",
            Self::Beside => "uncaptured changes for each captured one, in the same transaction",
            Self::Apart => "uncaptured changes for each captured one, in transactions of their own",
        }
    }

    /// What costs the same throughout as long as the growth is linear.
    #[must_use]
    pub fn unit(self) -> &'static str {
        match self {
            Self::Rows | Self::Tables => "captured change",
            Self::Width => "MB",
            Self::Beside | Self::Apart => "change, captured or not",
        }
    }

    /// Its loads, the smallest first.
    #[must_use]
    pub fn cases(self, quick: bool) -> Vec<Case> {
        let (rows, bytes, captured) = match quick {
            true => (50_000, 64 << 20, 10_000),
            false => (200_000, 256 << 20, 20_000),
        };
        let plain = Case {
            series: self,
            size: 0,
            rows,
            per_transaction: 1,
            width: 50,
            tables: 1,
            beside: 0,
        };
        let sizes: &[u32] = match self {
            Self::Rows if quick => &[1, 10, 100, 1_000, 10_000, 100_000],
            Self::Rows => &[1, 10, 100, 1_000, 10_000, 100_000, 1_000_000],
            Self::Width => &[50, 500, 5_000, 50_000, 512 << 10, 1 << 20],
            Self::Tables => &[1, 10, 100, 1_000],
            Self::Beside | Self::Apart => &[0, 1, 10, 50],
        };
        let case = |&size: &u32| {
            let case = Case { size, ..plain };
            match self {
                Self::Rows => Case {
                    per_transaction: size,
                    rows: rows.max(size),
                    ..case
                },
                Self::Width => Case {
                    width: size,
                    rows: rows.min(bytes / size),
                    per_transaction: 10,
                    ..case
                },
                Self::Tables => Case {
                    tables: size,
                    ..case
                },
                Self::Beside | Self::Apart => Case {
                    rows: captured,
                    beside: size,
                    ..case
                },
            }
        };
        sizes.iter().map(case).collect()
    }
}

/// One load: INSERTs of rows that cannot be compressed.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// What it belongs to.
    pub series: Series,
    /// What grows.
    pub size: u32,
    /// Captured rows in all.
    pub rows: u32,
    /// Captured rows in a transaction.
    pub per_transaction: u32,
    /// Bytes of a row's payload.
    pub width: u32,
    /// Captured tables, which take one row after the other.
    pub tables: u32,
    /// Uncaptured rows for each captured one.
    pub beside: u32,
}

impl Case {
    /// The captured tables.
    pub fn tables(self) -> impl Iterator<Item = String> {
        (0..self.tables).map(|number| format!("t{number}"))
    }

    /// How many units of [`Series::unit`] it has.
    #[must_use]
    pub fn units(self) -> f64 {
        let rows = f64::from(self.rows);
        match self.series {
            Series::Rows | Series::Tables => rows,
            Series::Width => self.megabytes(),
            Series::Beside | Series::Apart => rows * f64::from(1 + self.beside),
        }
    }

    /// Payload of the captured rows, in MB.
    #[must_use]
    pub fn megabytes(self) -> f64 {
        f64::from(self.rows) * f64::from(self.width) / f64::from(1 << 20)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_load_is_of_its_size() {
        for case in Series::ALL
            .into_iter()
            .flat_map(|series| series.cases(false))
        {
            assert!(case.rows >= case.per_transaction, "{case:?}");
            assert!(case.megabytes() <= 256.0, "{case:?}");
            let grown = match case.series {
                Series::Rows => case.per_transaction,
                Series::Width => case.width,
                Series::Tables => case.tables,
                Series::Beside | Series::Apart => case.beside,
            };
            assert_eq!(grown, case.size);
        }
    }
}
