//! The ways to both servers: who is let in, by which line, through what.

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio_postgres::Client;

use super::unanswered;
use crate::config::Config;
use crate::fault::{Disposition, Exit, Fault, Result};
use crate::finding::Finding;
use crate::history::writer::Writer;
use crate::server::{self, Connection, Side};
use crate::setup::{privileges, requirements};
use crate::source::replication::Replication;

/// Clocks that differ by less are taken for one.
const CLOCKS_APART: Duration = Duration::from_secs(5);
/// Where Supabase's pooler listens for transactions.
const POOLER_PORT: u16 = 6543;

/// What could be opened.
pub(super) struct Connections {
    pub(super) source: Option<Client>,
    pub(super) target: Option<Client>,
    pub(super) replication: Option<Replication>,
}

/// Opens all connections that a start opens. The right to replicate is tried, not read.
pub(super) async fn open(config: &Config, found: &mut Vec<Finding>) -> Connections {
    let (of_source, of_target) = (&config.source.connection, &config.target);
    let source = server::sql(of_source, Side::Source).await;
    let target = server::sql(of_target, Side::Target).await;
    let sides = [
        (Side::Source, of_source, &source, &target),
        (Side::Target, of_target, &target, &source),
    ];
    for (side, connection, opened, other) in sides {
        match opened {
            Ok(client) => found.extend(of_session(side, connection, client).await),
            // It would be said twice.
            Err(_) if side == Side::Target && config.target_is_source => {}
            Err(fault) => {
                let finding = refused(side, fault);
                found.push(match other {
                    Ok(other) => with_line(finding, connection, side, other).await,
                    Err(_) => finding,
                });
            }
        }
    }
    let mut replication = None;
    if let Ok(client) = &source {
        match tried(config, client).await {
            Ok(Ok(opened)) => replication = Some(opened),
            Ok(Err(finding)) => found.push(finding),
            Err(fault) => found.push(refused(Side::Source, &fault)),
        }
    }
    if target.is_ok()
        && let Err(fault) = Writer::connect(of_target, &config.source.slot).await
    {
        found.push(match fault.exit() {
            Exit::Config => Finding::error(Side::Target, POOLER, fault),
            _ => refused(Side::Target, &fault),
        });
    }
    Connections {
        source: source.ok(),
        target: target.ok(),
        replication,
    }
}

const POOLER: &str = "a-pooler-in-the-path";

/// A copy of what a start ends with.
fn refused(side: Side, fault: &Fault) -> Finding {
    let code = match fault.disposition() {
        Disposition::Retry | Disposition::Reconnect | Disposition::RetryFew => "unreachable",
        Disposition::Halt(Exit::NoPermission) => "login-refused",
        Disposition::Halt(_) => "cannot-connect",
    };
    let mut copy = Fault::new(fault.disposition(), fault.to_string());
    if let Some(remedy) = fault.remedy_alone() {
        copy = copy.remedy(remedy);
    }
    Finding::error(side, code, copy)
}

/// A replication connection, or the finding that the role may not open one.
async fn tried(config: &Config, source: &Client) -> Result<Result<Replication, Finding>> {
    match Replication::connect(&config.source).await {
        Ok(replication) => Ok(Ok(replication)),
        Err(fault) if fault.exit() == Exit::NoPermission => {
            let server = requirements::server(source, &config.source.slot).await?;
            Ok(Err(privileges::replication(&server)))
        }
        Err(fault) => Err(fault),
    }
}

/// The first line of `pg_hba.conf` that fits, as the server has it in its file, by the rules of the manual (section 20.1).
/// A host name, samehost and samenet are not resolved.
const LINE: &str = "
    SELECT line_number,
           pg_catalog.concat_ws(' ', type, pg_catalog.array_to_string(database, ','),
                     pg_catalog.array_to_string(user_name, ','), address, netmask, auth_method)
      FROM pg_catalog.pg_hba_file_rules
     WHERE error IS NULL
       AND CASE WHEN $1 THEN type = 'local'
                WHEN $4 AND current_setting('ssl') = 'on' THEN type IN ('host', 'hostssl', 'hostnogssenc')
                ELSE type IN ('host', 'hostnossl', 'hostnogssenc') END
       AND (database && ARRAY['all', $2] OR database = '{sameuser}' AND $2 = $3)
       AND (user_name && ARRAY['all', $3]
            OR EXISTS (SELECT FROM pg_catalog.unnest(user_name) AS u (name)
                         JOIN pg_catalog.pg_roles g ON '+' || g.rolname = u.name
                         JOIN pg_catalog.pg_roles r ON r.rolname = $3
                        WHERE pg_catalog.pg_has_role(r.oid, g.oid, 'MEMBER')))
       AND ($1 OR address = 'all'
            OR CASE WHEN netmask IS NOT NULL AND address ~ '^[0-9a-fA-F.:]+$' AND inet_client_addr() IS NOT NULL
                     AND family(address::inet) = family(inet_client_addr())
                    THEN address::inet & netmask::inet = set_masklen(inet_client_addr(), masklen(netmask::inet)) & netmask::inet
                    END)
     ORDER BY line_number LIMIT 1";

