//! Connection strings, taken apart into keywords and values.
//!
//! Both forms of libpq (manual, section 34.1.1) end as the same list of settings, which is what
//! lets a service file and `PG*` variables fill what a string leaves out. Pure. **An error never
//! holds a piece of the text**, because any piece may be a piece of a password; only a keyword is
//! named, and only where it cannot be the rest of an unquoted password.

use std::collections::BTreeMap;

use percent_encoding::percent_decode_str;

/// Keywords and values of one connection string; the last of two equal keywords counts.
pub(super) type Settings = BTreeMap<&'static str, String>;

/// What libpq knows and this program acts on.
const KEYWORDS: &str = "\
    application_name channel_binding client_encoding connect_timeout dbname fallback_application_name gssencmode \
    host hostaddr keepalives keepalives_count keepalives_idle keepalives_interval load_balance_hosts options \
    passfile password port service servicefile ssl_max_protocol_version ssl_min_protocol_version sslcert sslcertmode \
    sslcompression sslcrl sslcrldir sslkey sslmode sslnegotiation sslrootcert sslsni target_session_attrs \
    tcp_user_timeout user";

/// What libpq knows and this program does not do.
const UNSUPPORTED_KEYWORDS: &str = "\
    gssdelegation gsslib krbsrvname max_protocol_version min_protocol_version oauth_client_id oauth_client_secret \
    oauth_issuer oauth_scope replication require_auth requirepeer scram_client_key scram_server_key sslkeylogfile \
    sslpassword";

/// Why a connection string is refused; a clause without any of its text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum DsnError {
    #[error("has a keyword without `=`")]
    MissingEquals,
    #[error("has a quoted value that never ends")]
    UnclosedQuote,
    #[error("has the unknown keyword `{0}`")]
    UnknownKeyword(String),
    #[error("has something after the password that is no known keyword")]
    AfterPassword,
    #[error("sets `{0}`, which waltrail does not support")]
    Unsupported(&'static str),
    #[error("has `@` after its host; write it as %40")]
    LateAt,
    #[error("has a `%` that is not followed by two hexadecimal digits of UTF-8 text")]
    Percent,
    #[error("has an IPv6 address whose bracket is not closed")]
    Bracket,
    #[error("is a URI with more than a database after its host; write `/` as %2F")]
    Path,
    #[error("is a URI with a parameter without `=`")]
    Parameter,
}

/// Takes a connection string apart, whichever its form.
pub(super) fn parse(text: &str) -> Result<Settings, DsnError> {
    ["postgres://", "postgresql://"]
        .iter()
        .find_map(|scheme| text.strip_prefix(scheme))
        .map_or_else(|| parse_pairs(text), parse_uri)
}

/// What a connection string begins with; the rest follows by name.
const FIRST: [&str; 6] = ["service", "host", "hostaddr", "port", "dbname", "user"];

/// Settings as a connection string of keywords and values.
pub(super) fn text(settings: &Settings) -> String {
    let mut settings: Vec<_> = settings.iter().collect();
    let place = |keyword: &str| FIRST.iter().position(|first| *first == keyword);
    settings.sort_by_key(|(keyword, _)| place(keyword).unwrap_or(FIRST.len()));
    let pair = |(keyword, value): &(&&str, &String)| {
        let acts = |c: char| c.is_whitespace() || matches!(c, '\'' | '\\');
        match value.is_empty() || value.contains(acts) {
            false => format!("{keyword}={value}"),
            true => {
                let value = value.replace('\\', r"\\").replace('\'', r"\'");
                format!("{keyword}='{value}'")
            }
        }
    };
    let pairs: Vec<String> = settings.iter().map(pair).collect();
    pairs.join(" ")
}

/// Finds the known keyword this is, or says why it is not usable.
pub(super) fn keyword(name: &str) -> Result<&'static str, DsnError> {
    let of = |list: &'static str| list.split_whitespace().find(|known| *known == name);
    if let Some(known) = of(KEYWORDS) {
        return Ok(known);
    }
    if let Some(known) = of(UNSUPPORTED_KEYWORDS) {
        return Err(DsnError::Unsupported(known));
    }
    // A password with an `=` in the wrong place would be named here; what looks like no keyword is
    // not repeated.
    let plain = name.len() <= 32 && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    Err(DsnError::UnknownKeyword(if plain {
        name.to_owned()
    } else {
        "(not shown)".to_owned()
    }))
}

fn parse_pairs(text: &str) -> Result<Settings, DsnError> {
    let mut settings = Settings::new();
    let mut rest = text.trim_start();
    let mut after_bare_password = false;
    while !rest.is_empty() {
        let length = rest
            .find(|c: char| c == '=' || c.is_whitespace())
            .unwrap_or(rest.len());
        let (name, tail) = rest.split_at(length);
        let known = match keyword(name) {
            Err(DsnError::UnknownKeyword(_)) if after_bare_password => {
                return Err(DsnError::AfterPassword);
            }
            known => known,
        };
        // Without its `=` a text is not yet a keyword, and must not be named as one.
        let tail = tail
            .trim_start()
            .strip_prefix('=')
            .ok_or(DsnError::MissingEquals)?
            .trim_start();
        let known = known?;
        let (value, tail, bare) = pair_value(tail)?;
        after_bare_password = bare && known == "password";
        settings.insert(known, value);
        rest = tail.trim_start();
    }
    Ok(settings)
}

