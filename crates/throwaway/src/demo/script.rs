//! The scripted workload, and the history that it must leave.
//!
//! Pure. The expectation is written down beside each transaction by hand, it is not computed from what the
//! daemon does. A transaction's commit time is the one thing that only the server knows: it is put in when
//! the transaction has committed ([`Transaction::expected`]).

use super::history::Row;

/// One thing that happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A transaction; what follows happens at once.
    Run(Transaction),
    /// The history is waited for until it is complete.
    Wait,
    /// `kill -9` of the daemon.
    Kill,
    /// SIGTERM to the daemon, which must end with exit code 0.
    Terminate,
    /// The daemon is started again.
    Start,
}

/// One transaction of the workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Transaction {
    pub(super) statements: Vec<String>,
    pub(super) commits: bool,
    changes: Vec<Change>,
}

/// A history row that has to come, without its time.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Change {
    change_type: &'static str,
    id: Option<i32>,
    /// Name, department and salary, where the WAL has them.
    values: Option<(String, &'static str, &'static str)>,
}

impl Transaction {
    /// What a person would type for it.
    pub(super) fn text(&self) -> Vec<String> {
        if self.commits && self.statements.len() == 1 {
            return self.statements.clone();
        }
        let end = if self.commits { "COMMIT" } else { "ROLLBACK" };
        std::iter::once("BEGIN".to_owned())
            .chain(self.statements.iter().cloned())
            .chain(std::iter::once(end.to_owned()))
            .collect()
    }

    /// The rows that it must leave, given when it committed.
    pub(super) fn expected(&self, commit_time: Option<&str>) -> Vec<Row> {
        self.changes
            .iter()
            .map(|change| {
                let values = change.values.clone();
                let (name, department, salary) = match values {
                    Some((name, department, salary)) => {
                        (Some(name), Some(department), Some(salary))
                    }
                    None => (None, None, None),
                };
                Row {
                    change_type: Some(change.change_type.to_owned()),
                    id: change.id,
                    name,
                    department: department.map(str::to_owned),
                    salary: salary.map(str::to_owned),
                    change_timestamp: commit_time.map(str::to_owned),
                }
            })
            .collect()
    }
}

fn committed<const N: usize>(sql: [&str; N], changes: Vec<Change>) -> Transaction {
    Transaction {
        statements: sql.map(str::to_owned).to_vec(),
        commits: true,
        changes,
    }
}

fn rolled_back<const N: usize>(sql: [&str; N]) -> Transaction {
    Transaction {
        commits: false,
        ..committed(sql, Vec::new())
    }
}

fn change(
    change_type: &'static str,
    id: i32,
    name: &str,
    department: &'static str,
    salary: &'static str,
) -> Change {
    Change {
        change_type,
        id: Some(id),
        values: Some((name.to_owned(), department, salary)),
    }
}

/// A DELETE of a table whose replica identity is its key: the WAL has nothing but the key.
fn deleted(id: i32) -> Change {
    Change {
        change_type: "DELETE",
        id: Some(id),
        values: None,
    }
}

fn truncated() -> Change {
    Change {
        change_type: "TRUNCATE",
        id: None,
        values: None,
    }
}

/// One more of a row of small transactions.
fn hired(id: i32) -> Transaction {
    let name = format!("Hire {id}");
    let sql = format!(
        "INSERT INTO employees (name, department, salary) VALUES ('{name}', 'Sales', 3000)"
    );
    committed(
        [sql.as_str()],
        vec![change("INSERT", id, &name, "Sales", "3000")],
    )
}

