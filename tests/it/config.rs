//! Which setting wins, what is refused and in which words, and that no secret gets out.

mod variables;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use waltrail::config::{
    Config, Connection, Durable, Environment, Flags, Format, KEYS, Level, SchemaChanges, Setup,
    SnapshotMode, TableName,
};
use waltrail::fault::{Exit, Fault};

const EXAMPLE: &str = include_str!("../../config/waltrail.toml");

/// Enough for a configuration to hold.
const SOURCE: &str = "[source]\ndsn = 'host=db user=u dbname=d'\n";

fn plain() -> Environment {
    Environment::empty().with_os_user("os")
}

fn read(text: &str) -> Result<Config, Fault> {
    Config::from_toml(text, &Flags::default(), &plain())
}

#[track_caller]
fn refused(result: Result<Config, Fault>) -> (String, String) {
    let Err(fault) = result else {
        panic!("this configuration must be refused");
    };
    assert_eq!(fault.exit(), Exit::Config, "{fault}");
    let remedy = fault.remedy_text().unwrap_or_default().to_owned();
    assert!(!remedy.is_empty(), "{fault} has no remedy");
    let message = fault.to_string();
    assert!(
        !message.contains('\n') && !remedy.contains('\n'),
        "{message}"
    );
    (message, remedy)
}

fn password_of(connection: &Connection) -> Option<Vec<u8>> {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().build().unwrap();
    let asked = connection.credentials().password(&connection.hosts()[0]);
    runtime.block_on(asked).unwrap()
}

#[test]
fn with_a_source_alone_everything_else_has_its_default() {
    let config = read(SOURCE).unwrap();
    assert_eq!(config.setup, Setup::Auto);
    assert_eq!(config.source.slot, "waltrail");
    assert_eq!(config.source.publication, "waltrail");
    assert_eq!(config.source.decoding_work_mem, "256MB");
    assert_eq!(config.target, config.source.connection);
    assert!(config.target_is_source);
    assert!(config.tables.is_empty());
    assert_eq!(config.batch.max_rows, 50_000);
    assert_eq!(config.batch.max_bytes, 8 << 20);
    assert_eq!(config.batch.interval, Duration::from_millis(25));
    assert_eq!(config.durable, None);
    assert_eq!(config.snapshot.mode, SnapshotMode::Initial);
    assert_eq!(config.snapshot.change_type, "INSERT");
    assert_eq!(config.log.format, None);
    assert_eq!(config.log.level, Level::Info.into());
    assert_eq!(config.shutdown.grace, Duration::from_secs(10));
    let fault = config.require_tables().unwrap_err();
    assert_eq!(fault.exit(), Exit::Config);
    assert!(fault.remedy_text().unwrap().contains("--table"));
}

