//! Three hundred tables: as many statements as for a few, and no wait that a person feels.

use std::time::Instant;

use throwaway::Cluster;

use crate::init::{Place, SMALL, dsn};
use crate::support::terminal::{LAST, PAGE_DOWN, Typist};
use crate::support::{BOUND, each, server_with};

/// A server with so many tables, every tenth of which has no key.
async fn server(tables: usize) -> Cluster {
    let (cluster, client) = server_with(|builder| {
        builder
            .setting("log_statement", "all")
            .setting("log_line_prefix", "%a|")
    })
    .await;
    let tables: Vec<usize> = (1..=tables).collect();
    for some in tables.chunks(100) {
        let made = |n: &usize| {
            let key = if n.is_multiple_of(10) {
                ""
            } else {
                " PRIMARY KEY"
            };
            format!("CREATE TABLE table_{n} (id int{key}, a text, b numeric, c timestamptz);")
        };
        each(&client, &[&some.iter().map(made).collect::<String>()]).await;
    }
    cluster
}

/// Statements of waltrail so far.
fn statements(cluster: &Cluster) -> usize {
    let log = cluster.log_text();
    let is_one = |line: &&str| {
        line.contains("waltrail|LOG:  statement: ") || line.contains("waltrail|LOG:  execute ")
    };
    log.lines().filter(is_one).count()
}

/// Statements and seconds of `--tables`, with a pattern and with every name; and of the list up to its first screen.
async fn costs(tables: usize) -> [(usize, f64); 3] {
    let cluster = server(tables).await;
    let dsn = dsn(&cluster);
    let names = (1..=tables).filter(|n| !n.is_multiple_of(10));
    let names: Vec<String> = names.map(|n| format!("table_{n}")).collect();
    let mut costs = [(0, 0.0); 3];
    for (at, named) in ["public.*", &names.join(",")].into_iter().enumerate() {
        let (before, began) = (statements(&cluster), Instant::now());
        Place::new().written(&dsn, &["--tables", named]);
        costs[at] = (statements(&cluster) - before, began.elapsed().as_secs_f64());
    }
    let (before, began) = (statements(&cluster), Instant::now());
    let place = Place::new();
    let args = ["init", "--source", &*dsn, "--target", &*dsn];
    let mut typist = Typist::spawn(place.path(), &args, SMALL);
    typist.sees(&format!("0 of {tables} chosen")).await;
    costs[2] = (statements(&cluster) - before, began.elapsed().as_secs_f64());
    if tables > 100 {
        walk(&mut typist).await;
    }
    typist.keys("\t\r");
    typist.sees("tables of public are chosen").await;
    typist.keys("\r");
    let (status, _, screen) = typist.end().await;
    assert!(status.success() && began.elapsed() < BOUND, "{screen}");
    assert_eq!(place.tables().len(), names.len());
    println!("{tables} tables, (statements, seconds): {costs:?}");
    costs
}

/// Pages, the end, a filter that matches a few, and one that matches none.
async fn walk(typist: &mut Typist) {
    typist.keys(PAGE_DOWN);
    typist.sees("2-16 of 300").await;
    typist.keys(LAST);
    typist.sees("286-300 of 300").await;
    typist.keys("_29");
    typist.sees("1-11 of 11").await;
    typist.keys("x");
    typist.sees("no table matches").await;
    typist.keys("\t \x7f\x7f\x7f\x7f");
    typist.sees("1-15 of 300").await;
}

#[tokio::test]
async fn three_hundred_tables_take_as_many_statements_as_twenty() {
    let (few, many) = (costs(20).await, costs(300).await);
    for ((few, _), (many, seconds)) in std::iter::zip(few, many) {
        // On a machine that is busy, a session that waits is looked at.
        assert!(many <= few + 8, "{few} and {many} statements");
        // Alone it is well below one.
        assert!(seconds < 30.0, "{seconds} s");
    }
}
