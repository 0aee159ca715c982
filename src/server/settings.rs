//! The settings of one connection, gathered and checked once.
//!
//! ```text
//! dsn  >  service file  >  PG* variables  >  libpq's defaults
//! ```
//!
//! and for the password `password_file` or `password_command`, then the same order, then the password file of libpq.
//! Here it is only settled where the password is: it is read at each connect.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::libpq::{self, PasswordFile};
use super::{Connection, Credentials, Parameters, Place, Side, dsn, refused, session_options};
use crate::environment::Environment;
use crate::fault::{Fault, Result};
use crate::wire::Keepalive;

/// Where packaged and hand-built servers keep their socket.
pub(super) const SOCKET_FOLDERS: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// How long one address may take to answer when nothing else is said.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// libpq's variables and the keyword each stands for (manual, section 34.15).
pub(super) const VARIABLES: [(&str, &str); 25] = [
    ("PGAPPNAME", "application_name"),
    ("PGCHANNELBINDING", "channel_binding"),
    ("PGCLIENTENCODING", "client_encoding"),
    ("PGCONNECT_TIMEOUT", "connect_timeout"),
    ("PGDATABASE", "dbname"),
    ("PGGSSENCMODE", "gssencmode"),
    ("PGHOST", "host"),
    ("PGHOSTADDR", "hostaddr"),
    ("PGLOADBALANCEHOSTS", "load_balance_hosts"),
    ("PGOPTIONS", "options"),
    ("PGPASSWORD", "password"),
    ("PGPORT", "port"),
    ("PGSSLCERT", "sslcert"),
    ("PGSSLCERTMODE", "sslcertmode"),
    ("PGSSLCRL", "sslcrl"),
    ("PGSSLCRLDIR", "sslcrldir"),
    ("PGSSLKEY", "sslkey"),
    ("PGSSLMAXPROTOCOLVERSION", "ssl_max_protocol_version"),
    ("PGSSLMINPROTOCOLVERSION", "ssl_min_protocol_version"),
    ("PGSSLMODE", "sslmode"),
    ("PGSSLNEGOTIATION", "sslnegotiation"),
    ("PGSSLROOTCERT", "sslrootcert"),
    ("PGSSLSNI", "sslsni"),
    ("PGTARGETSESSIONATTRS", "target_session_attrs"),
    ("PGUSER", "user"),
];

/// Variables by which an operator demands a protection that is not given here.
const DEMANDS: [&str; 2] = ["PGREQUIREAUTH", "PGREQUIREPEER"];

impl Connection {
    /// Settles a connection from the text of `dsn`, what our own keys say of the password, and the environment.
    ///
    /// # Errors
    /// Exit 78 for anything that cannot be used as it is written.
    pub fn resolve(
        side: Side,
        dsn: &str,
        password: Option<Place>,
        environment: &Environment,
    ) -> Result<Self> {
        let settings = Gathered::gather(side, dsn, environment)?;
        settings.refuse_what_is_not_done()?;
        let user = settings.user(environment)?;
        let dbname = settings.dbname(&user)?;
        let hosts = settings.hosts()?;
        let place = settings.place(password, &user, &dbname, environment)?;
        let name = settings
            .value("application_name")
            .or_else(|| settings.value("fallback_application_name"));
        Ok(Self(Arc::new(Parameters {
            application_name: name.unwrap_or(env!("CARGO_PKG_NAME")).to_owned(),
            options: session_options(settings.value("options")),
            connect_timeout: settings.connect_timeout()?,
            keepalive: settings.keepalive()?,
            tls: settings.tls(environment)?,
            attributes: settings.attributes(&hosts)?,
            credentials: Credentials::new(side, place),
            hosts,
            user,
            dbname,
        })))
    }
}

/// The settings of a connection string alone.
pub(super) fn written(side: Side, text: &str) -> Result<dsn::Settings> {
    dsn::parse(text).map_err(|error| {
        let remedy = "write `host=... dbname=... user=...` (quote a value that holds blanks) or \
                      `postgresql://user@host/dbname`";
        refused(format!("{side}.dsn {error}"), remedy)
    })
}

/// The settings of all places together, each with where it comes from.
pub(super) struct Gathered {
    pub(super) side: Side,
    settings: BTreeMap<&'static str, (String, Origin)>,
}