#[test]
fn flags_win_over_variables_and_those_over_the_file_and_that_over_defaults() {
    let text = "[source]\ndsn = 'host=file user=u'\nslot = 'file'\n[log]\nlevel = 'warn'\n\
                [[table]]\nsource = 'from_file'\n";
    let slot = |config: &Config| {
        (
            config.source.connection.host().to_owned(),
            config.source.slot.clone(),
        )
    };
    let config = read(text).unwrap();
    assert_eq!(slot(&config), ("file".into(), "file".into()));
    let variables = plain()
        .with("WALTRAIL_SOURCE__DSN", "host=variable user=u")
        .with("WALTRAIL_SOURCE__SLOT", "variable")
        .with("WALTRAIL_TABLE", "from_variable");
    let config = Config::from_toml(text, &Flags::default(), &variables).unwrap();
    assert_eq!(slot(&config), ("variable".into(), "variable".into()));
    assert_eq!(
        config.tables[0].source,
        TableName::new("public", "from_variable")
    );
    assert_eq!(
        config.log.level,
        Level::Warn.into(),
        "the file's other keys stay"
    );
    let flags = Flags {
        source: Some("host=flag user=u".into()),
        target: Some("host=history user=u".into()),
        tables: vec!["a".into(), r#"app."B=C"=audit.b"#.into()],
        log_level: Some("error,wire=debug".into()),
        ..Flags::default()
    };
    let config = Config::from_toml(text, &flags, &variables).unwrap();
    assert_eq!(slot(&config), ("flag".into(), "variable".into()));
    assert_eq!(config.target.host(), "history");
    assert_eq!(config.log.level.all, Level::Error);
    assert_eq!(config.log.level.rooms, [("wire", Level::Debug)]);
    assert!(!config.target_is_source);
    let tables: Vec<_> = config
        .tables
        .iter()
        .map(|table| format!("{} -> {}", table.source, table.history))
        .collect();
    assert_eq!(
        tables,
        ["public.a -> public.a_cdc", r#"app."B=C" -> audit.b"#]
    );
}

#[test]
fn a_star_in_the_name_makes_a_pattern() {
    let text = "[[table]]\nsource = 'Billing.INV_*'\nexcept = ['billing.inv_tmp*', 'billing.inv_x']\n\
                exclude_columns = ['a']\n[[table]]\nsource = 'b.*'\nhistory = 'audit.of_*'\n\
                [[table]]\nsource = 'public.t'\n";
    let config = read(&format!("{SOURCE}{text}")).unwrap();
    config.require_tables().unwrap();
    assert_eq!((config.tables.len(), config.patterns.len()), (1, 2));
    let history = |at: usize, table: &str| {
        let meant = config.patterns[at].table(&table.parse().unwrap())?;
        let table = meant.map_err(|error| error.to_string());
        Some(table.map(|table| (table.history.to_string(), table.exclude_columns)))
    };
    let of = |name: &str, columns: &[&str]| {
        let columns = columns.iter().map(ToString::to_string).collect();
        Some(Ok((name.to_owned(), columns)))
    };
    assert_eq!(history(0, "billing.inv_1"), of("billing.inv_1_cdc", &["a"]));
    for other in ["billing.inv_tmp1", "billing.inv_x", "b.inv_1", "billing.x"] {
        assert_eq!(history(0, other), None, "{other}");
    }
    assert_eq!(history(1, "b.\"T\""), of("audit.\"of_T\"", &[]));
    for (of, is_one) in [("audit.of_t", true), ("audit.t", false), ("b.of_t", false)] {
        let has = config.patterns[1].has_history(&of.parse().unwrap());
        assert_eq!(has, is_one, "{of}");
    }
    let excepted = "billing.inv_x_cdc".parse().unwrap();
    assert!(!config.patterns[0].has_history(&excepted));
    let long = format!("b.{}", "n".repeat(61));
    assert!(history(1, &long).unwrap().is_err());
    let environment = plain()
        .with("WALTRAIL_SOURCE__DSN", "host=a user=u")
        .with("WALTRAIL_TABLE__0__SOURCE", "b.*")
        .with("WALTRAIL_TABLE__0__EXCEPT", "b.c, b.d_*");
    let config = Config::from_toml("", &Flags::default(), &environment).unwrap();
    assert_eq!(config.patterns[0].except.len(), 2);
}

#[test]
fn each_rule_refuses_with_a_sentence_and_a_remedy() {
    for (addition, says) in [
        ("setup = 'semi'", "`setup` in the configuration is \"semi\""),
        (
            "source.slot = 'A-b'",
            "`source.slot` in the configuration is \"A-b\"",
        ),
        ("source.slot = ''", "slot's name"),
        (
            "source.publication = ''",
            "`source.publication` in the configuration is empty",
        ),
        (
            "source.decoding_work_mem = '64KB'",
            "not a size PostgreSQL takes",
        ),
        (
            "source.decoding_work_mem = '63kB'",
            "not a size PostgreSQL takes",
        ),
        (
            "source.decoding_work_mem = '1 GB'",
            "not a size PostgreSQL takes",
        ),
        (
            "source.decoding_work_mem = '99999999999GB'",
            "not a size PostgreSQL takes",
        ),
        ("source.failover = 'yes'", "not one of"),
        ("source.failover = 1", "true or false"),
        ("source.catch_up_wal = '15MiB'", "neither 0 nor a size"),
        ("source.catch_up_wal = '65GiB'", "neither 0 nor a size"),
        ("source.catch_up_wal = 'much'", "neither 0 nor a size"),
        ("source.slot = 5", "is a number, not a text in quotes"),
        ("source.password_file = ''", "is empty"),
        ("source.password_command = ' '", "is no command"),
        (
            "source.password_command = 'x'\nsource.password_file = '/x'",
            "is set beside source.password_file",
        ),
        ("target.password_file = '/x'", "without target.dsn"),
        ("target.password_command = 'x'", "without target.dsn"),
        (
            "target.dsn = 'gssencmode=require host=h'",
            "`gssencmode` in target.dsn has a value that is not supported",
        ),
        ("batch.max_rows = 0", "from 1 to 10000000"),
        ("batch.max_rows = 10_000_001", "from 1 to 10000000"),
        ("batch.max_rows = -1", "from 1 to 10000000"),
        ("batch.max_rows = 'many'", "from 1 to 10000000"),
        ("batch.max_rows = 1.5", "is a number with a fraction"),
        ("batch.max_bytes = '63KiB'", "from 64KiB to 256MiB"),
        ("batch.max_bytes = '257MiB'", "from 64KiB to 256MiB"),
        ("batch.max_bytes = 'big'", "from 64KiB to 256MiB"),
        ("batch.interval = '1001ms'", "at most a second"),
        ("batch.interval = 20", "at most a second"),
        (
            "target.durable = 'disk'",
            "not one of \"local\", \"server\"",
        ),
        (
            "batch = 5",
            "`batch` in the configuration is a number, not a table",
        ),
        (
            "snapshot.mode = 'always'",
            "not one of \"initial\", \"never\"",
        ),
        ("snapshot.change_type = ''", "is empty"),
        ("snapshot.workers = 0", "not a number from 1 to 64"),
        ("snapshot.workers = 65", "not a number from 1 to 64"),
        ("log.level = 'verbose'", "not one of"),
        (
            "log.level = 'info,wires=debug'",
            "`log.level` in the configuration has the room \"wires\"",
        ),
        ("log.format = 'xml'", "not one of \"json\", \"text\""),
        ("http.listen = 'localhost'", "not an address and port"),
        ("http.listen = '9464'", "not an address and port"),
        (
            "http.token_file = '/t'",
            "`http.token_file` in the configuration is set without http.listen",
        ),
        (
            "[http]\nlisten = '[::]:1'\ntls_cert = '/c'",
            "`http.tls_cert` in the configuration is set without http.tls_key",
        ),
        (
            "[http]\nlisten = '[::]:1'\ntls_key = '/k'",
            "is set without http.tls_cert",
        ),
        (
            "[http]\nlisten = '[::]:1'\ntoken_file = ''",
            "`http.token_file` in the configuration is empty",
        ),
        ("shutdown.grace = 'soon'", "not a duration"),
        ("shutdown.grace = '2h'", "not a duration of at most an hour"),
        (
            "[[table]]\nhistory = 'h'",
            "`table.source` of table 1 is missing",
        ),
        ("[[table]]\nsource = 'a b'", "which holds ' '"),
        (
            "[[table]]\nsource = 'a'\n[[table]]\nsource = 'public.A'",
            "names public.a a second time",
        ),
        (
            "[[table]]\nsource = 'a'\nhistory = 'h'\n[[table]]\nsource = 'b'\nhistory = 'h'",
            "gives public.b the history table of public.a",
        ),
        (
            "[[table]]\nsource = 'a'\nhistory = 'a'",
            "is followed itself",
        ),
        (
            "[[table]]\nsource = 'a'\n[[table]]\nsource = 'a_cdc'",
            "is followed itself",
        ),
        (
            "[[table]]\nsource = 'waltrail.checkpoint'",
            "belongs to PostgreSQL or to waltrail",
        ),
        (
            "[[table]]\nsource = 'pg_catalog.pg_class'",
            "belongs to PostgreSQL or to waltrail",
        ),
        (
            "[[table]]\nsource = 'a23456789012345678901234567890123456789012345678901234567890'",
            "with `_cdc` is too long",
        ),
        (
            "[[table]]\nsource = 'a'\nexclude_columns = ['b', 'B']",
            "a second time",
        ),
        (
            "[[table]]\nsource = 'a'\nexclude_columns = ['b c']",
            "`table.exclude_columns` of table 1 in the configuration",
        ),
        (
            "[[table]]\nsource = 'a'\nprefix = 'old_'",
            "`table.prefix` of table 1 in the configuration",
        ),
        (
            "[[table]]\nsource = 'a'\nexclude_columns = 'b'",
            "is a text, not a list",
        ),
        ("table = 'public.a'", "is a text, not a list"),
        (
            "[[table]]\nsource = 'a.*'\nhistory = 'h'",
            "is one table for all that a.* means",
        ),
        (
            "[[table]]\nsource = 'a.*'\nhistory = 'h.*_*'",
            "is one table for all that a.* means",
        ),
        ("[[table]]\nsource = '*.a'", "holds '*'"),
        (
            "[[table]]\nsource = 'pg_catalog.*'",
            "belongs to PostgreSQL or to waltrail",
        ),
        (
            "[[table]]\nsource = 'a.b'\nexcept = ['a.c']",
            "stands beside a.b, which is one table",
        ),
    ] {
        let text = format!("source.dsn = 'host=db user=u'\n{addition}\n");
        let (message, _) = refused(read(&text));
        assert!(message.contains(says), "{addition}: {message}");
    }
    let (message, remedy) = refused(read(""));
    assert_eq!(message, "no source database is named");
    assert!(remedy.contains("WALTRAIL_SOURCE__DSN"));
}

#[test]
fn an_unknown_key_is_named_with_its_place_and_its_nearest_neighbour() {
    for (text, key, near) in [
        ("[source]\ndns = 'x'", "source.dns", "source.dsn"),
        ("[sorce]\ndsn = 'x'", "sorce", "source"),
        ("slot = 'x'", "slot", "source.slot"),
        ("[log]\nmax_rows = 1", "log.max_rows", "batch.max_rows"),
        ("[batch]\nmax_row = 1", "batch.max_row", "batch.max_rows"),
        ("[[tables]]\nsource = 'x'", "tables", "table"),
        (
            "[[table]]\nsource = 'x'\nhistroy = 'y'",
            "table.histroy",
            "table.history",
        ),
        ("setpu = 'auto'", "setpu", "setup"),
    ] {
        let (message, remedy) = refused(read(text));
        assert_eq!(message, format!("unknown key `{key}` in the configuration"));
        assert_eq!(remedy, format!("did you mean `{near}`?"));
    }
    for (name, near) in [
        ("WALTRAIL_SOURCE_DSN", "WALTRAIL_SOURCE__DSN"),
        ("WALTRAIL_SOURCE__DNS", "WALTRAIL_SOURCE__DSN"),
        ("WALTRAIL_TABLE__SOURCE", "WALTRAIL_TABLE__0__SOURCE"),
        ("WALTRAIL_LOG_LEVEL", "WALTRAIL_LOG__LEVEL"),
    ] {
        let environment = plain().with(name, "canary");
        let (message, remedy) = refused(Config::from_toml(SOURCE, &Flags::default(), &environment));
        assert_eq!(message, format!("{name} in the environment is no setting"));
        assert_eq!(remedy, format!("did you mean {near}?"));
    }
}

#[test]
fn the_file_is_looked_for_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, slot: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, format!("{SOURCE}slot = '{slot}'\n")).unwrap();
        path
    };
    let (flagged, named) = (file("flagged.toml", "flagged"), file("named.toml", "named"));
    let environment = plain().with("WALTRAIL_CONFIG", named.to_str().unwrap());
    let config = Config::load(&Flags::default(), &environment).unwrap();
    assert_eq!(config.source.slot, "named");
    assert_eq!(config.file.as_deref(), Some(named.as_path()));
    let flags = Flags {
        config: Some(flagged),
        ..Flags::default()
    };
    assert_eq!(
        Config::load(&flags, &environment).unwrap().source.slot,
        "flagged"
    );
    let missing = Flags {
        config: Some("/does/not/exist".into()),
        ..Flags::default()
    };
    let (message, _) = refused(Config::load(&missing, &environment));
    assert_eq!(
        message,
        "the configuration file /does/not/exist does not exist"
    );
    let unreadable = Flags {
        config: Some(folder.path().to_path_buf()),
        ..Flags::default()
    };
    let (message, _) = refused(Config::load(&unreadable, &environment));
    assert!(
        message.starts_with("could not read the configuration file"),
        "{message}"
    );
}

