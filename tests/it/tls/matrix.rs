//! Every mode with every kind of certificate and server.

use rcgen::{BasicConstraints, ExtendedKeyUsagePurpose, IsCa, SanType, date_time_ymd};

use super::authority::{Authority, Made, good, named, nameless, self_signed};
use super::{HOST, Outcome, Tested, by_psql, connection, ours as ours_of};
use waltrail::server::Side;

const MODES: [&str; 6] = [
    "disable",
    "allow",
    "prefer",
    "require",
    "verify-ca",
    "verify-full",
];

/// What PostgreSQL's manual makes with `openssl req` and `openssl x509` (section 19.9.5): without alternative names, of
/// version 1 where an authority signs, marked as an authority's where none does.
const MANUAL_KEY: &str = include_str!("manual/server.key");
const MANUAL_ROOT: &str = include_str!("manual/root.crt");
const MANUAL: [(&str, &str, &str); 3] = [
    (
        "self-signed",
        include_str!("manual/self.crt"),
        include_str!("manual/self.crt"),
    ),
    (
        "by the root",
        include_str!("manual/by_root.crt"),
        MANUAL_ROOT,
    ),
    (
        "by one between",
        concat!(
            include_str!("manual/by_middle.crt"),
            include_str!("manual/middle.crt")
        ),
        MANUAL_ROOT,
    ),
];

#[tokio::test]
async fn each_mode_takes_the_servers_that_psql_takes() {
    let mut tested = Tested::new(|builder| builder).await;
    let made = Authority::new("ours").signs(&good());
    let mut outcomes = Vec::new();
    for ssl in ["off", "on"] {
        match ssl {
            "on" => tested.present(&made),
            _ => tested.set("ssl", "off"),
        }
        for role in ["postgres", "only_tls", "only_plain"] {
            for mode in MODES {
                let dsn = tested.dsn(role, &format!("sslmode={mode}"));
                let outcome = tested.as_psql(&dsn).await;
                let replication = format!("{dsn} replication=database");
                let home = tested.folder.path();
                assert_eq!(by_psql(&replication, home).0, outcome, "{dsn}");
                outcomes.push(outcome);
            }
        }
    }
    let count = |wanted| {
        outcomes
            .iter()
            .filter(|outcome| **outcome == wanted)
            .count()
    };
    // None of them is there by chance.
    assert_eq!(count(Outcome::Plain), 3 + 3 + 2 + 3);
    assert_eq!(count(Outcome::Encrypted), 2 + 3);
}

/// Each mode against a certificate; what psql says, in the order of [`MODES`].
async fn modes(tested: &Tested, more: &str) -> [Outcome; 6] {
    let mut outcomes = [Outcome::Refused; 6];
    for (outcome, mode) in outcomes.iter_mut().zip(MODES) {
        let dsn = tested.dsn("postgres", &format!("sslmode={mode} {more}"));
        *outcome = tested.as_psql(&dsn).await;
    }
    outcomes
}

