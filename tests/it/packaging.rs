//! Does what is delivered fit together: the units, the package, the version?

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

/// What `systemd-analyze security` may find at most, of 10.
const EXPOSURE_MAX: f64 = 2.0;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The part of Cargo.toml that `cargo deb` reads.
fn package() -> toml::Table {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let manifest: toml::Table = manifest.parse().unwrap();
    let metadata = manifest["package"]["metadata"]["deb"].as_table();
    metadata.unwrap().clone()
}

#[test]
fn the_units_are_allowed_little() {
    for unit in ["waltrail.service", "waltrail-verify.service"] {
        let mut analyze = Command::new("systemd-analyze");
        analyze
            .args(["security", "--offline=true", "--no-pager"])
            .arg(root().join("config").join(unit));
        let Ok(output) = analyze.output() else {
            println!("not tried: there is no systemd-analyze");
            return;
        };
        let complaints = String::from_utf8_lossy(&output.stderr);
        if complaints.contains("unrecognized option") {
            println!("not tried: this systemd-analyze is older than 250");
            return;
        }
        let said = String::from_utf8_lossy(&output.stdout);
        let overall = format!("Overall exposure level for {unit}: ");
        let (_, level) = said
            .split_once(&overall)
            .unwrap_or_else(|| panic!("{said}\n{complaints}"));
        let level: f64 = level.split(' ').next().unwrap().parse().unwrap();
        assert!(level <= EXPOSURE_MAX, "{said}");
    }
}

#[test]
fn what_the_package_takes_is_there_or_made_for_it() {
    let package = package();
    let assets = package["assets"].as_array().unwrap();
    assert!(assets.len() > 10);
    for asset in assets {
        let source = asset[0].as_str().unwrap();
        let whole = source.split('*').next().unwrap();
        let made = source == "target/release/waltrail" || source.starts_with("target/manual/");
        assert!(made || root().join(whole).exists(), "{source}");
    }
    let units = [
        "waltrail.service",
        "waltrail-verify.service",
        "waltrail-verify.timer",
    ];
    for unit in units {
        let source = format!("config/{unit}");
        assert!(
            assets
                .iter()
                .any(|asset| asset[0].as_str() == Some(&source)),
            "{unit}"
        );
    }
    // A file that an operator edits is not replaced by an upgrade.
    let kept = package["conf-files"].as_array().unwrap();
    for asset in assets {
        let target = format!("/{}", asset[1].as_str().unwrap());
        let Some(folder) = target.strip_prefix("/etc/") else {
            continue;
        };
        let name = Path::new(asset[0].as_str().unwrap()).file_name().unwrap();
        let file = format!("/etc/{folder}{}", name.to_str().unwrap());
        assert!(
            kept.iter().any(|kept| kept.as_str() == Some(&file)),
            "{file}"
        );
    }
}

#[test]
fn the_scripts_of_the_package_can_be_run() {
    let folder = root().join(package()["maintainer-scripts"].as_str().unwrap());
    let mut found = 0;
    for script in fs::read_dir(folder).unwrap() {
        let script = script.unwrap().path();
        let checked = Command::new("sh").arg("-n").arg(&script).status();
        assert!(checked.unwrap().success(), "{script:?}");
        let mode = fs::metadata(&script).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755, "{script:?}");
        found += 1;
    }
    assert_eq!(found, 3);
}

/// What `waltrail --version` says in brackets.
fn built() -> (String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_waltrail"))
        .arg("--version")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let expected = concat!("waltrail ", env!("CARGO_PKG_VERSION"), " (");
    let inside = said
        .strip_prefix(expected)
        .and_then(|rest| rest.strip_suffix(")\n"));
    let (commit, date) = inside
        .unwrap_or_else(|| panic!("{said}"))
        .split_once(' ')
        .unwrap();
    (commit.to_owned(), date.to_owned())
}

#[test]
fn the_version_names_commit_and_date() {
    let (commit, date) = built();
    assert_eq!((commit.len(), date.len()), (7, 10), "{commit} {date}");
    assert_eq!(
        (commit.as_str(), date.as_str()),
        (waltrail::COMMIT, waltrail::BUILD_DATE)
    );
    let head = Command::new("git")
        .args(["log", "-1", "--format=%H"])
        .current_dir(root())
        .output();
    // A package is built and tested from sources that may have no git.
    let head = head.map(|output| String::from_utf8(output.stdout).unwrap());
    if let Ok(head) = head
        && root().join(".git").exists()
        && std::env::var_os("SOURCE_COMMIT").is_none()
    {
        assert!(head.starts_with(&commit), "{commit} is not {head}");
    }
}

/// What the build script says of sources in this folder, with these variables.
fn build(script: &Path, folder: &Path, variables: &[(&str, &str)]) -> String {
    let output = Command::new(script)
        .current_dir(folder)
        .env_remove("SOURCE_COMMIT")
        .env_remove("SOURCE_DATE_EPOCH")
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

/// The build script as a program of its own, from this text.
fn compiled(folder: &Path, text: &str) -> std::path::PathBuf {
    let (source, program) = (folder.join("build.rs"), folder.join("build"));
    fs::write(&source, text).unwrap();
    let status = Command::new("rustc")
        .args(["--edition", "2024", "-o"])
        .args([&program, &source])
        .current_dir(root())
        .status();
    assert!(status.unwrap().success());
    program
}

#[test]
fn a_build_without_git_takes_commit_and_date_from_where_they_are_said() {
    let folder = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(root().join("build.rs")).unwrap();
    let script = compiled(folder.path(), &text);
    let (commit, date) = (
        "cargo:rustc-env=BUILD_COMMIT=",
        "cargo:rustc-env=BUILD_DATE=",
    );

    let said = build(&script, folder.path(), &[]);
    assert!(said.contains(&format!("{commit}unknown\n")), "{said}");

    for (seconds, day) in [
        ("0", "1970-01-01"),
        ("951782400", "2000-02-29"),
        ("1796342399", "2026-12-03"),
        ("4107542399", "2100-02-28"),
        ("4107542400", "2100-03-01"),
    ] {
        let variables = [
            ("SOURCE_DATE_EPOCH", seconds),
            ("SOURCE_COMMIT", "0123456789abcdef0123456789abcdef01234567"),
        ];
        let said = build(&script, folder.path(), &variables);
        assert!(said.contains(&format!("{commit}0123456\n")), "{said}");
        assert!(said.contains(&format!("{date}{day}\n")), "{said}");
    }

    // As `git archive` leaves it.
    let mark = "$Format:%H %ct$";
    assert!(text.contains(mark));
    let archived = text.replace(mark, "fedcba9876543210fedcba9876543210fedcba98 951782400");
    let script = compiled(folder.path(), &archived);
    let said = build(&script, folder.path(), &[]);
    assert!(said.contains(&format!("{commit}fedcba9\n")), "{said}");
    assert!(said.contains(&format!("{date}2000-02-29\n")), "{said}");
    // A commit that is no commit could be anything.
    let said = build(&script, folder.path(), &[("SOURCE_COMMIT", "1.0\nx")]);
    assert!(said.contains(&format!("{commit}fedcba9\n")), "{said}");
}