/// What is done while the daemon runs.
fn undisturbed() -> [Transaction; 4] {
    [
        committed(
            [
                "INSERT INTO employees (name, department, salary) VALUES ('Ada', 'Engineering', 5200), \
             ('Grace', 'Research', 5400.50), ('Edgar', 'Research', 4800)",
            ],
            vec![
                change("INSERT", 1, "Ada", "Engineering", "5200"),
                change("INSERT", 2, "Grace", "Research", "5400.50"),
                change("INSERT", 3, "Edgar", "Research", "4800"),
            ],
        ),
        committed(
            ["UPDATE employees SET salary = salary + 100 WHERE department = 'Research'"],
            vec![
                change("UPDATE", 2, "Grace", "Research", "5500.50"),
                change("UPDATE", 3, "Edgar", "Research", "4900"),
            ],
        ),
        committed(
            [
                "UPDATE employees SET salary = 6000 WHERE name = 'Ada'",
                "SAVEPOINT before_the_mistake",
                "DELETE FROM employees",
                "ROLLBACK TO before_the_mistake",
                "UPDATE employees SET department = 'Board' WHERE name = 'Ada'",
            ],
            vec![
                change("UPDATE", 1, "Ada", "Engineering", "6000"),
                change("UPDATE", 1, "Ada", "Board", "6000"),
            ],
        ),
        // It takes number 4 from the sequence, for ever.
        rolled_back([
            "INSERT INTO employees (name, department, salary) VALUES ('Nobody', 'Nowhere', 1)",
        ]),
    ]
}

/// The whole workload.
pub(super) fn script() -> Vec<Step> {
    let mut steps = Vec::new();
    for transaction in undisturbed() {
        steps.extend([Step::Run(transaction), Step::Wait]);
    }
    // No wait before the kill: the last of these are on their way when it comes.
    steps.extend((5..=9).map(hired).map(Step::Run));
    steps.push(Step::Kill);
    steps.extend((10..=11).map(hired).map(Step::Run));
    steps.extend([
        Step::Run(committed(
            ["UPDATE employees SET id = 33 WHERE name = 'Edgar'"],
            vec![
                deleted(3),
                change("INSERT", 33, "Edgar", "Research", "4900"),
            ],
        )),
        Step::Run(committed(
            ["DELETE FROM employees WHERE name = 'Grace'"],
            vec![deleted(2)],
        )),
        Step::Start,
        Step::Wait,
        Step::Run(committed(
            ["UPDATE employees SET salary = 3100 WHERE id = 5"],
            vec![change("UPDATE", 5, "Hire 5", "Sales", "3100")],
        )),
        Step::Terminate,
        Step::Run(committed(
            [
                "UPDATE employees SET salary = 3200 WHERE id = 5",
                "UPDATE employees SET salary = 3300 WHERE id = 5",
                "DELETE FROM employees WHERE id = 5",
            ],
            vec![
                change("UPDATE", 5, "Hire 5", "Sales", "3200"),
                change("UPDATE", 5, "Hire 5", "Sales", "3300"),
                deleted(5),
            ],
        )),
        Step::Start,
        Step::Wait,
        Step::Run(committed(["TRUNCATE employees"], vec![truncated()])),
        Step::Wait,
        Step::Run(committed(
            [
                "INSERT INTO employees (name, department, salary) VALUES ('Tony', 'Research', 5000.00)",
            ],
            vec![change("INSERT", 12, "Tony", "Research", "5000.00")],
        )),
        Step::Wait,
    ]);
    steps
}