/// Names the line that refuses, where the other side is the same server and shows its lines.
async fn with_line(
    finding: Finding,
    connection: &Connection,
    side: Side,
    other: &Client,
) -> Finding {
    let is_socket = connection.host().starts_with('/');
    let (database, user) = (connection.dbname().to_owned(), connection.user().to_owned());
    let same = "SELECT current_setting('port') = $1";
    let port = connection.port().to_string();
    let is_same = other.query_one(same, &[&port]).await;
    if finding.code != "login-refused" || !is_same.is_ok_and(|row| row.get(0)) {
        return finding;
    }
    let encrypts = connection.may_encrypt();
    match other
        .query_opt(LINE, &[&is_socket, &database, &user, &encrypts])
        .await
    {
        Ok(Some(row)) => {
            let (number, line): (i32, &str) = (row.get(0), row.get(1));
            let what = format!("; line {number} of pg_hba.conf decides: {line}");
            let wanted = server::hba_line(connection, None);
            let remedy = format!(
                "-- if the role and its password are right: before line {number} of pg_hba.conf of the {side} put\n{wanted}\n-- then: SELECT pg_reload_conf();"
            );
            let remedy = match &finding.remedy {
                Some(hint) if !hint.contains("pg_hba.conf") => hint.clone(),
                _ => remedy,
            };
            finding.and(&what).remedy(remedy)
        }
        // It may not be read, or no line fits.
        _ => finding,
    }
}

/// What an open session shows of its way.
async fn of_session(side: Side, connection: &Connection, client: &Client) -> Vec<Finding> {
    let mut found = Vec::new();
    if connection.host().contains("-pooler") || connection.port() == POOLER_PORT {
        let host = connection.host();
        let what = format!(
            "{host}:{} looks like a connection pooler, which can neither replicate nor keep a lock",
            connection.port()
        );
        found.push(Finding::warning(side, POOLER, what).remedy(format!(
            "-- name the server itself in {side}.dsn: take -pooler out of the host, use port 5432"
        )));
    }
    let before = SystemTime::now();
    let asked = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint, host(inet_client_addr()), \
                 host(inet_server_addr()), coalesce((SELECT ssl FROM pg_catalog.pg_stat_ssl \
                  WHERE pid = pg_backend_pid()), false)";
    let row = client.query_one(asked, &[]).await;
    let row = match row.map_err(side.failed("could not show its clock")) {
        Ok(row) => row,
        Err(fault) => return vec![unanswered(side, fault)],
    };
    let theirs = UNIX_EPOCH + Duration::from_millis(row.get::<_, i64>(0).unsigned_abs());
    found.extend(clocks(side, before, theirs, SystemTime::now()));
    let (here, there): (Option<&str>, Option<&str>) = (row.get(1), row.get(2));
    let address = |text: Option<&str>| text.and_then(|text| text.parse::<IpAddr>().ok());
    if !row.get::<_, bool>(3) && leaves_machine(address(here), address(there)) {
        let what =
            format!("the connection to the {side} is not encrypted, and leaves this machine");
        found.push(
            Finding::warning(side, "a-connection-in-the-clear", what)
                .remedy(format!("-- add sslmode=verify-full to {side}.dsn")),
        );
    }
    found
}

/// Whether a session between these addresses passes a network: a Unix socket has none.
fn leaves_machine(client: Option<IpAddr>, server: Option<IpAddr>) -> bool {
    let (Some(client), Some(server)) = (client, server) else {
        return false;
    };
    client != server && !client.is_loopback() && !server.is_loopback()
}

/// The server's clock was read between these two of ours.
fn clocks(
    side: Side,
    before: SystemTime,
    theirs: SystemTime,
    after: SystemTime,
) -> Option<Finding> {
    let apart = match (before.duration_since(theirs), theirs.duration_since(after)) {
        (Ok(behind), _) => behind,
        (_, Ok(ahead)) => ahead,
        _ => return None,
    };
    let what = format!(
        "the clock of the {side} differs from the clock of this machine by {} s: lag is measured wrongly",
        apart.as_secs()
    );
    let finding = Finding::warning(side, "clocks-differ", what);
    (apart > CLOCKS_APART)
        .then(|| finding.remedy("timedatectl set-ntp true # on the machine whose clock is wrong"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_wrong_outside_the_time_of_the_question() {
        let at = |seconds: u64| UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds);
        let asked =
            |theirs| clocks(Side::Source, at(100), at(theirs), at(101)).map(|found| found.what);
        assert_eq!(asked(100), None);
        assert_eq!(asked(96), None);
        assert_eq!(asked(105), None);
        assert!(asked(90).unwrap().contains("by 10 s"));
        assert!(asked(161).unwrap().contains("by 60 s"));
    }

    #[test]
    fn a_connection_of_one_machine_leaves_it_not() {
        let address = |text: &str| text.parse::<IpAddr>().ok();
        assert!(leaves_machine(address("10.0.0.1"), address("10.0.0.2")));
        assert!(!leaves_machine(address("127.0.0.1"), address("127.0.0.1")));
        assert!(!leaves_machine(address("10.0.0.1"), address("10.0.0.1")));
        assert!(!leaves_machine(None, None));
    }
}