#[tokio::test]
async fn each_mode_takes_the_certificates_that_psql_takes() {
    let mut tested = Tested::new(|builder| builder).await;
    let (ours, other, old) = (
        Authority::new("ours"),
        Authority::new("other"),
        Authority::expired("old"),
    );
    let middle = ours.below("middle");
    let mut expired = good();
    expired.not_after = date_time_ymd(2020, 1, 1);
    let mut early = good();
    early.not_before = date_time_ymd(4000, 1, 1);
    let mut client_only = good();
    client_only.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let mut marked = good();
    marked.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let alone = self_signed(&good());
    let cases: Vec<(&str, Made)> = vec![
        ("good", ours.signs(&good())),
        ("by one between", middle.signs(&good())),
        ("expired", ours.signs(&expired)),
        ("not yet valid", ours.signs(&early)),
        ("other host", ours.signs(&named(&["other.test"]))),
        ("unknown authority", other.signs(&good())),
        ("of an authority that has expired", old.signs(&good())),
        ("not for servers", ours.signs(&client_only)),
        ("marked as an authority's", ours.signs(&marked)),
        ("by no authority", ours.below_as(good()).signs(&good())),
        (
            "by no authority, and marked",
            ours.below_as(good()).signs(&marked),
        ),
        (
            "too far from the root, and marked",
            ours.lowest("lowest").below("lower").signs(&marked),
        ),
        ("self-signed", alone.clone()),
    ];
    let roots = ours.certificate.clone() + &old.certificate;
    let roots = tested.file("roots.crt", &roots);
    let root = format!("sslrootcert={}", roots.display());
    for (name, made) in &cases {
        println!("{name}");
        tested.present(made);
        let outcomes = modes(&tested, &root).await;
        let verified = outcomes[4..] == [Outcome::Encrypted; 2];
        let good = ["good", "by one between", "marked as an authority's"];
        assert_eq!(verified, good.contains(name), "{name}: {outcomes:?}");
        assert_eq!(
            outcomes[2],
            if outcomes[4] == Outcome::Encrypted {
                Outcome::Encrypted
            } else {
                Outcome::Plain
            }
        );
    }
    // Without a file there is nothing to check, or a refusal.
    let outcomes = modes(&tested, "").await;
    assert_eq!(outcomes[2..4], [Outcome::Encrypted; 2]);
    assert_eq!(outcomes[4..], [Outcome::Refused; 2]);
    // A root that is no authority signs nothing.
    let plain = Authority::plain(named(&["plain"]));
    let file = tested.file("plain.crt", &plain.certificate);
    let trusts = format!("sslrootcert={}", file.display());
    for params in [good(), marked] {
        tested.present(&plain.signs(&params));
        let outcomes = modes(&tested, &trusts).await;
        assert_eq!(outcomes[4..], [Outcome::Refused; 2], "{outcomes:?}");
    }
    tested.present(&alone);
    // As its own root.
    let own = tested.file("own.crt", &alone.chain);
    let outcomes = modes(&tested, &format!("sslrootcert={}", own.display())).await;
    assert_eq!(outcomes[4..], [Outcome::Encrypted; 2]);
    // One in between alone is no root.
    tested.present(&middle.signs(&good()));
    let own = tested.file("middle.crt", &middle.certificate);
    let outcomes = modes(&tested, &format!("sslrootcert={}", own.display())).await;
    assert_eq!(outcomes[4..], [Outcome::Refused; 2]);
}

#[tokio::test]
async fn certificates_as_the_manual_makes_them_are_taken() {
    let mut tested = Tested::new(|builder| builder).await;
    for (name, chain, root) in MANUAL {
        println!("{name}");
        tested.present(&Made {
            chain: chain.to_owned(),
            key: MANUAL_KEY.to_owned(),
        });
        let file = tested.file("root.crt", root);
        let outcomes = modes(&tested, &format!("sslrootcert={}", file.display())).await;
        assert_eq!(outcomes[3..], [Outcome::Encrypted; 3]);
        // With TLS 1.2 the handshake is signed in another way.
        let old = format!(
            "sslrootcert={} ssl_max_protocol_version=TLSv1.2",
            file.display()
        );
        let outcomes = modes(&tested, &old).await;
        assert_eq!(outcomes[3..], [Outcome::Encrypted; 3]);
        let other = tested.file("other.crt", &Authority::new("other").certificate);
        let outcomes = modes(&tested, &format!("sslrootcert={}", other.display())).await;
        assert_eq!(outcomes[3..], [Outcome::Refused; 3]);
    }
}

#[tokio::test]
async fn a_revoked_certificate_is_refused_where_a_list_says_so() {
    let mut tested = Tested::new(|builder| builder).await;
    let ours = Authority::new("ours");
    let middle = ours.below("middle");
    let mut params = good();
    params.serial_number = Some(7.into());
    let root = tested.file("root.crt", &ours.certificate);
    let lists = [
        ("revoked", ours.revokes(&[7], 4000)),
        ("others", ours.revokes(&[8], 4000)),
        ("old", ours.revokes(&[8], 2021)),
        (
            "all",
            ours.revokes(&[8], 4000) + &middle.revokes(&[8], 4000),
        ),
        (
            "between",
            ours.revokes(&[8], 4000) + &middle.revokes(&[7], 4000),
        ),
        ("foreign", Authority::new("ours").revokes(&[8], 4000)),
    ];
    // Named, and without a list: libpq goes on, which is not what was asked for.
    tested.present(&ours.signs(&params));
    let folder = tested.file("lists/revoked.crl", &lists[0].1);
    let folder = folder.parent().unwrap().display();
    let nothing = tested.file("nothing.crl", "");
    for (place, says) in [
        (format!("sslcrldir={folder}"), "has been revoked"),
        (format!("sslcrl={}", nothing.display()), "holds no list"),
        ("sslcrl=/nowhere.crl".to_owned(), "does not exist"),
    ] {
        let root = root.display();
        let dsn = format!("sslmode=verify-ca sslrootcert={root} {place}");
        let connection = connection(&tested.dsn("postgres", &dsn), tested.folder.path());
        let (outcome, fault) = ours_of(&connection, Side::Source, "SQL").await;
        assert_eq!(outcome, Outcome::Refused);
        assert!(fault.contains(says), "{fault}");
    }
    let mut refused = Vec::new();
    for (signer, made) in [
        ("ours", ours.signs(&params)),
        ("middle", middle.signs(&params)),
    ] {
        tested.present(&made);
        for (name, list) in &lists {
            let file = tested.file(&format!("{name}.crl"), list);
            let (root, file) = (root.display(), file.display());
            let dsn = format!("sslmode=verify-ca sslrootcert={root} sslcrl={file}");
            if tested.as_psql(&tested.dsn("postgres", &dsn)).await == Outcome::Refused {
                refused.push(format!("{signer} {name}"));
            }
        }
    }
    let expected = [
        "ours revoked",
        "ours old",
        "ours foreign",
        "middle revoked",
        "middle others",
        "middle old",
        "middle between",
        "middle foreign",
    ];
    assert_eq!(refused, expected);
}

