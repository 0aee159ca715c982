use super::*;
use crate::status::sample::{full, gap, good, snapshot, table};
use crate::status::{Reason, Verdict};

fn plain(status: &Status, width: usize, height: Option<usize>) -> String {
    let text = text(status, Size { width, height });
    let plain = anstream::adapter::strip_str(&text).to_string();
    for line in plain.lines() {
        assert!(line.width() <= width, "{} columns: {line}", line.width());
        assert_eq!(line.trim_end(), line);
    }
    plain
}

#[test]
fn one_screen_of_80_columns_says_all_of_it() {
    let screen = plain(&good(), 80, Some(24));
    assert!(screen.lines().count() < 24, "{screen}");
    for part in [
        " GOOD  streaming ",
        "waltrail 0.1.0, 2026-11-29T06:12:40Z\n",
        "lag          0.0 s, 0 B\n",
        "2.0 s ago: 2026-11-29 06:12:38.5+00, checkpoint 0/1A000000\n",
        "812 rows/s, WAL 1.2 MiB/s (last minute)\n",
        "waltrail (in use by pid 101, reserved)",
        "max_slot_wal_keep_size = 1GB, 900.0 MiB left",
        "what the slot keeps does not grow\n",
        "runs: pid 102 in the target, from 10.0.0.7, since 2026-11-28T20:00:00Z\n",
        "16.0 MiB, from 0/19000000 to 0/1A000100\n",
        "source 15.14, primary; target 15.14\n",
        "public.employees -> public.employees_cdc",
        "about 1234567 following\n",
    ] {
        assert!(screen.contains(part), "no {part:?} in\n{screen}");
    }
}

#[test]
fn a_wider_terminal_has_two_columns() {
    let (narrow, wide) = (plain(&good(), 80, None), plain(&good(), 140, None));
    assert!(wide.lines().count() + 3 < narrow.lines().count(), "{wide}");
    assert!(
        wide.lines().any(
            |line| line.starts_with("lag ") && line.contains("  WAL kept ")
                || line.starts_with("lag ") && line.contains("  time left ")
        ),
        "{wide}"
    );
}

#[test]
fn every_width_keeps_its_lines_and_loses_no_word_of_a_reason() {
    let mut status = full();
    status.verdict.reasons[0].text = "word ".repeat(40) + &"x".repeat(200);
    for width in 40..200 {
        let screen = plain(&status, width, None);
        let words = screen.split_whitespace().filter(|word| *word == "word");
        assert_eq!(words.count(), 40, "{screen}");
        let long: usize = screen.matches('x').count();
        assert!(long >= 200, "{screen}");
    }
}

#[test]
fn a_verdict_has_its_reasons_each_with_what_to_do() {
    let mut status = good();
    status.verdict = Verdict {
        level: Level::Broken,
        state: "not running",
        reasons: vec![Reason {
            code: "not-running",
            level: Level::Broken,
            text: "no daemon writes".to_owned(),
            remedy: "start it".to_owned(),
        }],
    };
    status.daemon = None;
    let screen = plain(&status, 80, None);
    assert!(screen.starts_with(" BROKEN  not running "), "{screen}");
    assert!(
        screen.contains("\nnot-running  no daemon writes\n  -> start it\n"),
        "{screen}"
    );
    assert!(screen.contains("daemon       none runs\n"), "{screen}");
}

#[test]
fn of_many_tables_those_in_which_something_goes_on_come_first() {
    let mut status = good();
    status.tables = (0..300).map(|n| table(&format!("public.t{n}"))).collect();
    status.tables[250].snapshot = Some(snapshot("copying"));
    status.tables[251].gap = Some(gap(false));
    status.tables[252].rows = None;
    for height in [24, 40, 100] {
        let screen = plain(&status, 80, Some(height));
        assert!(screen.lines().count() < height, "{height}:\n{screen}");
        for part in [
            "public.t250 ",
            "public.t251 ",
            "public.t252 ",
            ", all following\n",
        ] {
            assert!(screen.contains(part), "no {part} in\n{screen}");
        }
        assert!(
            screen.contains("450 of about 1000, 43.9 KiB, 50 rows/s, 11 s left, 2.0 KiB held\n"),
            "{screen}"
        );
        assert!(
            screen.contains("not accepted: waltrail accept-gap"),
            "{screen}"
        );
    }
    let all = plain(&status, 80, None);
    assert!(
        all.contains("public.t0 ") && all.contains("public.t299 "),
        "{all}"
    );
}

#[test]
fn what_is_not_known_is_a_dash_and_no_number() {
    let mut status = good();
    status.source_error = Some("could not connect to the source".to_owned());
    (
        status.source,
        status.rate,
        status.lag_bytes,
        status.lag_seconds,
    ) = (None, None, None, None);
    (status.servers.source_version, status.servers.source_role) = (None, None);
    let screen = plain(&status, 80, None);
    for part in [
        "lag          -\n",
        "throughput   -\n",
        "slot         waltrail (not known)\n",
        "source does not answer; target 15.14",
    ] {
        assert!(screen.contains(part), "no {part:?} in\n{screen}");
    }
    status.target_error = Some("could not connect to the target".to_owned());
    (status.checkpoint, status.daemon) = (None, None);
    status.tables.clear();
    status.servers.target_version = None;
    let screen = plain(&status, 80, None);
    assert!(screen.contains("daemon       -\n"), "{screen}");
    assert!(screen.contains("last commit  -\n"), "{screen}");
}

#[test]
fn names_of_others_do_not_act_on_the_terminal() {
    let mut status = full();
    let evil = "a\u{1b}[2Jb\nc\u{202e}d";
    status.tables[0].source = evil.to_owned();
    status.tables[0].rows_error = Some(evil.to_owned());
    status.verdict.reasons[0].text = evil.to_owned();
    status.verdict.reasons[0].remedy = evil.to_owned();
    let text = text(
        &status,
        Size {
            width: 80,
            height: None,
        },
    );
    assert!(
        !text.contains("\u{1b}[2J") && !text.contains('\u{202e}'),
        "{text}"
    );
    assert!(!text.contains("\nc"), "{text}");
}

#[test]
fn wide_characters_take_their_columns() {
    let mut status = good();
    status.tables[0].source = "日本語".repeat(30);
    let screen = plain(&status, 80, None);
    assert!(screen.contains("..."), "{screen}");
    assert_eq!(cut("abcdef", 6), "abcdef");
    assert_eq!(cut("abcdefgh", 7), "ab...gh");
    assert_eq!(wrap("a bb ccc", 10), ["a bb ccc"]);
    assert_eq!(wrap("aaaaaaaaaaaaaaa", 10), ["aaaaaaaaaa", "aaaaa"]);
}
