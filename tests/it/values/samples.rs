//! Every type with values at its edges, and the built-in types that no table can be filled with.
//!
//! Only the types of elements are here: `values.rs` makes an array column of every one of them.

use Form::{Binary, Text};

/// How the values of a type travel where source and target know it by the same OID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Binary,
    /// There is no binary form that another server can be trusted with.
    Text,
    /// The type as [`Form::Binary`], its array as [`Form::Text`].
    ElementBinary,
}

pub struct Sample {
    pub kind: &'static str,
    pub form: Form,
    /// SQL expressions; a row more has NULL.
    pub values: &'static [&'static str],
}

/// Built-in types of pg_type that are not in [`SAMPLES`], and why. A name that ends in `%` is a beginning.
pub const EXCEPTIONS: &[(&str, &str)] = &[
    ("pg_node_tree", "its input function refuses every value"),
    ("pg_ndistinct", "its input function refuses every value"),
    ("pg_dependencies", "its input function refuses every value"),
    ("pg_mcv_list", "its input function refuses every value"),
    (
        "pg_brin_bloom_summary",
        "its input function refuses every value",
    ),
    (
        "pg_brin_minmax_multi_summary",
        "its input function refuses every value",
    ),
    ("gtsvector", "its input function refuses every value"),
    (
        "gtsvector[]",
        "its elements' input function refuses every value",
    ),
    ("cstring[]", "an array of a pseudo-type"),
    ("pg_type[]", "rows of a system catalog"),
    ("pg_attribute[]", "rows of a system catalog"),
    ("pg_proc[]", "rows of a system catalog"),
    ("pg_class[]", "rows of a system catalog"),
];

/// Types of the user, in any nesting.
pub const USER_TYPES: &str = "
    CREATE TYPE mood AS ENUM ('sad', 'so so', 'glad, \"very\"');
    CREATE DOMAIN percent AS numeric CHECK (value BETWEEN 0 AND 100);
    CREATE DOMAIN percents AS percent;
    CREATE DOMAIN short AS varchar(5) COLLATE \"C\";
    CREATE DOMAIN needed AS integer DEFAULT 5 NOT NULL;
    CREATE DOMAIN moods AS mood[];
    CREATE DOMAIN percent_list AS percent[];
    CREATE TYPE point3 AS (x integer, y text, z numeric);
    CREATE DOMAIN low_point AS point3 CHECK ((value).x < 100);
    CREATE TYPE floats AS RANGE (subtype = float8);
    CREATE TYPE mood_range AS RANGE (subtype = mood);
    CREATE TYPE percent_range AS RANGE (subtype = percent);
    CREATE TYPE point_range AS RANGE (subtype = point3);
    CREATE TYPE nested AS (a point3, b point3[], m mood, p percents, r floats, l percent_list);
    CREATE TYPE deeper AS (n nested, ns nested[], at timestamptz);";

/// Extensions of contrib whose types are samples.
pub const EXTENSIONS: [&str; 4] = ["hstore", "citext", "ltree", "cube"];

pub const EXTENSION_SAMPLES: &[(&str, Sample)] = &[
    (
        "hstore",
        sample(
            "public.hstore",
            Text,
            &[
                r#"'a=>1, "b c"=>NULL, "NULL"=>"NULL", ""=>""'"#,
                "''",
                r#"'"q\"\\"=>"CANARY, => x"'"#,
            ],
        ),
    ),
    (
        "citext",
        sample(
            "public.citext",
            Text,
            &["'MiXed CANARY'", "''", r"E'\\N\t\n'"],
        ),
    ),
    (
        "ltree",
        sample(
            "public.ltree",
            Text,
            &["'Top.Science.Astronomy'", "''", "'a'"],
        ),
    ),
    (
        "ltree",
        sample(
            "public.lquery",
            Text,
            &["'Top.*{1,2}.!Sc*@%'", "'*'", "'a|b'"],
        ),
    ),
    (
        "ltree",
        sample("public.ltxtquery", Text, &["'a & !(b* | c@)'", "'a'"]),
    ),
    (
        "cube",
        sample(
            "public.cube",
            Text,
            &["'(0.1,-0),(1e300,2)'", "'()'", "'(1,2,3)'", "'5'"],
        ),
    ),
];