/// The value at the start of `text`, what follows, and whether it stood without quotes.
fn pair_value(text: &str) -> Result<(String, &str, bool), DsnError> {
    let (quoted, body) = match text.strip_prefix('\'') {
        Some(body) => (true, body),
        None => (false, text),
    };
    let mut value = String::new();
    let mut characters = body.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            '\'' if quoted => return Ok((value, &body[at + 1..], false)),
            c if !quoted && c.is_whitespace() => return Ok((value, &body[at..], true)),
            c => value.push(c),
        }
    }
    if quoted {
        return Err(DsnError::UnclosedQuote);
    }
    Ok((value, "", true))
}

fn parse_uri(text: &str) -> Result<Settings, DsnError> {
    let mut settings = Settings::new();
    let mut rest = text;
    // As in libpq, an `@` before the first `/` ends credentials.
    let authority_end = text.find('/').unwrap_or(text.len());
    if let Some(at) = text[..authority_end].find('@') {
        let (user, password) = text[..at]
            .split_once(':')
            .map_or((&text[..at], None), |(user, password)| {
                (user, Some(password))
            });
        settings.insert("user", decode(user)?);
        if let Some(password) = password {
            settings.insert("password", decode(password)?);
        }
        rest = &text[at + 1..];
    }
    if rest.contains('@') {
        return Err(DsnError::LateAt);
    }
    let (rest, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    if database.contains('/') {
        return Err(DsnError::Path);
    }
    let (mut hosts, mut ports) = (Vec::new(), Vec::new());
    for part in authority.split(',') {
        let (host, port) = match part.strip_prefix('[') {
            Some(address) => {
                let (host, port) = address.split_once(']').ok_or(DsnError::Bracket)?;
                (host, port.strip_prefix(':').unwrap_or(port))
            }
            None => part.split_once(':').unwrap_or((part, "")),
        };
        hosts.push(decode(host)?);
        ports.push(decode(port)?);
    }
    for (key, parts) in [("host", hosts), ("port", ports)] {
        if parts.iter().any(|part| !part.is_empty()) {
            settings.insert(key, parts.join(","));
        }
    }
    if !database.is_empty() {
        settings.insert("dbname", decode(database)?);
    }
    for parameter in parameters.split('&').filter(|p| !p.is_empty()) {
        let (name, value) = parameter.split_once('=').ok_or(DsnError::Parameter)?;
        if name == "ssl" && value == "true" {
            // libpq's courtesy to JDBC's spelling.
            settings.insert("sslmode", "require".to_owned());
        } else {
            settings.insert(keyword(&decode(name)?)?, decode(value)?);
        }
    }
    Ok(settings)
}

fn decode(text: &str) -> Result<String, DsnError> {
    let escapes = text.split('%').skip(1);
    let is_hex = |escape: &str| {
        let digits = escape.as_bytes().first_chunk::<2>();
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    };
    if !escapes.into_iter().all(is_hex) {
        return Err(DsnError::Percent);
    }
    let decoded = percent_decode_str(text).decode_utf8();
    Ok(decoded.map_err(|_| DsnError::Percent)?.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pairs(text: &str) -> Vec<(&'static str, String)> {
        parse(text).expect(text).into_iter().collect()
    }

    #[test]
    fn both_forms_say_the_same() {
        let expected =
            pairs(r"host=db.example port=5433 dbname='my db' user=bob password='p\'w@/'");
        assert_eq!(
            pairs("postgresql://bob:p'w%40%2F@db.example:5433/my%20db"),
            expected
        );
        assert_eq!(
            pairs("postgres:///my%20db?host=db.example&port=5433&user=bob&password=p'w%40%2F"),
            expected
        );
    }

    #[test]
    fn several_hosts_keep_their_ports() {
        assert_eq!(
            pairs("postgres://a:1,[::1]:2,c/db"),
            [
                ("dbname", "db".to_owned()),
                ("host", "a,::1,c".to_owned()),
                ("port", "1,2,".to_owned())
            ]
        );
    }

    #[test]
    fn a_socket_folder_fits_into_a_uri() {
        assert_eq!(
            pairs("postgres://%2Fvar%2Frun%2Fpostgresql/app"),
            [
                ("dbname", "app".to_owned()),
                ("host", "/var/run/postgresql".to_owned())
            ]
        );
    }

    #[test]
    fn a_refusal_never_repeats_what_may_be_a_password() {
        for text in [
            "postgres://u:canary@canary@host/db",
            "postgres://u:12/canary@host/db",
            "postgres://u:12/canary/db",
            "postgres://u:1/x?canary=1@host",
            "postgres://u:canary%zz@host/db",
            "postgres://u@host/db?canary",
            "postgres://u@[canary/db",
            "password=a canary=b",
            "password=a canary",
            "password='canary",
            "canary",
            "host=a CANARY=1",
        ] {
            let error = parse(text).expect_err(text).to_string();
            assert!(!error.to_lowercase().contains("canary"), "{text}: {error}");
        }
    }

    #[test]
    fn unknown_and_unusable_keywords_are_named() {
        for (text, error) in [
            ("hots=a", DsnError::UnknownKeyword("hots".into())),
            (
                "postgres://h/d?hots=a",
                DsnError::UnknownKeyword("hots".into()),
            ),
            ("sslpassword=x", DsnError::Unsupported("sslpassword")),
            ("replication=true", DsnError::Unsupported("replication")),
        ] {
            assert_eq!(parse(text), Err(error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back_as_itself(host in ".{0,12}", password in ".{0,12}") {
            let settings = Settings::from([("host", host), ("password", password)]);
            prop_assert_eq!(parse(&text(&settings)), Ok(settings));
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let _ = parse(&text);
            let _ = parse(&format!("postgres://{text}"));
        }
    }
}
