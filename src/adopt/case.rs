//! Whether a cluster and its slot are what `pg_upgrade` left of a slot from which nothing is missing. Pure.

use crate::history::checkpoint::Former;
use crate::history::followed::{Record, Whole};
use crate::lsn::Lsn;
use crate::schema::TableName;
use crate::schema::sight::{self, Look};
use crate::source::failover;
use crate::source::slot::{Server, SlotState};

/// The former cluster, the new one, and the slot in it.
pub(super) struct Case<'a> {
    pub(super) database: &'a str,
    /// What the former server was.
    pub(super) was: Former,
    /// The highest position that was read from the former cluster.
    pub(super) seen: Lsn,
    pub(super) server: Server,
    pub(super) slot: &'a SlotState,
    pub(super) record: &'a Record,
    pub(super) look: &'a Look,
    /// The publication and its tables are as they were when the slot was made.
    pub(super) publication_is_older: bool,
    /// Tables with rows that were written in the new cluster before the slot was made.
    pub(super) written_before: Vec<TableName>,
}

impl Case<'_> {
    /// Every reason why this is not what `pg_upgrade` left of a slot from which nothing is missing.
    pub(super) fn objections(&self) -> Vec<String> {
        let mut found = Vec::new();
        self.of_servers(&mut found);
        self.of_slot(&mut found);
        self.of_catalogs(&mut found);
        found
    }

    fn of_servers(&self, found: &mut Vec<String>) {
        let first = failover::FIRST;
        match self.was.major {
            None => found.push("the version of the former source is not recorded".to_owned()),
            Some(was) if was < first => found.push(format!(
                "the former source was PostgreSQL {was}, of which pg_upgrade keeps no slot ({first} is the first)"
            )),
            Some(was) if was >= self.server.major => found.push(format!(
                "the source is PostgreSQL {}, and the former one was {was}: this is no upgrade",
                self.server.major
            )),
            Some(_) => {}
        }
        if self.server.in_recovery {
            found.push("the source is a standby: adopt its primary first".to_owned());
        }
    }

    fn of_slot(&self, found: &mut Vec<String>) {
        let slot = self.slot;
        if slot.plugin.as_deref() != Some("pgoutput")
            || slot.database.as_deref() != Some(self.database)
            || slot.temporary
            || slot.two_phase
        {
            found.push("the slot is not one that pg_upgrade made of waltrail's".to_owned());
        }
        if let Some(reason) = &slot.invalidation_reason {
            found.push(format!("the slot is invalid ({reason})"));
        }
        if let Some(pid) = slot.active_pid {
            found.push(format!("the slot is in use by pid {pid}"));
        }
        if slot.was_read {
            found.push("the slot was read in the new cluster".to_owned());
        }
        if self.was.failover == Some(true) && slot.failover != Some(true) {
            found.push(
                "the slot is not a failover slot, and the former one was: it was made by hand"
                    .to_owned(),
            );
        }
        match slot.confirmed_flush {
            None => found.push("the slot is being made".to_owned()),
            Some(at) if at <= self.seen => found.push(format!(
                "the slot is at {at}, not past {}, up to which the former source was read: pg_upgrade begins the new WAL \
                 after the former",
                self.seen
            )),
            Some(_) => {}
        }
    }

    fn of_catalogs(&self, found: &mut Vec<String>) {
        // OIDs of tables are kept; those of the publication and of its members are not, and no row version is.
        let mut publication = self.record.publication.clone();
        if let Some(now) = &self.look.publication {
            publication.oid = now.oid;
            publication.version.clone_from(&now.version);
        }
        let mut tables = self.record.tables.clone();
        for (table, now) in std::iter::zip(&mut tables, &self.look.tables) {
            if let Some((_, now)) = &now.table {
                table.seen.standing.member.clone_from(&now.member);
            }
        }
        let differences = sight::differences(&publication, &tables, self.look);
        found.extend(differences.iter().map(|found| found.what.to_string()));
        let written = self.written_before.iter();
        found.extend(written.map(|table| {
            format!(
                "rows of {table} were written in the new cluster before the slot was made: pg_upgrade did not make it"
            )
        }));
        if differences.is_empty() && !self.publication_is_older {
            found.push("the publication was altered since the slot was made".to_owned());
        }
    }

    /// What is followed from now on.
    pub(super) fn seen_now(&self, whole: Lsn) -> Record {
        let mut record = self.record.clone();
        record.whole = Whole {
            lsn: whole,
            time: None,
        };
        if let Some(now) = &self.look.publication {
            record.publication = now.clone();
        }
        for (table, now) in std::iter::zip(&mut record.tables, &self.look.tables) {
            if let Some((name, now)) = &now.table {
                table.name = name.clone();
                table.seen.standing = now.clone();
            }
        }
        record
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::sight::{Followed, Found, Publication, Seen, Standing};

    fn lsn(raw: u64) -> Lsn {
        Lsn::from_u64(raw)
    }

    fn standing(member: &str) -> Standing {
        Standing {
            identity: 'd',
            persistence: 'p',
            kind: 'r',
            member: Some(member.to_owned()),
            filtered: false,
            column_list: false,
            unlisted: Vec::new(),
            published_as: None,
            attributes: String::new(),
            file: 0,
            partitions: Vec::new(),
        }
    }

    fn publication(oid: u32) -> Publication {
        Publication {
            name: "waltrail".to_owned(),
            oid,
            version: oid.to_string(),
            every_kind: true,
            via_root: true,
        }
    }

    /// What `pg_upgrade` leaves, with other OIDs of the publication and its members.
    struct Upgraded {
        was: Former,
        server: Server,
        slot: SlotState,
        record: Record,
        look: Look,
        older: bool,
        written: Vec<TableName>,
    }

    impl Upgraded {
        fn new() -> Self {
            let name = TableName::new("public", "t");
            Self {
                was: Former {
                    major: Some(17),
                    failover: Some(true),
                },
                server: Server {
                    major: 18,
                    in_recovery: false,
                },
                slot: SlotState {
                    plugin: Some("pgoutput".to_owned()),
                    database: Some("app".to_owned()),
                    confirmed_flush: Some(lsn(200)),
                    restart_lsn: Some(lsn(190)),
                    failover: Some(true),
                    ..SlotState::default()
                },
                record: Record {
                    publication: publication(1),
                    whole: Whole {
                        lsn: lsn(90),
                        time: None,
                    },
                    tables: vec![Followed {
                        history: TableName::new("public", "t_cdc"),
                        oid: 7,
                        name: name.clone(),
                        seen: Seen {
                            key: vec!["id".to_owned()],
                            standing: standing("table 2"),
                        },
                    }],
                },
                look: Look {
                    publication: Some(publication(11)),
                    tables: vec![Found {
                        table: Some((name, standing("table 12"))),
                        named: Some(7),
                    }],
                },
                older: true,
                written: Vec::new(),
            }
        }

        fn objections(&self) -> Vec<String> {
            self.case().objections()
        }

        fn case(&self) -> Case<'_> {
            Case {
                database: "app",
                was: self.was,
                seen: lsn(100),
                server: self.server,
                slot: &self.slot,
                record: &self.record,
                look: &self.look,
                publication_is_older: self.older,
                written_before: self.written.clone(),
            }
        }

        #[track_caller]
        fn objects(&self, word: &str) {
            let found = self.objections();
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].contains(word), "{found:?}");
        }
    }

    #[test]
    fn what_pg_upgrade_leaves_is_adopted() {
        let upgraded = Upgraded::new();
        assert_eq!(upgraded.objections(), Vec::<String>::new());
        let record = upgraded.case().seen_now(lsn(210));
        assert_eq!(record.publication, publication(11));
        assert_eq!(record.tables[0].seen.standing, standing("table 12"));
        assert_eq!((record.tables[0].oid, record.whole.lsn), (7, lsn(210)));
    }

    #[test]
    fn a_former_source_before_17_or_of_no_older_version_is_refused() {
        let mut case = Upgraded::new();
        case.was.major = None;
        case.objects("not recorded");
        case.was.major = Some(16);
        case.objects("PostgreSQL 16");
        case.was.major = Some(18);
        case.objects("no upgrade");
        case.was.major = Some(17);
        case.server.in_recovery = true;
        case.objects("standby");
    }

    #[test]
    fn a_slot_that_pg_upgrade_did_not_make_or_that_was_used_is_refused() {
        let change = |change: fn(&mut SlotState), word: &str| {
            let mut case = Upgraded::new();
            change(&mut case.slot);
            case.objects(word);
        };
        change(
            |slot| slot.plugin = Some("test_decoding".to_owned()),
            "not one that",
        );
        change(
            |slot| slot.database = Some("other".to_owned()),
            "not one that",
        );
        change(|slot| slot.temporary = true, "not one that");
        change(|slot| slot.two_phase = true, "not one that");
        change(
            |slot| slot.invalidation_reason = Some("wal_removed".to_owned()),
            "wal_removed",
        );
        change(|slot| slot.active_pid = Some(5), "pid 5");
        change(|slot| slot.was_read = true, "was read");
        change(|slot| slot.failover = Some(false), "made by hand");
        change(|slot| slot.confirmed_flush = None, "being made");
        // The WAL of an upgraded cluster begins after the former one's.
        change(
            |slot| slot.confirmed_flush = Some(lsn(100)),
            "not past 0/64",
        );
    }

    #[test]
    fn another_publication_or_table_is_refused() {
        let mut case = Upgraded::new();
        case.older = false;
        case.objects("altered since");
        let mut case = Upgraded::new();
        case.written = vec![TableName::new("public", "t")];
        case.objects("before the slot was made");
        let mut case = Upgraded::new();
        case.look.publication = None;
        case.objects("publication was dropped");
        let mut case = Upgraded::new();
        case.look.publication.as_mut().unwrap().every_kind = false;
        case.objects("publication was altered");
        let change = |change: fn(&mut Found), word: &str| {
            let mut case = Upgraded::new();
            change(&mut case.look.tables[0]);
            case.objects(word);
        };
        // A table that was restored from a dump has another OID.
        change(
            |found| {
                found.table = None;
                found.named = Some(8);
            },
            "is another table now",
        );
        change(
            |found| found.table.as_mut().unwrap().1.member = None,
            "taken out",
        );
        change(
            |found| found.table.as_mut().unwrap().1.filtered = true,
            "row filter",
        );
        change(
            |found| found.table.as_mut().unwrap().1.persistence = 'u',
            "unlogged",
        );
    }
}
