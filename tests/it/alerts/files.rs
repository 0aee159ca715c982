//! The files alone: what they name is there, and the tools of those who read them have no complaint.

use std::collections::BTreeSet;
use std::process::Command;

use super::{NOT_YET, docker, prometheus, rules, text};
use crate::docs;

/// Names of metrics in a text, without the endings of a histogram's series.
pub fn metrics_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let named = words.filter(|word| word.starts_with("waltrail_") || word.starts_with("process_"));
    let plain = named.map(|word| {
        let histogram = ["_bucket", "_sum", "_count"];
        let ending = histogram.iter().find_map(|end| word.strip_suffix(end));
        ending.unwrap_or(word).to_owned()
    });
    plain.collect()
}

/// What is asked of Prometheus: the expressions of the rules, the queries of the dashboard.
fn asked() -> BTreeSet<String> {
    let mut asked = metrics_in(&text("grafana/waltrail.json"));
    for (_, rule) in rules() {
        let (expression, _) = rule.split_once("labels:").unwrap();
        asked.extend(metrics_in(expression));
    }
    asked
}

#[test]
fn rules_and_dashboard_name_metrics_that_are_served() {
    // The documented ones are those that are served: a test of `docs` holds them together.
    let served = docs::documented_metrics();
    let strange: Vec<_> = asked()
        .into_iter()
        .filter(|name| !served.contains(name) && !NOT_YET.contains(&name.as_str()))
        .collect();
    assert!(strange.is_empty(), "no such metrics: {strange:?}");
    let there: Vec<_> = NOT_YET
        .iter()
        .filter(|name| served.contains(**name))
        .collect();
    assert!(
        there.is_empty(),
        "take these out of NOT_YET, they are served: {there:?}"
    );
}

#[test]
fn every_metric_that_is_served_is_in_the_dashboard() {
    let shown = metrics_in(&text("grafana/waltrail.json"));
    let missing: Vec<_> = docs::documented_metrics()
        .into_iter()
        .filter(|name| !shown.contains(name))
        .collect();
    assert!(missing.is_empty(), "the dashboard lacks {missing:?}");
}

#[test]
fn every_rule_leads_to_a_section_that_says_what_to_do() {
    let page = docs::document("docs/operate/alerts.md");
    for (name, rule) in rules() {
        let anchor = name.to_lowercase();
        for part in [
            "severity: ",
            "summary: ",
            "description: ",
            &format!("runbook_url: docs/operate/alerts.md#{anchor}\n"),
        ] {
            assert!(rule.contains(part), "{name} lacks {part}");
        }
        assert!(
            page.contains(&format!("\n## {name}\n")),
            "{name} has no section"
        );
    }
    let known: BTreeSet<_> = rules().into_iter().map(|(name, _)| name).collect();
    for heading in page.lines().filter_map(|line| line.strip_prefix("## ")) {
        assert!(
            !heading.starts_with("Waltrail") || known.contains(heading),
            "there is no rule {heading}"
        );
    }
}

#[test]
fn every_rule_is_tested_to_fire_and_not_to_fire() {
    let tests = text("prometheus/alerts.test.yaml");
    // A case is what follows its name up to the next one.
    let cases: Vec<_> = tests
        .split("alertname: ")
        .skip(1)
        .map(|case| {
            let end = case.find([',', '\n']).unwrap();
            (&case[..end], case.contains("exp_alerts: []"))
        })
        .collect();
    for (name, _) in rules() {
        for silent in [true, false] {
            assert!(
                cases.contains(&(name.as_str(), silent)),
                "{name} has no case with silent = {silent}"
            );
        }
    }
}

#[test]
fn promtool_has_no_complaint() {
    for (check, file) in [
        (&["check", "rules"][..], "prometheus/alerts.yaml"),
        (&["test", "rules"][..], "prometheus/alerts.test.yaml"),
        (&["check", "config"][..], "prometheus/prometheus.yaml"),
    ] {
        let Some(promtool) = prometheus::program("promtool") else {
            return;
        };
        let output = Command::new(promtool)
            .args(check)
            .arg(docker(file))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{check:?}: {said}");
        if check == ["check", "rules"] {
            let found = format!("{} rules found", rules().len());
            assert!(said.contains(&found), "{said}");
        }
    }
}

/// The user, the port and the paths are written in several files.
#[test]
fn the_files_of_the_image_and_of_its_managers_agree() {
    let user = "10001";
    let image = text("Dockerfile");
    assert!(image.contains(&format!("\nUSER {user}:{user}\n")));
    assert!(text("rootfs/etc/passwd").starts_with(&format!("waltrail:x:{user}:{user}:")));
    assert!(text("rootfs/etc/group").starts_with(&format!("waltrail:x:{user}:")));
    for name in ["deployment", "sidecar", "setup"] {
        let manifest = text(&format!("kubernetes/{name}.yaml"));
        for part in [
            format!("runAsUser: {user}\n"),
            format!("fsGroup: {user}\n"),
            "runAsNonRoot: true\n".to_owned(),
            "readOnlyRootFilesystem: true\n".to_owned(),
            "allowPrivilegeEscalation: false\n".to_owned(),
            "automountServiceAccountToken: false\n".to_owned(),
        ] {
            assert!(manifest.contains(&part), "{name} lacks {part}");
        }
    }
    for name in [
        "rootfs/etc/waltrail/waltrail.toml",
        "compose.yaml",
        "prometheus/prometheus.yaml",
        "kubernetes/config.yaml",
        "kubernetes/deployment.yaml",
        "kubernetes/sidecar.yaml",
    ] {
        assert!(text(name).contains("9464"), "{name} has another port");
    }
    for name in ["Dockerfile", "compose.yaml"] {
        let asks = "[\"CMD\", \"/usr/local/bin/waltrail\", \"health\"]";
        let asks_too = asks.replace("[\"CMD\", ", "[");
        let text = text(name);
        assert!(text.contains(asks) || text.contains(&asks_too), "{name}");
    }
}

/// Manifests, compose files and the dashboard against the schemas of those who read them.
#[test]
fn kubernetes_compose_and_grafana_take_the_files() {
    let script = docker("../scripts/check-manifests");
    let output = Command::new(script).output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    match output.status.code() {
        // What it needs is fetched by scripts/fetch-schemas.
        Some(77) => println!("not tried: {said}"),
        code => assert_eq!(code, Some(0), "{said}"),
    }
}
