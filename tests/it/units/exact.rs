//! Which history columns keep every value of a source column.

use waltrail::schema::exact::Type;

/// A type as SQL writes it, with the modifier that a server gives it.
fn kind(text: &str) -> Type {
    let (name, array) = match text.strip_suffix("[]") {
        Some(element) => (element, true),
        None => (text, false),
    };
    let (name, numbers) = match name.split_once('(') {
        Some((name, rest)) => (name, rest.trim_end_matches(')')),
        None => (name, ""),
    };
    let mut numbers = numbers.split(',').filter_map(|n| n.parse::<i32>().ok());
    let modifier = match (name, numbers.next(), numbers.next()) {
        (_, None, _) => -1,
        ("numeric", Some(precision), scale) => (precision << 16 | scale.unwrap_or(0) & 0x7ff) + 4,
        ("varchar" | "bpchar", Some(length), _) => length + 4,
        // The fields, as their bits, and the precision.
        ("interval", Some(fields), precision) => fields << 16 | precision.unwrap_or(0xffff),
        (_, Some(number), _) => number,
    };
    let qualified = match name.contains(['.', ' ']) {
        true => name.to_owned(),
        false => format!("pg_catalog.{name}"),
    };
    Type {
        modifier,
        array,
        ..Type::named(&qualified, None)
    }
}

#[test]
fn these_columns_keep_every_value() {
    for (source, history) in [
        ("int2", "int4"),
        ("int2", "int8"),
        ("int4", "int8"),
        ("int8", "numeric"),
        ("varchar(5)", "varchar(5)"),
        ("varchar(5)", "varchar(6)"),
        ("varchar(5)", "varchar"),
        ("varchar(5)", "text"),
        ("varchar", "text"),
        ("text", "varchar"),
        ("bpchar(5)", "bpchar(5)"),
        ("bpchar(5)", "text"),
        ("numeric(10,2)", "numeric"),
        ("numeric(10,2)", "numeric(12,4)"),
        ("numeric(5,-2)", "numeric(7,0)"),
        ("timestamp(3)", "timestamp"),
        ("timestamp(3)", "timestamp(6)"),
        ("timestamptz", "timestamptz(6)"),
        ("time(0)", "time(3)"),
        ("interval(4)", "interval"),
        ("interval(4)", "interval(4,6)"),
        ("interval(32767,3)", "interval(32767,6)"),
        ("bit(3)", "varbit(3)"),
        ("varbit(3)", "varbit"),
        ("cidr", "inet"),
        ("oid", "int8"),
        ("jsonb", "text"),
        ("public.mood", "public.mood"),
        ("public.mood", "text"),
        ("extension hstore.hstore", "extension hstore.hstore"),
        ("int4[]", "int8[]"),
        ("numeric(10,2)[]", "numeric(12,4)[]"),
        ("public.mood[]", "text"),
        ("public.mood[]", "text[]"),
        ("a dropped type", "text"),
    ] {
        assert!(kind(history).keeps(&kind(source)), "{source} in {history}");
    }
}

#[test]
fn these_columns_change_or_refuse_some_values() {
    for (source, history) in [
        ("int8", "int4"),
        ("int4", "numeric(10,0)"),
        ("int8", "oid"),
        ("int4", "float8"),
        ("float4", "float8"),
        ("float8", "float4"),
        ("numeric", "numeric(10,2)"),
        ("numeric(14,4)", "numeric(10,2)"),
        ("numeric(10,2)", "numeric(11,4)"),
        ("numeric(5,-2)", "numeric(6,0)"),
        ("numeric", "float8"),
        ("varchar(6)", "varchar(5)"),
        ("varchar", "varchar(5)"),
        ("varchar(5)", "bpchar(5)"),
        ("bpchar(5)", "bpchar(6)"),
        ("bpchar(5)", "varchar(5)"),
        ("text", "varchar(5)"),
        ("text", "name"),
        ("text", "char"),
        ("timestamp", "timestamptz"),
        ("timestamptz", "timestamp"),
        ("timestamptz", "timestamptz(0)"),
        ("timestamp(6)", "timestamp(3)"),
        ("date", "timestamp"),
        ("timestamp", "date"),
        ("time", "timetz"),
        ("interval", "interval(4)"),
        ("interval(4)", "interval(8)"),
        ("interval", "interval(32767,0)"),
        ("bit(3)", "bit(4)"),
        ("varbit", "varbit(3)"),
        ("json", "jsonb"),
        ("jsonb", "json"),
        ("public.mood", "other.mood"),
        ("int4[]", "int4"),
        ("int4", "int4[]"),
        ("int4[]", "varchar(5)"),
        ("numeric[]", "numeric(10,2)[]"),
        ("a dropped type", "public.mood"),
    ] {
        assert!(!kind(history).keeps(&kind(source)), "{source} in {history}");
    }
}
