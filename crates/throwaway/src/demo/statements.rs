//! What a person does in SQL, read from the server's log.
//!
//! The role of the demonstration has `log_statement = all`, no other role has; each of its lines begins with
//! [`LINE_PREFIX`] filled in. Reading the log sees statements that are rolled back later and needs neither
//! a trigger nor anything else in the database.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use super::view::Said;

/// The role whose statements are shown.
pub(super) const ROLE: &str = "demo";
/// What the server is to put before each entry of its log.
pub(super) const LINE_PREFIX: &str = "[%u] ";

/// At most so much is read at once.
const CHUNK_BYTES: u64 = 1 << 20;

/// Statements that change nothing; psql itself sends many of them.
const SILENT: [&str; 13] = [
    "SELECT",
    "SHOW",
    "SET",
    "RESET",
    "TABLE",
    "VALUES",
    "EXPLAIN",
    "FETCH",
    "DECLARE",
    "CLOSE",
    "LISTEN",
    "DISCARD",
    "DEALLOCATE",
];

/// Follows the log.
#[derive(Debug)]
pub(super) struct Statements {
    log: File,
    /// The beginning of a line that is not whole yet.
    rest: Vec<u8>,
}

impl Statements {
    /// What comes from now on.
    pub(super) fn follow(log: &Path) -> io::Result<Self> {
        let mut log = File::open(log)?;
        log.seek(SeekFrom::End(0))?;
        Ok(Self {
            log,
            rest: Vec::new(),
        })
    }

    /// What has been said since the last call.
    pub(super) fn next(&mut self) -> io::Result<Vec<Said>> {
        (&self.log).take(CHUNK_BYTES).read_to_end(&mut self.rest)?;
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else {
            return Ok(Vec::new());
        };
        let whole: Vec<u8> = self.rest.drain(..=end).collect();
        Ok(read(&String::from_utf8_lossy(&whole)))
    }
}

/// The entries of the demonstration's role in whole lines of the log.
fn read(log: &str) -> Vec<Said> {
    let start = format!("[{ROLE}] ");
    let mut said: Vec<Said> = Vec::new();
    // Whether the entry that is being read is shown.
    let mut shown = false;
    for line in log.lines() {
        if let Some(more) = line.strip_prefix('\t') {
            if shown && let Some(Said::Statement(text) | Said::Error(text)) = said.last_mut() {
                text.push(' ');
                text.push_str(more);
            }
            continue;
        }
        let Some(entry) = line.strip_prefix(&start) else {
            shown = false;
            continue;
        };
        if let Some(parameters) = entry.strip_prefix("DETAIL:  ") {
            // Parameters belong to the statement before them; of an error, its detail is left out.
            if shown
                && parameters
                    .get(.."parameters".len())
                    .is_some_and(|word| word.eq_ignore_ascii_case("parameters"))
                && let Some(Said::Statement(text)) = said.last_mut()
            {
                text.push_str(&format!(" [{parameters}]"));
            }
            continue;
        }
        let next = read_entry(entry);
        shown = next.is_some();
        said.extend(next);
    }
    said
}

fn read_entry(entry: &str) -> Option<Said> {
    if let Some(error) = entry.strip_prefix("ERROR:  ") {
        return Some(Said::Error(format!("ERROR: {error}")));
    }
    let log = entry.strip_prefix("LOG:  ")?;
    let statement = match log.strip_prefix("statement: ") {
        Some(statement) => statement,
        None => log.strip_prefix("execute ")?.split_once(": ")?.1,
    };
    let first = statement
        .trim_start()
        .split(|c: char| !c.is_ascii_alphabetic())
        .next()?;
    let silent = SILENT.iter().any(|word| word.eq_ignore_ascii_case(first));
    (!silent).then(|| Said::Statement(statement.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_of_the_role_are_read_whatever_the_protocol() {
        let log = "[postgres] LOG:  statement: INSERT INTO hidden\n\
            [demo] LOG:  statement: INSERT INTO employees\n\tVALUES (1)\n\
            [] LOG:  checkpoint starting: time\n\tno statement\n\
            [demo] LOG:  execute <unnamed>: DELETE FROM employees WHERE id = $1\n\
            [demo] DETAIL:  parameters: $1 = '3'\n\
            [demo] LOG:  statement: select * from pg_class\n\tWHERE false\n\
            [demo] ERROR:  duplicate key\n\
            [demo] DETAIL:  Key (id)=(1) already exists.\n\
            [demo] LOG:  statement: COMMIT;\n";
        assert_eq!(
            read(log),
            [
                Said::Statement("INSERT INTO employees VALUES (1)".to_owned()),
                Said::Statement(
                    "DELETE FROM employees WHERE id = $1 [parameters: $1 = '3']".to_owned()
                ),
                Said::Error("ERROR: duplicate key".to_owned()),
                Said::Statement("COMMIT;".to_owned()),
            ]
        );
    }

    #[test]
    fn a_line_is_read_when_it_is_whole_and_the_past_is_not() {
        use std::io::Write;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut log = File::create(&path).unwrap();
        log.write_all(b"[demo] LOG:  statement: BEGIN\n").unwrap();
        let mut statements = Statements::follow(&path).unwrap();
        log.write_all(b"[demo] LOG:  statement: TRUNC").unwrap();
        assert_eq!(statements.next().unwrap(), []);
        log.write_all(b"ATE employees\n").unwrap();
        let whole = Said::Statement("TRUNCATE employees".to_owned());
        assert_eq!(statements.next().unwrap(), [whole]);
        assert_eq!(statements.next().unwrap(), []);
    }
}
