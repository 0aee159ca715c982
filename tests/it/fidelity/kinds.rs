//! Types of columns, and values that show what a type can lose: ends of ranges, signs, zones, blanks, quotes, sizes.

use fastrand::Rng;

use crate::support::daemon::CANARY;

/// Types that the source makes first.
pub const TYPES: &str = "
    CREATE TYPE mood AS ENUM ('sad', 'ok', 'very \"happy\", indeed');
    CREATE TYPE pair AS (a integer, b text);
    CREATE DOMAIN small AS numeric(6,2) CHECK (VALUE > -5000);
    CREATE DOMAIN smaller AS small DEFAULT 7 CHECK (VALUE < 5000);
    CREATE DOMAIN words AS text[];
    CREATE TYPE textrange AS RANGE (subtype = text);";

/// A type, as `format_type` names it, and a value of it as its input function takes it.
pub struct Kind {
    pub name: &'static str,
    value: fn(&mut Rng) -> String,
}

/// The type of a history column beside a column of this type: a domain's own type.
pub fn base(name: &str) -> &str {
    match name {
        "small" | "smaller" => "numeric(6,2)",
        "words" => "text[]",
        other => other,
    }
}

/// Changes of a type that keep the values, exactly for a history or not.
pub const CONVERSIONS: [(&str, &str); 14] = [
    ("smallint", "integer"),
    ("integer", "bigint"),
    ("integer", "text"),
    ("integer", "numeric"),
    ("bigint", "numeric"),
    ("character varying(20)", "text"),
    ("character varying(20)", "character varying(40)"),
    ("numeric(10,2)", "numeric"),
    ("numeric(10,2)", "numeric(14,4)"),
    ("timestamp without time zone", "timestamp with time zone"),
    ("real", "double precision"),
    ("date", "timestamp without time zone"),
    ("text", "name"),
    ("mood", "text"),
];

fn one_of(rng: &mut Rng, values: &[&str]) -> String {
    values[rng.usize(..values.len())].to_owned()
}

fn number(rng: &mut Rng, min: i64, max: i64) -> String {
    match rng.u8(..6) {
        0 => min.to_string(),
        1 => max.to_string(),
        2 => 0.to_string(),
        _ => rng.i64(min..=max).to_string(),
    }
}

fn decimal(rng: &mut Rng) -> String {
    match rng.u8(..8) {
        0 => one_of(rng, &["NaN", "0", "-0.000", "1e-30", "1e40"]),
        1 => format!("{}.00", rng.i32(-99..99)),
        _ => format!("{}.{}", rng.i32(-9_999..9_999), rng.u32(..100_000)),
    }
}

fn float(rng: &mut Rng) -> String {
    match rng.u8(..4) {
        0 => one_of(rng, &["NaN", "Infinity", "-Infinity", "-0", "0.1", "1e-30"]),
        _ => rng.f32().to_string(),
    }
}

fn words(rng: &mut Rng, max: usize) -> String {
    let some = [
        "", " ", "x ", "naïve", "\"q\"", "it's", "\\N", "\\", "a\tb\nc", "NULL", "{x,y}", "雪",
        CANARY,
    ];
    let mut text = String::new();
    for _ in 0..rng.usize(1..4) {
        text.push_str(&one_of(rng, &some));
    }
    text.chars().take(max).collect()
}

/// Text that does not compress to nothing.
fn large(rng: &mut Rng) -> String {
    let length = rng.usize(2_000..9_000);
    (0..length).map(|_| rng.alphanumeric()).collect()
}

fn text(rng: &mut Rng) -> String {
    match rng.u8(..4) {
        0 => large(rng),
        _ => words(rng, 1_000),
    }
}

fn hex(rng: &mut Rng) -> String {
    let length = match rng.u8(..4) {
        0 => rng.usize(1_500..5_000),
        _ => rng.usize(..20),
    };
    let digits: String = (0..length).map(|_| format!("{:02x}", rng.u8(..))).collect();
    format!("\\x{digits}")
}

fn date(rng: &mut Rng) -> String {
    match rng.u8(..6) {
        0 => one_of(
            rng,
            &["infinity", "-infinity", "0044-03-15 BC", "1999-12-31"],
        ),
        _ => plain_date(rng),
    }
}

fn plain_date(rng: &mut Rng) -> String {
    format!(
        "{}-{:02}-{:02}",
        rng.u16(1900..2100),
        rng.u8(1..=12),
        rng.u8(1..=28)
    )
}

fn clock(rng: &mut Rng) -> String {
    format!(
        "{:02}:{:02}:{:02}.{:06}",
        rng.u8(..24),
        rng.u8(..60),
        rng.u8(..60),
        rng.u32(..1_000_000)
    )
}

