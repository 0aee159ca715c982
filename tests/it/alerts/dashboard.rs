//! The dashboard as JSON.

use std::collections::BTreeSet;

use serde_json::Value;

use super::text;

pub fn dashboard() -> Value {
    serde_json::from_str(&text("grafana/waltrail.json")).unwrap()
}

/// Title and query of each target, and of each annotation.
pub fn queries() -> Vec<(String, String)> {
    let dashboard = dashboard();
    let mut found = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let targets = panel["targets"].as_array().map_or(&[][..], Vec::as_slice);
        found.extend(targets.iter().map(|target| (panel, target)));
    }
    let annotations = dashboard["annotations"]["list"].as_array().unwrap();
    let annotations = annotations.iter().filter(|one| one["expr"].is_string());
    found.extend(annotations.map(|one| (one, one)));
    let name = |of: &Value| {
        of["title"]
            .as_str()
            .or(of["name"].as_str())
            .map(str::to_owned)
    };
    let found = found.into_iter();
    found
        .map(|(of, query)| {
            (
                name(of).unwrap(),
                query["expr"].as_str().unwrap().to_owned(),
            )
        })
        .collect()
}

#[test]
fn every_panel_of_the_dashboard_has_a_place_a_query_and_the_chosen_data_source() {
    let dashboard = dashboard();
    let (mut ids, mut taken) = (BTreeSet::new(), BTreeSet::new());
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}");
        let place = |side: &str| panel["gridPos"][side].as_u64().unwrap();
        let (x, y, width, height) = (place("x"), place("y"), place("w"), place("h"));
        assert!(x + width <= 24, "{title} is wider than the page");
        for column in x..x + width {
            for line in y..y + height {
                assert!(taken.insert((column, line)), "{title} covers another panel");
            }
        }
        if panel["type"] == "row" {
            continue;
        }
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{title} asks nothing");
        let ref_ids: BTreeSet<_> = targets.iter().map(|t| t["refId"].to_string()).collect();
        assert_eq!(ref_ids.len(), targets.len(), "{title}");
        for asks in targets.iter().chain([panel]) {
            assert_eq!(asks["datasource"]["uid"], "${datasource}", "{title}");
        }
        for target in targets {
            let query = target["expr"].as_str().unwrap();
            assert!(
                query.contains("{instance=~\"$instance\""),
                "{title}: {query}"
            );
        }
    }
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let names: Vec<_> = variables.iter().map(|one| &one["name"]).collect();
    assert_eq!(names, ["datasource", "instance"]);
    assert!(queries().len() > 40);
}
