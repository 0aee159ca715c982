//! The settings as they are written.

use serde::{Deserialize, Deserializer, de};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    pub(super) setup: Text,
    pub(super) schema_changes: Option<Text>,
    pub(super) source: RawSource,
    #[serde(default)]
    pub(super) target: RawTarget,
    #[serde(default)]
    pub(super) table: Vec<RawTable>,
    pub(super) batch: RawBatch,
    #[serde(default)]
    pub(super) context: RawContext,
    pub(super) snapshot: RawSnapshot,
    pub(super) log: RawLog,
    #[serde(default)]
    pub(super) http: RawHttp,
    pub(super) shutdown: RawShutdown,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSource {
    pub(super) dsn: Option<Text>,
    pub(super) password_file: Option<Text>,
    pub(super) password_command: Option<Text>,
    pub(super) slot: Text,
    pub(super) publication: Text,
    pub(super) decoding_work_mem: Text,
    pub(super) catch_up_wal: Number,
    pub(super) failover: Switch,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTarget {
    pub(super) dsn: Option<Text>,
    pub(super) password_file: Option<Text>,
    pub(super) password_command: Option<Text>,
    pub(super) durable: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTable {
    pub(super) source: Option<Text>,
    pub(super) history: Option<Text>,
    #[serde(default)]
    pub(super) except: Vec<Text>,
    #[serde(default)]
    pub(super) exclude_columns: Vec<Text>,
    #[serde(default)]
    pub(super) allow_lossy: Vec<Text>,
    pub(super) prefix: Option<Text>,
    pub(super) functions: Option<Switch>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawBatch {
    pub(super) max_rows: Number,
    pub(super) max_bytes: Number,
    pub(super) interval: Number,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct RawContext {
    pub(super) settings: Option<Vec<Text>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSnapshot {
    pub(super) mode: Text,
    pub(super) change_type: Text,
    pub(super) workers: Option<Number>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLog {
    pub(super) format: Option<Text>,
    pub(super) level: Text,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHttp {
    pub(super) listen: Option<Text>,
    pub(super) token_file: Option<Text>,
    pub(super) tls_cert: Option<Text>,
    pub(super) tls_key: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawShutdown {
    pub(super) grace: Text,
}

/// A text; a number or a truth value in its place is a mistake.
pub(super) struct Text(pub(super) String);

/// A count or a size: a number, or a text that holds one (a variable is always a text).
pub(super) struct Number(pub(super) String);

/// A truth value, or a text that holds one (a variable is always a text).
pub(super) struct Switch(pub(super) String);

impl<'de> Deserialize<'de> for Switch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SwitchVisitor).map(Self)
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let visitor = ScalarVisitor { numbers: false };
        deserializer.deserialize_any(visitor).map(Self)
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let visitor = ScalarVisitor { numbers: true };
        deserializer.deserialize_any(visitor).map(Self)
    }
}

struct ScalarVisitor {
    numbers: bool,
}

impl de::Visitor<'_> for ScalarVisitor {
    type Value = String;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.numbers {
            "a whole number or a text with a unit"
        } else {
            "a text in quotes"
        })
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<String, E> {
        if self.numbers {
            return Ok(number.to_string());
        }
        Err(E::invalid_type(de::Unexpected::Signed(number), &self))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<String, E> {
        if self.numbers {
            return Ok(number.to_string());
        }
        Err(E::invalid_type(de::Unexpected::Unsigned(number), &self))
    }
}

struct SwitchVisitor;

impl de::Visitor<'_> for SwitchVisitor {
    type Value = String;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("true or false")
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }
}
