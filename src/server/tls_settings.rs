//! What a connection string says about TLS, with libpq's defaults (manual, section 34.1.2).

use std::path::PathBuf;

use super::settings::Gathered;
use crate::environment::Environment;
use crate::fault::Result;
use crate::wire::{ChannelBinding, Mode, Revoked, Roots, TlsSettings, Version};

/// What `sslrootcert` calls the operating system's authorities.
const SYSTEM: &str = "system";

const MODES: [(&str, Mode); 6] = [
    ("disable", Mode::Disable),
    ("allow", Mode::Allow),
    ("prefer", Mode::Prefer),
    ("require", Mode::Require),
    ("verify-ca", Mode::VerifyCa),
    ("verify-full", Mode::VerifyFull),
];

impl Gathered {
    pub(super) fn tls(&self, environment: &Environment) -> Result<TlsSettings> {
        let of_home = |name: &str| {
            let home = environment.home();
            home.map(|home| home.join(".postgresql").join(name))
        };
        let named = |keyword: &str| self.value(keyword).map(PathBuf::from);
        let system = self.value("sslrootcert") == Some(SYSTEM);
        let mode = match system {
            true => self.one_of("sslmode", Mode::VerifyFull, &MODES)?,
            false => self.one_of("sslmode", Mode::Prefer, &MODES)?,
        };
        if system && mode < Mode::VerifyFull {
            let problem = "is too weak for sslrootcert=system: anyone can have a certificate of those authorities";
            return Err(self.refusal("sslmode", problem, "write sslmode=verify-full"));
        }
        let negotiation = [("postgres", false), ("direct", true)];
        let direct = self.one_of("sslnegotiation", false, &negotiation)?;
        if direct && mode < Mode::Require {
            let problem = "needs a connection that is always encrypted";
            let remedy =
                "write sslmode=require, verify-ca or verify-full beside sslnegotiation=direct";
            return Err(self.refusal("sslnegotiation", problem, remedy));
        }
        let (min, max) = self.versions()?;
        let switch = [("0", false), ("1", true)];
        let certificate = [("disable", false), ("allow", true)];
        let sends = self.one_of("sslcertmode", true, &certificate)?;
        Ok(TlsSettings {
            mode,
            direct,
            roots: match system {
                true => Roots::System,
                false => Roots::File(named("sslrootcert").or_else(|| of_home("root.crt"))),
            },
            crl: Revoked {
                named: named("sslcrl"),
                folder: named("sslcrldir"),
                default: of_home("root.crl"),
            },
            certificate: named("sslcert")
                .or_else(|| of_home("postgresql.crt"))
                .filter(|_| sends),
            key: named("sslkey").or_else(|| of_home("postgresql.key")),
            sni: self.one_of("sslsni", true, &switch)?,
            min,
            max,
            channel_binding: self.one_of(
                "channel_binding",
                ChannelBinding::Prefer,
                &[
                    ("disable", ChannelBinding::Disable),
                    ("prefer", ChannelBinding::Prefer),
                    ("require", ChannelBinding::Require),
                ],
            )?,
        })
    }

    fn versions(&self) -> Result<(Version, Version)> {
        let known = [("tlsv1.2", Version::Tls12), ("tlsv1.3", Version::Tls13)];
        // A least version below 1.2 forbids nothing that is spoken here.
        let old = [("tlsv1", Version::Tls12), ("tlsv1.1", Version::Tls12)];
        let min = self.one_of(
            "ssl_min_protocol_version",
            Version::Tls12,
            &[known, old].concat(),
        )?;
        let max = self.one_of("ssl_max_protocol_version", Version::Tls13, &known)?;
        if min > max {
            let problem = "is above ssl_max_protocol_version";
            return Err(self.refusal(
                "ssl_min_protocol_version",
                problem,
                "leave one of the two out",
            ));
        }
        Ok((min, max))
    }

    /// The meaning of a word, whatever its case.
    pub(super) fn one_of<T: Copy>(
        &self,
        keyword: &str,
        default: T,
        words: &[(&str, T)],
    ) -> Result<T> {
        let Some(value) = self.value(keyword) else {
            return Ok(default);
        };
        let found = words
            .iter()
            .find(|(word, _)| value.eq_ignore_ascii_case(word));
        found.map(|(_, meaning)| *meaning).ok_or_else(|| {
            let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            let remedy = format!("write {}, or leave it out", words.join(" or "));
            self.refusal(keyword, "has a value that is not supported", &remedy)
        })
    }
}
