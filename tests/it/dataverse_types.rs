//! `dataverse-event` in XML mode: every SDK type is written as .NET's contract serializer writes it, and all others are
//! rejected.

use dataverse_event::{KIND, Options};
use serde_json::{Value, json};
use shared::{Event, Mapped, Reason, Rejection};

use crate::cloud::*;
use crate::harness::*;

const CONTRACTS: &str = "http://schemas.microsoft.com/xrm/2011/Contracts";
const MESSAGES: &str = "http://schemas.microsoft.com/crm/2011/Contracts";

fn options(json: Value) -> Options {
    shared::json::from_config(&json.to_string()).unwrap()
}

fn map<'a>(json: &'a str, options: &'a Options) -> Result<Mapped<'a>, Rejection> {
    (KIND.map)(Event::new(json, "default", &[], 1_000_000), options)
}

/// The id and the body of the single message.
fn message(event: &str, flow_options: Value) -> Result<(String, String), String> {
    let options = options(flow_options);
    let mapped = map(event, &options).map_err(|rejection| {
        assert_eq!(rejection.reason, Reason::Unmappable);
        rejection.detail.into_owned()
    })?;
    let [message] = mapped.messages.as_slice() else { panic!("one message") };
    Ok((message.id.clone(), message.body.to_text()))
}

fn xml(event: &str) -> Result<String, String> {
    message(event, json!({ "messageFormat": "xml" })).map(|(_, body)| body)
}

macro_rules! fixture {
    ($name:literal) => {
        include_str!(concat!("../fixtures/", $name))
    };
}

const QUERY_IN_PARENT: &str = fixture!("dataverse-types/query_in_parent.json");
const UNKNOWN_TYPE: &str = fixture!("dataverse-types/unknown_type.json");
const OBJECT_WITHOUT_TYPE: &str = fixture!("dataverse-types/object_without_type.json");

#[test]
fn contexts_with_sdk_types_become_the_xml_of_the_contract_serializer() {
    for (json, expected) in [
        (QUERY_IN_PARENT, fixture!("dataverse-types/query_in_parent.xml")),
        (fixture!("dataverse-types/retrieve_columnset.json"), fixture!("dataverse-types/retrieve_columnset.xml")),
        (fixture!("dataverse-types/aliasedvalue.json"), fixture!("dataverse-types/aliasedvalue.xml")),
        (fixture!("dataverse-types/principalaccess.json"), fixture!("dataverse-types/principalaccess.xml")),
        (fixture!("dataverse-types/label.json"), fixture!("dataverse-types/label.xml")),
        (fixture!("dataverse-types/query_join.json"), fixture!("dataverse-types/query_join.xml")),
        (fixture!("dataverse-types/roleprivilege.json"), fixture!("dataverse-types/roleprivilege.xml")),
    ] {
        assert_eq!(xml(json).as_deref(), Ok(expected.trim_end()));
        assert_eq!(message(json, json!({})).unwrap().1, json, "JSON keeps its bytes");
    }
}

/// The text between two marks, the first `start` and the `end` that follows it.
fn between<'t>(text: &'t str, start: &str, end: &str) -> &'t str {
    let rest = &text[text.find(start).unwrap_or_else(|| panic!("{start} in {text}")) + start.len()..];
    &rest[..rest.find(end).unwrap()]
}

/// A context whose parameter `k` is `value`.
fn context(value: &str) -> String {
    format!(
        r#"{{"MessageName":"new_Custom","PrimaryEntityName":"account","InputParameters":[{{"key":"k","value":{value}}}]}}"#
    )
}

/// The XML of one value in a place for any object.
fn slot(value: &str) -> Result<String, String> {
    let xml = xml(&context(value))?;
    let xml = between(&xml, "<a:key>k</a:key>", "</KeyValuePairOfstringanyType></InputParameters>");
    Ok(xml.strip_prefix("<a:value").unwrap().to_owned())
}