#[test]
fn the_example_shows_every_key_and_holds() {
    let config = read(EXAMPLE).unwrap();
    assert_eq!(
        config.tables[0].history,
        TableName::new("public", "employees_cdc")
    );
    let defaults = read(SOURCE).unwrap();
    assert_eq!(
        config.batch, defaults.batch,
        "what is shown are the defaults"
    );
    assert_eq!(config.snapshot, defaults.snapshot);
    assert_eq!(
        (config.log, config.shutdown),
        (defaults.log, defaults.shutdown)
    );
    assert_eq!(config.source.slot, defaults.source.slot);
    assert_eq!(
        config.source.decoding_work_mem,
        defaults.source.decoding_work_mem
    );
    assert_eq!(config.source.catch_up_wal, defaults.source.catch_up_wal);
    assert_eq!(config.source.failover, defaults.source.failover);
    // A setting that is off is a line behind `#` without a blank.
    let all: String = EXAMPLE
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(setting) if setting.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => {
                setting
            }
            _ => line,
        })
        .fold(String::new(), |text, line| text + line + "\n");
    let table: toml::Table = toml::from_str(&all).unwrap();
    let mut shown = BTreeSet::new();
    for (section, value) in &table {
        let fields = match value {
            toml::Value::Table(fields) => fields,
            toml::Value::Array(list) => list[0].as_table().unwrap(),
            _ => {
                shown.insert(section.clone());
                continue;
            }
        };
        shown.extend(fields.keys().map(|field| format!("{section}.{field}")));
    }
    assert_eq!(shown, KEYS.iter().map(|key| (*key).to_owned()).collect());
}

