//! Each link of the pages resolves: its file exists and, behind a `#`, the page has that heading.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The pages of these folders, by their path from the root.
fn pages() -> BTreeSet<PathBuf> {
    let functions = fs::read_dir(root().join("functions")).unwrap().map(|folder| folder.unwrap().path());
    let others = ["", "docs", "bench", "bench/results", "cli", "local", "shared", "tests", "tests/fixtures"];
    let files =
        functions.chain(others.map(|folder| root().join(folder))).flat_map(|folder| fs::read_dir(folder).unwrap());
    files.map(|file| file.unwrap().path()).filter(|path| path.extension().is_some_and(|end| end == "md")).collect()
}

/// The lines of a page outside of its fenced code blocks.
fn lines(page: &str) -> Vec<&str> {
    let mut fenced = false;
    let mut is_prose = |line: &&str| {
        let is_fence = line.trim_start().starts_with("```");
        fenced ^= is_fence;
        !fenced && !is_fence
    };
    page.lines().filter(|line| is_prose(line)).collect()
}

/// The anchors that GitHub gives to the headings of a page.
fn anchors(page: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    for line in lines(page) {
        let heading = line.trim_start_matches('#');
        if heading.len() == line.len() || !heading.starts_with(' ') {
            continue;
        }
        let kept = |sign: &char| sign.is_alphanumeric() || matches!(sign, ' ' | '-' | '_');
        let slug = heading.trim().to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-");
        let numbered = (1..).map(|number| format!("{slug}-{number}"));
        let anchor = std::iter::once(slug.clone()).chain(numbered).find(|anchor| !anchors.contains(anchor));
        anchors.extend(anchor);
    }
    anchors
}

/// The targets of the relative links in a line, code spans left out.
fn links(line: &str) -> Vec<String> {
    let text: String = line.split('`').step_by(2).collect();
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target.to_owned());
    targets.filter(|target| !target.contains("://")).collect()
}

/// What is wrong with a link in a page, if anything is.
fn problem(page: &Path, link: &str) -> Option<String> {
    let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
    let target = if file.is_empty() { page.to_owned() } else { page.parent().unwrap().join(file) };
    let problem = if !target.exists() {
        "there is no such file"
    } else if !anchor.is_empty() && !anchors(&fs::read_to_string(&target).unwrap()).contains(anchor) {
        "the page has no such heading"
    } else {
        return None;
    };
    Some(format!("{}: {link}: {problem}", page.strip_prefix(root()).unwrap().display()))
}

#[test]
fn every_link_of_a_page_resolves_to_a_file_and_a_heading() {
    let mut problems = Vec::new();
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        problems.extend(lines(&text).into_iter().flat_map(links).filter_map(|link| problem(&page, &link)));
    }
    assert!(problems.is_empty(), "{problems:#?}");
}

#[test]
fn every_page_that_the_template_names_exists_and_has_the_heading() {
    let page = root().join("template.yaml");
    let text = fs::read_to_string(&page).unwrap();
    let words = text.split(|sign: char| !(sign.is_ascii_alphanumeric() || "-_./#".contains(sign)));
    let named: BTreeSet<&str> =
        words.filter(|word| word.starts_with("docs/")).map(|word| word.trim_end_matches('.')).collect();
    assert!(!named.is_empty());
    let problems: Vec<String> = named.into_iter().filter_map(|link| problem(&page, link)).collect();
    assert!(problems.is_empty(), "{problems:#?}");
}