#[derive(Clone)]
enum Origin {
    Dsn,
    Service(PathBuf),
    Variable(&'static str),
}

impl Gathered {
    fn gather(side: Side, text: &str, environment: &Environment) -> Result<Self> {
        let mut gathered = Self {
            side,
            settings: BTreeMap::new(),
        };
        for (keyword, value) in written(side, text)? {
            gathered.add(keyword, value, Origin::Dsn);
        }
        let service = gathered
            .value("service")
            .or_else(|| environment.var("PGSERVICE"))
            .map(str::to_owned);
        if let Some(name) = service {
            let file = gathered.value("servicefile").map(str::to_owned);
            let (settings, path) = libpq::service(&name, file.as_deref(), environment)?;
            for (keyword, value) in settings {
                gathered.add(keyword, value, Origin::Service(path.clone()));
            }
        }
        for variable in DEMANDS {
            if environment.var(variable).is_some() {
                return Err(refused(
                    format!("{variable} is set, which waltrail does not support"),
                    format!("unset {variable} for this process"),
                ));
            }
        }
        for (variable, keyword) in VARIABLES {
            if let Some(value) = environment.var(variable) {
                gathered.add(keyword, value.to_owned(), Origin::Variable(variable));
            }
        }
        // Its predecessor, which libpq still knows.
        const OLD: &str = "PGREQUIRESSL";
        if environment
            .var(OLD)
            .is_some_and(|value| value.starts_with('1'))
        {
            gathered.add("sslmode", "require".to_owned(), Origin::Variable(OLD));
        }
        Ok(gathered)
    }

    /// An earlier place wins; an empty value is none, as in libpq.
    fn add(&mut self, keyword: &'static str, value: String, origin: Origin) {
        if !value.is_empty() {
            self.settings.entry(keyword).or_insert((value, origin));
        }
    }

    pub(super) fn value(&self, keyword: &str) -> Option<&str> {
        self.settings.get(keyword).map(|(value, _)| value.as_str())
    }

    /// A refusal that says where the setting was read and never what it is.
    pub(super) fn refusal(&self, keyword: &str, problem: &str, remedy: &str) -> Fault {
        let place = match self.settings.get(keyword).map(|(_, origin)| origin) {
            Some(Origin::Service(path)) => format!("`{keyword}` in {}", path.display()),
            Some(Origin::Variable(variable)) => format!("{variable} in the environment"),
            Some(Origin::Dsn) | None => format!("`{keyword}` in {}.dsn", self.side),
        };
        refused(format!("{place} {problem}"), remedy)
    }

    /// A setting that would be silently ignored is refused instead.
    fn refuse_what_is_not_done(&self) -> Result<()> {
        let allowed: [(&str, &[&str]); 3] = [
            ("gssencmode", &["disable", "prefer"]),
            ("load_balance_hosts", &["disable"]),
            ("client_encoding", &["utf8", "utf-8", "unicode"]),
        ];
        for (keyword, words) in allowed {
            let words: Vec<(&str, ())> = words.iter().map(|word| (*word, ())).collect();
            self.one_of(keyword, (), &words)?;
        }
        Ok(())
    }

    fn user(&self, environment: &Environment) -> Result<String> {
        let user = self.value("user").or_else(|| environment.os_user());
        user.map(str::to_owned).ok_or_else(|| {
            let side = self.side;
            refused(
                format!("{side}.dsn names no user, and the operating system user has no name"),
                format!("add `user=...` to {side}.dsn, or set PGUSER"),
            )
        })
    }

    fn dbname(&self, user: &str) -> Result<String> {
        let dbname = self.value("dbname").unwrap_or(user);
        // A whole connection string in the place of a name would be shown wherever the name is.
        if dbname.contains("://") || dbname.contains('=') {
            let remedy = "give the database's name alone";
            return Err(self.refusal("dbname", "holds a connection string", remedy));
        }
        Ok(dbname.to_owned())
    }

