//! What can go wrong on a connection, reduced to what may be logged.
//!
//! A server's report can carry row values: in DETAIL and CONTEXT always, in the primary message for
//! some conditions (`invalid input syntax for type integer: "..."`), and anywhere when a trigger raised
//! it or ran into it (`EXECUTE 'INSERT INTO of_' || NEW.name`). [`ServerError`] therefore keeps the condition,
//! and only of an error that did not arise inside a function the *names* the server gave, and the primary
//! message for conditions that speak about the server, never about data.

use std::fmt;
use std::io;

use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::{ErrorFields, NoticeResponseBody};

use super::tls::TlsError;
use crate::fault::{Disposition, Exit};
use crate::lsn::Lsn;
use crate::printable::printable;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Io(io::Error),
    /// The connection is not encrypted as it must be.
    #[error(transparent)]
    Tls(TlsError),
    /// The server closed the connection without a word.
    #[error("the server closed the connection")]
    Closed,
    /// Nothing was heard within the time allowed.
    #[error("no answer within {0} s")]
    Timeout(u64),
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The server asks for a way of authentication that is not spoken here.
    #[error("the server asks for {0} authentication, which is not supported")]
    Authentication(&'static str),
    /// The server asks for a password and none is configured.
    #[error("the server asks for a password and none is configured")]
    NoPassword,
    /// The server did not prove that no other is between (channel_binding=require).
    #[error("the server did not use channel binding")]
    NotBound,
    /// More work than a server may ask for before it has proved that it knows the password (SCRAM).
    #[error("the server asks for {0} SCRAM iterations, and more than {max} are not computed", max = super::limits::ITERATIONS_MAX)]
    Iterations(u64),
    /// The server is not what `target_session_attrs` asks for.
    #[error("the server {0}")]
    Unfit(&'static str),
    /// The server could not prove that it knows the password (SCRAM).
    #[error("the password exchange failed")]
    PasswordExchange,
    /// The server sent something that does not belong here.
    #[error("protocol violation: {0}")]
    Protocol(&'static str),
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        let error = match error.downcast::<TlsError>() {
            Ok(error) => return Self::Tls(error),
            Err(error) => error,
        };
        error.downcast::<Self>().unwrap_or_else(Self::Io)
    }
}

impl From<TlsError> for Error {
    fn from(error: TlsError) -> Self {
        Self::Tls(error)
    }
}

impl Error {
    /// What the server reported, if it was the server that reported.
    pub fn server(&self) -> Option<&ServerError> {
        match self {
            Self::Server(error) => Some(error),
            _ => None,
        }
    }

    /// What must happen next, where only the connection is known.
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Io(_) | Self::Closed | Self::Timeout(_) | Self::Unfit(_) => {
                Disposition::Reconnect
            }
            // While a connection is made it can be more: see `server::tls_hint`.
            Self::Tls(_) => Disposition::Retry,
            Self::NotBound | Self::Iterations(_) => Disposition::Halt(Exit::Config),
            Self::Server(error) => error.disposition(),
            Self::NoPassword | Self::PasswordExchange => Disposition::Halt(Exit::NoPermission),
            Self::Authentication(_) => Disposition::Halt(Exit::Config),
            Self::Protocol(_) => Disposition::Halt(Exit::HistoryWouldBeWrong),
        }
    }
}

/// An `ErrorResponse` of the server (manual, section 53.8), without row values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerError {
    /// The SQLSTATE, five characters (manual, appendix A).
    pub code: String,
    /// The primary message, where its condition cannot carry row values.
    pub message: Option<String>,
    /// `schema.table`, column and constraint, where the server named them.
    pub subject: Option<String>,
    /// Where in the WAL the source was when it decoded.
    pub lsn: Option<Lsn>,
    /// The function of the server that refused a login or a privilege, else empty: its words have a language.
    pub routine: String,
}

impl ServerError {
    /// Reads the fields of an `ErrorResponse` or `NoticeResponse`. Lenient: a malformed field is left out.
    pub(super) fn from_fields(mut fields: ErrorFields<'_>) -> Self {
        let mut raw = RawReport::default();
        while let Ok(Some(field)) = fields.next() {
            let value = || String::from_utf8_lossy(field.value_bytes()).into_owned();
            match field.type_() {
                b'C' => raw.code = value(),
                b'M' => raw.message = value(),
                b's' => raw.schema = Some(value()),
                b't' => raw.table = Some(value()),
                b'c' => raw.column = Some(value()),
                b'n' => raw.constraint = Some(value()),
                b'R' => raw.routine = value(),
                b'W' => raw.context = value(),
                b'q' => raw.inner_query = true,
                _ => {}
            }
        }
        raw.reduce()
    }