/// What is wrong with a history, for a person: nothing when it is exactly the expected one, else all rows of
/// both, those that are missing marked with `-` and those that should not be there with `+`.
pub(super) fn difference(expected: &[Row], found: &[Row]) -> Option<String> {
    if expected == found {
        return None;
    }
    // common[i][j]: how many rows the rest of both from i and j have in common, in order.
    let mut common = vec![vec![0_usize; found.len() + 1]; expected.len() + 1];
    for (i, wanted) in expected.iter().enumerate().rev() {
        for (j, row) in found.iter().enumerate().rev() {
            common[i][j] = if wanted == row {
                common[i + 1][j + 1] + 1
            } else {
                common[i + 1][j].max(common[i][j + 1])
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut text = String::new();
    loop {
        let (mark, row) = match (expected.get(i), found.get(j)) {
            (None, None) => return Some(text),
            (Some(wanted), Some(row)) if wanted == row => {
                (i, j) = (i + 1, j + 1);
                (' ', row)
            }
            (Some(wanted), row) if row.is_none() || common[i + 1][j] >= common[i][j + 1] => {
                i += 1;
                ('-', wanted)
            }
            (_, Some(row)) => {
                j += 1;
                ('+', row)
            }
            (Some(_), None) => return Some(text),
        };
        text.push_str(&format!("{mark} {}\n", line(row)));
    }
}

fn line(row: &Row) -> String {
    let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "NULL".to_owned());
    let id = row
        .id
        .map_or_else(|| "NULL".to_owned(), |id| id.to_string());
    let (name, department) = (text(&row.name), text(&row.department));
    format!(
        "{:<9} {id:>4}  {name:<10} {department:<12} {:>8}  {}",
        text(&row.change_type),
        text(&row.salary),
        text(&row.change_timestamp)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    type Spoil = fn(&mut Vec<Row>, usize);

    /// The whole expected history, with a time of its own for each transaction.
    fn history() -> Vec<Row> {
        let mut rows = Vec::new();
        for (n, step) in script().iter().enumerate() {
            if let Step::Run(transaction) = step {
                rows.extend(transaction.expected(Some(&format!("time {n:02}"))));
            }
        }
        rows
    }

    #[test]
    fn the_expected_history_is_found_right() {
        assert_eq!(difference(&history(), &history()), None);
    }

    #[test]
    fn any_change_of_a_single_row_is_found() {
        let expected = history();
        for n in 0..expected.len() {
            let spoil: [(&str, Spoil); 8] = [
                ("missing", |rows, n| drop(rows.remove(n))),
                ("twice", |rows, n| rows.insert(n, rows[n].clone())),
                ("type", |rows, n| rows[n].change_type = None),
                ("id", |rows, n| rows[n].id = Some(1_000)),
                ("name", |rows, n| rows[n].name = Some("other".to_owned())),
                ("department", |rows, n| {
                    rows[n].department = Some(String::new())
                }),
                ("salary", |rows, n| rows[n].salary = Some("0".to_owned())),
                ("time", |rows, n| rows[n].change_timestamp = None),
            ];
            for (what, spoil) in spoil {
                let mut found = expected.clone();
                spoil(&mut found, n);
                let text = difference(&expected, &found).expect(what);
                let marked = |mark| text.lines().filter(|line| line.starts_with(mark)).count();
                let wanted = match what {
                    "missing" => (1, 0),
                    "twice" => (0, 1),
                    _ => (1, 1),
                };
                assert_eq!((marked('-'), marked('+')), wanted, "{what} {n}:\n{text}");
            }
        }
    }

    #[test]
    fn two_rows_in_the_wrong_order_are_found() {
        let expected = history();
        for n in 1..expected.len() {
            let mut found = expected.clone();
            found.swap(n - 1, n);
            assert!(difference(&expected, &found).is_some(), "{n}");
        }
    }

    #[test]
    fn a_history_that_is_empty_or_goes_on_is_found() {
        let expected = history();
        assert!(difference(&expected, &[]).is_some());
        assert!(difference(&expected[1..], &expected).is_some());
        assert!(difference(&expected[..expected.len() - 1], &expected).is_some());
    }

    #[test]
    fn the_script_kills_and_ends_the_daemon_while_there_is_work() {
        let steps = script();
        for end in [Step::Kill, Step::Terminate] {
            let at = steps.iter().position(|step| *step == end).unwrap();
            assert!(matches!(steps[at - 1], Step::Run(_)), "{end:?}: before");
            assert!(matches!(steps[at + 1], Step::Run(_)), "{end:?}: after");
            assert!(steps[at..].contains(&Step::Start));
        }
    }
}
