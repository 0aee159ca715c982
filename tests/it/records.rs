//! What the control schema has to know so that a history can say what its table was: baselines, gaps, commit times out of order,
//! and where the values of a column stand that was added, renamed or made again.

use std::time::Instant;

use tokio_postgres::Client;

use crate::support::scene::Scene;
use crate::support::{BOUND, each, texts, value, wait_for_value};

/// What each row of the table is by its history: the last row of each key, each column read as `waltrail.inherited` says, or
/// from its own history column.
const BY_HISTORY: &str = "
    WITH columns AS (
        SELECT c.name, c.\"column\" AS own FROM waltrail.layout l,
               jsonb_to_recordset(l.columns) AS c (name text, \"column\" text)
         WHERE l.history = 'public.{t}_cdc'
    ), last AS (
        SELECT DISTINCT ON (id) h.cdc_id, h.change_type, to_jsonb(h) AS row FROM {t}_cdc h ORDER BY id, cdc_id DESC
    ), known AS (
        SELECT l.cdc_id, c.name, i.known IS NOT FALSE AS known,
               CASE WHEN i.history IS NULL THEN l.row ->> c.own
                    WHEN i.history_column IS NULL THEN i.value ELSE l.row ->> i.history_column END AS value,
               count(*) OVER (PARTITION BY l.cdc_id, c.name) AS lines
          FROM last l CROSS JOIN columns c
          LEFT JOIN waltrail.inherited i ON i.history = 'public.{t}_cdc' AND i.source_column = c.name
           AND l.cdc_id > i.after_number AND l.cdc_id <= i.until_number
         WHERE l.change_type <> 'DELETE'
    )
    SELECT string_agg(name || '=' || CASE WHEN lines > 1 THEN 'twice' WHEN known THEN coalesce(value, 'NULL') ELSE 'unknown' END,
                      ' ' ORDER BY name)
      FROM known GROUP BY cdc_id ORDER BY 1";

const BY_TABLE: &str = "
    SELECT (SELECT string_agg(c.key || '=' || coalesce(c.value, 'NULL'), ' ' ORDER BY c.key) FROM jsonb_each_text(to_jsonb(t)) c)
      FROM {t} t ORDER BY 1";

/// Waits until the history of a table says what the table is.
async fn becomes(source: &Client, target: &Client, table: &str) {
    let expected = texts(source, &BY_TABLE.replace("{t}", table)).await;
    is_said(target, table, &expected).await;
}

async fn is_said(target: &Client, table: &str, expected: &[Option<String>]) {
    let begun = Instant::now();
    loop {
        let said = target.query(&BY_HISTORY.replace("{t}", table), &[]).await;
        // A column can be on its way.
        let said: Vec<Option<String>> = said.iter().flatten().map(|row| row.get(0)).collect();
        if said == expected {
            return;
        }
        assert!(
            begun.elapsed() < BOUND,
            "{table} is {expected:#?}, and its history says {said:#?}"
        );
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// Each with what happens to its table `{t} (id int PRIMARY KEY, a int, b int)`, where a row is written before, between and
/// after.
const CHANGES: &[(&str, &[&str])] = &[
    (
        "added",
        &[
            "INSERT INTO {t} VALUES (1, 1, 1)",
            "ALTER TABLE {t} ADD c int DEFAULT 5, ADD d text",
            "INSERT INTO {t} VALUES (2, 2, 2, 6, 'x')",
            "UPDATE {t} SET c = NULL WHERE id = 2",
        ],
    ),
    (
        "renamed",
        &[
            "INSERT INTO {t} VALUES (1, 1, 1)",
            "ALTER TABLE {t} RENAME b TO c",
            "INSERT INTO {t} VALUES (2, 2, 2)",
            "ALTER TABLE {t} RENAME c TO d",
            "INSERT INTO {t} VALUES (3, 3, 3)",
        ],
    ),
    (
        "there_and_back",
        &[
            "INSERT INTO {t} VALUES (1, 1, 1)",
            "ALTER TABLE {t} RENAME b TO c",
            "INSERT INTO {t} VALUES (2, 2, 2)",
            "ALTER TABLE {t} RENAME c TO b",
            "INSERT INTO {t} VALUES (3, 3, 3)",
        ],
    ),
    (
        "name_used_again",
        &[
            "INSERT INTO {t} VALUES (1, 1, 1)",
            "ALTER TABLE {t} RENAME b TO c",
            "INSERT INTO {t} VALUES (2, 2, 2)",
            "ALTER TABLE {t} ADD b int DEFAULT 9",
            "INSERT INTO {t} VALUES (3, 3, 3, 3)",
        ],
    ),
    (
        "name_used_again_at_once",
        &[
            "INSERT INTO {t} VALUES (1, 1, 1)",
            "BEGIN; ALTER TABLE {t} RENAME b TO c; ALTER TABLE {t} ADD b int; COMMIT",
            "INSERT INTO {t} VALUES (3, 3, 3, 3)",
        ],
    ),
    (
        "dropped_and_made_again_later",
        &[
            "INSERT INTO {t} VALUES (1, 1, 1)",
            "ALTER TABLE {t} DROP b",
            "INSERT INTO {t} VALUES (2, 2)",
            "ALTER TABLE {t} ADD b int DEFAULT 7",
            "INSERT INTO {t} VALUES (3, 3, 3)",
        ],
    ),
    (
        "names_exchanged",
        &[
            "INSERT INTO {t} VALUES (1, 10, 20)",
            "BEGIN; ALTER TABLE {t} RENAME a TO x; ALTER TABLE {t} RENAME b TO a; ALTER TABLE {t} RENAME x TO b; COMMIT",
            "INSERT INTO {t} VALUES (2, 30, 40)",
        ],
    ),
    (
        "other_type",
        &[
            "INSERT INTO {t} VALUES (1, 1, 1)",
            "ALTER TABLE {t} ALTER b TYPE text",
            "INSERT INTO {t} VALUES (2, 2, 'two')",
            "ALTER TABLE {t} ALTER b TYPE int USING length(b)",
            "UPDATE {t} SET b = 4",
            "ALTER TABLE {t} RENAME b TO c",
            "INSERT INTO {t} VALUES (3, 3, 3)",
        ],
    ),
    (
        "inside_a_transaction",
        &[
            "INSERT INTO {t} VALUES (1, 1, 1)",
            "BEGIN; INSERT INTO {t} VALUES (2, 2, 2); ALTER TABLE {t} ADD c int DEFAULT 3; \
             INSERT INTO {t} VALUES (3, 3, 3, 4); ALTER TABLE {t} RENAME b TO d; INSERT INTO {t} VALUES (4, 4, 4, 5); COMMIT",
        ],
    ),
    (
        "partitioned",
        &[
            "INSERT INTO {t} VALUES (1, 1, 1), (100, 1, 1)",
            "ALTER TABLE {t} ADD c int DEFAULT 5",
            "ALTER TABLE {t} RENAME b TO d",
            "INSERT INTO {t} VALUES (2, 2, 2, 6), (101, 2, 2, 6)",
        ],
    ),
];

async fn changing() -> Scene {
    let tables: Vec<String> = CHANGES
        .iter()
        .map(|(name, _)| format!("public.{name}"))
        .collect();
    let tables: Vec<&str> = tables.iter().map(String::as_str).collect();
    let ddl = |(name, _): &(&str, _)| match *name {
        "partitioned" => {
            "CREATE TABLE partitioned (id int PRIMARY KEY, a int, b int) PARTITION BY RANGE (id);
            CREATE TABLE low PARTITION OF partitioned FOR VALUES FROM (0) TO (50);
            CREATE TABLE high PARTITION OF partitioned FOR VALUES FROM (50) TO (500);"
                .to_owned()
        }
        name => format!("CREATE TABLE {name} (id int PRIMARY KEY, a int, b int);"),
    };
    let ddl: String = CHANGES.iter().map(ddl).collect();
    Scene::with(|builder| builder, &ddl, &tables, "").await
}

#[tokio::test]
async fn values_of_before_a_schema_change_are_known_while_it_is_followed() {
    let mut scene = changing().await;
    for (table, statements) in CHANGES {
        for statement in *statements {
            each(&scene.source, &[&statement.replace("{t}", table)]).await;
        }
        becomes(&scene.source, &scene.target, table).await;
    }
    // And at the next start.
    scene.stop_complaining().await;
    scene.start().await;
    for (table, _) in CHANGES {
        becomes(&scene.source, &scene.target, table).await;
    }
}

#[tokio::test]
async fn values_of_before_a_schema_change_are_known_that_is_read_later() {
    let mut scene = changing().await;
    for (table, statements) in CHANGES {
        each(&scene.source, &[&statements[0].replace("{t}", table)]).await;
        becomes(&scene.source, &scene.target, table).await;
    }
    scene.stop().await;
    for (table, statements) in CHANGES {
        for statement in &statements[1..] {
            each(&scene.source, &[&statement.replace("{t}", table)]).await;
        }
    }
    scene.start().await;
    for (table, _) in CHANGES {
        becomes(&scene.source, &scene.target, table).await;
    }
}