    /// The same reduction for a notice.
    pub fn from_notice(notice: &NoticeResponseBody) -> Self {
        Self::from_fields(notice.fields())
    }

    /// The same reduction for an error that `tokio-postgres` reports.
    pub fn from_db_error(error: &tokio_postgres::error::DbError) -> Self {
        RawReport {
            code: error.code().code().to_owned(),
            message: error.message().to_owned(),
            schema: error.schema().map(str::to_owned),
            table: error.table().map(str::to_owned),
            column: error.column().map(str::to_owned),
            constraint: error.constraint().map(str::to_owned),
            routine: error.routine().unwrap_or_default().to_owned(),
            context: error.where_().unwrap_or_default().to_owned(),
            inner_query: matches!(
                error.position(),
                Some(tokio_postgres::error::ErrorPosition::Internal { .. })
            ),
        }
        .reduce()
    }

    /// A history that is partitioned has no place for the row.
    pub fn lacks_partition(&self) -> bool {
        self.code == "23514" && self.message.as_deref() == Some(NO_PARTITION)
    }

    /// What must happen next, by the condition alone (manual, appendix A).
    pub fn disposition(&self) -> Disposition {
        let class = self.code.get(..2).unwrap_or_default();
        match self.code.as_str() {
            // No access: a wrong password, no matching pg_hba.conf line, a missing privilege.
            "28P01" | "28000" | "42501" => Disposition::Halt(Exit::NoPermission),
            // The database, a table, a column, a publication that the configuration names.
            "3D000" | "3F000" | "42P01" | "42703" | "42704" => Disposition::Halt(Exit::Config),
            // max_replication_slots is used up: nothing frees a slot by itself.
            "53400" => Disposition::Halt(Exit::Config),
            // The checkpoint was moved by another process (migration V1).
            "WTR01" => Disposition::Halt(Exit::HistoryWouldBeWrong),
            // A history table was altered (migration V2): the next session reads the catalogs again.
            "WTR02" => Disposition::Retry,
            // An attempt of the snapshot was overtaken by another one (migration V3).
            "WTR03" => Disposition::Retry,
            // A WAL segment that the slot needs is gone.
            "58P01" => Disposition::Halt(Exit::HistoryWouldBeWrong),
            // The server stops, has crashed, is starting, or became a read-only standby.
            "57P01" | "57P02" | "57P03" | "25006" => Disposition::Reconnect,
            // A message that the server cannot read: for one, of a value whose binary form is damaged.
            "08P01" => Disposition::RetryFew,
            // A database is being dropped, a slot is in use, resources are short.
            _ if matches!(class, "08" | "53" | "55" | "57" | "58") => Disposition::Retry,
            // Serialization failures, deadlocks.
            _ if class == "40" => Disposition::Retry,
            // Values that the history cannot take, limits of the server, and what it does not do at all (row security on
            // COPY, column lists that contradict each other): trying again changes nothing.
            _ if matches!(
                class,
                "0A" | "22" | "23" | "42" | "44" | "54" | "P0" | "09" | "27"
            ) =>
            {
                Disposition::Halt(Exit::HistoryWouldBeWrong)
            }
            // A race between catalogs, a value that is too large for memory, or a broken page.
            _ if class == "XX" => Disposition::RetryFew,
            _ => Disposition::Retry,
        }
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.message {
            Some(message) => f.write_str(message)?,
            None => f.write_str(condition(&self.code))?,
        }
        if let Some(subject) = &self.subject {
            write!(f, " ({subject})")?;
        }
        write!(f, " [SQLSTATE {}]", self.code)
    }
}

impl std::error::Error for ServerError {}

#[derive(Default)]
struct RawReport {
    code: String,
    message: String,
    schema: Option<String>,
    table: Option<String>,
    column: Option<String>,
    constraint: Option<String>,
    routine: String,
    context: String,
    /// The error is in a statement that a function made up.
    inner_query: bool,
}

impl RawReport {
    fn reduce(self) -> ServerError {
        let mut report = self.redacted();
        report.message = report.message.map(|words| printable(&words, WORDS_MAX));
        report.subject = report.subject.map(|names| printable(&names, WORDS_MAX));
        report
    }

