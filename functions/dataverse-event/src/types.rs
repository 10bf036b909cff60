//! The SDK types whose XML form is known, one row each: namespace, and members in the serializer's order with their kinds.
//! A type outside of this table has no XML form here. The members, their order and the enums are those of the .NET API
//! pages of `Microsoft.Xrm.Sdk` and `Microsoft.Crm.Sdk.Messages` and of the enum pages of the Dataverse Web API reference.

use self::Kind::{
    Any, Anys, Bool, Decimal, Enum, Fixed, Flags, Guid, Images, Int, List, OperationCreatedOn, OrNil, Parameters,
    Related, StringPairs, Text, Texts,
};

pub const CONTRACTS: &str = "http://schemas.microsoft.com/xrm/2011/Contracts";
const METADATA: &str = "http://schemas.microsoft.com/xrm/2011/Metadata";
const MESSAGES: &str = "http://schemas.microsoft.com/crm/2011/Contracts";
/// Namespace of `key` and `value`.
pub const GENERIC: &str = "http://schemas.datacontract.org/2004/07/System.Collections.Generic";

/// A class as its data contract declares it.
#[derive(Debug)]
pub struct Class {
    pub name: &'static str,
    pub namespace: &'static str,
    /// Its members come first, in its own namespace.
    pub base: Option<&'static Class>,
    pub members: &'static [(&'static str, Kind)],
    pub absent: Absent,
}

/// The treatment of a member that the JSON lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absent {
    /// It gets the .NET default of its kind, and so does one that is null.
    Default,
    /// It is not written. JSON and XML come from one object: what .NET leaves out of the one it leaves out of the other.
    LeftOut,
}

