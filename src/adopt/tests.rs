//! What keeps a source from being adopted: a test a reason.

use super::*;
use crate::history::checkpoint::Former;
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
                whole: lsn(90),
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
    assert_eq!((record.tables[0].oid, record.whole), (7, lsn(210)));
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