    /// Without what can hold a row value.
    fn redacted(mut self) -> ServerError {
        if self.code.len() != 5 || !self.code.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            self.code = NO_CODE.to_owned();
        }
        let class = self.code.get(..2).unwrap_or_default();
        let about_the_server = matches!(
            class,
            "08" | "25" | "28" | "3D" | "3F" | "40" | "42" | "53" | "55" | "57" | "58" | "0A"
        );
        let inside_a_function = self.arose_inside_a_function();
        let harmless = HARMLESS.iter().any(|start| self.message.starts_with(start));
        let message =
            ((about_the_server || harmless) && !inside_a_function) || self.code.starts_with("WTR");
        let lsn = self.lsn();
        let refuses = (class == "28" || self.code == "42501") && !inside_a_function;
        let routine = match refuses {
            true => self.routine.clone(),
            false => String::new(),
        };
        if inside_a_function {
            return ServerError {
                message: message.then_some(self.message),
                subject: None,
                code: self.code,
                lsn,
                routine,
            };
        }
        let no_partition = self.code == "23514" && self.constraint.is_none();
        let mut names = Vec::new();
        match (&self.schema, &self.table) {
            (Some(schema), Some(table)) => names.push(format!("table {schema}.{table}")),
            (None, Some(table)) => names.push(format!("table {table}")),
            _ => {}
        }
        names.extend(self.column.as_ref().map(|name| format!("column {name}")));
        names.extend(
            self.constraint
                .as_ref()
                .map(|name| format!("constraint {name}")),
        );
        ServerError {
            message: match no_partition {
                true => Some(NO_PARTITION.to_owned()),
                false => message.then_some(self.message),
            },
            subject: (!names.is_empty()).then(|| names.join(", ")),
            code: self.code,
            lsn,
            routine,
        }
    }
}

impl RawReport {
    /// Whether words and names can be those of a function's author, with any row value among them: RAISE can
    /// put anything under any code, and a statement put together from values names them in its errors. The
    /// innermost context comes first; COPY's own, that of our one function, and that of the output plugin, are no
    /// foreign ones.
    fn arose_inside_a_function(&self) -> bool {
        let ours = [
            "COPY ",
            "SQL statement \"UPDATE waltrail.checkpoint\n",
            "slot \"",
        ];
        let foreign =
            !self.context.is_empty() && !ours.iter().any(|start| self.context.starts_with(start));
        foreign || self.inner_query || self.routine == "exec_stmt_raise"
    }

    /// Where the output plugin was: its context ends with the position, in whichever language.
    fn lsn(&self) -> Option<Lsn> {
        let (_, position) = self.context.lines().last()?.rsplit_once("LSN ")?;
        position.parse().ok()
    }
}

/// Characters of a server's words, and of the names of one report.
const WORDS_MAX: usize = 1_000;

/// Of a report whose SQLSTATE is none: an internal error.
const NO_CODE: &str = "XX000";

/// How messages begin that hold sizes and names, never a value. Others of their classes do hold values.
const HARMLESS: [&str; 7] = [
    "row is too big",
    "tables can have at most",
    "target lists can have at most",
    "index row ",
    "string buffer exceeds maximum allowed length",
    "invalid memory alloc request size",
    "cache lookup failed for",
];

/// A partitioned table without a partition for the row, or a partition that the row does not belong to: PostgreSQL's code
/// is that of a CHECK, without its name.
const NO_PARTITION: &str = "no partition of the history table takes the row";

