//! What operators get in `docker/`: alert rules, dashboard, manifests. Do they name what there is, and do alerts fire?

mod dashboard;
mod files;
mod fires;
mod prometheus;

use std::path::PathBuf;

/// Metrics that the files name and the program does not serve yet. Empty, once it does.
const NOT_YET: &[&str] = &[];

fn docker(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("docker")
        .join(name)
}

fn text(name: &str) -> String {
    let path = docker(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A rule of `alerts.yaml`: its name, and the lines that follow it.
fn rules() -> Vec<(String, String)> {
    let text = text("prometheus/alerts.yaml");
    let blocks = text.split("\n      - alert: ").skip(1);
    let rules: Vec<_> = blocks
        .map(|block| {
            let (name, rest) = block.split_once('\n').unwrap();
            (name.to_owned(), rest.to_owned())
        })
        .collect();
    assert!(rules.len() >= 8, "{rules:?}");
    rules
}
