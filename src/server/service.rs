//! Which managed service a server is, and how things are done there that a superuser does elsewhere.
//!
//! A service is recognized by settings that only it has. The facts are from the manuals of the services.

use std::fmt;

use tokio_postgres::Client;

use crate::name::Identifier;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// A server whose superuser can be asked.
    Own,
    /// Amazon RDS and Aurora.
    Rds,
    CloudSql,
    /// Azure Database for PostgreSQL, flexible server.
    Azure,
    Neon,
    Supabase,
}

/// A setting of a service's own can be invisible in `pg_settings`. Supabase is known by its administrator.
const MARKS: &str = "
    SELECT DISTINCT pg_catalog.split_part(name, '.', 1) FROM (
        SELECT name FROM pg_catalog.pg_settings
        UNION ALL SELECT name FROM pg_catalog.unnest(ARRAY['rds.logical_replication', 'cloudsql.logical_decoding',
                                                'azure.extensions', 'neon.timeline_id']) AS own (name)
                   WHERE pg_catalog.current_setting(name, true) IS NOT NULL
        UNION ALL SELECT 'supabase.' FROM pg_catalog.pg_roles WHERE rolname = 'supabase_admin') AS found
     WHERE name ~ '^(rds|cloudsql|azure|neon|supabase)[.]'";

impl Service {
    /// What this server is; a server that does not say is an ordinary one.
    pub async fn of(client: &Client) -> Self {
        let rows = client.query(MARKS, &[]).await.unwrap_or_default();
        let has = |mark: &str| rows.iter().any(|row| row.get::<_, &str>(0) == mark);
        let known = [
            ("rds", Self::Rds),
            ("cloudsql", Self::CloudSql),
            ("azure", Self::Azure),
            ("neon", Self::Neon),
            ("supabase", Self::Supabase),
        ];
        let known = known.into_iter().find(|(mark, _)| has(mark));
        known.map_or(Self::Own, |(_, service)| service)
    }

    /// How a setting of the server is changed.
    pub fn set(self, name: &str, value: &str, restart: bool) -> String {
        let is_word = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_lowercase());
        let quoted = match is_word || value.parse::<i64>().is_ok() {
            true => value.to_owned(),
            false => format!("'{value}'"),
        };
        let then = if restart {
            "restart the server"
        } else {
            "wait until it is applied"
        };
        match self {
            Self::Own if restart => {
                format!("ALTER SYSTEM SET {name} = {quoted}; -- then restart the server")
            }
            Self::Own => {
                format!("ALTER SYSTEM SET {name} = {quoted}; SELECT pg_reload_conf();")
            }
            Self::Rds => format!("-- set {name} = {value} in the parameter group; then {then}"),
            Self::CloudSql => format!(
                "gcloud sql instances patch INSTANCE --database-flags={name}={value} # with all other flags of the instance"
            ),
            Self::Azure => format!(
                "az postgres flexible-server parameter set --resource-group GROUP --server-name SERVER --name {name} --value {value} # then {then}"
            ),
            Self::Neon => format!("-- Neon sets {name} itself: ask its support"),
            Self::Supabase => {
                format!("supabase --experimental postgres-config update --config {name}={value}")
            }
        }
    }

    /// How the server is made to write logical WAL.
    pub fn set_wal_level(self) -> String {
        match self {
            Self::Own | Self::Azure => self.set("wal_level", "logical", true),
            Self::Rds => self.set("rds.logical_replication", "1", true),
            Self::CloudSql => self.set("cloudsql.logical_decoding", "on", true),
            Self::Neon => {
                "-- enable logical replication in the settings of the Neon project".to_owned()
            }
            Self::Supabase => "-- Supabase sets wal_level itself: ask its support".to_owned(),
        }
    }

    /// How a role gets the right to replicate.
    pub fn let_replicate(self, role: &str) -> String {
        let role = Identifier(role);
        match self {
            Self::Own | Self::Supabase => format!("ALTER ROLE {role} REPLICATION;"),
            Self::Rds => format!("GRANT rds_replication TO {role};"),
            Self::CloudSql | Self::Azure => format!("ALTER USER {role} REPLICATION;"),
            Self::Neon => format!(
                "ALTER ROLE {role} REPLICATION; -- or make the role in the Neon console: roles from there may replicate"
            ),
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Own => "PostgreSQL",
            Self::Rds => "Amazon RDS or Aurora",
            Self::CloudSql => "Google Cloud SQL",
            Self::Azure => "Azure Database for PostgreSQL",
            Self::Neon => "Neon",
            Self::Supabase => "Supabase",
        })
    }
}
