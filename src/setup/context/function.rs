//! The functions on the source that say who makes a change.

use std::fmt::Write as _;

use tokio_postgres::Client;

use crate::fault::Result;
use crate::history::context::{BYTES_MAX, PREFIX};
use crate::server::Side;

/// A longer value is left out, so that a context has room for the others.
const VALUE_BYTES_MAX: usize = 8 * 1024;

/// Whether both functions are as they should be (bodies `$1` and `$2`), and for the roles that they are for.
const CURRENT: &str = "
    SELECT count(*) = 2 AND has_schema_privilege('public', 'waltrail', 'USAGE') FROM pg_catalog.pg_proc p
     WHERE p.pronamespace = to_regnamespace('waltrail') AND p.prosecdef AND p.proconfig = '{\"search_path=\\\"\\\"\"}'
       AND (p.proname = 'say_context' AND p.pronargs = 0 AND p.prosrc = $1 AND NOT has_function_privilege('public', p.oid, 'EXECUTE')
         OR p.proname = 'set_context' AND p.pronargs = 1 AND p.prosrc = $2 AND has_function_privilege('public', p.oid, 'EXECUTE'))";

/// Whether the source has the functions for these settings.
pub(super) async fn are_current(source: &Client, settings: &[String]) -> Result<bool> {
    let failed = Side::Source.failed("could not show its functions");
    let exists = "SELECT to_regnamespace('waltrail') IS NOT NULL";
    if !source
        .query_one(exists, &[])
        .await
        .map_err(failed)?
        .get::<_, bool>(0)
    {
        return Ok(false);
    }
    let encoding = Encoding::of(source).await?;
    let bodies = (say_context(settings, encoding), set_context(encoding));
    let row = source.query_one(CURRENT, &[&bodies.0, &bodies.1]).await;
    Ok(row.map_err(failed)?.get(0))
}

/// The statements that make them. They run as their owner, so that a privilege that was taken from PUBLIC fails no statement
/// of the application; none of them runs anything that a caller controls.
pub(super) async fn statements(source: &Client, settings: &[String]) -> Result<String> {
    let encoding = Encoding::of(source).await?;
    let how = "LANGUAGE plpgsql SECURITY DEFINER SET search_path = ''";
    Ok(format!(
        "CREATE OR REPLACE FUNCTION waltrail.say_context() RETURNS pg_catalog.trigger {how} AS $waltrail${}$waltrail$;\n\
         CREATE OR REPLACE FUNCTION waltrail.set_context(context pg_catalog.jsonb) RETURNS pg_catalog.void {how} \
         AS $waltrail${}$waltrail$;\n\
         REVOKE ALL ON FUNCTION waltrail.say_context() FROM PUBLIC;\n\
         GRANT EXECUTE ON FUNCTION waltrail.set_context(pg_catalog.jsonb) TO PUBLIC;\n\
         GRANT USAGE ON SCHEMA waltrail TO PUBLIC",
        say_context(settings, encoding),
        set_context(encoding),
    ))
}

/// How the database stores text. A message is the bytes of it as they are, and JSON is UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Utf8,
    /// Only ASCII is the same in it. Converting other characters can fail.
    Other,
}

impl Encoding {
    async fn of(source: &Client) -> Result<Self> {
        let name = "SELECT pg_catalog.current_setting('server_encoding')";
        let row = source.query_one(name, &[]).await;
        let row = row.map_err(Side::Source.failed("could not show its encoding"))?;
        Ok(match row.get(0) {
            "UTF8" => Self::Utf8,
            _ => Self::Other,
        })
    }

    /// One more condition on a text that can be said.
    fn can_say(self, text: &str) -> String {
        match self {
            Self::Utf8 => String::new(),
            Self::Other => format!(" AND {text} !~ '[^\\x01-\\x7f]'"),
        }
    }
}

/// The body of the trigger's function. It runs with every statement, and each expression in it is prepared in every
/// transaction, so there are two: is this what was said last, and if not, say it. `waltrail.said` holds that until the
/// transaction ends, or the savepoint is rolled back together with the message. A key that has lost its value is said to be null.
fn say_context(settings: &[String], encoding: Encoding) -> String {
    let json = |value: &str| {
        let fits = encoding.can_say(value);
        format!(
            "pg_catalog.to_json(CASE WHEN pg_catalog.octet_length({value}) BETWEEN 1 AND {VALUE_BYTES_MAX}{fits} \
             THEN {value} END)::pg_catalog.text"
        )
    };
    let role = json("session_user::pg_catalog.text");
    let names = settings.iter().map(String::as_str);
    let (mut all, mut lost, mut entries) = (String::new(), String::new(), String::new());
    for name in ["application_name"].into_iter().chain(names) {
        let value = format!("pg_catalog.current_setting('{name}', true)");
        // Writing to a String cannot fail.
        let _ = write!(all, ", E'\\x01', {value}");
        let _ = write!(lost, ",\"{name}\":null");
        let _ = write!(entries, ",\n        ',\"{name}\":' || {}", json(&value));
    }
    let all = format!("pg_catalog.concat(session_user{all})");
    format!(
        "
DECLARE
    said pg_catalog.text;
BEGIN
    IF pg_catalog.current_setting('waltrail.said', true) = {all} THEN
        RETURN NULL;
    END IF;
    said := CASE WHEN pg_catalog.pg_logical_emit_message(true, '{PREFIX}', pg_catalog.concat(
        '{{\"session_user\":', coalesce({role}, 'null'),
        ',\"client_addr\":\"' || pg_catalog.host(pg_catalog.inet_client_addr()) || '\"',
        CASE WHEN pg_catalog.current_setting('waltrail.said', true) <> '' THEN '{lost}' END{entries},
        '}}')) IS NOT NULL THEN pg_catalog.set_config('waltrail.said', {all}, true) END;
    RETURN NULL;
END
"
    )
}

/// The body of the function that applications may call. What cannot be said is a warning: no caller fails by it.
fn set_context(encoding: Encoding) -> String {
    let text = "context::pg_catalog.text";
    let fits = encoding.can_say(text);
    format!(
        "
DECLARE
    sent pg_catalog.pg_lsn;
BEGIN
    IF pg_catalog.jsonb_typeof(context) = 'object' AND pg_catalog.octet_length({text}) <= {BYTES_MAX}{fits}
        AND NOT pg_catalog.pg_is_in_recovery() THEN
        sent := pg_catalog.pg_logical_emit_message(true, '{PREFIX}', {text});
    ELSIF context IS NOT NULL THEN
        RAISE WARNING 'the context is not set: it must be a JSON object of at most 64 KiB, in UTF8 or ASCII, on a server that is no standby';
    END IF;
END
"
    )
}