#[test]
fn no_password_is_in_any_refusal_or_debug_output() {
    for text in [
        "[source]\ndsn = 'host=db password=canary\n",
        "[source]\ndsn = host=db password=canary\n",
        "[source]\ndsn = \"host=db password=canary\\q\"\n",
        "dsn = 'password=canary' 'x'\n",
        "source = 'host=db password=canary'\n",
        "source = ['host=db password=canary']\n",
        "target = 'password=canary'\nsource.dsn='host=db user=u'\n",
        "[source]\ndsn = ['password=canary']\n",
        "[source]\ndsn = { password = 'canary' }\n",
        "[source]\ndsn = 'password=canary'\ndsn = 'password=canary'\n",
        "[source]\n'password=canary' = 1\n",
        "[source]\ndsn = 'password=canary host=a/b user=u'\n",
        "[source]\ndsn = 'password=canary hots=a'\n",
        "[source]\ndsn = 'password=canary host=h user=u'\npassword_file='/x'\n",
        "[source]\ndsn = 'password=canary host=h user=u'\npassword_command='x'\n",
        "[source]\ndsn = 'host=h user=u'\npassword_command='printf canary'\npassword_file='/x'\n",
        "[source]\ndsn = 'host=h user=u'\npassword_command=['printf canary']\n",
        "[source]\ndsn = 'postgres://u:p@canary@h/d'\n",
        "[source]\ndsn = 'password=canary host=h user=u'\nslot='!'\n",
        "[source]\ndsn = 'password=canary host=h user=u'\n[target]\ndsn='password=canary sslmode=canary'\n",
    ] {
        let fault = read(text).expect_err(text);
        assert_eq!(fault.exit(), Exit::Config, "{text}: {fault}");
        let shown = format!("{fault} {fault:?} {:?}", fault.remedy_text());
        assert!(!shown.contains("canary"), "{text}: {shown}");
    }
    for target in [
        "dsn='postgres://u:canary@h/d'",
        "dsn='host=h'\npassword_command='echo canary'",
    ] {
        let source = "[source]\ndsn = 'host=h user=u password=canary'\n";
        let config = read(&format!("{source}[target]\n{target}\n")).unwrap();
        assert!(!format!("{config:#?}").contains("canary"));
    }
}

#[test]
fn a_file_that_is_no_toml_is_refused_with_its_line() {
    let (message, _) = refused(read("setup = 'auto'\n\n[source\n"));
    assert!(
        message.starts_with("line 3 of the configuration is not TOML: "),
        "{message}"
    );
}