const fn sample(kind: &'static str, form: Form, values: &'static [&'static str]) -> Sample {
    Sample { kind, form, values }
}

/// The samples of the built-in types, from the oldest server on.
pub const SAMPLES: &[Sample] = &[
    sample("boolean", Binary, &["true", "false"]),
    sample("smallint", Binary, &["-32768", "32767", "0"]),
    sample("integer", Binary, &["-2147483648", "2147483647", "0"]),
    sample(
        "bigint",
        Binary,
        &["'-9223372036854775808'", "9223372036854775807", "0"],
    ),
    sample(
        "real",
        Binary,
        &[
            "'NaN'",
            "'-Infinity'",
            "'Infinity'",
            "'-0'",
            "0.1",
            "1e-45",
            "3.4028235e38",
        ],
    ),
    sample(
        "double precision",
        Binary,
        &[
            "'NaN'",
            "'-Infinity'",
            "'Infinity'",
            "'-0'",
            "0.1::float8 + 0.2",
            "5e-324",
            "1.7976931348623157e308",
        ],
    ),
    sample(
        "numeric",
        Binary,
        &[
            "'NaN'",
            "'-Infinity'",
            "'Infinity'",
            "123456789012345678901234567890.000",
            "0.00000000000000000000",
            "-0.1e-50",
            "('1' || repeat('0', 40000) || '.' || repeat('0', 9999) || '1')::numeric",
            "('0.' || repeat('0', 16382) || '1')::numeric",
        ],
    ),
    sample("numeric(10,3)", Binary, &["1.5", "'NaN'", "-0.001"]),
    sample(
        "money",
        Binary,
        &[
            "'1234567.89'",
            "'-0.01'",
            "'-92233720368547758.08'",
            "'92233720368547758.07'",
        ],
    ),
    sample(
        "text",
        Binary,
        &[
            r"E'tab\there\nand\rthere\\N \\. \\'",
            "''",
            r"'\N'",
            "'\\.'",
            "'NULL'",
            "'ünïcödé 😀 CANARY'",
            "'caf\u{e9} CANARY'",
            "repeat('long CANARY ', 2000)",
        ],
    ),
    sample(
        "character varying(30)",
        Binary,
        &[r"E'CANARY\b\f\v\x01\x7f'", "'x   '", "'\\.'"],
    ),
    sample("character varying", Binary, &["'  x  '", "''", "'\\'"]),
    sample(
        "character(5)",
        Binary,
        &["'a'", "'     '", "'ab\tc'", "'é'"],
    ),
    sample("bpchar", Binary, &["'a   '", "''", "'   '"]),
    sample(
        "\"char\"",
        Binary,
        &["'x'", "''", "'\\'", "'\t'", "127::integer", "1::integer"],
    ),
    sample("name", Binary, &["'a name'", "''", "repeat('x', 63)"]),
    sample(
        "bytea",
        Binary,
        &[
            r"'\x00ff5c0a09'",
            "''",
            r"'\x5c4e'",
            r"'\x5c2e'",
            r"repeat('CANARY', 5000)::bytea",
        ],
    ),
    sample(
        "date",
        Binary,
        &[
            "'infinity'",
            "'-infinity'",
            "'4714-11-24 BC'",
            "'0001-01-01 BC'",
            "'2024-02-29'",
            "'5874897-12-31'",
        ],
    ),
    sample(
        "time without time zone",
        Binary,
        &["'24:00'", "'00:00:00.000001'", "'23:59:60'"],
    ),
    sample("time(2) without time zone", Binary, &["'12:00:00.129'"]),
    sample(
        "time with time zone",
        Binary,
        &[
            "'24:00+05:45'",
            "'00:00:00.000001-15:59:59'",
            "'12:00+15:59:59'",
        ],
    ),
    sample(
        "timestamp without time zone",
        Binary,
        &[
            "'-infinity'",
            "'infinity'",
            "'4714-11-24 00:00 BC'",
            "'294276-12-31 23:59:59.999999'",
            "'2024-03-31 02:30:00.123456'",
        ],
    ),
    sample(
        "timestamp with time zone",
        Binary,
        &[
            "'infinity'",
            "'-infinity'",
            "'4714-11-24 00:00Z BC'",
            "'294276-12-31 23:59:59.999999Z'",
            "'2024-03-31 02:30:00.123456+05:45'",
            "'1883-11-18 12:03:58 America/New_York'",
        ],
    ),
    sample(
        "timestamp(0) with time zone",
        Binary,
        &["'2024-12-31 23:59:59.6Z'", "'1900-01-01Z'"],
    ),
    sample(
        "interval",
        Binary,
        &[
            "'-1 year 2 months -3 days 04:05:06.7'",
            "'178000000 years'",
            "'-178956970 years -8 mons'",
            "'0'",
            "'1 mon -1 day'",
            "'24:00' ",
            "'30 days'",
        ],
    ),
    sample(
        "interval day to second",
        Binary,
        &["'1 02:03:04.5'", "'-1 day'", "'0'"],
    ),
    sample(
        "uuid",
        Binary,
        &[
            "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'",
            "'00000000-0000-0000-0000-000000000000'",
        ],
    ),
    sample(
        "json",
        Binary,
        &[
            r#"'{"b":1, "a" : "\t\\", "a":null}'"#,
            "'null'",
            r#"'"\u00e9"'"#,
            r#"'  [ 1.0,1e400 , -0 ]
            '"#,
            r#"'{"":{}}'"#,
        ],
    ),
    sample(
        "jsonb",
        Binary,
        &[
            r#"'{"b":1, "a" : "\t\\", "a":null}'"#,
            "'null'",
            "'[1e400, 1.00, -0]'",
            r#"'{"": [[], {}], "CANARY": "\u00e9"}'"#,
        ],
    ),
    sample(
        "jsonpath",
        Binary,
        &["'$.a[*] ? (@ > 1)'", "'$'", "'strict $.\"x y\"'"],
    ),
    sample(
        "xml",
        Binary,
        &[
            "'<a b=\"1\">\t</a>'",
            "'<a/>'",
            "'<?x?><b/>'",
            "'text only <b>é CANARY</b>'",
            "XMLPARSE (DOCUMENT '<!DOCTYPE a [<!ELEMENT a ANY>]><a/>')",
            "XMLPARSE (CONTENT '<?xml version=\"1.0\" standalone=\"yes\"?><a/>')",
        ],
    ),
    sample(
        "inet",
        Binary,
        &[
            "'192.168.0.1/24'",
            "'::1'",
            "'10.0.0.1'",
            "'::ffff:1.2.3.4/128'",
            "'0.0.0.0/0'",
        ],
    ),
    sample(
        "cidr",
        Binary,
        &["'10.0.0.0/8'", "'::/0'", "'10.1.2.3/32'", "'2001:db8::/32'"],
    ),
    sample(
        "macaddr",
        Binary,
        &["'08:00:2b:01:02:03'", "'ff:ff:ff:ff:ff:ff'"],
    ),
    sample("macaddr8", Binary, &["'08:00:2b:01:02:03:04:05'"]),
    sample("bit(3)", Binary, &["'101'", "'000'", "'111'"]),
    sample(
        "bit varying",
        Binary,
        &["''", "'10101010101'", "'1'", "repeat('10', 500)::varbit"],
    ),
    sample("bit varying(5)", Binary, &["''", "'10101'"]),
    sample(
        "point",
        Binary,
        &["'(0.1,-0)'", "'(NaN,Infinity)'", "'(1e300,1e-300)'"],
    ),
    sample("line", Binary, &["'{1,2,3}'", "'{0,1,0.1}'"]),
    sample("lseg", Binary, &["'[(0,0),(1,0.1)]'"]),
    sample("box", Binary, &["'(1,1),(0,0.1)'", "'(0,0),(0,0)'"]),
    sample("path", Binary, &["'[(0,0),(1,0.1)]'", "'((0,0),(1,1))'"]),
    sample("polygon", Binary, &["'((0,0),(1,0.1),(1,0))'", "'(1,2)'"]),
    sample("circle", Binary, &["'<(0,0),0.1>'", "'<(0,-0),0>'"]),
    sample("tsvector", Binary, &["'a:1A ''b c'':2,3'", "''", "'x'"]),
    sample(
        "tsquery",
        Text,
        &["'a & !b:*A <2> c'", "''", "'x'", "'!!a | ''b c'':BD'"],
    ),
    sample("pg_lsn", Binary, &["'FFFFFFFF/FFFFFFFF'", "'0/0'"]),
    sample("xid", Binary, &["'4294967295'", "'0'"]),
    sample("cid", Binary, &["'4294967295'", "'0'"]),
    sample("tid", Binary, &["'(4294967295,65535)'", "'(0,0)'"]),
    sample("xid8", Binary, &["'18446744073709551615'", "'0'"]),
    sample("oid", Binary, &["4294967295", "0", "1"]),
    sample("refcursor", Binary, &["'a cursor'", "''"]),
    sample("txid_snapshot", Binary, &["'10:20:10,14,15'", "'1:1:'"]),
    sample("pg_snapshot", Binary, &["'10:20:10,14,15'", "'1:1:'"]),
    sample(
        "aclitem",
        Text,
        &["'postgres=r*w/postgres'", "'=U/postgres'"],
    ),
    sample("int2vector", Text, &["'1 -2'", "''"]),
    sample("oidvector", Text, &["'4294967295 0'", "''"]),
    sample("int4range", Binary, &["'[1,5]'", "'empty'", "'(,)'"]),
    sample(
        "int8range",
        Binary,
        &["'[-9223372036854775808,5)'", "'empty'", "'(,5]'"],
    ),
    sample(
        "numrange",
        Binary,
        &["'(0.10,1.5]'", "'[1,]'", "'empty'", "'[NaN,NaN]'"],
    ),
    sample(
        "tsrange",
        Binary,
        &[
            "'[-infinity,infinity]'",
            "'(,4714-11-24 00:00 BC]'",
            "'empty'",
        ],
    ),
    sample(
        "tstzrange",
        Binary,
        &["'[2024-01-01Z,infinity)'", "'empty'", "'(,2000-01-01Z)'"],
    ),
    sample(
        "daterange",
        Binary,
        &["'[2024-01-01,2024-02-01)'", "'empty'", "'[infinity,)'"],
    ),
    sample(
        "int4multirange",
        Binary,
        &["'{[1,3),[5,9)}'", "'{}'", "'{(,)}'"],
    ),
    sample("int8multirange", Binary, &["'{[1,3),[5,9)}'", "'{}'"]),
    sample(
        "nummultirange",
        Binary,
        &["'{(,-0.10),[1.50,2.0]}'", "'{}'", "'{(,)}'"],
    ),
    sample(
        "tsmultirange",
        Binary,
        &["'{[2024-01-01,2024-01-02)}'", "'{}'"],
    ),
    sample(
        "tstzmultirange",
        Binary,
        &["'{[2024-01-01Z,infinity]}'", "'{}'"],
    ),
    sample("datemultirange", Binary, &["'{(,2024-01-01)}'", "'{}'"]),
    sample("regproc", Text, &["'pg_catalog.now'", "0"]),
    sample("regprocedure", Text, &["'lower(text)'", "0"]),
    sample("regoper", Text, &["'pg_catalog.||/'", "0"]),
    sample("regoperator", Text, &["'+(integer,integer)'", "0"]),
    sample("regclass", Text, &["'pg_class'", "'public.samples'", "0"]),
    sample("regcollation", Text, &["'\"C\"'", "0"]),
    sample("regtype", Text, &["'integer'", "'public.mood'", "0"]),
    sample("regrole", Text, &["'postgres'", "0"]),
    sample("regnamespace", Text, &["'public'", "'pg_catalog'", "0"]),
    sample("regconfig", Text, &["'english'", "0"]),
    sample("regdictionary", Text, &["'simple'", "0"]),
];

/// For databases without an encoding: bytes that are no UTF-8.
pub const BYTES: Sample = sample(
    "text",
    Binary,
    &[
        r"convert_from('\x63616665e9', 'SQL_ASCII')",
        r"convert_from('\xff80fe', 'SQL_ASCII')",
    ],
);

/// What only a server of this version and later has.
pub const LATER_SAMPLES: &[(u32, Sample)] = &[
    (15, sample("numeric(3,-2)", Binary, &["12345", "'NaN'"])),
    (15, sample("numeric(2,5)", Binary, &["0.00012"])),
    (
        17,
        sample("interval hour", Binary, &["'infinity'", "'-infinity'"]),
    ),
    (17, sample("jsonpath", Binary, &["'$.a.bigint()'"])),
];

/// The samples of [`USER_TYPES`].
pub const USER_SAMPLES: &[Sample] = &[
    sample(
        "public.mood",
        Form::ElementBinary,
        &["'sad'", "'so so'", "'glad, \"very\"'"],
    ),
    sample(
        "public.percent",
        Form::ElementBinary,
        &["99.50", "0", "0.000"],
    ),
    sample("public.percents", Form::ElementBinary, &["1.0", "0"]),
    sample(
        "public.short",
        Form::ElementBinary,
        &["'a  '", "''", "'abcde'"],
    ),
    sample("public.needed", Form::ElementBinary, &["5", "-1"]),
    sample("public.moods", Text, &["'{sad,NULL,\"so so\"}'", "'{}'"]),
    sample("public.percent_list", Text, &["'{99.50,NULL,0}'", "'{}'"]),
    sample(
        "public.point3",
        Text,
        &[
            r#"ROW(-1, E'q"\\ ,()\n\tCANARY', 'NaN')"#,
            "ROW(NULL, NULL, NULL)",
            "ROW(1, '', 1.500)",
        ],
    ),
    sample(
        "public.low_point",
        Text,
        &["ROW(99, 'a b', 0)", "ROW(NULL, NULL, NULL)"],
    ),
    sample(
        "public.floats",
        Text,
        &["'[-0,Infinity]'", "'empty'", "'(,NaN]'", "'[0.1,)'"],
    ),
    sample(
        "public.mood_range",
        Text,
        &["'[sad,\"glad, \\\"very\\\"\"]'", "'empty'", "'(,)'"],
    ),
    sample("public.percent_range", Text, &["'[0.50,1.00)'", "'empty'"]),
    sample(
        "public.point_range",
        Text,
        &[
            "public.point_range(ROW(1, 'a,b', 2)::public.point3, ROW(2, '', NULL)::public.point3)",
            "'empty'",
        ],
    ),
    sample(
        "public.floats_multirange",
        Text,
        &["'{[0.1,1),[2,)}'", "'{}'"],
    ),
    sample(
        "public.nested",
        Text,
        &[
            r#"ROW(ROW(1, 'a"b\', 2.50), ARRAY[ROW(1, '{}', NULL), NULL]::public.point3[],
                'so so', 100.0, '[0.1,2)', '{1.50,NULL}')"#,
            "ROW(NULL, '{}', NULL, NULL, 'empty', '{}')",
        ],
    ),
    sample(
        "public.deeper",
        Text,
        &[
            r#"ROW(ROW(ROW(1, 'a"b\', 2.50), ARRAY[ROW(1, '{}', NULL), NULL]::public.point3[], 'sad', 0, '(,)', '{1.50}'),
                ARRAY[ROW(NULL, '{}', 'glad, "very"', 1.0, NULL, NULL), NULL]::public.nested[], 'infinity')"#,
            "ROW(NULL, NULL, '2024-01-01 00:00Z')",
        ],
    ),
];
