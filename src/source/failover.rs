//! Whether the slot survives a fail-over of the source, and what else has to be set for that. Facts in, findings out: the one
//! query here reads, everything else is pure.
//!
//! From 17 on a standby can keep a copy of a *failover slot* (manual, section 47.2.3). The copy is never ahead of the
//! primary's slot, so a history that goes on from it finds its end again.

use tokio_postgres::{Client, Error};

use super::slot::{Server, SlotState};
use crate::finding::Finding;
use crate::server::Side;

/// The first version with failover slots.
pub(crate) const FIRST: u32 = 17;

/// Whether slots of this server are made as failover slots. A standby cannot make one.
pub(crate) fn is_wanted(wanted: bool, server: Server) -> bool {
    wanted && server.major >= FIRST && !server.in_recovery
}

/// What the slot has to be altered to, before a session uses it.
pub(crate) fn alteration(wanted: bool, server: Server, slot: &SlotState) -> Option<bool> {
    if server.major < FIRST || server.in_recovery || slot.temporary {
        return None;
    }
    slot.failover.filter(|is| *is != wanted).map(|_| wanted)
}

/// The source, as far as a fail-over is concerned.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    pub synchronized_standby_slots: Vec<String>,
    /// The slots of physical standbys, and whether each is in use.
    pub physical: Vec<(String, bool)>,
    /// Physical standbys that are connected without a slot.
    pub without_slot: Vec<String>,
    /// A standby's own settings; none on a primary.
    pub standby: Option<Standby>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Standby {
    pub sync_replication_slots: bool,
    pub hot_standby_feedback: bool,
    pub primary_slot_name: String,
    /// `primary_conninfo` names a database; none where the role may not see it.
    pub names_database: Option<bool>,
}

/// The slot is gone once a standby is promoted.
const LOST: &str = "a-fail-over-loses-the-slot";
/// The source sends nothing until a standby is there.
const HELD: &str = "a-standby-holds-the-history-up";
/// A promoted standby may not have what the history has.
const AHEAD: &str = "the-history-can-be-ahead-of-a-standby";
/// The slot on a standby can be invalidated by its primary.
const INVALIDATED: &str = "a-standby-may-lose-the-slot";

/// Reads the facts. Settings that the role may not see are taken as unset.
pub(crate) async fn facts(client: &Client, server: Server) -> Result<Facts, Error> {
    let row = client.query_one(FACTS, &[]).await?;
    let listed: String = row.get(0);
    let listed = listed.split(',').map(|name| name.trim_matches([' ', '"']));
    let standby = server.in_recovery.then(|| Standby {
        sync_replication_slots: row.get(4),
        hot_standby_feedback: row.get(5),
        primary_slot_name: row.get(6),
        names_database: row.get(7),
    });
    let (names, active): (Vec<String>, Vec<bool>) = (row.get(1), row.get(2));
    Ok(Facts {
        synchronized_standby_slots: listed
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect(),
        physical: std::iter::zip(names, active).collect(),
        without_slot: row.get(3),
        standby,
    })
}

/// Slots of physical standbys have a position once they were used. A standby that is connected has a sender; a base
/// backup, whose sender streams too, has its own temporary slot.
const FACTS: &str = "
    SELECT coalesce(pg_catalog.current_setting('synchronized_standby_slots', true), ''),
           ARRAY(SELECT slot_name::text FROM pg_catalog.pg_replication_slots
                  WHERE slot_type = 'physical' AND NOT temporary ORDER BY slot_name),
           ARRAY(SELECT active FROM pg_catalog.pg_replication_slots
                  WHERE slot_type = 'physical' AND NOT temporary ORDER BY slot_name),
           ARRAY(SELECT r.application_name FROM pg_catalog.pg_stat_replication r
                  WHERE r.state = 'streaming'
                    AND NOT EXISTS (SELECT FROM pg_catalog.pg_replication_slots s WHERE s.active_pid = r.pid)
                  ORDER BY 1),
           coalesce(pg_catalog.current_setting('sync_replication_slots', true), 'off') = 'on',
           pg_catalog.current_setting('hot_standby_feedback') = 'on',
           coalesce((SELECT setting FROM pg_catalog.pg_settings WHERE name = 'primary_slot_name'), ''),
           (SELECT setting ~ '(^|[ ?&/])dbname *=|^postgres(ql)?://[^/]*/[^?]' FROM pg_catalog.pg_settings
             WHERE name = 'primary_conninfo')";

/// The statement that makes the slot by hand.
pub(crate) fn statement(name: &str, failover: bool) -> String {
    let option = if failover { ", failover => true" } else { "" };
    format!("SELECT pg_catalog.pg_create_logical_replication_slot('{name}', 'pgoutput'{option})")
}