#[tokio::test]
async fn names_and_addresses_fit_as_in_psql() {
    let mut tested = Tested::new(|builder| builder).await;
    let ours = Authority::new("ours");
    let root = tested.file("root.crt", &ours.certificate);
    let mut address = nameless("x");
    address.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
    let mut address_and_name = nameless(HOST);
    address_and_name.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
    let mut other_and_name = nameless(HOST);
    other_and_name.subject_alt_names = vec![SanType::DnsName("other.test".try_into().unwrap())];
    let cases = [
        named(&["other.test", HOST]),
        named(&["*.waltrail.test"]),
        named(&["*.test"]),
        nameless(HOST),
        nameless("*.waltrail.test"),
        nameless("127.0.0.1"),
        named(&["127.0.0.1"]),
        address,
        address_and_name,
        other_and_name,
    ];
    let mut fits = Vec::new();
    let hosts = [HOST, "DB.waltrail.TEST", "127.0.0.1"];
    for params in &cases {
        tested.present(&ours.signs(params));
        for host in hosts {
            let dsn = tested.dsn(
                "postgres",
                &format!("sslmode=verify-full sslrootcert={}", root.display()),
            );
            let dsn = dsn.replace(HOST, host);
            fits.push(tested.as_psql(&dsn).await == Outcome::Encrypted);
        }
    }
    assert!(fits.iter().filter(|fit| **fit).count() > 10, "{fits:?}");
}

#[tokio::test]
async fn the_default_files_and_the_variables_are_libpqs() {
    let mut tested = Tested::new(|builder| builder).await;
    let ours = Authority::new("ours");
    let mut params = good();
    params.serial_number = Some(7.into());
    tested.present(&ours.signs(&params));
    let root = tested.file(".postgresql/root.crt", &ours.certificate);
    // With this file, `require` checks too, and `prefer` does without TLS rather than trust.
    assert_eq!(modes(&tested, "").await[3..], [Outcome::Encrypted; 3]);
    tested.file(".postgresql/root.crl", &ours.revokes(&[7], 4000));
    let outcomes = modes(&tested, "").await;
    assert_eq!(outcomes[2], Outcome::Plain);
    assert_eq!(outcomes[3..], [Outcome::Refused; 3]);
    std::fs::remove_file(tested.folder.path().join(".postgresql/root.crl")).unwrap();
    tested.file(".postgresql/root.crt", &Authority::new("other").certificate);
    assert_eq!(modes(&tested, "").await[3..], [Outcome::Refused; 3]);
    // libpq's own words for a file that cannot be read.
    std::fs::write(&root, "nothing").unwrap();
    assert_eq!(modes(&tested, "").await[3..], [Outcome::Refused; 3]);
}

#[tokio::test]
async fn protocol_versions_and_the_first_byte_are_settled_as_in_psql() {
    let mut tested = Tested::new(|builder| builder).await;
    let made = Authority::new("ours").signs(&good());
    tested.present(&made);
    let mut refused = Vec::new();
    for server in ["TLSv1.2", "TLSv1.3"] {
        tested.set("ssl_max_protocol_version", server);
        for client in [
            "ssl_min_protocol_version=TLSv1.3",
            "ssl_min_protocol_version=tlsv1",
            "ssl_max_protocol_version=TLSv1.2",
            "sslsni=0",
            "sslcompression=1",
        ] {
            let dsn = tested.dsn("postgres", &format!("sslmode=require {client}"));
            if tested.as_psql(&dsn).await == Outcome::Refused {
                refused.push(format!("{server} {client}"));
            }
        }
    }
    assert_eq!(refused, ["TLSv1.2 ssl_min_protocol_version=TLSv1.3"]);
}