fn moment(rng: &mut Rng) -> String {
    match rng.u8(..6) {
        0 => one_of(rng, &["infinity", "-infinity", "0001-01-01 00:00:00 BC"]),
        _ => format!("{} {}", plain_date(rng), clock(rng)),
    }
}

fn zoned(rng: &mut Rng) -> String {
    let zone = one_of(rng, &["+00", "-08", "+05:45", "+13"]);
    match rng.u8(..6) {
        0 => "infinity".to_owned(),
        _ => format!("{} {}{zone}", plain_date(rng), clock(rng)),
    }
}

fn interval(rng: &mut Rng) -> String {
    match rng.u8(..4) {
        0 => one_of(rng, &["0", "-1 mon +30 days", "1 year -00:00:00.000001"]),
        _ => format!(
            "{} mons {} days {}",
            rng.i32(-30..30),
            rng.i32(-99..99),
            clock(rng)
        ),
    }
}

fn bits(rng: &mut Rng, length: usize) -> String {
    (0..length)
        .map(|_| if rng.bool() { '1' } else { '0' })
        .collect()
}

fn json(rng: &mut Rng) -> String {
    match rng.u8(..6) {
        0 => one_of(rng, &["null", "[]", "{}", "1.00", "\"x\"", "true"]),
        1 => format!("{{\"big\": \"{}\"}}", large(rng)),
        _ => format!(
            "{{\"b\": {}, \"a\":  [1, null, \"{CANARY}\"]}}",
            rng.i32(..)
        ),
    }
}

fn range(rng: &mut Rng, value: fn(&mut Rng) -> String) -> String {
    match rng.u8(..5) {
        0 => "empty".to_owned(),
        1 => "(,)".to_owned(),
        2 => format!("[{},)", value(rng)),
        _ => format!("(,{}]", value(rng)),
    }
}

fn array(rng: &mut Rng, value: fn(&mut Rng) -> String) -> String {
    let items: Vec<String> = (0..rng.usize(..4))
        .map(|_| match rng.u8(..4) {
            0 => "NULL".to_owned(),
            _ => {
                let item = value(rng).replace('\\', "\\\\").replace('"', "\\\"");
                format!("\"{item}\"")
            }
        })
        .collect();
    format!("{{{}}}", items.join(","))
}

fn int4(rng: &mut Rng) -> String {
    number(rng, i32::MIN.into(), i32::MAX.into())
}

fn modest(rng: &mut Rng) -> String {
    rng.i32(-1_000_000..1_000_000).to_string()
}

fn small(rng: &mut Rng) -> String {
    format!("{}.{:02}", rng.i32(-4_999..4_999), rng.u8(..100))
}

fn mood(rng: &mut Rng) -> String {
    one_of(rng, &["sad", "ok", "very \"happy\", indeed"])
}

fn pair(rng: &mut Rng) -> String {
    match rng.u8(..3) {
        0 => "(,)".to_owned(),
        1 => format!("({},\"\")", rng.i32(..)),
        _ => format!("({},\"{CANARY} \"\"x\"\", y\")", rng.i32(..)),
    }
}

fn point(rng: &mut Rng) -> String {
    format!("({},{})", rng.i16(..), rng.f32())
}

const fn kind(name: &'static str, value: fn(&mut Rng) -> String) -> Kind {
    Kind { name, value }
}