/// What keeps the slot named so from surviving a fail-over, or would hold up the history. Empty where no standby is known of and the
/// slot is as it should be.
pub(crate) fn findings(
    (name, wanted): (&str, bool),
    server: Server,
    slot: Option<&SlotState>,
    facts: &Facts,
) -> Vec<Finding> {
    let mut found = Vec::new();
    if let Some(standby) = &facts.standby {
        found.extend(of_standby(wanted && server.major >= FIRST, standby));
        return found;
    }
    let has_standby = !facts.physical.is_empty() || !facts.without_slot.is_empty();
    if server.major < FIRST {
        if has_standby {
            let text = format!(
                "PostgreSQL {} does not synchronize slots: a standby that is promoted has no slot of this name",
                server.major
            );
            let remedy = "-- make the slot on the standby as docs/operate/failover.md says";
            found.push(note(LOST, text, remedy));
        }
        return found;
    }
    if !wanted {
        if has_standby {
            let text = "source.failover is false: the slot is lost when a standby is promoted";
            found.push(note(LOST, text, "-- set source.failover = true"));
        }
        return found;
    }
    if slot.is_some_and(|slot| slot.failover == Some(false)) {
        let text = "the slot is not a failover slot: it is lost when a standby is promoted";
        let remedy = format!(
            "-- with setup = \"auto\", restart waltrail; otherwise, on a replication connection while the slot is not in use: \
             ALTER_REPLICATION_SLOT {name} (FAILOVER true)"
        );
        found.push(match has_standby {
            true => warning(LOST, text, remedy),
            false => note(LOST, text, remedy),
        });
    }
    found.extend(of_primary(facts));
    found
}

const MAKE_A_SLOT: &str = "SELECT pg_catalog.pg_create_physical_replication_slot('standby_1'); -- on the primary; and on the standby: \
     ALTER SYSTEM SET primary_slot_name = 'standby_1'; SELECT pg_reload_conf()";

fn of_primary(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    if !facts.without_slot.is_empty() {
        let text = format!(
            "standbys without a slot of their own cannot synchronize slots: {}",
            facts.without_slot.join(", ")
        );
        found.push(note(LOST, text, MAKE_A_SLOT));
    }
    let listed = &facts.synchronized_standby_slots;
    let of_name = |name: &String| facts.physical.iter().find(|(slot, _)| slot == name);
    for name in listed {
        let state = match of_name(name) {
            None => "does not exist",
            Some((_, false)) => "is not in use",
            Some((_, true)) => continue,
        };
        let text = format!(
            "synchronized_standby_slots names the slot {name}, which {state}: the source sends no change until it does"
        );
        let others: Vec<&str> = listed
            .iter()
            .filter(|other| *other != name)
            .map(String::as_str)
            .collect();
        let remedy = format!(
            "ALTER SYSTEM SET synchronized_standby_slots = '{}'; SELECT pg_reload_conf(); -- or start that standby",
            others.join(", ")
        );
        found.push(warning(HELD, text, remedy));
    }
    let in_use = facts.physical.iter().filter(|(_, active)| *active);
    let in_use: Vec<&str> = in_use.map(|(name, _)| name.as_str()).collect();
    if listed.is_empty() && !in_use.is_empty() {
        let text = "synchronized_standby_slots is empty: the history can be ahead of a standby, which is refused after a \
                    promotion (exit code 65)";
        let remedy = format!(
            "ALTER SYSTEM SET synchronized_standby_slots = '{}'; SELECT pg_reload_conf();",
            in_use.join(", ")
        );
        found.push(note(AHEAD, text, remedy));
    }
    found
}

/// What a standby lacks to keep a copy of the primary's failover slots (with `synchronizes`), or a slot of its own.
fn of_standby(synchronizes: bool, standby: &Standby) -> Vec<Finding> {
    let mut found = Vec::new();
    if !standby.hot_standby_feedback {
        found.push(warning(
            INVALIDATED,
            "hot_standby_feedback is off on the standby: the primary may remove catalog rows that the slot needs, and the \
             slot is lost",
            "ALTER SYSTEM SET hot_standby_feedback = on; SELECT pg_reload_conf(); -- on the standby",
        ));
    }
    if standby.primary_slot_name.is_empty() {
        found.push(warning(
            INVALIDATED,
            "primary_slot_name is not set on the standby: while it is not connected, hot_standby_feedback has no effect",
            MAKE_A_SLOT,
        ));
    }
    if synchronizes && !standby.sync_replication_slots {
        found.push(note(
            LOST,
            "sync_replication_slots is off on the standby: it keeps no copy of the primary's slots",
            "ALTER SYSTEM SET sync_replication_slots = on; SELECT pg_reload_conf(); -- on the standby",
        ));
    }
    if standby.sync_replication_slots && standby.names_database == Some(false) {
        found.push(warning(
            LOST,
            "primary_conninfo names no database: the standby cannot synchronize slots",
            "-- on the standby: add dbname=postgres to primary_conninfo; SELECT pg_reload_conf()",
        ));
    }
    found
}

fn note(code: &'static str, text: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding::note(Side::Source, code, text).remedy(remedy)
}

fn warning(code: &'static str, text: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding::warning(Side::Source, code, text).remedy(remedy)
}

