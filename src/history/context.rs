//! What a transaction says of itself: its messages `waltrail.context`, merged key by key into one JSON object. Pure.
//!
//! A history column of type `jsonb` must take every object that is accepted here: what its input function refuses would
//! stop the stream. So an object is checked for what JSON allows and `jsonb` does not.

use std::collections::BTreeMap;

use serde_json::Value;
use serde_json::value::RawValue;

/// The prefix of the messages.
pub const PREFIX: &str = "waltrail.context";
/// No transaction says more.
pub const BYTES_MAX: usize = 64 * 1024;
/// A number has no more characters, and its exponent is no larger: `numeric` has room for it.
const NUMBER_MAX: usize = 1000;

/// Why a message is left out. It has nothing of the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("it is not a JSON object that jsonb can hold")]
    NotAnObject,
    #[error("the context of its transaction would be larger than 64 KiB")]
    TooLarge,
}

/// The context of the open transaction.
#[derive(Debug, Default)]
pub(crate) struct Context {
    /// Values as they were written: a number keeps its digits.
    entries: BTreeMap<String, Box<RawValue>>,
    /// All of it as JSON; empty: nothing was said.
    json: Vec<u8>,
}

impl Context {
    /// As JSON, where something was said.
    #[inline]
    pub(crate) fn json(&self) -> Option<&[u8]> {
        (!self.json.is_empty()).then_some(&self.json)
    }

    /// Forgets everything: a transaction begins.
    #[inline]
    pub(crate) fn clear(&mut self) {
        if !self.json.is_empty() {
            self.entries.clear();
            self.json.clear();
        }
    }

    /// Adds what a message says; its keys win over earlier ones.
    ///
    /// # Errors
    /// The message is left out, and the context stays what it was.
    pub(crate) fn merge(&mut self, message: &[u8]) -> Result<(), Refused> {
        if message.len() > BYTES_MAX {
            return Err(Refused::TooLarge);
        }
        let said = parse(message).ok_or(Refused::NotAnObject)?;
        let mut entries = self.entries.clone();
        entries.extend(said);
        let json = serde_json::to_vec(&entries).map_err(|_| Refused::NotAnObject)?;
        if json.len() > BYTES_MAX {
            return Err(Refused::TooLarge);
        }
        (self.entries, self.json) = (entries, json);
        Ok(())
    }
}

/// The entries of an object, of equal keys the last one.
fn parse(message: &[u8]) -> Option<BTreeMap<String, Box<RawValue>>> {
    let entries: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(message).ok()?;
    let mut all = entries.iter();
    all.all(|(key, raw)| fits(key, raw)).then_some(entries)
}

/// Whether `jsonb` takes an entry.
fn fits(key: &str, raw: &RawValue) -> bool {
    // This also reads the strings within, and limits the depth.
    let value: Result<Value, _> = serde_json::from_str(raw.get());
    !key.contains('\0')
        && value.is_ok_and(|value| has_no_zero(&value))
        && has_small_numbers(raw.get())
}