pub const KINDS: &[Kind] = &[
    kind("boolean", |rng| one_of(rng, &["t", "f"])),
    kind("smallint", |rng| number(rng, -32_768, 32_767)),
    kind("integer", int4),
    kind("bigint", |rng| number(rng, i64::MIN, i64::MAX)),
    kind("numeric", decimal),
    kind("numeric(10,2)", small),
    kind("numeric(14,4)", small),
    kind("real", float),
    kind("double precision", float),
    kind("money", |rng| {
        format!("{}.{:02}", rng.i32(..), rng.u8(..100))
    }),
    kind("text", text),
    kind("text", text),
    kind("character varying(20)", |rng| words(rng, 20)),
    kind("character varying(40)", |rng| words(rng, 40)),
    kind("character(5)", |rng| words(rng, 5)),
    kind("\"char\"", |rng| one_of(rng, &["a", "", "'"])),
    kind("name", |rng| words(rng, 15)),
    kind("bytea", hex),
    kind("date", date),
    kind("time without time zone", clock),
    kind("time(2) without time zone", clock),
    kind("time with time zone", |rng| format!("{}-03:30", clock(rng))),
    kind("timestamp without time zone", moment),
    kind("timestamp(3) without time zone", moment),
    kind("timestamp with time zone", zoned),
    kind("timestamp(0) with time zone", zoned),
    kind("interval", interval),
    kind("interval day to second(3)", interval),
    kind("uuid", |rng| format!("{:032x}", rng.u128(..))),
    kind("json", json),
    kind("jsonb", json),
    kind("inet", |rng| {
        format!("10.{}.0.1/{}", rng.u8(..), rng.u8(8..=32))
    }),
    kind("cidr", |rng| format!("10.{}.0.0/16", rng.u8(..))),
    kind("macaddr", |rng| {
        format!("08:00:2b:01:02:{:02x}", rng.u8(..))
    }),
    kind("macaddr8", |rng| {
        format!("08:00:2b:01:02:03:04:{:02x}", rng.u8(..))
    }),
    kind("bit(5)", |rng| bits(rng, 5)),
    kind("bit varying(8)", |rng| {
        let length = rng.usize(..=8);
        bits(rng, length)
    }),
    kind("bit varying", |rng| {
        let length = rng.usize(..40);
        bits(rng, length)
    }),
    kind("point", point),
    kind("box", |rng| format!("{},{}", point(rng), point(rng))),
    kind("lseg", |rng| format!("[{},{}]", point(rng), point(rng))),
    kind("path", |rng| format!("[{},{}]", point(rng), point(rng))),
    kind("polygon", |rng| format!("({},{})", point(rng), point(rng))),
    kind("circle", |rng| format!("<{},{}>", point(rng), rng.u8(..))),
    kind("line", |rng| format!("{{1,{},2}}", rng.i16(..))),
    kind("oid", |rng| number(rng, 0, u32::MAX.into())),
    kind("xid8", |rng| number(rng, 0, i64::MAX)),
    kind("tid", |rng| format!("({},{})", rng.u16(..), rng.u8(1..))),
    kind("pg_lsn", |rng| {
        format!("{:X}/{:X}", rng.u16(..), rng.u32(..))
    }),
    kind("pg_snapshot", |rng| format!("{0}:{0}:", rng.u16(1..))),
    kind("tsvector", |rng| {
        one_of(rng, &["", "'a':1A 'b c':2,3", "canary"])
    }),
    kind("tsquery", |rng| {
        one_of(rng, &["", "a & !b", "'c d' <-> e:*"])
    }),
    kind("jsonpath", |rng| {
        one_of(rng, &["$.a[*]", "strict $.\"b\" ? (@ > 1)"])
    }),
    kind("int2vector", |rng| one_of(rng, &["", "1 2", "-3"])),
    kind("oidvector", |rng| one_of(rng, &["", "1 2", "3"])),
    kind("integer[]", |rng| array(rng, int4)),
    kind("text[]", |rng| array(rng, |rng| words(rng, 50))),
    kind("numeric[]", |rng| array(rng, decimal)),
    kind("timestamp with time zone[]", |rng| array(rng, zoned)),
    kind("jsonb[]", |rng| {
        array(rng, |rng| one_of(rng, &["1", "{\"a\": 2}"]))
    }),
    kind("int4range", |rng| range(rng, modest)),
    kind("int8range", |rng| range(rng, modest)),
    kind("numrange", |rng| range(rng, small)),
    kind("daterange", |rng| range(rng, plain_date)),
    kind("tstzrange", |rng| range(rng, plain_date)),
    kind("int4multirange", |rng| {
        format!("{{{}}}", range(rng, modest))
    }),
    kind("nummultirange", |rng| format!("{{{}}}", range(rng, small))),
    kind("mood", mood),
    kind("mood[]", |rng| array(rng, mood)),
    kind("pair", pair),
    kind("pair[]", |rng| array(rng, pair)),
    kind("small", small),
    kind("smaller", small),
    kind("small[]", |rng| array(rng, small)),
    kind("words", |rng| array(rng, |rng| words(rng, 50))),
    kind("textrange", |rng| {
        range(rng, |rng| one_of(rng, &["a", "\"b c\""]))
    }),
    kind("textmultirange", |rng| {
        format!("{{{}}}", range(rng, |rng| one_of(rng, &["a", "z"])))
    }),
];

/// Any type.
pub fn any(rng: &mut Rng) -> &'static str {
    KINDS[rng.usize(..KINDS.len())].name
}

/// A value of this type, `None` for NULL.
pub fn value(rng: &mut Rng, name: &str) -> Option<String> {
    let kind = KINDS.iter().find(|kind| kind.name == name)?;
    (rng.u8(..6) > 0).then(|| (kind.value)(rng))
}
