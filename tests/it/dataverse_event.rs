//! `dataverse-event`: each context becomes the message that Dataverse's own Event Hub endpoint would write. The outcome of each
//! fixture is a snapshot; tables cover the rules beyond the fixtures.

use std::borrow::Cow;

use dataverse_event::{KIND, Options};
use proptest::prelude::*;
use serde_json::{Value, json};
use shared::{Event, Mapped, Reason, Rejection};

use crate::harness::*;

const CREATE: &str = include_str!("../fixtures/dataverse-event/create_lead_sync.json");
const DELETE: &str = include_str!("../fixtures/dataverse-event/delete_lead_async.json");
const UPDATE: &str = include_str!("../fixtures/dataverse-event/update_contact_async.json");
const CLAIMS: &str = "http://schemas.microsoft.com/xrm/2011/Claims/";
const ZERO_GUID: &str = "00000000-0000-0000-0000-000000000000";

fn options(json: Value) -> Options {
    shared::json::from_config(&json.to_string()).unwrap()
}

fn xml_options() -> Options {
    options(json!({ "messageFormat": "xml" }))
}

fn map<'a>(json: &'a str, options: &'a Options) -> Result<Mapped<'a>, Rejection> {
    (KIND.map)(Event::new(json, "default", &[], 1_000_000), options)
}

/// The body of the single message.
fn body(event: &str, options: &Options) -> Result<String, String> {
    let mut mapped = map(event, options).map_err(|rejection| rejection.detail.into_owned())?;
    assert_eq!(mapped.messages.len(), 1);
    Ok(mapped.messages.remove(0).body.to_text())
}

fn properties(mapped: &Mapped<'_>) -> Value {
    serde_json::from_str(mapped.messages[0].properties.as_json()).unwrap()
}