    /// Where the password is. `own`: what our own keys say of it.
    fn place(
        &self,
        own: Option<Place>,
        user: &str,
        dbname: &str,
        environment: &Environment,
    ) -> Result<Place> {
        let side = self.side;
        if let Some(place) = own {
            let key = match place {
                Place::Command(_) => "password_command",
                _ => "password_file",
            };
            if let Some((_, Origin::Dsn)) = self.settings.get("password") {
                return Err(refused(
                    format!("{side}.{key} is set, but {side}.dsn holds a password too"),
                    format!("leave the password out of {side}.dsn"),
                ));
            }
            return Ok(place);
        }
        if let Some((password, origin)) = self.settings.get("password") {
            let reload = "; a daemon that runs reads it again on SIGHUP";
            return Ok(Place::Setting {
                password: password.clone(),
                remedy: match origin {
                    Origin::Dsn => format!("correct the password in {side}.dsn{reload}"),
                    Origin::Service(path) => {
                        format!("correct the password in {}{reload}", path.display())
                    }
                    Origin::Variable(name) => {
                        format!("correct the password in {name}, and start waltrail again")
                    }
                },
            });
        }
        let passfile = PasswordFile::path(self.value("passfile"), environment);
        Ok(passfile.map_or(Place::Nowhere, |path| Place::Passfile {
            path,
            dbname: dbname.to_owned(),
            user: user.to_owned(),
        }))
    }

    /// A number as libpq reads it: of seconds, milliseconds or tries.
    fn number(&self, keyword: &str) -> Result<Option<i32>> {
        let Some(value) = self.value(keyword) else {
            return Ok(None);
        };
        let number = value.trim().parse().map_err(|_| {
            let remedy = "write a whole number; see libpq's manual, section 34.1.2";
            self.refusal(keyword, "has a value that cannot be used", remedy)
        })?;
        Ok(Some(number))
    }

    fn connect_timeout(&self) -> Result<Option<Duration>> {
        Ok(match self.number("connect_timeout")? {
            // Only where nothing is said is there a default.
            None => Some(CONNECT_TIMEOUT),
            Some(..=0) => None,
            // libpq's own least.
            Some(seconds) => Some(Duration::from_secs(seconds.max(2).unsigned_abs().into())),
        })
    }

    /// As in libpq, 0 leaves what is there without a word.
    fn keepalive(&self) -> Result<Keepalive> {
        let mut keepalive = Keepalive::default();
        let positive = |keyword| {
            let number = self.number(keyword)?;
            Ok::<_, Fault>(number.filter(|number| *number > 0).map(i32::unsigned_abs))
        };
        let seconds = |number: u32| Duration::from_secs(number.into());
        keepalive.enabled = self.number("keepalives")? != Some(0);
        if let Some(idle) = positive("keepalives_idle")? {
            keepalive.idle = seconds(idle);
        }
        if let Some(interval) = positive("keepalives_interval")? {
            keepalive.interval = seconds(interval);
        }
        keepalive.count = positive("keepalives_count")?;
        if let Some(milliseconds) = positive("tcp_user_timeout")? {
            keepalive.user_timeout = Duration::from_millis(milliseconds.into());
        }
        Ok(keepalive)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::path::Path;

    use super::super::attributes::{Attributes, Wanted};
    use super::*;
    use crate::fault::Exit;
    use std::os::unix::fs::PermissionsExt;

    fn environment() -> Environment {
        Environment::empty().with_os_user("os")
    }

    fn resolved(dsn: &str) -> Connection {
        Connection::resolve(Side::Source, dsn, None, &environment()).expect(dsn)
    }

    fn asked(connection: &Connection) -> Result<Option<Vec<u8>>> {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().unwrap();
        let asked = connection.credentials().password(&connection.hosts()[0]);
        runtime.block_on(asked)
    }

    fn password_of(connection: &Connection) -> Option<Vec<u8>> {
        asked(connection).unwrap()
    }

    fn refusal_of(dsn: &str, environment: &Environment) -> Fault {
        let fault = Connection::resolve(Side::Source, dsn, None, environment).expect_err(dsn);
        assert_eq!(fault.exit(), Exit::Config, "{dsn}");
        assert!(fault.remedy_text().is_some(), "{dsn}");
        fault
    }

    #[test]
    fn the_string_wins_over_the_service_and_that_over_the_environment() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("services");
        std::fs::write(
            &file,
            "[other]\nhost=no\n[app]\n# note\nhost=service\nport=1\nuser=s\n",
        )
        .unwrap();
        let environment = environment()
            .with("PGSERVICEFILE", file.to_str().unwrap())
            .with("PGHOST", "env")
            .with("PGUSER", "env")
            .with("PGDATABASE", "env");
        let connection =
            Connection::resolve(Side::Source, "service=app user=dsn", None, &environment).unwrap();
        assert_eq!(connection.to_string(), "dsn@service:1/env");
    }

