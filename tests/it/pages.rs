//! What the pages name: each file of code in backticks exists, and each test behind `file.rs::` is in its file.

use std::fs;
use std::path::{Path, PathBuf};

#[test]
fn files_and_tests_that_a_page_names_exist() {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let mut code = Vec::new();
    for folder in ["bench", "cli", "functions", "local", "shared", "tests"] {
        collect(&root.join(folder), &mut code);
    }
    let pages = fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let pages = pages.chain([root.join("README.md")]).filter(|path| path.extension().is_some_and(|end| end == "md"));
    let (mut named, mut missing) = (0, Vec::new());
    for page in pages {
        let text = fs::read_to_string(&page).unwrap();
        let mut file: Option<String> = None;
        for name in text.split('`').skip(1).step_by(2) {
            let (path, test) = name.split_once("::").unwrap_or((name, ""));
            if path.ends_with(".rs") && !path.contains(['{', '<', ' ', '*', '…']) {
                let found = code.iter().find(|known| known.ends_with(path));
                file = found.map(|found| fs::read_to_string(found).unwrap());
                named += 1;
                if file.is_none() {
                    missing.push(format!("{}: {path}", page.display()));
                }
            } else if !path.is_empty() {
                continue;
            }
            let is_test = !test.is_empty()
                && test.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_' || byte.is_ascii_digit());
            if is_test && file.as_ref().is_some_and(|file| !file.contains(&format!("fn {test}("))) {
                missing.push(format!("{}: {name}", page.display()));
            }
        }
    }
    assert!(named > 50, "the names are found");
    assert!(missing.is_empty(), "pages name what is not there:\n{}", missing.join("\n"));
}

fn collect(folder: &Path, code: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, code);
        } else if path.extension().is_some_and(|end| end == "rs") {
            code.push(path);
        }
    }
}
