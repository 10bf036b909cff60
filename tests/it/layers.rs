//! The layers of `shared`: a module uses only what is listed below it, so that, for example, the hub's client can be read without flows.

use std::collections::BTreeSet;
use std::path::Path;

/// The layers from the top, each with its modules.
const LAYERS: [(&str, &[&str]); 8] = [
    ("entry", &["lib", "lambda"]),
    ("triggers", &["trigger"]),
    ("pipeline", &["pipeline", "undelivered"]),
    ("flows", &["flow", "sender_auth"]),
    ("hub", &["event_hubs"]),
    ("contracts", &["contract"]),
    ("values", &["kind", "message", "json"]),
    ("services", &["aws", "http", "clock", "environment"]),
];
/// Modules of one layer that use each other, and in which direction.
const WITHIN_A_LAYER: [(&str, &str); 10] = [
    ("pipeline", "undelivered"),
    ("flow", "sender_auth"),
    ("kind", "json"),
    ("kind", "message"),
    ("message", "json"),
    ("aws", "http"),
    ("aws", "clock"),
    ("aws", "environment"),
    ("http", "clock"),
    ("lib", "lambda"),
];

#[test]
fn modules_of_shared_use_only_the_layers_below_them() {
    let source = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/src"));
    let mut uses = BTreeSet::new();
    collect(source, source, &mut uses);
    assert!(uses.len() > 30, "the `use` lines are found");
    let layer = |module: &str| {
        LAYERS.iter().position(|(_, modules)| modules.contains(&module)).unwrap_or_else(|| {
            panic!(
                "`shared/src/{module}` is not in any layer: add it to a layer of this test and of docs/architecture.md"
            )
        })
    };
    let wrong: Vec<String> = uses
        .iter()
        .filter(|(user, used)| {
            let is_below = layer(user) < layer(used);
            !is_below && user != used && !WITHIN_A_LAYER.contains(&(user, used))
        })
        .map(|(user, used)| format!("`{user}` ({}) uses `{used}` ({})", LAYERS[layer(user)].0, LAYERS[layer(used)].0))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("; "));
}

/// The top-level modules that each module names after `crate::`, without its tests.
fn collect(root: &Path, folder: &Path, uses: &mut BTreeSet<(String, String)>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(root, &path, uses);
            continue;
        }
        let module = path.strip_prefix(root).unwrap().with_extension("");
        let module = module.iter().next().unwrap().to_str().unwrap().to_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        let code: Vec<&str> = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        for used in code.join("\n").split("crate::").skip(1) {
            assert!(!used.starts_with('{'), "{}: write one `use crate::` line for each module", path.display());
            let used: String = used.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
            uses.insert((module.clone(), used));
        }
    }
}