    #[test]
    fn what_nobody_sets_has_libpqs_default() {
        let connection = resolved("host=db");
        assert_eq!(connection.to_string(), "os@db:5432/os");
        assert_eq!(connection.0.connect_timeout, Some(CONNECT_TIMEOUT));
        assert_eq!(connection.0.application_name, "waltrail");
        assert_eq!(password_of(&connection), None);
        assert_eq!(
            resolved("host=db connect_timeout=0").0.connect_timeout,
            None
        );
    }

    #[test]
    fn each_host_has_its_port() {
        let connection = resolved("host=/run/pg,db,::1 port=1,2,3 user=u dbname=d");
        assert_eq!(connection.to_string(), "u@/run/pg:1,db:2,[::1]:3/d");
        assert_eq!(connection.host(), "/run/pg");
    }

    #[test]
    fn a_numeric_address_is_where_the_connection_goes() {
        let connection = resolved("host=db hostaddr=10.0.0.1 user=u");
        let address = IpAddr::from([10, 0, 0, 1]);
        assert_eq!(connection.hosts()[0].address, Some(address));
        assert_eq!(connection.host(), "db");
        assert_eq!(resolved("hostaddr=10.0.0.1").host(), "10.0.0.1");
    }

    #[test]
    fn the_settings_of_a_session_come_after_the_options_of_the_user() {
        let connection = resolved("host=db options='-c work_mem=1MB'");
        let options = &connection.0.options;
        assert!(
            options.starts_with(r"-c work_mem=1MB -c DateStyle=ISO,\ MDY "),
            "{options}"
        );
    }

    #[test]
    fn passwords_come_from_every_place_libpq_knows() {
        let folder = tempfile::tempdir().unwrap();
        let secret = folder.path().join("secret");
        let passfile = folder.path().join("pgpass");
        std::fs::write(&secret, "from file\n").unwrap();
        std::fs::write(
            &passfile,
            "db:5432:d:u:from passfile\nlocalhost:5432:d:u:socket\n",
        )
        .unwrap();
        for file in [&secret, &passfile] {
            std::fs::set_permissions(file, PermissionsExt::from_mode(0o600)).unwrap();
        }
        let plain = environment().with("PGPASSFILE", passfile.to_str().unwrap());
        let variable = plain.clone().with("PGPASSWORD", "from variable");
        let password = |dsn: &str, file: Option<&Path>, environment: &Environment| {
            let file = file.map(|path| Place::File(path.to_owned()));
            let connection = Connection::resolve(Side::Source, dsn, file, environment).unwrap();
            String::from_utf8(password_of(&connection).unwrap_or_default()).unwrap()
        };
        let dsn = "host=db user=u dbname=d";
        assert_eq!(password(dsn, Some(&secret), &variable), "from file");
        assert_eq!(
            password(&format!("{dsn} password=own"), None, &variable),
            "own"
        );
        assert_eq!(password(dsn, None, &variable), "from variable");
        assert_eq!(password(dsn, None, &plain), "from passfile");
        let socket = "host=/var/run/postgresql user=u dbname=d";
        assert_eq!(password(socket, None, &plain), "socket");
        assert_eq!(password("host=other user=u", None, &plain), "");
        let named = format!("{dsn} passfile={}", passfile.display());
        assert_eq!(password(&named, None, &environment()), "from passfile");
    }

    #[test]
    fn a_password_file_that_others_may_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let passfile = folder.path().join("pgpass");
        std::fs::write(&passfile, "*:*:*:*:canary\n").unwrap();
        std::fs::set_permissions(&passfile, PermissionsExt::from_mode(0o644)).unwrap();
        let environment = environment().with("PGPASSFILE", passfile.to_str().unwrap());
        let connection = Connection::resolve(Side::Source, "host=db", None, &environment).unwrap();
        let fault = asked(&connection).unwrap_err();
        assert_eq!(fault.exit(), Exit::Config);
        assert!(fault.remedy_text().unwrap().contains("chmod 0600"));
    }