/// The kind of a member. Text, collections and classes may be null; values may be only inside `OrNil`.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    Text,
    Guid,
    Int,
    Bool,
    Decimal,
    OperationCreatedOn,
    /// A number from 0 in JSON, a name in XML.
    Enum(&'static [&'static str]),
    /// A sum of bits in JSON, names in XML; `None` is the name of 0.
    Flags(&'static [(u32, &'static str)]),
    /// A value that may be null.
    OrNil(&'static Kind),
    /// Any object, with `i:type`.
    Any,
    /// One class, without `i:type`.
    Fixed(&'static Class),
    /// Items of one class, named like it.
    List(&'static Class),
    Texts,
    Anys,
    /// Pairs of a key and any object.
    Parameters,
    /// Pairs of texts.
    StringPairs,
    /// Pairs of a key and an `Entity`.
    Images,
    /// Pairs of a `Relationship` and an `EntityCollection`.
    Related,
}

const fn with_defaults(name: &'static str, members: &'static [(&'static str, Kind)]) -> Class {
    Class { name, namespace: CONTRACTS, base: None, members, absent: Absent::Default }
}

const fn class(name: &'static str, members: &'static [(&'static str, Kind)]) -> Class {
    Class { absent: Absent::LeftOut, ..with_defaults(name, members) }
}

/// The types that may stand where any object may.
pub static TYPES: [&Class; 22] = [
    &ENTITY_REFERENCE,
    &OPTION_SET_VALUE,
    &ENTITY,
    &MONEY,
    &ENTITY_COLLECTION,
    &ALIASED_VALUE,
    &RELATIONSHIP,
    &STRING_PAIR,
    &ATTRIBUTE_EXPRESSION,
    &BOOLEAN_MANAGED_PROPERTY,
    &COLUMN_SET,
    &CONDITION_EXPRESSION,
    &FETCH_EXPRESSION,
    &FILTER_EXPRESSION,
    &LABEL,
    &LINK_ENTITY,
    &LOCALIZED_LABEL,
    &ORDER_EXPRESSION,
    &PAGING_INFO,
    &PRINCIPAL_ACCESS,
    &QUERY_EXPRESSION,
    &ROLE_PRIVILEGE,
];

/// The class that a `__type` names.
pub fn by_type(full: &str) -> Option<&'static Class> {
    TYPES.iter().copied().find(|class| class.is_named_by(full))
}

impl Class {
    /// Whether a `__type` (`name:namespace`) names this class.
    pub fn is_named_by(&self, full: &str) -> bool {
        let (name, namespace) = full.split_once(':').unwrap_or((full, ""));
        // A customer's own assembly may have types of the same names with other members. Of the SDK's namespaces JSON
        // shortens one, and old documentation has https in others.
        name == self.name
            && (namespace.is_empty()
                || namespace.ends_with("System.Collections.Generic")
                || ["http://", "https://"].iter().any(|scheme| {
                    namespace.strip_prefix(scheme).is_some_and(|ns| ns.starts_with("schemas.microsoft.com/"))
                }))
    }
}

pub static CONTEXT: Class = with_defaults(
    "RemoteExecutionContext",
    &[
        ("BusinessUnitId", Guid),
        ("CorrelationId", Guid),
        ("Depth", Int),
        ("InitiatingUserAgent", Text),
        ("InitiatingUserAzureActiveDirectoryObjectId", Guid),
        ("InitiatingUserId", Guid),
        ("InputParameters", Parameters),
        ("IsExecutingOffline", Bool),
        ("IsInTransaction", Bool),
        ("IsOfflinePlayback", Bool),
        ("IsolationMode", Int),
        ("MessageName", Text),
        ("Mode", Int),
        ("OperationCreatedOn", OperationCreatedOn),
        ("OperationId", Guid),
        ("OrganizationId", Guid),
        ("OrganizationName", Text),
        ("OutputParameters", Parameters),
        ("OwningExtension", Fixed(&ENTITY_REFERENCE)),
        ("ParentContext", Fixed(&CONTEXT)),
        ("PostEntityImages", Images),
        ("PreEntityImages", Images),
        ("PrimaryEntityId", Guid),
        ("PrimaryEntityName", Text),
        ("RequestId", OrNil(&Guid)),
        ("SecondaryEntityName", Text),
        ("SharedVariables", Parameters),
        ("Stage", Int),
        ("UserAzureActiveDirectoryObjectId", Guid),
        ("UserId", Guid),
    ],
);

pub static ENTITY: Class = with_defaults(
    "Entity",
    &[
        ("Attributes", Parameters),
        ("EntityState", OrNil(&Enum(&["Unchanged", "Created", "Changed"]))),
        ("FormattedValues", StringPairs),
        ("Id", Guid),
        ("KeyAttributes", Parameters),
        ("LogicalName", Text),
        ("RelatedEntities", Related),
        ("RowVersion", Text),
    ],
);

pub static ENTITY_COLLECTION: Class = with_defaults(
    "EntityCollection",
    &[
        ("Entities", List(&ENTITY)),
        ("EntityName", Text),
        ("MinActiveRowVersion", Text),
        ("MoreRecords", Bool),
        ("PagingCookie", Text),
        ("TotalRecordCount", Int),
        ("TotalRecordCountLimitExceeded", Bool),
    ],
);

pub static ENTITY_REFERENCE: Class = with_defaults(
    "EntityReference",
    &[("Id", Guid), ("KeyAttributes", Parameters), ("LogicalName", Text), ("Name", Text), ("RowVersion", Text)],
);

static MONEY: Class = with_defaults("Money", &[("Value", Decimal)]);

pub static OPTION_SET_VALUE: Class = with_defaults("OptionSetValue", &[("Value", Int)]);

pub static RELATIONSHIP: Class = with_defaults(
    "Relationship",
    &[("PrimaryEntityRole", OrNil(&Enum(&["Referencing", "Referenced"]))), ("SchemaName", Text)],
);

pub static STRING_PAIR: Class =
    Class { namespace: GENERIC, ..with_defaults("KeyValuePairOfstringstring", &[("key", Text), ("value", Text)]) };

static ALIASED_VALUE: Class =
    class("AliasedValue", &[("AttributeLogicalName", Text), ("EntityLogicalName", Text), ("Value", Any)]);

/// `XrmAttributeExpression` in .NET.
static ATTRIBUTE_EXPRESSION: Class = class(
    "AttributeExpression",
    &[
        ("AggregateType", Enum(AGGREGATE_TYPE)),
        ("Alias", Text),
        ("AttributeName", Text),
        ("DateTimeGrouping", Enum(DATE_TIME_GROUPING_TYPE)),
        ("HasGroupBy", Bool),
    ],
);

static BOOLEAN_MANAGED_PROPERTY: Class =
    class("BooleanManagedProperty", &[("CanBeChanged", Bool), ("ManagedPropertyLogicalName", Text), ("Value", Bool)]);

static COLUMN_SET: Class = class(
    "ColumnSet",
    &[("AllColumns", Bool), ("AttributeExpressions", List(&ATTRIBUTE_EXPRESSION)), ("Columns", Texts)],
);

static CONDITION_EXPRESSION: Class = class(
    "ConditionExpression",
    &[
        ("AttributeName", Text),
        ("CompareColumns", Bool),
        ("Operator", Enum(CONDITION_OPERATOR)),
        ("Values", Anys),
        ("EntityName", Text),
    ],
);

static FETCH_EXPRESSION: Class = class("FetchExpression", &[("Query", Text)]);

static FILTER_EXPRESSION: Class = class(
    "FilterExpression",
    &[
        ("AnyAllFilterLinkEntity", Fixed(&LINK_ENTITY)),
        ("Conditions", List(&CONDITION_EXPRESSION)),
        ("FilterOperator", Enum(LOGICAL_OPERATOR)),
        ("Filters", List(&FILTER_EXPRESSION)),
        ("IsQuickFindFilter", Bool),
        ("FilterHint", Text),
    ],
);

static LABEL: Class =
    class("Label", &[("LocalizedLabels", List(&LOCALIZED_LABEL)), ("UserLocalizedLabel", Fixed(&LOCALIZED_LABEL))]);

static LINK_ENTITY: Class = class(
    "LinkEntity",
    &[
        ("Columns", Fixed(&COLUMN_SET)),
        ("EntityAlias", Text),
        ("ForceSeek", Text),
        ("JoinOperator", Enum(JOIN_OPERATOR)),
        ("LinkCriteria", Fixed(&FILTER_EXPRESSION)),
        ("LinkEntities", List(&LINK_ENTITY)),
        ("LinkFromAttributeName", Text),
        ("LinkFromEntityName", Text),
        ("LinkToAttributeName", Text),
        ("LinkToEntityName", Text),
        ("Orders", List(&ORDER_EXPRESSION)),
    ],
);

static LOCALIZED_LABEL: Class = Class {
    base: Some(&METADATA_BASE),
    ..class("LocalizedLabel", &[("IsManaged", OrNil(&Bool)), ("Label", Text), ("LanguageCode", Int)])
};

static METADATA_BASE: Class = Class {
    namespace: METADATA,
    ..class("MetadataBase", &[("MetadataId", OrNil(&Guid)), ("HasChanged", OrNil(&Bool))])
};

static ORDER_EXPRESSION: Class = class(
    "OrderExpression",
    &[("Alias", Text), ("AttributeName", Text), ("EntityName", Text), ("OrderType", Enum(ORDER_TYPE))],
);

static PAGING_INFO: Class = class(
    "PagingInfo",
    &[("Count", Int), ("PageNumber", Int), ("PagingCookie", Text), ("ReturnTotalRecordCount", Bool)],
);

static PRINCIPAL_ACCESS: Class = Class {
    namespace: MESSAGES,
    ..class("PrincipalAccess", &[("AccessMask", Flags(ACCESS_RIGHTS)), ("Principal", Fixed(&ENTITY_REFERENCE))])
};

static QUERY_EXPRESSION: Class = class(
    "QueryExpression",
    &[
        ("ColumnSet", Fixed(&COLUMN_SET)),
        ("Criteria", Fixed(&FILTER_EXPRESSION)),
        ("Distinct", Bool),
        ("EntityName", Text),
        ("LinkEntities", List(&LINK_ENTITY)),
        ("Orders", List(&ORDER_EXPRESSION)),
        ("PageInfo", Fixed(&PAGING_INFO)),
        ("SubQueryExpression", Fixed(&QUERY_EXPRESSION)),
        ("NoLock", Bool),
        ("TopCount", OrNil(&Int)),
        ("QueryHints", Text),
        ("DataSource", Text),
    ],
);

static ROLE_PRIVILEGE: Class = Class {
    namespace: MESSAGES,
    ..class(
        "RolePrivilege",
        &[
            ("BusinessUnitId", Guid),
            ("Depth", Enum(PRIVILEGE_DEPTH)),
            ("PrivilegeId", Guid),
            ("PrivilegeName", Text),
            ("RecordFilterId", Guid),
            ("RecordFilterUniqueName", Text),
        ],
    )
};

const LOGICAL_OPERATOR: &[&str] = &["And", "Or"];

const ORDER_TYPE: &[&str] = &["Ascending", "Descending"];

const JOIN_OPERATOR: &[&str] = &[
    "Inner",
    "LeftOuter",
    "Natural",
    "MatchFirstRowUsingCrossApply",
    "In",
    "Exists",
    "Any",
    "NotAny",
    "All",
    "NotAll",
];

const AGGREGATE_TYPE: &[&str] = &["None", "Count", "CountColumn", "Sum", "Avg", "Min", "Max"];

const DATE_TIME_GROUPING_TYPE: &[&str] =
    &["None", "Day", "Week", "Month", "Quarter", "Year", "FiscalPeriod", "FiscalYear"];

const PRIVILEGE_DEPTH: &[&str] = &["Basic", "Local", "Deep", "Global", "RecordFilter"];

/// Ascending, as they are written.
const ACCESS_RIGHTS: &[(u32, &str)] = &[
    (1, "ReadAccess"),
    (2, "WriteAccess"),
    (4, "AppendAccess"),
    (16, "AppendToAccess"),
    (32, "CreateAccess"),
    (65_536, "DeleteAccess"),
    (262_144, "ShareAccess"),
    (524_288, "AssignAccess"),
];

/// Numbered as in the schema. The older documentation's prose numbers `Above` 75 and moves its neighbours.
#[rustfmt::skip]
const CONDITION_OPERATOR: &[&str] = &[
    "Equal", "NotEqual", "GreaterThan", "LessThan", "GreaterEqual", "LessEqual", "Like", "NotLike", "In", "NotIn",
    // 10
    "Between", "NotBetween", "Null", "NotNull", "Yesterday", "Today", "Tomorrow", "Last7Days", "Next7Days", "LastWeek",
    // 20
    "ThisWeek", "NextWeek", "LastMonth", "ThisMonth", "NextMonth", "On", "OnOrBefore", "OnOrAfter", "LastYear", "ThisYear",
    // 30
    "NextYear", "LastXHours", "NextXHours", "LastXDays", "NextXDays", "LastXWeeks", "NextXWeeks", "LastXMonths",
    "NextXMonths", "LastXYears",
    // 40
    "NextXYears", "EqualUserId", "NotEqualUserId", "EqualBusinessId", "NotEqualBusinessId", "ChildOf", "Mask", "NotMask",
    "MasksSelect", "Contains",
    // 50
    "DoesNotContain", "EqualUserLanguage", "NotOn", "OlderThanXMonths", "BeginsWith", "DoesNotBeginWith", "EndsWith",
    "DoesNotEndWith", "ThisFiscalYear", "ThisFiscalPeriod",
    // 60
    "NextFiscalYear", "NextFiscalPeriod", "LastFiscalYear", "LastFiscalPeriod", "LastXFiscalYears", "LastXFiscalPeriods",
    "NextXFiscalYears", "NextXFiscalPeriods", "InFiscalYear", "InFiscalPeriod",
    // 70
    "InFiscalPeriodAndYear", "InOrBeforeFiscalPeriodAndYear", "InOrAfterFiscalPeriodAndYear", "EqualUserTeams",
    "EqualUserOrUserTeams", "Under", "NotUnder", "UnderOrEqual", "Above", "AboveOrEqual",
    // 80
    "EqualUserOrUserHierarchy", "EqualUserOrUserHierarchyAndTeams", "OlderThanXYears", "OlderThanXWeeks", "OlderThanXDays",
    "OlderThanXHours", "OlderThanXMinutes", "ContainValues", "DoesNotContainValues",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_lists_exactly_the_types_of_the_table() {
        let page = include_str!("../../../docs/configuration.md");
        let start = page.find("XML mode writes these SDK types").expect("the list");
        let list = page[start..].split_once(": ").unwrap().1.split('.').next().unwrap();
        let mut listed: Vec<&str> = list.split('`').skip(1).step_by(2).collect();
        let mut known: Vec<&str> = TYPES.iter().map(|class| class.name).collect();
        listed.sort_unstable();
        known.sort_unstable();
        assert_eq!(listed, known);
    }

    #[test]
    fn a_base_class_has_values_alone_since_it_changes_the_default_namespace() {
        for base in TYPES.iter().filter_map(|class| class.base) {
            assert!(base.members.iter().all(|(_, kind)| matches!(kind, OrNil(Guid | Bool))));
        }
    }
}