/// The condition in words, for errors whose own message may hold a value.
fn condition(code: &str) -> &'static str {
    match code {
        "22001" => "a value is too long for its history column",
        "22003" => "a number is out of range for its history column",
        "22P02" | "22007" | "22008" => "a value does not fit the type of its history column",
        "22P03" => "a value's binary form does not fit its history column",
        "08P01" => "the server cannot read a message: a value's binary form can be damaged",
        "22P04" => "the row does not have the shape that the history table expects",
        "22021" | "22P05" => "a value cannot be represented in the target's encoding",
        "23502" => "a history column is NOT NULL and the change has no value for it",
        "23503" => "a foreign key on the history table refuses the row",
        "23505" => "a unique constraint on the history table refuses the row",
        "23514" => "a check constraint on the history table refuses the row",
        "P0001" => "a function on the server raised an exception",
        _ if code.starts_with("22") => "a value does not fit its history column",
        _ if code.starts_with("23") => "a constraint on the history table refuses the row",
        "40P01" => "a deadlock was detected",
        "42501" => "a privilege is missing",
        "57P01" => "the server shuts down, or an administrator ended the session",
        _ if code.starts_with("P0") => "a function on the server failed",
        _ if code.starts_with("42") => "a statement of a function on the server is wrong",
        _ if code.starts_with("40") => "the transaction was rolled back by the server",
        _ if code.starts_with("54") => "a limit of the server was exceeded",
        _ if code.starts_with("53") => "the server is short of resources",
        _ if code.starts_with("XX") => "internal error of the server",
        _ => "the server reported an error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(code: &str, message: &str, routine: &str) -> ServerError {
        RawReport {
            code: code.to_owned(),
            message: message.to_owned(),
            routine: routine.to_owned(),
            ..RawReport::default()
        }
        .reduce()
    }

    #[test]
    fn a_message_that_can_hold_a_row_value_is_not_kept() {
        for code in ["22P02", "22003", "23505", "P0001", "XX000", "54000"] {
            let error = report(code, "canary", "");
            assert!(!error.to_string().contains("canary"), "{code}");
        }
    }

    #[test]
    fn a_message_raised_by_a_function_is_not_kept_whatever_its_code() {
        assert!(
            !report("42501", "canary", "exec_stmt_raise")
                .to_string()
                .contains("canary")
        );
    }

    #[test]
    fn of_an_error_inside_a_function_neither_words_nor_names_are_kept() {
        let foreign = |context: &str, inner_query| RawReport {
            code: "42P01".to_owned(),
            message: "relation \"canary\" does not exist".to_owned(),
            table: Some("canary".to_owned()),
            context: context.to_owned(),
            inner_query,
            ..RawReport::default()
        };
        for context in [
            "PL/pgSQL function f() line 1 at EXECUTE",
            "PL/pgSQL function f() line 1 at EXECUTE\nCOPY history, line 1",
            "SQL function \"f\" statement 1",
        ] {
            let error = foreign(context, false).reduce();
            assert!(!error.to_string().contains("canary"), "{context}");
        }
        assert!(!foreign("", true).reduce().to_string().contains("canary"));
        let ours = foreign("COPY history, line 1", false).reduce();
        assert!(ours.to_string().contains("canary"));
    }

    #[test]
    fn a_limit_is_named_in_the_servers_words_where_they_hold_no_value() {
        for (code, message) in [
            ("54000", "row is too big: size 8168, maximum size 8160"),
            ("54011", "tables can have at most 1600 columns"),
            ("XX000", "invalid memory alloc request size 1111490563"),
        ] {
            assert!(report(code, message, "").to_string().contains(message));
        }
        let value = report("54000", "operand is too long in tsquery: \"canary\"", "");
        assert!(!value.to_string().contains("canary"));
    }

    #[test]
    fn a_missing_partition_is_not_called_a_check_constraint() {
        let raw = |constraint: Option<&str>, context: &str| RawReport {
            code: "23514".to_owned(),
            message: "no partition of relation \"t_cdc\" found for row".to_owned(),
            table: Some("t_cdc".to_owned()),
            constraint: constraint.map(str::to_owned),
            context: context.to_owned(),
            ..RawReport::default()
        };
        assert!(raw(None, "COPY t_cdc, line 1").reduce().lacks_partition());
        assert!(!raw(Some("positive"), "").reduce().lacks_partition());
        assert!(!raw(None, "SQL function \"f\"").reduce().lacks_partition());
    }

    #[test]
    fn the_output_plugin_says_where_it_was() {
        let raw = |context: &str| RawReport {
            code: "42704".to_owned(),
            message: "publication \"waltrail\" does not exist".to_owned(),
            context: context.to_owned(),
            ..RawReport::default()
        };
        let error = raw(
            "slot \"waltrail\", output plugin \"pgoutput\", in the change callback, associated LSN 0/15B2C88",
        )
        .reduce();
        assert_eq!(error.lsn, Some(Lsn::from_u64(0x15B_2C88)));
        assert!(error.to_string().contains("publication"));
        assert_eq!(raw("COPY t_cdc, line 1").reduce().lsn, None);
    }

    #[test]
    fn a_message_about_the_server_is_kept() {
        let error = report(
            "53100",
            "could not extend file: No space left on device",
            "mdextend",
        );
        assert!(error.to_string().contains("No space left"));
        assert_eq!(error.disposition(), Disposition::Retry);
    }

    #[test]
    fn conditions_are_sorted_by_what_must_happen_next() {
        let halts = |code: &str, exit| {
            assert_eq!(
                report(code, "", "").disposition(),
                Disposition::Halt(exit),
                "{code}"
            );
        };
        halts("28P01", Exit::NoPermission);
        halts("42501", Exit::NoPermission);
        halts("3D000", Exit::Config);
        halts("53400", Exit::Config);
        for code in ["22003", "23502", "42601", "54000", "54011", "58P01"] {
            halts(code, Exit::HistoryWouldBeWrong);
        }
        for code in ["XX000", "XX001", "XX002", "08P01"] {
            assert_eq!(
                report(code, "", "").disposition(),
                Disposition::RetryFew,
                "{code}"
            );
        }
        for code in ["57P01", "57P02", "57P03", "25006"] {
            let disposition = report(code, "", "").disposition();
            assert_eq!(disposition, Disposition::Reconnect, "{code}");
        }
        for code in [
            "57014", "08006", "53300", "55006", "55P03", "53100", "58030", "40001",
        ] {
            assert_eq!(
                report(code, "", "").disposition(),
                Disposition::Retry,
                "{code}"
            );
        }
    }
}
