//! Completeness of the event kinds: everything that docs/adding-a-kind.md asks for is there, found by the folders alone.

use std::fs;
use std::path::Path;

/// The repository.
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

fn text(root: &Path, path: &str) -> String {
    fs::read_to_string(root.join(path)).unwrap_or_default()
}

/// The folders of functions whose `main` runs a kind.
fn kinds(root: &Path) -> Vec<String> {
    let folders = fs::read_dir(root.join("functions")).unwrap().map(|entry| entry.unwrap().file_name());
    let mut kinds: Vec<String> = folders
        .map(|folder| folder.into_string().unwrap())
        .filter(|folder| text(root, &format!("functions/{folder}/src/main.rs")).contains("shared::run("))
        .collect();
    kinds.sort();
    kinds
}

/// `my-kind` as `MyKind`, the prefix of its resources in the template.
fn pascal_case(kind: &str) -> String {
    kind.split('-').map(|word| format!("{}{}", word[..1].to_uppercase(), &word[1..])).collect()
}

/// What a kind lacks, each with the place where it belongs.
fn lacks(root: &Path, kind: &str) -> Vec<String> {
    let (module, prefix) = (kind.replace('-', "_"), pascal_case(kind));
    let in_file = |path: &str, part: String| (path.to_owned(), text(root, path).contains(&part), part);
    let resource = |suffix: &str| in_file("template.yaml", format!("\n  {prefix}{suffix}:\n"));
    let shown = |part: String| in_file("template.yaml", format!("${{{prefix}{part}}}"));
    let fixtures = fs::read_dir(root.join("tests/fixtures").join(kind)).map_or(0, Iterator::count);
    let page = fs::read_dir(root.join("docs")).unwrap().any(|page| {
        let page = page.unwrap().path();
        page.file_name().unwrap().to_string_lossy().starts_with("connect-")
            && fs::read_to_string(page).unwrap().contains(&format!("`{kind}`"))
    });
    let mut asked = vec![
        in_file(&format!("functions/{kind}/Cargo.toml"), format!("name = \"{kind}\"")),
        in_file(&format!("functions/{kind}/options.schema.json"), "\"$schema\"".to_owned()),
        in_file(&format!("functions/{kind}/README.md"), format!("# {kind}")),
        in_file("tests/it/option_schemas.rs", format!("is_published::<{module}::Options>(\"{kind}\")")),
        in_file("tests/it/main.rs", format!("mod {module};")),
        in_file("functions/flow-service/src/specs.rs", format!("\"{kind}\"")),
        in_file("local/src/kinds.rs", format!("name: \"{kind}\"")),
        in_file(&format!("events/{kind}-webhook.json"), "\"version\"".to_owned()),
        in_file("events/env.json", format!("\"{prefix}\"")),
        in_file("README.md", format!("| [`{kind}`](functions/{kind}) |")),
        in_file("docs/configuration.md", format!("## Options of `{kind}`")),
        in_file("docs/control-api.md", format!("`{kind}`")),
        in_file("CHANGELOG.md", format!("`{kind}`")),
        ("tests/fixtures".to_owned(), fixtures > 0, format!("a folder `{kind}` with payloads")),
        ("docs".to_owned(), page, format!("a page connect-….md that names `{kind}`")),
    ];
    let suffixes = ["", "Hub", "Options", "Queue", "DeadLetters", "Role", "DeadLettersAlarm", "QueueAgeAlarm"];
    asked.extend(suffixes.map(resource));
    asked.extend(["ErrorRateAlarm", "Url", "QueueUrl", "DeadLettersArn"].map(resource));
    asked
        .extend(["DeadLettersAlarm.Arn", "QueueAgeAlarm.Arn", "ErrorRateAlarm.Arn"].map(|part| shown(part.to_owned())));
    asked.extend(["", "Queue.QueueName", "DeadLetters.QueueName"].map(|part| shown(part.to_owned())));
    asked
        .into_iter()
        .filter(|(_, is_there, _)| !is_there)
        .map(|(path, _, part)| format!("{path}: {}", part.trim()))
        .collect()
}

#[test]
fn every_kind_has_all_that_the_page_about_adding_one_asks_for() {
    let root = Path::new(ROOT);
    let kinds = kinds(root);
    assert!(kinds.len() >= 3, "{kinds:?}");
    for kind in &kinds {
        let lacking = lacks(root, kind);
        assert!(lacking.is_empty(), "the kind `{kind}` lacks:\n{}", lacking.join("\n"));
    }
}

/// The files that the page names, with the kind whose entries a new kind copies.
const TOUCHED: [&str; 10] = [
    "template.yaml",
    "events/env.json",
    "functions/flow-service/src/specs.rs",
    "local/src/kinds.rs",
    "tests/it/main.rs",
    "tests/it/option_schemas.rs",
    "README.md",
    "docs/configuration.md",
    "docs/control-api.md",
    "CHANGELOG.md",
];

#[test]
fn a_toy_kind_that_follows_the_page_is_complete_and_lacks_everything_before() {
    let root = Path::new(ROOT);
    let copy = std::env::temp_dir().join(format!("toy-kind-{:016x}", fastrand::u64(..)));
    let write = |path: &str, text: &str| {
        let path = copy.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let page = text(root, "docs/adding-a-kind.md");
    for path in TOUCHED {
        assert!(page.contains(&format!("`{path}`")), "docs/adding-a-kind.md does not name `{path}`");
        write(path, &text(root, path));
    }
    write("docs/connect-nothing.md", "");
    write("functions/toy-kind/src/main.rs", "fn main() -> std::process::ExitCode { shared::run(toy_kind::KIND) }");
    assert_eq!(kinds(&copy), ["toy-kind"]);
    assert!(lacks(&copy, "toy-kind").len() > 25, "{:?}", lacks(&copy, "toy-kind"));

    // The page's steps: the folder, fixtures and a page of its own; elsewhere what audience-change has, under the new name.
    let renamed = |text: &str| {
        text.replace("audience-change", "toy-kind")
            .replace("audience_change", "toy_kind")
            .replace("AudienceChange", "ToyKind")
    };
    for path in TOUCHED {
        let original = text(root, path);
        let entries: Vec<&str> = original.split_inclusive('\n').collect();
        let added: String = entries
            .iter()
            .map(|line| renamed(line))
            .zip(&entries)
            .filter(|(new, old)| new != *old)
            .map(|(new, _)| new)
            .collect();
        write(path, &format!("{original}\n{added}"));
    }
    for path in ["Cargo.toml", "README.md", "options.schema.json"] {
        write(
            &format!("functions/toy-kind/{path}"),
            &renamed(&text(root, &format!("functions/audience-change/{path}"))),
        );
    }
    write("events/toy-kind-webhook.json", &renamed(&text(root, "events/audience-change-webhook.json")));
    write("tests/fixtures/toy-kind/one.json", "{}");
    write("docs/connect-toy.md", "How to connect `toy-kind`.");
    let lacking = lacks(&copy, "toy-kind");
    fs::remove_dir_all(&copy).unwrap();
    assert!(lacking.is_empty(), "{}", lacking.join("\n"));
}
