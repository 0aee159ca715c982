//! Settings of the environment.

use super::*;
use std::path::PathBuf;

#[test]
fn every_key_has_its_variable() {
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "s3cret\n").unwrap();
    std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).unwrap();
    let secret = secret.to_str().unwrap();
    let mut environment = plain();
    let values = [
        ("setup", "manual"),
        ("schema_changes", "halt"),
        ("source.dsn", "host=a user=u"),
        ("source.password_file", secret),
        ("source.slot", "s"),
        ("source.publication", "p"),
        ("source.decoding_work_mem", "64kB"),
        ("source.catch_up_wal", "1_024MiB"),
        ("source.failover", "false"),
        ("target.dsn", "host=b user=u"),
        ("target.password_command", "echo s3cret"),
        ("target.durable", "server"),
        ("table.source", "public.t"),
        ("table.history", "audit.t"),
        ("table.exclude_columns", r#"a, "B,c""#),
        ("table.allow_lossy", r#"d, "E""#),
        ("table.prefix", "_"),
        ("table.functions", "false"),
        ("batch.max_rows", "1_000"),
        ("batch.max_bytes", "1MiB"),
        ("batch.interval", "0"),
        ("context.settings", "app.user, role,"),
        ("snapshot.mode", "never"),
        ("snapshot.change_type", "SNAPSHOT"),
        ("snapshot.workers", "7"),
        ("log.format", "text"),
        ("log.level", "trace,wire=debug"),
        ("http.listen", "127.0.0.1:9464"),
        ("http.token_file", "/etc/waltrail/token"),
        ("http.tls_cert", "/etc/waltrail/tls.crt"),
        ("http.tls_key", "/etc/waltrail/tls.key"),
        ("shutdown.grace", "1m 30s"),
    ];
    let mut keys = KEYS.to_vec();
    // Of a pattern, and beside another place of a password: see below.
    let below = [
        "table.except",
        "source.password_command",
        "target.password_file",
    ];
    keys.retain(|key| !below.contains(key));
    assert_eq!(
        values.map(|(key, _)| key).to_vec(),
        keys,
        "each key is tried here"
    );
    for (key, value) in values {
        let name = key.replace("table.", "table.0.").replace('.', "__");
        environment = environment.with(format!("WALTRAIL_{}", name.to_uppercase()), value);
    }
    let config = Config::from_toml("", &Flags::default(), &environment).unwrap();
    assert_eq!(config.setup, Setup::Manual);
    assert_eq!(config.source.connection.host(), "a");
    assert_eq!(
        password_of(&config.source.connection),
        Some(b"s3cret".to_vec())
    );
    assert_eq!(config.source.slot, "s");
    assert_eq!(config.source.publication, "p");
    assert_eq!(config.source.decoding_work_mem, "64kB");
    assert_eq!(config.source.catch_up_wal, 1 << 30);
    assert!(!config.source.failover);
    assert_eq!(config.target.host(), "b");
    assert_eq!(password_of(&config.target), Some(b"s3cret".to_vec()));
    assert_eq!(config.tables[0].source, TableName::new("public", "t"));
    assert_eq!(config.tables[0].history, TableName::new("audit", "t"));
    assert_eq!(config.tables[0].exclude_columns, ["a", "B,c"]);
    assert_eq!(config.tables[0].allow_lossy, ["d", "E"]);
    assert_eq!(config.tables[0].prefix, "_");
    assert_eq!(config.schema_changes, Some(SchemaChanges::Halt));
    assert_eq!(
        (config.batch.max_rows, config.batch.max_bytes),
        (1_000, 1 << 20)
    );
    assert_eq!(config.batch.interval, Duration::ZERO);
    assert_eq!(config.durable, Some(Durable::Server));
    assert_eq!(config.snapshot.mode, SnapshotMode::Never);
    assert_eq!(config.snapshot.change_type, "SNAPSHOT");
    assert_eq!(config.snapshot.workers, 7);
    assert_eq!(config.log.format, Some(Format::Text));
    assert_eq!(config.log.level.all, Level::Trace);
    assert_eq!(config.log.level.rooms, [("wire", Level::Debug)]);
    assert_eq!(config.shutdown.grace, Duration::from_secs(90));
    let http = config.http.unwrap();
    assert_eq!(http.listen, ([127, 0, 0, 1], 9464).into());
    assert_eq!(http.token_file, Some("/etc/waltrail/token".into()));
    let tls = http.tls.unwrap();
    assert_eq!(tls.certificate, PathBuf::from("/etc/waltrail/tls.crt"));
    assert_eq!(tls.key, PathBuf::from("/etc/waltrail/tls.key"));
}

#[test]
fn each_side_has_a_password_file_and_a_password_command() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    std::fs::write(&file, "of a file\n").unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    let environment = plain()
        .with("WALTRAIL_SOURCE__DSN", "host=a user=u")
        .with("WALTRAIL_SOURCE__PASSWORD_COMMAND", "printf 'of a command'")
        .with("WALTRAIL_TARGET__DSN", "host=b user=u")
        .with("WALTRAIL_TARGET__PASSWORD_FILE", file.to_str().unwrap());
    let config = Config::from_toml("", &Flags::default(), &environment).unwrap();
    let of = |connection| String::from_utf8(password_of(connection).unwrap()).unwrap();
    assert_eq!(of(&config.source.connection), "of a command");
    assert_eq!(of(&config.target), "of a file");
}

#[test]
fn libpqs_variables_alone_name_a_source() {
    let environment = plain().with("PGHOST", "db").with("PGDATABASE", "app");
    let config = Config::from_toml("", &Flags::default(), &environment).unwrap();
    assert_eq!(config.source.connection.to_string(), "os@db:5432/app");
}

#[test]
fn variables_that_are_no_settings_are_left_alone() {
    let environment = [
        "CONFIG",
        "PG_BIN",
        "SERVICE_HOST",
        "SERVICE_PORT",
        "PORT_9464_TCP",
        "PORT",
    ]
    .iter()
    .fold(plain(), |all, name| {
        all.with(format!("WALTRAIL_{name}"), "x")
    });
    assert!(Config::from_toml(SOURCE, &Flags::default(), &environment).is_ok());
}

#[test]
fn tables_of_the_environment_have_one_form_and_no_gap() {
    let both = plain()
        .with("WALTRAIL_TABLE", "a")
        .with("WALTRAIL_TABLE__0__SOURCE", "a");
    let gap = plain()
        .with("WALTRAIL_TABLE__0__SOURCE", "a")
        .with("WALTRAIL_TABLE__2__SOURCE", "b");
    for (environment, says) in [
        (both, "WALTRAIL_TABLE "),
        (gap, "WALTRAIL_TABLE__1__SOURCE"),
    ] {
        let (message, _) = refused(Config::from_toml(SOURCE, &Flags::default(), &environment));
        assert!(message.starts_with(says), "{message}");
    }
    let wrong = plain().with("WALTRAIL_TABLE", "a, b c");
    let (message, _) = refused(Config::from_toml(SOURCE, &Flags::default(), &wrong));
    assert!(message.starts_with("WALTRAIL_TABLE"), "{message}");
}
