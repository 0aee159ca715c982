//! The two connections: from flags, variables or questions, with and without their passwords.

use std::io::Write as _;

use tokio_postgres::Client;

use super::file::{self, Block, Way};
use super::terminal;
use crate::config::{self, Config, Environment, Flags};
use crate::fault::{Exit, Fault, Result};
use crate::server::{self, Connection, Described, Side};

/// How often a password may be typed.
const TRIES: usize = 3;

/// How both servers are reached.
pub(super) struct Sides {
    environment: Environment,
    source: Described,
    /// None: the source database.
    target: Option<Described>,
    target_is_named: bool,
}

impl Sides {
    /// Settles the source, and connects to it.
    ///
    /// # Errors
    /// As every command that connects; what a person has typed is asked for again.
    pub(super) async fn source(
        flags: &Flags,
        environment: &Environment,
        asks: bool,
    ) -> Result<(Self, Client)> {
        // What is chosen here is what counts.
        let environment = environment.clone().without("WALTRAIL_TABLE");
        let of_flag = |flag: &Option<String>, variable: &str| {
            let of_variable = || environment.var(variable).map(str::to_owned);
            flag.clone().or_else(of_variable)
        };
        let target = of_flag(&flags.target, "WALTRAIL_TARGET__DSN");
        let target_is_named = target.is_some();
        let named = of_flag(&flags.source, "WALTRAIL_SOURCE__DSN");
        let is_named = named.is_some() || config::is_named(&environment);
        if !is_named && !asks {
            // It says what to do.
            Config::from_toml("", &Flags::default(), &environment)?;
        }
        let describe = |side, text: &str| Described::of(side, text, &environment);
        let target = target.map(|text| describe(Side::Target, &text));
        let mut sides = Self {
            source: describe(Side::Source, named.as_deref().unwrap_or_default())?,
            target: target.transpose()?,
            target_is_named,
            environment: environment.clone(),
        };
        loop {
            if !is_named {
                let text = terminal::ask(|terminal| {
                    terminal.line(
                        "The database to follow (host=... dbname=... user=..., or a URI):\n> ",
                        false,
                    )
                });
                match describe(Side::Source, &text.await?) {
                    Ok(described) => sides.source = described,
                    Err(fault) => {
                        say(&fault);
                        continue;
                    }
                }
            }
            match sides.connect(Side::Source, asks).await {
                Ok(client) => return Ok((sides, client)),
                Err(fault) if is_named => return Err(fault),
                Err(fault) => say(&fault),
            }
        }
    }

    /// Asks where the history goes, where nothing says it.
    pub(super) async fn ask_for_target(&mut self, asks: bool) -> Result<()> {
        if self.target_is_named || !asks {
            return Ok(());
        }
        loop {
            let text = terminal::ask(|terminal| {
                terminal.line(
                    "The database that keeps the history (Enter: the same one):\n> ",
                    false,
                )
            });
            let text = text.await?;
            if text.is_empty() {
                self.target = None;
                return Ok(());
            }
            let described = Described::of(Side::Target, &text, &self.environment);
            let connected = match described {
                Ok(described) => {
                    self.target = Some(described);
                    self.connect(Side::Target, asks).await.map(drop)
                }
                Err(fault) => Err(fault),
            };
            match connected {
                Ok(()) => return Ok(()),
                Err(fault) => say(&fault),
            }
        }
    }

    /// Connects; a password that is missing or wrong is asked for.
    pub(super) async fn connect(&mut self, side: Side, asks: bool) -> Result<Client> {
        let mut tries = if asks { TRIES } else { 0 };
        loop {
            let config = self.config("", Vec::new())?;
            let connection = match side {
                Side::Source => &config.source.connection,
                Side::Target => &config.target,
            };
            match server::sql(connection, side).await {
                Err(fault)
                    if tries > 0
                        && fault.exit() == Exit::NoPermission
                        && may_be_typed(connection) =>
                {
                    say(&fault);
                    tries -= 1;
                    let question = format!("Password of {}: ", connection.user());
                    let typed = terminal::ask(move |terminal| terminal.line(&question, true));
                    let typed = typed.await?;
                    match (side, &mut self.target) {
                        (Side::Target, Some(target)) => target.set_password(typed),
                        _ => self.source.set_password(typed),
                    }
                }
                connected => return connected,
            }
        }
    }

    /// A configuration with this text for its file, these tables where any are given, and the passwords that are known.
    pub(super) fn config(&self, text: &str, tables: Vec<String>) -> Result<Config> {
        let flags = Flags {
            config: None,
            source: Some(self.source.with_password()),
            target: self.target.as_ref().map(Described::with_password),
            tables,
            ..Flags::default()
        };
        Config::from_toml(text, &flags, &self.environment)
    }

    /// The text of the file, which can be read again.
    pub(super) fn text(&self, blocks: &[Block]) -> Result<String> {
        let config = self.config("", Vec::new())?;
        let source = self.way(Side::Source, &self.source);
        let target = self.target.as_ref();
        let target = target.map(|target| self.way(Side::Target, target));
        let text = file::text(&config, &source, target.as_ref(), blocks);
        Config::from_toml(&text, &Flags::default(), &self.environment)?;
        Ok(text)
    }

    fn way<'a>(&'a self, side: Side, described: &'a Described) -> Way<'a> {
        let [file, command] = match side {
            Side::Source => [
                "WALTRAIL_SOURCE__PASSWORD_FILE",
                "WALTRAIL_SOURCE__PASSWORD_COMMAND",
            ],
            Side::Target => [
                "WALTRAIL_TARGET__PASSWORD_FILE",
                "WALTRAIL_TARGET__PASSWORD_COMMAND",
            ],
        };
        let of_key = |key, variable| self.environment.var(variable).map(|value| (key, value));
        let password = of_key("password_file", file);
        Way {
            dsn: described.text(),
            password: password.or_else(|| of_key("password_command", command)),
        }
    }

    /// Where passwords have to be put that were only known here.
    pub(super) fn passwords(&self) -> Vec<String> {
        let of_environment = self.environment.var("PGPASSWORD").is_some();
        let sides = [
            (Side::Source, Some(&self.source)),
            (Side::Target, self.target.as_ref()),
        ];
        let known = sides.into_iter().filter_map(|(side, described)| {
            let described = described?;
            let is_elsewhere = self.way(side, described).password.is_some();
            let known = described.has_password() || of_environment && !is_elsewhere;
            known.then(|| format!("{side}.password_file"))
        });
        known.collect()
    }
}

/// Whether a typed password would count: a file or a command would win over it.
fn may_be_typed(connection: &Connection) -> bool {
    connection.credentials().may_be_replaced()
}

/// What went wrong, before it is asked again.
fn say(fault: &Fault) {
    let mut text = format!("{fault}\n");
    if let Some(hint) = fault.remedy_text() {
        text.push_str(&format!(
            "hint: {}\n",
            crate::printable::printable_lines(&hint, usize::MAX)
        ));
    }
    let _ = std::io::stderr().write_all(text.as_bytes());
}
