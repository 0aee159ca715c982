//! Where transactions of the source ended that the stream does not show, because they changed nothing that is published: those
//! that changed a table's columns. The catalogs name their ids alone. A temporary copy of the slot, read through the plugin
//! `test_decoding`, names every transaction that ended past the slot's position (manual: 9.28.6, F.42).

use tokio_postgres::{Client, Error};

use super::slot;
use crate::lsn::Lsn;

/// WAL that is decoded at a time: its changes lie in a temporary file of the source meanwhile.
const PIECE_BYTES: u64 = 64 * 1024 * 1024;
/// Commits that are not on disk yet cannot be read. The source's WAL writer takes no longer for them.
const FLUSHED: &str =
    "SELECT pg_catalog.pg_is_in_recovery() OR pg_catalog.pg_current_wal_flush_lsn() >= $1";
/// What is asked of it, for so many tries.
const FLUSH_TRIES: usize = 100;
const FLUSH_PAUSE: std::time::Duration = std::time::Duration::from_millis(20);

/// The end of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End {
    /// Its id: the one that was looked for, or that of the transaction of which it was a subtransaction.
    pub xid: u32,
    /// The byte after its commit record, or no less than that.
    pub lsn: Lsn,
    /// Nothing else is possible.
    pub is_sure: bool,
}

/// What was looked for, and the best that was found.
struct Search(Vec<(u32, Option<End>)>);

impl Search {
    /// A transaction ended. A subtransaction has an id of its own, which no commit names, and it is higher than that of its
    /// transaction.
    fn take(&mut self, xid: u32, lsn: Lsn) {
        for (wanted, found) in &mut self.0 {
            let newer = wanted.wrapping_sub(xid).cast_signed();
            let is_better = match found {
                Some(End { is_sure: true, .. }) => false,
                Some(best) => xid.wrapping_sub(best.xid).cast_signed() > 0,
                None => true,
            };
            if newer == 0 || newer > 0 && is_better {
                *found = Some(End {
                    xid,
                    lsn,
                    is_sure: newer == 0,
                });
            }
        }
    }

    /// What no transaction can have been that ended past `from` ended before.
    fn found(self, from: Lsn) -> Vec<End> {
        let end = |(xid, found): (u32, Option<End>)| {
            found.unwrap_or(End {
                xid,
                lsn: from,
                is_sure: true,
            })
        };
        self.0.into_iter().map(end).collect()
    }
}

/// Where these transactions ended, in order, all of which have committed.
///
/// # Errors
/// The source has no slot of this name, no room for one more, or not the plugin.
pub(crate) async fn ends(source: &Client, slot: &str, xids: &[u32]) -> Result<Vec<End>, Error> {
    let until = slot::position(source).await?;
    for _ in 0..FLUSH_TRIES {
        if source.query_one(FLUSHED, &[&until]).await?.get(0) {
            break;
        }
        tokio::time::sleep(FLUSH_PAUSE).await;
    }
    let copy = format!("waltrail_commits_{:08x}", fastrand::u32(..));
    let copied = source
        .query_one(
            "SELECT lsn FROM pg_catalog.pg_copy_logical_replication_slot($1::text, $2::text, true, 'test_decoding')",
            &[&slot, &copy],
        )
        .await?;
    let from: Lsn = copied.try_get(0)?;
    let found = read(source, &copy, (from, until), xids).await;
    // The end of the session drops it, too.
    let _ = source
        .execute(
            "SELECT pg_catalog.pg_drop_replication_slot($1::text)",
            &[&copy],
        )
        .await;
    found
}

async fn read(
    source: &Client,
    copy: &str,
    (from, until): (Lsn, Lsn),
    xids: &[u32],
) -> Result<Vec<End>, Error> {
    let mut search = Search(xids.iter().map(|&xid| (xid, None)).collect());
    let mut at = from;
    while at < until {
        at = until.min(Lsn::from_u64(at.as_u64().saturating_add(PIECE_BYTES)));
        let ended = source
            .query(
                "SELECT c.xid::text::bigint, c.lsn \
                   FROM pg_catalog.pg_logical_slot_get_changes($1::text, $2, NULL, 'skip-empty-xacts', '0', 'include-xids', '1') c \
                  WHERE pg_catalog.starts_with(c.data, 'COMMIT ')",
                &[&copy, &at],
            )
            .await?;
        for row in &ended {
            search.take(row.try_get::<_, i64>(0)? as u32, row.try_get(1)?);
        }
    }
    Ok(search.found(from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_is_found_by_its_id_or_by_the_last_that_can_have_had_it_inside() {
        let lsn = Lsn::from_u64;
        let of = |wanted: u32, ended: &[(u32, u64)]| {
            let mut search = Search(vec![(wanted, None)]);
            for &(xid, end) in ended {
                search.take(xid, lsn(end));
            }
            let End { xid, lsn, is_sure } = search.found(lsn(1)).remove(0);
            (xid, lsn.as_u64(), is_sure)
        };
        assert_eq!(of(5, &[(4, 10), (5, 20), (6, 30)]), (5, 20, true));
        assert_eq!(of(5, &[(6, 10), (5, 20), (4, 30)]), (5, 20, true));
        // Whatever ended began later.
        assert_eq!(of(5, &[(6, 10), (7, 20)]), (5, 1, true));
        assert_eq!(of(5, &[]), (5, 1, true));
        // A subtransaction of one of them, or it ended before.
        assert_eq!(of(5, &[(3, 10), (4, 20), (6, 30), (2, 40)]), (4, 20, false));
        // Ids come round.
        assert_eq!(of(3, &[(u32::MAX, 10), (4, 20)]), (u32::MAX, 10, false));
    }
}
