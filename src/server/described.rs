//! A connection as a configuration file names it: whole, and without its password.
//!
//! The daemon runs with another environment than the person who writes its file, so that what libpq's variables say is
//! written out.

use super::Side;
use super::dsn::{self, Settings};
use super::settings::{VARIABLES, written};
use crate::environment::Environment;
use crate::fault::Result;

/// What a connection string means in an environment. It may hold a password, hence no `Debug`.
pub(crate) struct Described {
    /// Without the password.
    settings: Settings,
    text: String,
    password: Option<String>,
}

impl Described {
    /// Takes the password out of `text`, and adds what the variables say and what would be guessed from the user.
    ///
    /// # Errors
    /// Exit 78 for a text that is no connection string.
    pub(crate) fn of(side: Side, text: &str, environment: &Environment) -> Result<Self> {
        let mut settings = written(side, text)?;
        let as_written = settings.clone();
        settings.retain(|_, value| !value.is_empty());
        let password = settings.remove("password");
        if let Some(service) = environment.var("PGSERVICE") {
            settings.entry("service").or_insert(service.to_owned());
        }
        // A service's own settings win over the variables.
        if !settings.contains_key("service") {
            let passfile = ("PGPASSFILE", "passfile");
            for (variable, keyword) in VARIABLES.into_iter().chain([passfile]) {
                if let Some(value) = environment.var(variable).filter(|_| keyword != "password") {
                    settings.entry(keyword).or_insert(value.to_owned());
                }
            }
            if let Some(user) = environment.os_user() {
                settings.entry("user").or_insert(user.to_owned());
            }
            if let Some(user) = settings.get("user").cloned() {
                settings.entry("dbname").or_insert(user);
            }
        }
        let text = match settings == as_written {
            true => text.trim().to_owned(),
            false => dsn::text(&settings),
        };
        Ok(Self {
            settings,
            text,
            password,
        })
    }

    /// The connection string, without a password.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// The same with the password, where one is known. Never log it.
    pub(crate) fn with_password(&self) -> String {
        let Some(password) = &self.password else {
            return self.text.clone();
        };
        let mut settings = self.settings.clone();
        settings.insert("password", password.clone());
        dsn::text(&settings)
    }

    /// Takes a password that a person has typed.
    pub(crate) fn set_password(&mut self, password: String) {
        self.password = Some(password);
    }

    pub(crate) fn has_password(&self) -> bool {
        self.password.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(text: &str, environment: &Environment) -> Described {
        let environment = environment.clone().with_os_user("os");
        let described = Described::of(Side::Source, text, &environment);
        described.unwrap_or_else(|fault| panic!("{fault}"))
    }

    #[test]
    fn a_password_is_taken_out_and_known() {
        let none = Environment::empty();
        for text in [
            r"host=db dbname=app user=u password='it\'s'",
            "postgresql://u:it's@db/app",
        ] {
            let described = described(text, &none);
            assert_eq!(described.text(), "host=db dbname=app user=u");
            let with = r"host=db dbname=app user=u password='it\'s'";
            assert_eq!(described.with_password(), with);
        }
    }

    #[test]
    fn what_is_whole_stays_as_it_is_written() {
        let uri = "postgresql://u@db:5433/app?sslmode=verify-full";
        assert_eq!(described(uri, &Environment::empty()).text(), uri);
    }

    #[test]
    fn variables_and_guesses_are_written_out() {
        let environment = Environment::empty()
            .with("PGPORT", "5433")
            .with("PGHOST", "other")
            .with("PGPASSWORD", "canary");
        let told = described("host=db", &environment);
        assert_eq!(told.text(), "host=db port=5433 dbname=os user=os");
        assert!(!told.has_password());
        let service = described("", &environment.with("PGSERVICE", "app"));
        assert_eq!(service.text(), "service=app");
    }
}