/// A small context with additional `members`.
fn context(members: &str) -> String {
    let comma = if members.is_empty() { "" } else { "," };
    format!(r#"{{"MessageName":"new_Custom","PrimaryEntityName":"account"{comma}{members}}}"#)
}

/// The XML of one value in an object slot.
fn slot(value: &str) -> Result<String, String> {
    let xml = body(&context(&format!(r#""SharedVariables":[{{"key":"k","value":{value}}}]"#)), &xml_options())?;
    let start = xml.find("<a:key>k</a:key>").unwrap() + "<a:key>k</a:key>".len();
    let end = xml.rfind("</KeyValuePairOfstringanyType></SharedVariables>").unwrap();
    Ok(xml[start..end].to_owned())
}

#[test]
fn dataverse_fixtures_keep_their_bytes_and_get_their_properties() {
    insta::glob!("../fixtures/dataverse-event", "*.json", |path| {
        let event = std::fs::read_to_string(path).unwrap();
        let options = options(json!({ "userClaim": "userId" }));
        let mapped = map(&event, &options).unwrap();
        assert_eq!(mapped.messages[0].body.to_text(), event);
        let message = &mapped.messages[0];
        insta::assert_json_snapshot!(json!({
            "id": message.id, "subject": message.subject, "properties": properties(&mapped), "notes": mapped.notes,
        }));
    });
}

#[test]
fn fixtures_become_the_xml_of_the_contract_serializer() {
    for (json, xml) in [
        (CREATE, include_str!("../fixtures/dataverse-event/create_lead_sync.xml")),
        (DELETE, include_str!("../fixtures/dataverse-event/delete_lead_async.xml")),
        (UPDATE, include_str!("../fixtures/dataverse-event/update_contact_async.xml")),
    ] {
        assert_eq!(body(json, &xml_options()).unwrap(), xml);
        let spaced = json.replace("\\/", "/").replace("\":", "\" :\n ").replace("{\"", "{ \"").replace(",{", " , {");
        assert_eq!(body(&spaced, &xml_options()).unwrap(), xml, "white space and slashes do not change the XML");
    }
}

#[test]
fn every_value_of_an_object_slot_has_its_xml() {
    const XS: &str = r#" xmlns:b="http://www.w3.org/2001/XMLSchema""#;
    const ARRAYS: &str = r#" xmlns:b="http://schemas.microsoft.com/2003/10/Serialization/Arrays""#;
    const XS_IN_ARRAY: &str = r#" xmlns:c="http://www.w3.org/2001/XMLSchema""#;
    let typed = |name: &str, members: &str| {
        format!(r#"{{"__type":"{name}:http:\/\/schemas.microsoft.com\/xrm\/2011\/Contracts"{members}}}"#)
    };
    let guid = "e837c9ec-8151-e811-a950-000d3a391928";
    let reference = r#"<KeyAttributes/><LogicalName>lead</LogicalName><Name i:nil="true"/><RowVersion i:nil="true"/>"#;
    let reference_json =
        format!(r#","Id":"{guid}","KeyAttributes":[],"LogicalName":"lead","Name":null,"RowVersion":null"#);
    let entity_defaults = format!(
        r#"<Attributes i:nil="true"/><EntityState>Changed</EntityState><FormattedValues i:nil="true"/><Id>{ZERO_GUID}</Id><KeyAttributes i:nil="true"/><LogicalName i:nil="true"/><RelatedEntities i:nil="true"/><RowVersion i:nil="true"/>"#
    );
    let collection = r#","Entities":[{"EntityState":2}],"EntityName":"lead","MinActiveRowVersion":"-1","MoreRecords":true,"PagingCookie":"","TotalRecordCount":-1,"TotalRecordCountLimitExceeded":false"#;
    let collection_xml = format!(
        r#"<Entities><Entity>{entity_defaults}</Entity></Entities><EntityName>lead</EntityName><MinActiveRowVersion>-1</MinActiveRowVersion><MoreRecords>true</MoreRecords><PagingCookie/><TotalRecordCount>-1</TotalRecordCount><TotalRecordCountLimitExceeded>false</TotalRecordCountLimitExceeded>"#
    );
    let option = typed("OptionSetValue", r#","Value":1"#);
    for (value, expected) in [
        ("null".to_owned(), r#"<a:value i:nil="true"/>"#.to_owned()),
        (r#""a\/b""#.into(), format!(r#"<a:value i:type="b:string"{XS}>a/b</a:value>"#)),
        (r#""""#.into(), format!(r#"<a:value i:type="b:string"{XS}/>"#)),
        ("true".into(), format!(r#"<a:value i:type="b:boolean"{XS}>true</a:value>"#)),
        ("-7".into(), format!(r#"<a:value i:type="b:int"{XS}>-7</a:value>"#)),
        ("9007199254740993".into(), format!(r#"<a:value i:type="b:long"{XS}>9007199254740993</a:value>"#)),
        ("9223372036854775808".into(), format!(r#"<a:value i:type="b:decimal"{XS}>9223372036854775808</a:value>"#)),
        ("19.9900".into(), format!(r#"<a:value i:type="b:decimal"{XS}>19.9900</a:value>"#)),
        ("1E+400".into(), format!(r#"<a:value i:type="b:double"{XS}>1E+400</a:value>"#)),
        (
            format!("\"{guid}\""),
            format!(r#"<a:value i:type="b:guid" xmlns:b="http://schemas.microsoft.com/2003/10/Serialization/">{guid}</a:value>"#),
        ),
        (
            r#""\/Date(1506384247120-0700)\/""#.into(),
            format!(r#"<a:value i:type="b:dateTime"{XS}>2017-09-26T00:04:07.12Z</a:value>"#),
        ),
        (
            typed("EntityReference", &reference_json),
            format!(r#"<a:value i:type="EntityReference"><Id>{guid}</Id>{reference}</a:value>"#),
        ),
        (option.clone(), r#"<a:value i:type="OptionSetValue"><Value>1</Value></a:value>"#.into()),
        (
            typed("Money", r#","Value":19.9900"#),
            r#"<a:value i:type="Money"><Value>19.9900</Value></a:value>"#.into(),
        ),
        (
            format!("[{option},{option}]"),
            r#"<a:value i:type="OptionSetValueCollection"><OptionSetValue><Value>1</Value></OptionSetValue><OptionSetValue><Value>1</Value></OptionSetValue></a:value>"#.into(),
        ),
        (
            format!("[{}]", typed("EntityReference", &reference_json)),
            format!(r#"<a:value i:type="EntityReferenceCollection"><EntityReference><Id>{guid}</Id>{reference}</EntityReference></a:value>"#),
        ),
        (typed("Entity", r#","EntityState":2"#), format!(r#"<a:value i:type="Entity">{entity_defaults}</a:value>"#)),
        (
            typed("EntityCollection", collection),
            format!(r#"<a:value i:type="EntityCollection">{collection_xml}</a:value>"#),
        ),
        (
            typed("Entity", &format!(r#","EntityState":2,"RelatedEntities":[{{"key":{{"PrimaryEntityRole":0,"SchemaName":"s"}},"value":{{"__ignored":1{collection}}}}}]"#)),
            format!(
                r#"<a:value i:type="Entity">{}</a:value>"#,
                entity_defaults.replace(
                    r#"<RelatedEntities i:nil="true"/>"#,
                    &format!("<RelatedEntities><KeyValuePairOfRelationshipEntityCollectionX_PsK4FkN><a:key><PrimaryEntityRole>Referencing</PrimaryEntityRole><SchemaName>s</SchemaName></a:key><a:value>{collection_xml}</a:value></KeyValuePairOfRelationshipEntityCollectionX_PsK4FkN></RelatedEntities>"),
                )
            ),
        ),
        (
            typed("Relationship", r#","PrimaryEntityRole":1,"SchemaName":"account_primary_contact""#),
            r#"<a:value i:type="Relationship"><PrimaryEntityRole>Referenced</PrimaryEntityRole><SchemaName>account_primary_contact</SchemaName></a:value>"#.into(),
        ),
        (
            r#"[{"__type":"KeyValuePairOfstringstring:#System.Collections.Generic","key":"lead","value":null}]"#.into(),
            r#"<a:value i:type="a:ArrayOfKeyValuePairOfstringstring"><a:KeyValuePairOfstringstring><a:key>lead</a:key><a:value i:nil="true"/></a:KeyValuePairOfstringstring></a:value>"#.into(),
        ),
        ("[0,255]".into(), format!(r#"<a:value i:type="b:base64Binary"{XS}>AP8=</a:value>"#)),
        ("[]".into(), format!(r#"<a:value i:type="b:ArrayOfanyType"{ARRAYS}/>"#)),
        (
            format!(r#"[256,null,["x"],{option}]"#),
            format!(
                r#"<a:value i:type="b:ArrayOfanyType"{ARRAYS}><b:anyType i:type="c:int"{XS_IN_ARRAY}>256</b:anyType><b:anyType i:nil="true"/><b:anyType i:type="b:ArrayOfanyType"><b:anyType i:type="c:string"{XS_IN_ARRAY}>x</b:anyType></b:anyType><b:anyType i:type="OptionSetValue"><Value>1</Value></b:anyType></a:value>"#
            ),
        ),
        ("{ }".into(), "<a:value/>".into()),
        ("[{}]".into(), format!(r#"<a:value i:type="b:ArrayOfanyType"{ARRAYS}><b:anyType/></a:value>"#)),
    ] {
        assert_eq!(slot(&value).as_deref(), Ok(expected.as_str()), "{value}");
    }
}

#[test]
fn absent_members_get_the_defaults_of_their_types() {
    let expected = format!(
        r#"<RemoteExecutionContext xmlns="http://schemas.microsoft.com/xrm/2011/Contracts" xmlns:i="http://www.w3.org/2001/XMLSchema-instance"><BusinessUnitId>{ZERO_GUID}</BusinessUnitId><CorrelationId>{ZERO_GUID}</CorrelationId><Depth>0</Depth><InitiatingUserAgent i:nil="true"/><InitiatingUserAzureActiveDirectoryObjectId>{ZERO_GUID}</InitiatingUserAzureActiveDirectoryObjectId><InitiatingUserId>{ZERO_GUID}</InitiatingUserId><InputParameters i:nil="true"/><IsExecutingOffline>false</IsExecutingOffline><IsInTransaction>false</IsInTransaction><IsOfflinePlayback>false</IsOfflinePlayback><IsolationMode>0</IsolationMode><MessageName>new_Custom</MessageName><Mode>0</Mode><OperationCreatedOn>0001-01-01T00:00:00</OperationCreatedOn><OperationId>{ZERO_GUID}</OperationId><OrganizationId>{ZERO_GUID}</OrganizationId><OrganizationName i:nil="true"/><OutputParameters i:nil="true"/><OwningExtension i:nil="true"/><ParentContext i:nil="true"/><PostEntityImages i:nil="true"/><PreEntityImages i:nil="true"/><PrimaryEntityId>{ZERO_GUID}</PrimaryEntityId><PrimaryEntityName>account</PrimaryEntityName><RequestId i:nil="true"/><SecondaryEntityName i:nil="true"/><SharedVariables i:nil="true"/><Stage>0</Stage><UserAzureActiveDirectoryObjectId>{ZERO_GUID}</UserAzureActiveDirectoryObjectId><UserId>{ZERO_GUID}</UserId></RemoteExecutionContext>"#
    );
    assert_eq!(body(&context(r#""Unknown":{"a":[1]},"messagename":"x""#), &xml_options()).unwrap(), expected);
}

#[test]
fn json_keeps_its_bytes_and_xml_its_text() {
    let odd = r#""SharedVariables":[ {"key":"k","value":"\/ \u2028\ud83d\ude00 é<&>\"]]>\r\n\t\u000b"} ,{"key":"k","value":9007199254740993}],"a":1,"a":2.500,"\u0061":3"#;
    assert_eq!(body(&context(odd), &Options::default()).unwrap(), context(odd));
    let xml = body(&context(odd), &xml_options()).unwrap();
    let text = "/ \u{2028}😀 é&lt;&amp;&gt;\"]]&gt;&#xD;\n\t&#xB;</a:value>";
    assert!(xml.contains(text), "{xml}");
    let half = slot(r#""\ud800""#).unwrap_err();
    assert_eq!(half, "SharedVariables[0].value: has half a surrogate pair, which XML has no form for");
}

#[test]
fn steps_select_contexts_as_registered_steps_do() {
    let passes = |event: &str, step: Value| {
        let options = options(json!({ "steps": [{ "message": "Never" }, step] }));
        let mapped = map(event, &options).unwrap();
        assert_eq!(mapped.notes, if mapped.messages.is_empty() { vec!["no_step"] } else { vec![] });
        !mapped.messages.is_empty()
    };
    assert!(passes(CREATE, json!({ "message": "create", "entity": "LEAD" })));
    assert!(passes(CREATE, json!({ "message": "Create" })));
    assert!(passes(CREATE, json!({ "message": "Create", "entity": " " })));
    assert!(!passes(CREATE, json!({ "message": "Create", "entity": "contact" })));
    assert!(!passes(CREATE, json!({ "message": "Update", "entity": "lead" })));
    let filter = |columns: Value| json!({ "message": "Update", "entity": "contact", "filteringAttributes": columns });
    assert!(passes(UPDATE, filter(json!(["other", "FirstName"]))));
    assert!(passes(UPDATE, filter(json!([" firstname "]))));
    assert!(!passes(UPDATE, filter(json!(["other"]))));
    for trimmed in ["absent", "null"] {
        let path =
            format!("{}/fixtures/dataverse-event/constructed_oversize_{trimmed}.json", env!("CARGO_MANIFEST_DIR"));
        assert!(passes(&std::fs::read_to_string(path).unwrap(), filter(json!(["other"]))));
    }
    // Columns filter updates only.
    assert!(passes(CREATE, json!({ "message": "Create", "filteringAttributes": ["other"] })));
}

#[test]
fn mapping_time_grows_with_the_sum_of_columns_and_of_the_names_in_steps() {
    let columns: Vec<String> = (0..3000).map(|n| format!(r#"{{"key":"column_{n}","value":1}}"#)).collect();
    let target = format!(r#"{{"key":"Target","value":{{"Attributes":[{}]}}}}"#, columns.join(","));
    let event = format!(r#"{{"MessageName":"Update","PrimaryEntityName":"t","InputParameters":[{target}]}}"#);
    let fastest = |names: usize, steps: usize| {
        let names: Vec<String> = (0..names).map(|n| format!(" Another_{n} ")).collect();
        let steps = vec![json!({ "message": "Update", "filteringAttributes": names }); steps];
        fastest_of(&options(json!({ "steps": steps })), |options| {
            assert!(map(&event, options).unwrap().messages.is_empty())
        })
    };
    let one = fastest(1, 1);
    for (names, steps) in [(1000, 1), (1, 300), (30, 30)] {
        let many = fastest(names, steps);
        assert!(many < one * 2, "{many:?} with {steps} steps of {names} columns, {one:?} with one of one");
    }
}

#[test]
fn a_context_over_the_limit_loses_four_members_and_is_marked_as_trimmed() {
    let claim = format!("{CLAIMS}MessageMaxSizeExceeded");
    let options = options(json!({ "maxBytes": 1000 }));
    let mapped = map(UPDATE, &options).unwrap();
    let absent = include_str!("../fixtures/dataverse-event/constructed_oversize_absent.json");
    assert_eq!(mapped.messages[0].body.to_text(), absent);
    assert_eq!((properties(&mapped)[&claim].clone(), mapped.notes), (json!(true), vec!["trimmed"]));

    // The members in every place, with white space, and repeated.
    let big = "x".repeat(2000);
    for (event, expected) in [
        (format!(r#"{{"InputParameters" : ["{big}"] , "MessageName":"M" ,"PrimaryEntityName":"t" }}"#), None),
        (
            format!(
                r#"{{"ParentContext":"{big}" , "MessageName":"M" ,"PrimaryEntityName":"t" , "PreEntityImages":["}},{{"],"P":[1, 2] ,"PostEntityImages":null }}"#
            ),
            Some(r#"{ "MessageName":"M" ,"PrimaryEntityName":"t" ,"P":[1, 2] }"#),
        ),
        (
            format!(r#"{{ "MessageName":"M","ParentContext":1,"Parent\u0043ontext":"{big}","PrimaryEntityName":"t"}}"#),
            Some(r#"{ "MessageName":"M","PrimaryEntityName":"t"}"#),
        ),
    ] {
        // An invalid InputParameters is refused, too large or not.
        assert_eq!(body(&event, &options).ok().as_deref(), expected.map(|e: &str| e), "{event}");
    }
    let hopeless =
        map(&context(&format!(r#""OutputParameters":[{{"key":"k","value":"{big}"}}]"#)), &options).unwrap_err().reason;
    assert_eq!(hopeless, Reason::TooLarge);

    // In XML mode the limit applies to the outgoing bytes.
    let whole = include_str!("../fixtures/dataverse-event/update_contact_async.xml");
    let limit = |bytes: usize| self::options(json!({ "messageFormat": "xml", "maxBytes": bytes }));
    assert_eq!(body(UPDATE, &limit(whole.len())).unwrap(), whole);
    let (trimmed, just_under) = (body(absent, &xml_options()).unwrap(), limit(whole.len() - 1));
    let mapped = map(UPDATE, &just_under).unwrap();
    assert_eq!((mapped.messages[0].body.to_text(), &properties(&mapped)[&claim]), (trimmed.clone(), &json!(true)));
    assert!(body(UPDATE, &limit(trimmed.len())).is_ok());
    assert_eq!(map(UPDATE, &limit(trimmed.len() - 1)).unwrap_err().reason, Reason::TooLarge);
}

#[test]
fn a_context_that_arrives_trimmed_is_marked_as_trimmed() {
    let claim = format!("{CLAIMS}MessageMaxSizeExceeded");
    let marked = |event: &str, header: bool| {
        let headers = [(Cow::from("X-MS-Dynamics-Msg-Size-Exceeded"), Cow::from(""))];
        let (options, headers) = (Options::default(), if header { &headers[..] } else { &[] });
        let mapped = (KIND.map)(Event::new(event, "default", headers, 1_000_000), &options).unwrap();
        properties(&mapped).get(&claim).cloned()
    };
    assert_eq!(marked(UPDATE, false), None);
    assert_eq!(marked(DELETE, false), None);
    assert_eq!(marked(UPDATE, true), None, "the body has all members, whatever the header says");
    let update = |members: &str| format!(r#"{{"MessageName":"Update","PrimaryEntityName":"t"{members}}}"#);
    for empty in
        ["", r#","InputParameters":null"#, r#","InputParameters":[ ],"PreEntityImages":[],"ParentContext":null"#]
    {
        assert_eq!(marked(&update(empty), false), Some(json!(true)), "{empty}");
    }
    assert_eq!(marked(&update(r#","InputParameters":[{"key":"x","value":1}]"#), false), None);
    // A custom message may have no parameters at all.
    assert_eq!(marked(&context(""), false), None);
    assert_eq!(marked(&context(""), true), Some(json!(true)));
}

#[test]
fn ids_subjects_and_times_follow_the_contract() {
    let envelope = |members: &str| {
        let (event, options) = (context(members), Options::default());
        let mapped = map(&event, &options).unwrap();
        let (message, properties) = (&mapped.messages[0], properties(&mapped));
        (message.id.clone(), message.subject.to_string(), properties.get("cloudEvents:time").cloned(), properties)
    };
    assert_eq!(envelope(r#""Mode":1,"OperationId":"op""#).0, "op");
    // printf '{"MessageName":"new_Custom","Mode":0,"PrimaryEntityName":"account"}' | sha256sum
    assert_eq!(envelope(r#""Mode":0"#).0, "798fa54c7ac8a79a4f03a18675a7706d6764fd46c62cc0a89de5d4ee7f7443f9");
    assert_eq!(envelope(r#""PrimaryEntityId":"r","CorrelationId":"c""#).1, "r");
    assert_eq!(envelope(&format!(r#""PrimaryEntityId":"{ZERO_GUID}","CorrelationId":"c""#)).1, "c");
    assert_eq!(envelope(&format!(r#""PrimaryEntityId":"{ZERO_GUID}","CorrelationId":"{ZERO_GUID}""#)).1, "");
    assert_eq!(envelope("").1, "");
    let target = |columns: &str| {
        format!(
            r#""OperationCreatedOn":"\/Date(1000)\/","InputParameters":[{{"key":"Target","value":{{"Attributes":[{columns}]}}}}]"#
        )
    };
    let column = |name: &str, value: &str| format!(r#"{{"key":"{name}","value":{value}}}"#);
    let (created, modified) = (column("createdon", r#""\/Date(2000)\/""#), column("modifiedon", r#""\/Date(3001)\/""#));
    for (members, expected) in [
        (target(&format!("{created},{modified}")), json!("1970-01-01T00:00:03.001Z")),
        (target(&format!("{created},{}", column("modifiedon", "null"))), json!("1970-01-01T00:00:02.000Z")),
        (target(""), json!("1970-01-01T00:00:01.000Z")),
        (r#""OperationCreatedOn":"\/Date(1000+0000)\/""#.into(), json!("1970-01-01T00:00:01.000Z")),
        (r#""OperationCreatedOn":"\/Date(1000-0700)\/""#.into(), Value::Null),
        (r#""OperationCreatedOn":"yesterday""#.into(), Value::Null),
    ] {
        assert_eq!(envelope(&members).2.unwrap_or_default(), expected, "{members}");
    }
    let named = envelope(r#""OrganizationName":"a b","UserId":"u","InitiatingUserId":"i""#).3;
    assert_eq!(named["cloudEvents:source"], "/dataverse-event/a%20b");
    assert_eq!(named["cloudEvents:type"], "com.microsoft.dataverse.new_custom");
    assert_eq!(named.get(format!("{CLAIMS}User")), None);
}

#[test]
fn missing_or_invalid_members_of_a_context_are_named_without_their_values() {
    for (event, json, xml) in [
        (r#"{"PrimaryEntityName":"t"}"#.to_owned(), Some("MessageName: missing or empty"), None),
        (r#"{"MessageName":"M","PrimaryEntityName":null}"#.into(), Some("PrimaryEntityName: missing or empty"), None),
        (r#"{"MessageName":["hidden"]}"#.into(), Some("MessageName: expected text"), None),
        ("\"hidden\"".into(), Some("expected a JSON object"), None),
        (context(r#""Mode":"hidden""#), Some("Mode: expected an integer"), None),
        (context(r#""OwningExtension":[]"#), Some("OwningExtension: expected an object"), None),
        (context(r#""InputParameters":"hidden""#), Some("InputParameters: expected an array of keys and values"), None),
        (
            context(r#""InputParameters":[{"key":1}]"#),
            Some("InputParameters[0]: expected an object with a key and a value"),
            None,
        ),
        (context(r#""UserId":"hidden""#), None, Some("UserId: expected a GUID")),
        (context(r#""Depth":4294967296"#), None, Some("Depth: expected an integer of 32 bits")),
        (context(r#""IsInTransaction":1"#), None, Some("IsInTransaction: expected true or false")),
        (
            context(r#""OperationCreatedOn":"hidden""#),
            None,
            Some("OperationCreatedOn: expected a date, as in /Date(1527633703000)/"),
        ),
        (
            context(r#""ParentContext":{"Stage":"hidden"}"#),
            None,
            Some("ParentContext.Stage: expected an integer of 32 bits"),
        ),
        (
            context(r#""PostEntityImages":[{"key":"i","value":{"EntityState":3}}]"#),
            None,
            Some("PostEntityImages[0].value.EntityState: expected the number of a known value"),
        ),
        (
            context(r#""OutputParameters":[1]"#),
            None,
            Some("OutputParameters[0]: expected an object with a key and a value"),
        ),
    ] {
        assert_eq!(body(&event, &Options::default()).err().as_deref(), json, "{event}");
        assert_eq!(body(&event, &xml_options()).err().as_deref(), json.or(xml), "{event}");
    }
}

#[test]
fn options_that_cannot_be_used_are_refused_by_name() {
    let problem = |json: Value| shared::json::from_config::<Options>(&json.to_string()).unwrap_err();
    for binary in ["msbin1", "application/msbin1", "binary"] {
        let problem = problem(json!({ "messageFormat": binary }));
        assert!(problem.starts_with("`messageFormat`: binary XML") && problem.contains("not offered"), "{problem}");
    }
    assert_eq!(problem(json!({ "messageFormat": "hidden" })), "`messageFormat`: expected json or xml");
    assert!(problem(json!({ "steps": [] })).starts_with("`steps`: the array is empty"));
    for step in [json!({}), json!({ "message": " " }), json!(["Create"]), json!({ "message": "a", "table": "b" })] {
        let problem = problem(json!({ "steps": [step] }));
        assert!(problem.starts_with("`steps[0]"), "{step}: {problem}");
    }
    let empty = problem(json!({ "steps": [{ "message": "Update", "filteringAttributes": [] }] }));
    assert!(empty.starts_with("`steps[0].filteringAttributes`"), "{empty}");
    assert!(problem(json!({ "userClaim": "all" })).starts_with("`userClaim`"));
    assert!(problem(json!({ "maxBytes": -1 })).starts_with("`maxBytes`"));
    let check = |bytes: usize| (KIND.check)(&options(json!({ "maxBytes": bytes })), 1_000_000);
    assert!(check(1_000_000).is_ok());
    assert!(check(1_000_001).unwrap_err().starts_with("`maxBytes`"));
    assert!(check(0).unwrap_err().starts_with("`maxBytes`"));
    assert_eq!((KIND.check)(&Options::default(), 240_000), Ok(()));
}

/// A captured context with one value cut, doubled, or replaced by a value of another type.
fn mutated() -> impl Strategy<Value = String> {
    let scrap = prop_oneof![
        Just("null".to_owned()),
        Just("[]".to_owned()),
        Just("{}".to_owned()),
        Just("1e999999999".to_owned()),
        Just("-123456789012345678901234567890".to_owned()),
        Just(r#""\ud800""#.to_owned()),
        Just(r#""\u0000<]]>&""#.to_owned()),
        Just(r#""\/Date(-99999999999999999)\/""#.to_owned()),
        Just(r#"{"__type":"x y:\u0001<\"","a b":[{"__type":":"}],"_x":1}"#.to_owned()),
        Just(r#"{"__type":"","0":"","é":[[1,"",null]]}"#.to_owned()),
        (1..100_usize).prop_map(|depth| format!("{}{}", "[".repeat(depth), "]".repeat(depth))),
        (1..60_usize).prop_map(|depth| format!("{}1{}", r#"{"__type":"A:b","c":"#.repeat(depth), "}".repeat(depth))),
        any::<f64>().prop_filter("JSON has no others", |n| n.is_finite()).prop_map(|number| number.to_string()),
        any::<String>().prop_map(|text| Value::from(text).to_string()),
    ];
    // Values begin after a colon that follows a quotation mark.
    (prop::sample::select(vec![CREATE, DELETE, UPDATE]), any::<prop::sample::Index>(), scrap, 0..8_u8).prop_map(
        |(event, place, scrap, how)| {
            let starts: Vec<usize> = event.match_indices("\":").map(|(at, _)| at + 2).collect();
            let start = starts[place.index(starts.len())];
            let length = serde_json::Deserializer::from_str(&event[start..])
                .into_iter::<&serde_json::value::RawValue>()
                .next()
                .and_then(Result::ok)
                .map_or(0, |value| value.get().len());
            match how {
                0 => event[..place.index(event.len())].to_owned(),
                1 => format!("{}{scrap}{}", &event[..start], &event[start..]),
                _ => format!("{}{scrap}{}", &event[..start], &event[start + length..]),
            }
        },
    )
}

/// Whether a text is XML, apart from references to characters that XML 1.0 does not have: only lenient parsers accept them.
fn well_formed(xml: &str) -> Result<(), String> {
    let mut strict = xml.to_owned();
    for code in (0..0x20_u32).filter(|code| *code != 0xd).chain([0xfffe, 0xffff]) {
        strict = strict.replace(&format!("&#x{code:X};"), "?");
    }
    roxmltree::Document::parse(&strict).map(drop).map_err(|error| error.to_string())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]
    #[test]
    fn any_context_is_mapped_or_rejected_with_its_place(event in mutated(), small in any::<bool>()) {
        // `shared` passes on one JSON value that is not too deep, or no event at all.
        let Ok(events) = shared::json::events(&event) else { return Ok(()) };
        for format in ["json", "xml"] {
            let options = options(json!({ "messageFormat": format, "maxBytes": if small { 4000 } else { 196_608 } }));
            match map(events.as_slice()[0], &options) {
                Ok(mapped) => for message in &mapped.messages {
                    prop_assert!(message.body.to_text().len() <= options.max_bytes.unwrap_or(196_608));
                    let sound = match format {
                        "json" => serde_json::from_str::<&serde_json::value::RawValue>(&message.body.to_text()).map(drop).map_err(|e| e.to_string()),
                        _ => well_formed(&message.body.to_text()),
                    };
                    prop_assert_eq!(sound, Ok(()));
                },
                Err(rejection) => prop_assert!(
                    rejection.detail.contains(": ") || rejection.reason == Reason::TooLarge, "{}", rejection.detail
                ),
            }
        }
    }
}

#[tokio::test]
async fn webhooks_with_a_code_are_delivered_and_invalid_contexts_return_400() {
    let auth = r#"[{"type":"query","name":"code","secret":"a+b"}]"#;
    let create = include_str!("../fixtures/dataverse-event/create_lead_sync.json").trim();
    let system = start_kind("dataverse-event", hub_config(), &[("SENDER_AUTH", auth)]).await;
    let mut event = request(create);
    event["rawQueryString"] = "code=a%2Bb".into();
    assert_eq!(system.response_to(&event).await, delivered(1));
    assert_eq!(system.hub.events(HUB)[0].body, create);
    for (body, expected) in [
        ("{}", "MessageName: missing or empty"),
        (r#"{"MessageName":"Create"}"#, "PrimaryEntityName: missing or empty"),
        (r#"{"MessageName":5,"PrimaryEntityName":"x"}"#, "MessageName: expected text"),
        (r#"{"MessageName":"Create","PrimaryEntityName":"x","Mode":"1"}"#, "Mode: expected an integer"),
        ("[{}]", "expected one event, not an array"),
    ] {
        event["body"] = body.into();
        assert_eq!(system.response_to(&event).await.problem(400), expected, "{body}");
    }
    let hub = (
        "EVENT_HUBS_CONNECTION_STRING",
        "Endpoint=sb://n.example.net;SharedAccessKeyName=n;SharedAccessKey=k;EntityPath=h",
    );
    for (options, expected) in [
        (r#"{"messageFormat":"application/msbin1"}"#, "not offered"),
        (r#"{"steps":[]}"#, "`steps`: the array is empty"),
        (r#"{"steps":[["Create"]]}"#, "`steps[0]`: expected an object"),
        (r#"{"maxBytes":1000001}"#, "`maxBytes`: 1000001 is more than"),
        (r#"{"maxBytes":0}"#, "`maxBytes`"),
    ] {
        let line = init_failure_of("dataverse-event", &[hub, ("FLOW_OPTIONS", options)]).await;
        assert!(line["problem"].as_str().unwrap().contains(expected), "{line}");
    }
    let small = start_kind("dataverse-event", hub_config(), &[("EVENT_HUBS_MAX_BATCH_BYTES", "20000")]).await;
    assert_eq!(small.post(create).await, delivered(1), "the default options work with any budget");
}

#[tokio::test]
async fn a_context_too_large_for_a_request_is_trimmed_before_it_is_rejected() {
    let create = include_str!("../fixtures/dataverse-event/create_lead_sync.json");
    // Quotes take two bytes each in a request.
    let with_topic = |topic: String| {
        let column = format!(r#"{{"key":"subject","value":{}}}"#, json!(topic));
        create.replacen(r#"{"key":"subject","value":"Hello there!"}"#, &column, 1)
    };
    let budget = ("EVENT_HUBS_MAX_BATCH_BYTES", "200000");
    for (options, topic) in [
        (r#"{"maxBytes":190000}"#, "\"".repeat(80_000)),
        (r#"{"messageFormat":"xml","maxBytes":180000}"#, "\t".repeat(120_000)),
        ("{}", "\"".repeat(40_000) + &"x".repeat(70_000)),
    ] {
        let settings = [("FLOW_OPTIONS", options), budget];
        let system = start_kind("dataverse-event", hub_config(), &settings).await;
        assert_eq!(system.post(&with_topic(topic)).await, delivered(1), "{settings:?}");
        let event = &system.hub.events(HUB)[0];
        assert_eq!(event.properties[&format!("{CLAIMS}MessageMaxSizeExceeded")], true);
        assert!(!event.body.contains("InputParameters\":["), "{settings:?}");
        let small = system.post(&with_topic("x".repeat(100_000))).await;
        assert_eq!(small, delivered(1));
        assert!(
            system.hub.events(HUB).iter().any(|event| event.body.len() > 100_000),
            "a context that fits is sent whole"
        );
    }
    let system = start_kind("dataverse-event", hub_config(), &[("EVENT_HUBS_MAX_BATCH_BYTES", "1000")]).await;
    assert!(system.post(create).await.problem(413).contains("larger than the hub accepts"));
}