/// No `text` holds a character of code zero.
fn has_no_zero(value: &Value) -> bool {
    match value {
        Value::String(text) => !text.contains('\0'),
        Value::Array(values) => values.iter().all(has_no_zero),
        Value::Object(fields) => fields
            .iter()
            .all(|(key, value)| !key.contains('\0') && has_no_zero(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => true,
    }
}

/// Whether `numeric` has room for every number in this JSON.
fn has_small_numbers(json: &str) -> bool {
    // Quoted text is every second part, once escaped quotes are gone.
    let plain = json.replace("\\\\", "").replace("\\\"", "");
    let outside = plain.split('"').step_by(2);
    let is_number = |c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.' | 'e' | 'E');
    let tokens = outside.flat_map(|text| text.split(move |c| !is_number(c)));
    tokens
        .filter(|token| token.contains(|c: char| c.is_ascii_digit()))
        .all(|number| {
            let exponent = number.split_once(['e', 'E']).map_or("0", |(_, e)| e);
            let exponent: Result<i32, _> = exponent.parse();
            number.len() <= NUMBER_MAX
                && exponent.is_ok_and(|e| e.unsigned_abs() as usize <= NUMBER_MAX)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(messages: &[&str]) -> Result<String, Refused> {
        let mut context = Context::default();
        for message in messages {
            context.merge(message.as_bytes())?;
        }
        let json = context.json().unwrap_or_default();
        Ok(String::from_utf8(json.to_vec()).unwrap())
    }

    #[test]
    fn keys_are_merged_and_the_last_one_wins() {
        assert_eq!(merged(&[]).unwrap(), "");
        assert_eq!(merged(&["{}"]).unwrap(), "{}");
        assert_eq!(
            merged(&[r#" {"a": 1, "b": {"x": [1, 2]}}"#, r#"{"b":null,"c":"ü"}"#]).unwrap(),
            r#"{"a":1,"b":null,"c":"ü"}"#
        );
        assert_eq!(merged(&[r#"{"a":1,"a":2}"#]).unwrap(), r#"{"a":2}"#);
    }

    #[test]
    fn a_number_keeps_its_digits() {
        let json = r#"{"id":123456789012345678901234567890,"n":-1.10e+2}"#;
        assert_eq!(merged(&[json]).unwrap(), json);
    }

    #[test]
    fn a_transaction_that_begins_has_said_nothing() {
        let mut context = Context::default();
        context.merge(b"{\"a\":1}").unwrap();
        context.clear();
        assert_eq!(context.json(), None);
        context.merge(b"{\"b\":1}").unwrap();
        assert_eq!(context.json(), Some(&b"{\"b\":1}"[..]));
    }

    #[test]
    fn what_jsonb_cannot_hold_is_left_out_and_the_context_stays() {
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(500), "]".repeat(500));
        let long = format!("{{\"a\":0.{}}}", "1".repeat(20_000));
        let mut context = Context::default();
        context.merge(b"{\"a\":1}").unwrap();
        for wrong in [
            "",
            "null",
            "[]",
            "1",
            "\"a\"",
            "{",
            "{} {}",
            "{\"a\":}",
            "{'a':1}",
            r#"{"a":"\u0000"}"#,
            r#"{"a\u0000":1}"#,
            r#"{"a":[{"b\u0000":1}]}"#,
            r#"{"a":"\ud800"}"#,
            r#"{"a":1e400}"#,
            r#"{"a":1e-20000}"#,
            r#"{"a":[0e99999999999]}"#,
            r#"{"a":NaN}"#,
            &deep,
            &long,
        ] {
            assert_eq!(
                context.merge(wrong.as_bytes()),
                Err(Refused::NotAnObject),
                "{wrong}"
            );
        }
        assert_eq!(
            context.merge(b"{\"a\":\"\xff\"}"),
            Err(Refused::NotAnObject)
        );
        assert_eq!(context.json(), Some(&b"{\"a\":1}"[..]));
    }

    #[test]
    fn text_that_looks_like_a_number_is_text() {
        let json = r#"{"a":"1e99999","b":"\\","c":"\"1e99999","d":[true,false,null,-0,1E5]}"#;
        assert_eq!(merged(&[json]).unwrap(), json);
    }

    #[test]
    fn a_context_has_a_limit() {
        let half = |key: &str| format!("{{\"{key}\":\"{}\"}}", "x".repeat(BYTES_MAX / 2));
        let mut context = Context::default();
        context.merge(half("a").as_bytes()).unwrap();
        let before = context.json().unwrap().to_vec();
        assert_eq!(context.merge(half("b").as_bytes()), Err(Refused::TooLarge));
        assert_eq!(context.json(), Some(&before[..]));
        context.merge(half("a").as_bytes()).unwrap();
        let large = " ".repeat(BYTES_MAX) + "{}";
        assert_eq!(context.merge(large.as_bytes()), Err(Refused::TooLarge));
    }
}
