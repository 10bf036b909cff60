//! The JSON Schema of each kind's options, published in its folder and generated from the types that read them.
//! `UPDATE_SCHEMAS=1 cargo test -p tests schemas` regenerates the files.

use std::path::PathBuf;

use schemars::{JsonSchema, schema_for};

fn is_published<O: JsonSchema>(kind: &str) {
    let path =
        PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../functions")).join(kind).join("options.schema.json");
    let generated = serde_json::to_string_pretty(&schema_for!(O)).unwrap() + "\n";
    if std::env::var_os("UPDATE_SCHEMAS").is_some() {
        std::fs::write(&path, &generated).unwrap();
    }
    let published = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(published, generated, "{} differs from the schema of the types; regenerate it", path.display());
}

#[test]
fn published_schemas_equal_those_of_the_types() {
    is_published::<audience_change::Options>("audience-change");
    is_published::<dataverse_event::Options>("dataverse-event");
    is_published::<profile_export::Options>("profile-export");
}
