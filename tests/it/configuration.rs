//! The configuration reference: the meaning of each variable on the page is the comment of its constant.
//! `UPDATE_PAGES=1 cargo test -p tests configuration` regenerates the rows.

use std::collections::BTreeMap;
use std::fs;

/// The sources that declare variables.
const SOURCES: [&str; 2] = ["shared/src/environment.rs", "functions/redelivery/src/settings.rs"];

fn path(name: &str) -> String {
    format!("{}/../{name}", env!("CARGO_MANIFEST_DIR"))
}

/// The doc comment of each constant that names a variable.
fn meanings() -> BTreeMap<String, String> {
    let mut meanings = BTreeMap::new();
    for source in SOURCES {
        let mut comment = Vec::new();
        for line in fs::read_to_string(path(source)).unwrap().lines() {
            if let Some(text) = line.strip_prefix("/// ") {
                comment.push(text.to_owned());
                continue;
            }
            let comment = std::mem::take(&mut comment);
            let Some((declaration, value)) = line.split_once(": &str = \"") else { continue };
            if declaration.trim_start_matches("pub ").starts_with("const ") {
                meanings.insert(value.trim_end_matches("\";").to_owned(), comment.join(" "));
            }
        }
    }
    meanings
}

#[test]
fn the_page_gives_each_variable_the_meaning_of_its_constant() {
    let meanings = meanings();
    assert!(meanings.len() >= 17, "{meanings:?}");
    let page = fs::read_to_string(path("docs/configuration.md")).unwrap();
    let mut found = Vec::new();
    let generated: Vec<String> = page
        .lines()
        .map(|line| {
            let variable = line.strip_prefix("| `").and_then(|rest| Some(rest.split_once("` | ")?.0));
            match variable.and_then(|variable| Some((variable, meanings.get(variable)?))) {
                Some((variable, meaning)) => {
                    found.push(variable.to_owned());
                    format!("| `{variable}` | {meaning} |")
                }
                None => line.to_owned(),
            }
        })
        .collect();
    let generated = generated.join("\n") + "\n";
    let missing: Vec<&String> = meanings.keys().filter(|variable| !found.contains(variable)).collect();
    assert!(missing.is_empty(), "docs/configuration.md has no row for {missing:?}");
    if std::env::var_os("UPDATE_PAGES").is_some() {
        fs::write(path("docs/configuration.md"), &generated).unwrap();
        return;
    }
    assert!(page == generated, "docs/configuration.md differs from the comments of the constants; regenerate it");
}