/// What keeps a slot from being invalidated again, for `pg_replication_slots.invalidation_reason`.
pub(crate) fn against(reason: &str) -> &'static str {
    match reason {
        "rows_removed" => {
            "the primary removed catalog rows that the slot on the standby needed: on the standby, set \
             hot_standby_feedback = on and primary_slot_name"
        }
        "wal_level_insufficient" => {
            "wal_level was lowered on the primary: set wal_level = logical there and restart it"
        }
        "idle_timeout" => "raise idle_replication_slot_timeout on the source",
        "conflicting" => {
            "the slot on the standby conflicted with recovery: set hot_standby_feedback = on and primary_slot_name \
             there, and keep wal_level = logical on the primary"
        }
        _ => "raise max_slot_wal_keep_size if it was the limit",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRIMARY: Server = Server {
        major: 17,
        in_recovery: false,
    };

    fn texts(wanted: bool, server: Server, slot: &SlotState, facts: &Facts) -> Vec<String> {
        let found = findings(("waltrail", wanted), server, Some(slot), facts);
        assert!(found.iter().all(|finding| finding.remedy.is_some()));
        found.into_iter().map(|finding| finding.what).collect()
    }

    #[track_caller]
    fn says(found: &[String], words: &[&str]) {
        assert_eq!(found.len(), words.len(), "{found:?}");
        for (text, word) in found.iter().zip(words) {
            assert!(text.contains(word), "{text}");
        }
    }

    fn made() -> SlotState {
        SlotState {
            failover: Some(true),
            ..SlotState::default()
        }
    }

    #[test]
    fn a_slot_is_altered_to_what_is_configured_where_that_is_possible() {
        let plain = SlotState {
            failover: Some(false),
            ..SlotState::default()
        };
        assert_eq!(alteration(true, PRIMARY, &plain), Some(true));
        assert_eq!(alteration(false, PRIMARY, &plain), None);
        assert_eq!(alteration(false, PRIMARY, &made()), Some(false));
        assert_eq!(alteration(true, PRIMARY, &made()), None);
        let temporary = SlotState {
            temporary: true,
            ..plain.clone()
        };
        assert_eq!(alteration(true, PRIMARY, &temporary), None);
        let standby = Server {
            in_recovery: true,
            ..PRIMARY
        };
        assert_eq!(alteration(true, standby, &plain), None);
        let old = Server {
            major: 16,
            ..PRIMARY
        };
        assert_eq!(alteration(true, old, &SlotState::default()), None);
        assert!(is_wanted(true, PRIMARY) && !is_wanted(true, old) && !is_wanted(true, standby));
    }

    #[test]
    fn a_source_without_standbys_needs_nothing() {
        says(&texts(true, PRIMARY, &made(), &Facts::default()), &[]);
        says(&texts(false, PRIMARY, &made(), &Facts::default()), &[]);
    }

    #[test]
    fn what_a_primary_lacks_is_named() {
        let plain = SlotState {
            failover: Some(false),
            ..SlotState::default()
        };
        let mut facts = Facts {
            physical: vec![("a".to_owned(), true)],
            ..Facts::default()
        };
        let found = texts(true, PRIMARY, &plain, &facts);
        says(
            &found,
            &["not a failover slot", "synchronized_standby_slots is empty"],
        );
        says(
            &texts(false, PRIMARY, &plain, &facts),
            &["source.failover is false"],
        );
        facts.synchronized_standby_slots = vec!["a".to_owned(), "b".to_owned()];
        says(
            &texts(true, PRIMARY, &made(), &facts),
            &["slot b, which does not exist"],
        );
        facts.physical = vec![("a".to_owned(), false), ("b".to_owned(), true)];
        says(
            &texts(true, PRIMARY, &made(), &facts),
            &["slot a, which is not in use"],
        );
        facts.without_slot = vec!["s".to_owned()];
        let old = Server {
            major: 16,
            ..PRIMARY
        };
        says(
            &texts(true, old, &SlotState::default(), &facts),
            &["PostgreSQL 16"],
        );
    }

    #[test]
    fn what_a_standby_lacks_is_named() {
        let server = Server {
            in_recovery: true,
            ..PRIMARY
        };
        let mut standby = Standby {
            sync_replication_slots: true,
            hot_standby_feedback: true,
            primary_slot_name: "a".to_owned(),
            names_database: Some(true),
        };
        let facts = |standby: &Standby| Facts {
            standby: Some(standby.clone()),
            ..Facts::default()
        };
        says(&texts(true, server, &made(), &facts(&standby)), &[]);
        standby.names_database = Some(false);
        says(
            &texts(true, server, &made(), &facts(&standby)),
            &["names no database"],
        );
        let bare = facts(&Standby::default());
        let all = [
            "hot_standby_feedback",
            "primary_slot_name",
            "sync_replication_slots",
        ];
        says(&texts(true, server, &made(), &bare), &all);
        says(&texts(false, server, &made(), &bare), &all[..2]);
    }
}
