//! Every tool that builds or checks a release is pinned, and CI skips no check.

use std::fs;

fn read(path: &str) -> String {
    fs::read_to_string(format!("{}/../{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

#[test]
fn every_python_package_has_a_version_and_hashes_and_nothing_is_installed_without() {
    let requirements = read("requirements.txt").replace("\\\n", " ");
    let lines: Vec<&str> =
        requirements.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    assert!(lines.len() > 100, "all packages are listed, also those that others need: {}", lines.len());
    for line in &lines {
        let hashes = line.matches("--hash=sha256:").count();
        assert!(line.split([' ', ';']).next().unwrap().contains("==") && hashes > 0, "{line}");
    }
    for wanted in read("requirements.in").lines().filter(|line| !line.starts_with('#')) {
        let wanted = wanted.replace("[server]", "");
        assert!(lines.iter().any(|line| line.starts_with(&wanted)), "{wanted} is not in requirements.txt");
    }
    let makefile = read("Makefile");
    let installs: Vec<&str> = makefile.lines().filter(|line| line.contains("pip install")).collect();
    assert!(!installs.is_empty());
    for install in installs {
        for option in ["--require-hashes", "--no-deps", "--only-binary :all:"] {
            assert!(install.contains(option), "{option}: {install}");
        }
    }
}

#[test]
fn ci_checks_dependencies_with_a_pinned_tool_whether_or_not_it_was_there() {
    let ci = read(".ci/run");
    assert!(ci.contains("set -euo pipefail"));
    assert!(ci.lines().any(|line| line == "make deny"), "not behind a condition");
    let makefile = read("Makefile");
    let installs: Vec<&str> = makefile.lines().filter(|line| line.contains("cargo install")).collect();
    assert_eq!(installs.len(), 1);
    assert!(installs[0].contains("--locked --version =$(DENY_VERSION)"), "{}", installs[0]);
    let checks = makefile.lines().filter(|line| line.contains("cargo-deny check")).collect::<Vec<_>>().join(" ");
    for check in ["bans", "licenses", "sources", "advisories"] {
        assert!(checks.contains(check), "{check}");
    }
}