/// An object with a `__type` and, if any, `members`.
fn typed(name: &str, namespace: &str, members: &str) -> String {
    let comma = if members.is_empty() { "" } else { "," };
    format!(r#"{{"__type":"{name}:{namespace}"{comma}{members}}}"#)
}

#[test]
fn a_query_has_the_same_xml_in_every_place() {
    let parent: Value = serde_json::from_str(QUERY_IN_PARENT).unwrap();
    let from_text = |parameters: &str| {
        let text = between(QUERY_IN_PARENT, r#""ParentContext":{"#, r#","IsExecutingOffline""#);
        let query = text.split_once(r#""InputParameters":"#).unwrap().1;
        context("1").replace(r#""InputParameters":[{"key":"k","value":1}]"#, &parameters.replace("QUERY", query))
    };
    assert!(parent["ParentContext"]["InputParameters"][0]["key"] == "Query");
    let expected = between(
        fixture!("dataverse-types/query_in_parent.xml"),
        r#"<a:value i:type="QueryExpression">"#,
        "</a:value></KeyValuePairOfstringanyType></InputParameters>",
    );
    for parameters in [
        r#""InputParameters":QUERY"#,
        r#""OutputParameters":QUERY"#,
        r#""SharedVariables":QUERY"#,
        r#""ParentContext":{"ParentContext":{"InputParameters":QUERY}}"#,
        r#""PreEntityImages":[{"key":"i","value":{"Attributes":QUERY}}]"#,
    ] {
        let xml = xml(&from_text(parameters)).unwrap();
        assert!(
            xml.contains(&format!(r#"<a:value i:type="QueryExpression">{expected}</a:value>"#)),
            "{parameters}: {xml}"
        );
    }
}

#[tokio::test]
async fn types_without_an_xml_form_are_rejected_with_their_place_and_pass_as_json() {
    let cloud = Cloud::start().await;
    let hub = emulator(&[HUB]).await;
    let function = cloud.function("dataverse-event", &hub, &[("FLOW_OPTIONS", r#"{"messageFormat":"xml"}"#)]);
    let system = System { function, hub };
    for (event, detail) in [
        (UNKNOWN_TYPE, "InputParameters[0]: the type OptionMetadata has no XML form here; use messageFormat json"),
        (
            OBJECT_WITHOUT_TYPE,
            "InputParameters[0]: an object without __type has no XML form here; use messageFormat json",
        ),
    ] {
        assert_eq!(system.post(event).await.problem(400), detail);
        let rejects = cloud.take(&cloud.rejected).await;
        assert_eq!(rejects.len(), 1);
        let reject: Value = serde_json::from_str(rejects[0]["Body"].as_str().unwrap()).unwrap();
        assert_eq!((&reject["reason"], &reject["detail"]), (&json!("unmappable"), &json!(detail)));
        assert_eq!(unpacked(reject["body"].as_str().unwrap()), event.as_bytes());
        assert_eq!(system.stored(), 0);
        assert_eq!(message(event, json!({})).unwrap().1, event);
    }
    let empty = OBJECT_WITHOUT_TYPE.replace(r#"{"a":1}"#, "{}");
    assert_eq!(system.post(&empty).await, delivered(1));
    assert!(system.hub.events(HUB)[0].body.contains("<a:key>Thing</a:key><a:value/>"));
}

#[test]
fn errors_name_the_place_and_no_more_of_a_type_than_its_name() {
    let money = typed("Money", CONTRACTS, r#""Value":1"#);
    let unknown = typed("OptionMetadata", "http://schemas.microsoft.com/xrm/2011/Metadata", "");
    let suffix = "has no XML form here; use messageFormat json";
    let long = "x".repeat(1000);
    for (value, place, what) in [
        (format!("[1,{unknown}]"), "InputParameters[0].value[1]", "the type OptionMetadata"),
        (
            typed(
                "Entity",
                CONTRACTS,
                &format!(r#""Attributes":[{{"key":"a","value":1}},{{"key":"b","value":{unknown}}}]"#),
            ),
            "InputParameters[0].value.Attributes[1]",
            "the type OptionMetadata",
        ),
        (
            typed("AliasedValue", CONTRACTS, &format!(r#""Value":{unknown}"#)),
            "InputParameters[0].value.Value",
            "the type OptionMetadata",
        ),
        (
            typed("AliasedValue", CONTRACTS, r#""Value":{"Value":1}"#),
            "InputParameters[0].value.Value",
            "an object without __type",
        ),
        (typed(&long, "x", ""), "InputParameters[0]", &format!("the type {}", &long[..64])),
        (typed("a b<script>é\\n-_1", "hidden", ""), "InputParameters[0]", "the type abscript_1"),
        (typed("", "hidden", ""), "InputParameters[0]", "a type without a name"),
        (r#"{"__type":7}"#.into(), "InputParameters[0]", "an object without __type"),
        (r#"{"__type":"\ud800"}"#.into(), "InputParameters[0]", "an object without __type"),
        // The serializers read `__type` only as the first member.
        (r#"{"Value":1,"__type":"Money:x"}"#.into(), "InputParameters[0]", "an object without __type"),
        // A type with the name of an SDK type.
        (typed("Label", "#Contoso.Types", r#""Text":"hidden""#), "InputParameters[0]", "the type Label"),
        (typed("Label", "http://contoso.example/", ""), "InputParameters[0]", "the type Label"),
        (typed("RemoteExecutionContext", CONTRACTS, ""), "InputParameters[0]", "the type RemoteExecutionContext"),
        // A fixed slot that holds a derived class.
        (
            typed("QueryExpression", CONTRACTS, &format!(r#""PageInfo":{}"#, typed("Pages", CONTRACTS, ""))),
            "InputParameters[0].value.PageInfo",
            "the type Pages",
        ),
    ] {
        assert_eq!(slot(&value), Err(format!("{place}: {what} {suffix}")), "{value}");
        assert_eq!(message(&context(&value), json!({})).unwrap().1, context(&value));
    }
    for same in [money.clone(), money.replace("http:", "https:"), money.replace(&format!(":{CONTRACTS}"), "")] {
        assert_eq!(slot(&same).unwrap(), r#" i:type="Money"><Value>1</Value></a:value>"#, "{same}");
    }
}

#[test]
fn enums_are_written_by_name_and_unknown_numbers_are_rejected() {
    let condition = |number: &str| typed("ConditionExpression", CONTRACTS, &format!(r#""Operator":{number}"#));
    for (name, namespace, member, known, unknown) in [
        ("FilterExpression", CONTRACTS, "FilterOperator", &[(0, "And"), (1, "Or")][..], 2),
        ("OrderExpression", CONTRACTS, "OrderType", &[(0, "Ascending"), (1, "Descending")], 2),
        (
            "LinkEntity",
            CONTRACTS,
            "JoinOperator",
            &[
                (0, "Inner"),
                (1, "LeftOuter"),
                (2, "Natural"),
                (3, "MatchFirstRowUsingCrossApply"),
                (4, "In"),
                (5, "Exists"),
                (9, "NotAll"),
            ],
            10,
        ),
        (
            "AttributeExpression",
            CONTRACTS,
            "AggregateType",
            &[(0, "None"), (2, "CountColumn"), (3, "Sum"), (6, "Max")],
            7,
        ),
        (
            "AttributeExpression",
            CONTRACTS,
            "DateTimeGrouping",
            &[(0, "None"), (3, "Month"), (6, "FiscalPeriod"), (7, "FiscalYear")],
            8,
        ),
        ("RolePrivilege", MESSAGES, "Depth", &[(0, "Basic"), (3, "Global"), (4, "RecordFilter")], 5),
        (
            "ConditionExpression",
            CONTRACTS,
            "Operator",
            &[
                (0, "Equal"),
                (10, "Between"),
                (20, "ThisWeek"),
                (30, "NextYear"),
                (40, "NextXYears"),
                (50, "DoesNotContain"),
                (60, "NextFiscalYear"),
                (70, "InFiscalPeriodAndYear"),
                (75, "Under"),
                (76, "NotUnder"),
                (77, "UnderOrEqual"),
                (78, "Above"),
                (79, "AboveOrEqual"),
                (80, "EqualUserOrUserHierarchy"),
                (88, "DoesNotContainValues"),
            ],
            89,
        ),
        (
            "PrincipalAccess",
            MESSAGES,
            "AccessMask",
            &[
                (0, "None"),
                (1, "ReadAccess"),
                (524_288, "AssignAccess"),
                (20, "AppendAccess AppendToAccess"),
                (
                    852_023,
                    "ReadAccess WriteAccess AppendAccess AppendToAccess CreateAccess DeleteAccess ShareAccess AssignAccess",
                ),
            ],
            8,
        ),
    ] {
        for (number, text) in known {
            let xml = slot(&typed(name, namespace, &format!(r#""{member}":{number}"#))).unwrap();
            assert!(xml.contains(&format!("{member}>{text}</")), "{xml}");
        }
        for unknown in [&unknown.to_string(), "-1", "1.0", "1e0", "4294967296", "\"0\"", "null", "true", "[]"] {
            let error = slot(&typed(name, namespace, &format!(r#""{member}":{unknown}"#))).unwrap_err();
            assert!(error.starts_with(&format!("InputParameters[0].value.{member}: expected ")), "{unknown}: {error}");
        }
    }
    assert!(slot(&typed("PrincipalAccess", MESSAGES, r#""AccessMask":852031"#)).is_err(), "one bit has no name");
    assert_eq!(slot(&condition("0")).unwrap(), r#" i:type="ConditionExpression"><Operator>Equal</Operator></a:value>"#);
}

#[test]
fn members_keep_the_order_of_the_contract_and_absent_or_unknown_ones_are_left_out() {
    let guid = "000000b1-1111-4222-8333-0000000000b1";
    let metadata = r#" xmlns="http://schemas.microsoft.com/xrm/2011/Metadata""#;
    let arrays = r#" xmlns:b="http://schemas.microsoft.com/2003/10/Serialization/Arrays""#;
    for (name, namespace, members, expected) in [
        ("FetchExpression", CONTRACTS, r#""Query":"<fetch\/>","Other":{"a":1}"#.to_owned(), "<Query>&lt;fetch/&gt;</Query>".to_owned()),
        (
            "BooleanManagedProperty",
            CONTRACTS,
            r#""Value":true,"ManagedPropertyLogicalName":null,"CanBeChanged":false"#.into(),
            r#"<CanBeChanged>false</CanBeChanged><ManagedPropertyLogicalName i:nil="true"/><Value>true</Value>"#.into(),
        ),
        // A base class's members come first. Their namespace has no prefix, so the serializer makes it the default.
        (
            "LocalizedLabel",
            CONTRACTS,
            format!(r#""LanguageCode":1,"HasChanged":null,"IsManaged":null,"MetadataId":"{guid}","Label":"a""#),
            format!(
                r#"<MetadataId{metadata}>{guid}</MetadataId><HasChanged i:nil="true"{metadata}/><IsManaged i:nil="true"/><Label>a</Label><LanguageCode>1</LanguageCode>"#
            ),
        ),
        (
            "QueryExpression",
            CONTRACTS,
            r#""TopCount":null,"ColumnSet":null,"SubQueryExpression":{"EntityName":"b"},"Orders":[null],"EntityName":"a","EntityName":"z""#.into(),
            r#"<ColumnSet i:nil="true"/><EntityName>z</EntityName><Orders><OrderExpression i:nil="true"/></Orders><SubQueryExpression><EntityName>b</EntityName></SubQueryExpression><TopCount i:nil="true"/>"#.into(),
        ),
        (
            "ConditionExpression",
            CONTRACTS,
            r#""Values":null"#.into(),
            format!(r#"<Values i:nil="true"{arrays}/>"#),
        ),
        (
            "ColumnSet",
            CONTRACTS,
            r#""Columns":[null,"a"]"#.into(),
            format!(r#"<Columns{arrays}><b:string i:nil="true"/><b:string>a</b:string></Columns>"#),
        ),
        (
            "FilterExpression",
            CONTRACTS,
            r#""FilterHint":"h","IsQuickFindFilter":false,"AnyAllFilterLinkEntity":{"ForceSeek":"f","JoinOperator":6}"#.into(),
            "<AnyAllFilterLinkEntity><ForceSeek>f</ForceSeek><JoinOperator>Any</JoinOperator></AnyAllFilterLinkEntity><IsQuickFindFilter>false</IsQuickFindFilter><FilterHint>h</FilterHint>".into(),
        ),
        ("PagingInfo", CONTRACTS, r#""PagingCookie":"c","Count":5"#.into(), "<Count>5</Count><PagingCookie>c</PagingCookie>".into()),
        ("KeyValuePairOfstringstring", "#System.Collections.Generic", r#""value":null,"key":"k""#.into(), r#"<a:key>k</a:key><a:value i:nil="true"/>"#.into()),
    ] {
        let (prefix, declaration) = if namespace.starts_with('#') { ("a:", "") } else { ("", "") };
        let expected = format!(r#" i:type="{prefix}{name}"{declaration}>{expected}</a:value>"#);
        assert_eq!(slot(&typed(name, namespace, &members)), Ok(expected));
    }
    // Members are in the namespace of the class that declares them, and so are those of a class inside.
    let access = typed("PrincipalAccess", MESSAGES, r#""Principal":{"Id":null}"#);
    let zero = "00000000-0000-0000-0000-000000000000";
    let principal = format!(
        r#"<b:Principal><Id>{zero}</Id><KeyAttributes i:nil="true"/><LogicalName i:nil="true"/><Name i:nil="true"/><RowVersion i:nil="true"/></b:Principal>"#
    );
    assert_eq!(
        slot(&access).unwrap(),
        format!(r#" i:type="b:PrincipalAccess" xmlns:b="{MESSAGES}">{principal}</a:value>"#)
    );
    for (members, problem) in [
        (r#""Distinct":null"#, "Distinct: expected true or false"),
        (r#""TopCount":1.0"#, "TopCount: expected an integer of 32 bits"),
        (r#""Orders":{}"#, "Orders: expected an array"),
        (r#""EntityName":1"#, "EntityName: expected text"),
        (r#""PageInfo":[]"#, "PageInfo: expected an object"),
        (r#""ColumnSet":{"Columns":["a",1]}"#, "ColumnSet.Columns[1]: expected text"),
    ] {
        let value = typed("QueryExpression", CONTRACTS, members);
        assert_eq!(slot(&value), Err(format!("InputParameters[0].value.{problem}")));
    }
}

#[test]
fn an_aliased_value_accepts_every_type_of_a_column() {
    let option = typed("OptionSetValue", CONTRACTS, r#""Value":1"#);
    let reference = typed("EntityReference", CONTRACTS, r#""LogicalName":"team""#);
    let pair = typed("KeyValuePairOfstringstring", "#System.Collections.Generic", r#""key":"k","value":"v""#);
    let managed = typed("BooleanManagedProperty", CONTRACTS, r#""Value":true"#);
    let entity = typed("Entity", CONTRACTS, "");
    let collection = typed("EntityCollection", CONTRACTS, r#""Entities":[{}]"#);
    for value in [
        "null",
        "true",
        "7",
        "9007199254740993",
        "19.9900",
        r#""text""#,
        r#""00000046-1111-4222-8333-000000000046""#,
        r#""\/Date(1709646330678)\/""#,
        "[1,2,3]",
        "[]",
        &option,
        &reference,
        &managed,
        &entity,
        &collection,
        &typed("Money", CONTRACTS, r#""Value":12.5000"#),
        &format!("[{option},{option}]"),
        &format!("[{reference}]"),
        &format!("[{pair}]"),
        &typed("AliasedValue", CONTRACTS, &format!(r#""Value":{option}"#)),
    ] {
        let alone = slot(value).unwrap();
        let alone = alone.strip_suffix("</a:value>").map_or(alone.clone(), |text| format!("{text}</Value>"));
        let aliased = typed("AliasedValue", CONTRACTS, &format!(r#""AttributeLogicalName":"a","Value":{value}"#));
        let expected = format!(r#"<AttributeLogicalName>a</AttributeLogicalName><Value{alone}"#);
        assert_eq!(slot(&aliased).unwrap(), format!(r#" i:type="AliasedValue">{expected}</a:value>"#), "{value}");
        let nested = typed("Entity", CONTRACTS, &format!(r#""Attributes":[{{"key":"c.a","value":{aliased}}}]"#));
        let expected = format!(r#"<a:key>c.a</a:key><a:value i:type="AliasedValue">{expected}</a:value>"#);
        assert!(slot(&nested).unwrap().contains(&expected), "{value}");
    }
}

#[test]
fn a_trimmed_context_has_xml_only_if_all_remaining_members_have() {
    let big = format!(r#"{{"key":"big","value":"{}"}}"#, "x".repeat(5000));
    let unknown = typed("OptionMetadata", "http://schemas.microsoft.com/xrm/2011/Metadata", "");
    let unknown = format!(r#"{{"key":"u","value":{unknown}}}"#);
    let trimmed = |members: String| {
        let event = format!(r#"{{"MessageName":"new_Custom","PrimaryEntityName":"account",{members}}}"#);
        message(&event, json!({ "messageFormat": "xml", "maxBytes": 3000 })).map(|(_, body)| body)
    };
    let body =
        trimmed(format!(r#""InputParameters":[{big}],"ParentContext":{{"InputParameters":[{unknown}]}}"#)).unwrap();
    assert!(body.contains(r#"<InputParameters i:nil="true"/>"#) && body.contains(r#"<ParentContext i:nil="true"/>"#));
    for kept in ["OutputParameters", "SharedVariables"] {
        let error = trimmed(format!(r#""InputParameters":[{big}],"{kept}":[{unknown}]"#)).unwrap_err();
        assert!(error.starts_with(&format!("{kept}[0]: the type OptionMetadata")), "{error}");
    }
}

#[test]
fn deeply_nested_filters_and_values_are_written_or_rejected() {
    let filters = |depth: usize| {
        let (open, close) = (r#"{"Filters":["#.repeat(depth), "]}".repeat(depth));
        let value = typed("FilterExpression", CONTRACTS, &format!(r#""Filters":[{open}{close}]"#));
        let event = context(&value);
        shared::json::events(&event).map(|_| xml(&event))
    };
    assert!(filters(60).unwrap().is_ok());
    assert!(filters(70).is_err(), "nested deeper than events may be");
    let aliased =
        (0..100).fold("1".to_owned(), |value, _| typed("AliasedValue", CONTRACTS, &format!(r#""Value":{value}"#)));
    assert!(slot(&aliased).unwrap().ends_with(&format!("1{}</a:value>", "</Value>".repeat(100))));
}

#[test]
fn a_deeply_nested_value_costs_no_more_than_a_flat_one() {
    let numbers = vec!["1.5"; 10_000].join(",");
    let fastest = |depth: usize| {
        let event = context(&format!("{}{numbers}{}", "[".repeat(depth), "]".repeat(depth)));
        let options = options(json!({ "messageFormat": "xml", "maxBytes": 900_000 }));
        fastest_of(&event, |event| {
            assert_eq!(map(event, &options).unwrap().messages.len(), 1);
        })
    };
    let (flat, deep) = (fastest(1), fastest(120));
    assert!(deep < flat * 2, "{deep:?} with 120 levels, {flat:?} with one");
}