    #[test]
    fn what_cannot_be_kept_is_refused() {
        for (dsn, says) in [
            ("sslmode=maybe", "not supported"),
            ("gssencmode=require", "not supported"),
            ("load_balance_hosts=random", "not supported"),
            ("target_session_attrs=leader", "not supported"),
            ("client_encoding=latin1", "not supported"),
            ("channel_binding=maybe", "not supported"),
            ("sslcertmode=require", "not supported"),
            ("ssl_max_protocol_version=TLSv1.1", "not supported"),
            (
                "ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=TLSv1.2",
                "above",
            ),
            ("sslrootcert=system sslmode=require", "too weak"),
            ("sslnegotiation=direct", "always encrypted"),
            (
                "sslpassword=canary",
                "`sslpassword`, which waltrail does not",
            ),
            ("require_auth=scram-sha-256", "does not support"),
            ("hots=db", "unknown keyword `hots`"),
            ("port=x", "`port` in source.dsn is not a port"),
            ("port=1,2", "one entry for each host"),
            ("connect_timeout=soon", "`connect_timeout` in source.dsn"),
            ("hostaddr=db", "numeric address"),
            ("service=nowhere", "`nowhere`"),
            ("dbname=postgres://u:p@h/d", "holds a connection string"),
        ] {
            let said = refusal_of(dsn, &environment()).to_string();
            assert!(said.contains(says), "{dsn}: {said}");
        }
        let verify = environment().with("PGSSLMODE", "verify");
        let said = refusal_of("host=db", &verify).to_string();
        assert!(said.starts_with("PGSSLMODE in the environment"), "{said}");
        let demand = environment().with("PGREQUIREAUTH", "scram-sha-256");
        assert!(
            refusal_of("host=db", &demand)
                .to_string()
                .contains("PGREQUIREAUTH")
        );
    }

    #[test]
    fn tls_is_tried_by_default_and_the_files_are_those_of_libpq() {
        use crate::wire::{Mode, Roots};
        let environment = environment().with("HOME", "/home/os");
        let tls = |dsn: &str| {
            let connection = Connection::resolve(Side::Source, dsn, None, &environment);
            connection.unwrap().0.tls.clone()
        };
        let plain = tls("host=db");
        assert_eq!(plain.mode, Mode::Prefer);
        let path = |name: &str| Some(PathBuf::from("/home/os/.postgresql").join(name));
        assert_eq!(plain.roots, Roots::File(path("root.crt")));
        assert_eq!(plain.certificate, path("postgresql.crt"));
        assert_eq!(plain.key, path("postgresql.key"));
        assert_eq!(plain.crl.default, path("root.crl"));
        assert_eq!(tls("postgres://h/d?ssl=true").mode, Mode::Require);
        let system = tls("host=db sslrootcert=system");
        assert_eq!(
            (system.mode, system.roots),
            (Mode::VerifyFull, Roots::System)
        );
    }

    #[test]
    fn several_hosts_are_searched_for_the_one_that_is_needed() {
        for (side, dsn, wanted) in [
            (Side::Source, "host=a", Wanted::Any),
            (Side::Source, "host=a,b", Wanted::Primary),
            (Side::Target, "host=a,b", Wanted::ReadWrite),
            (
                Side::Target,
                "host=a,b target_session_attrs=any",
                Wanted::Any,
            ),
        ] {
            let connection = Connection::resolve(side, dsn, None, &environment()).unwrap();
            let attributes = Attributes::Only(wanted);
            assert_eq!(connection.0.attributes, attributes, "{dsn}");
        }
    }

    #[test]
    fn a_process_without_a_user_name_has_to_be_told_one() {
        let fault = refusal_of("host=db", &Environment::empty());
        assert!(fault.to_string().contains("names no user"));
    }

    #[test]
    fn no_form_of_a_connection_shows_its_password() {
        for dsn in [
            "host=db user=u password=canary",
            "postgres://u:canary@db/d",
            "postgres://db/d?user=u&password=canary",
        ] {
            let connection = resolved(dsn);
            assert_eq!(password_of(&connection), Some(b"canary".to_vec()));
            let shown = format!(
                "{connection} {connection:?} {connection:#?} {:?}",
                connection.credentials()
            );
            assert!(!shown.contains("canary"), "{shown}");
        }
        let environment = environment().with("PGPASSWORD", "canary");
        assert!(!format!("{environment:?}").contains("canary"));
        for dsn in [
            "password=canary hots=db",
            "password=canary port=canary",
            "password=canary sslpassword=canary",
            "password=canary sslmode=canary",
            "password=canary service=none",
            "password=canary connect_timeout=canary",
            "password=can canary=x",
            "password='canary",
            "postgres://u:canary@x@db/d",
            "postgres://u:x@canary@db/d",
            "postgres://u:12/canary@db",
            "postgres://u:canary/x@db",
            "dbname=postgres://u:canary@h/d",
            "host=u:canary@db",
        ] {
            let fault = refusal_of(dsn, &environment);
            let shown = format!("{fault} {fault:?} {:?}", fault.remedy_text());
            assert!(!shown.contains("canary"), "{dsn}: {shown}");
        }
    }
}
