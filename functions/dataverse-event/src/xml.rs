//! A context as the .NET contract serializer (DataContractSerializer) writes it: no declaration, no white space, members in
//! alphabetical order, `i:nil` for null, `i:type` where a slot holds any object.
//!
//! Prefixes are given as it gives them: the first letter that is free where a namespace is first needed. What XML 1.0 has no
//! characters for is written as it writes it (`&#xB;`), which its own reader takes and a strict parser may not.

use std::borrow::Cow;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use shared::json;

use crate::trim::is_trimmable;
use crate::value::{self, Date, Offset, ZERO_GUID, elements, is_guid, pair, type_of};

const CONTRACTS: &str = "http://schemas.microsoft.com/xrm/2011/Contracts";
const INSTANCE: &str = "http://www.w3.org/2001/XMLSchema-instance";
const SCHEMA: &str = "http://www.w3.org/2001/XMLSchema";
const SERIALIZATION: &str = "http://schemas.microsoft.com/2003/10/Serialization/";
const ARRAYS: &str = "http://schemas.microsoft.com/2003/10/Serialization/Arrays";
/// Where `key` and `value` are at home. Always the first to be declared below a context, so its prefix is `a`.
const GENERIC: &str = "http://schemas.datacontract.org/2004/07/System.Collections.Generic";
/// JSON shortens this part of a type's namespace to `#`.
const CLR: &str = "http://schemas.datacontract.org/2004/07/";

/// Which of the context's members to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Members {
    All,
    /// The four that Dataverse removes are written as absent ones.
    WithoutTrimmable,
}

/// Why there is no XML.
#[derive(Debug, PartialEq, Eq)]
pub enum Stop {
    /// It would be larger than the limit.
    TooLarge,
    /// A value is not what its place asks for.
    Unusable(String),
}

type Written = Result<(), Stop>;

/// The XML of the context `json`, an object, in at most `limit` bytes.
pub fn write(json: &str, members: Members, limit: usize) -> Result<String, Stop> {
    let mut writer = Writer { out: String::with_capacity(limit.min(2 * json.len())), limit, ..Writer::default() };
    let attributes = format!(" xmlns=\"{CONTRACTS}\" xmlns:i=\"{INSTANCE}\"");
    writer.element("RemoteExecutionContext", &attributes, |w| w.class(Class::Context, json, members))?;
    Ok(writer.out)
}

/// The classes whose members are known.
#[derive(Debug, Clone, Copy)]
enum Class {
    Context,
    Entity,
    EntityCollection,
    EntityReference,
    Money,
    OptionSetValue,
    Relationship,
}

/// What a member holds.
#[derive(Debug, Clone, Copy)]
enum Slot {
    Text,
    Guid,
    GuidOrNil,
    Int,
    Bool,
    Decimal,
    OperationCreatedOn,
    /// By number in JSON, by name in XML.
    Enum(&'static [&'static str]),
    Class(Class),
    /// Key to any object.
    Parameters,
    /// Key to text.
    Texts,
    /// Key to Entity.
    Images,
    /// Relationship to EntityCollection.
    Related,
    Entities,
}

impl Class {
    /// Those that may stand where any object may.
    fn by_name(name: &str) -> Option<Self> {
        match name {
            "Entity" => Some(Self::Entity),
            "EntityCollection" => Some(Self::EntityCollection),
            "EntityReference" => Some(Self::EntityReference),
            "Money" => Some(Self::Money),
            "OptionSetValue" => Some(Self::OptionSetValue),
            "Relationship" => Some(Self::Relationship),
            _ => None,
        }
    }

    /// In the serializer's order: by the names' code points.
    fn members(self) -> &'static [(&'static str, Slot)] {
        match self {
            Self::Context => &[
                ("BusinessUnitId", Slot::Guid),
                ("CorrelationId", Slot::Guid),
                ("Depth", Slot::Int),
                ("InitiatingUserAgent", Slot::Text),
                ("InitiatingUserAzureActiveDirectoryObjectId", Slot::Guid),
                ("InitiatingUserId", Slot::Guid),
                ("InputParameters", Slot::Parameters),
                ("IsExecutingOffline", Slot::Bool),
                ("IsInTransaction", Slot::Bool),
                ("IsOfflinePlayback", Slot::Bool),
                ("IsolationMode", Slot::Int),
                ("MessageName", Slot::Text),
                ("Mode", Slot::Int),
                ("OperationCreatedOn", Slot::OperationCreatedOn),
                ("OperationId", Slot::Guid),
                ("OrganizationId", Slot::Guid),
                ("OrganizationName", Slot::Text),
                ("OutputParameters", Slot::Parameters),
                ("OwningExtension", Slot::Class(Self::EntityReference)),
                ("ParentContext", Slot::Class(Self::Context)),
                ("PostEntityImages", Slot::Images),
                ("PreEntityImages", Slot::Images),
                ("PrimaryEntityId", Slot::Guid),
                ("PrimaryEntityName", Slot::Text),
                ("RequestId", Slot::GuidOrNil),
                ("SecondaryEntityName", Slot::Text),
                ("SharedVariables", Slot::Parameters),
                ("Stage", Slot::Int),
                ("UserAzureActiveDirectoryObjectId", Slot::Guid),
                ("UserId", Slot::Guid),
            ],
            Self::Entity => &[
                ("Attributes", Slot::Parameters),
                ("EntityState", Slot::Enum(&["Unchanged", "Created", "Changed"])),
                ("FormattedValues", Slot::Texts),
                ("Id", Slot::Guid),
                ("KeyAttributes", Slot::Parameters),
                ("LogicalName", Slot::Text),
                ("RelatedEntities", Slot::Related),
                ("RowVersion", Slot::Text),
            ],
            Self::EntityCollection => &[
                ("Entities", Slot::Entities),
                ("EntityName", Slot::Text),
                ("MinActiveRowVersion", Slot::Text),
                ("MoreRecords", Slot::Bool),
                ("PagingCookie", Slot::Text),
                ("TotalRecordCount", Slot::Int),
                ("TotalRecordCountLimitExceeded", Slot::Bool),
            ],
            Self::EntityReference => &[
                ("Id", Slot::Guid),
                ("KeyAttributes", Slot::Parameters),
                ("LogicalName", Slot::Text),
                ("Name", Slot::Text),
                ("RowVersion", Slot::Text),
            ],
            Self::Money => &[("Value", Slot::Decimal)],
            Self::OptionSetValue => &[("Value", Slot::Int)],
            Self::Relationship => {
                &[("PrimaryEntityRole", Slot::Enum(&["Referencing", "Referenced"])), ("SchemaName", Slot::Text)]
            }
        }
    }
}

/// A step on the way to the value being written.
#[derive(Debug, Clone, Copy)]
enum Place {
    Member(&'static str),
    Item(usize),
}

#[derive(Debug, Default)]
struct Writer<'a> {
    out: String,
    limit: usize,
    /// Namespaces declared around this place, besides the two of the root; the first has the prefix `a`.
    scope: Vec<Cow<'a, str>>,
    place: Vec<Place>,
}

impl<'a> Writer<'a> {
    /// An element; one without content closes itself.
    fn element(&mut self, name: &str, attributes: &str, content: impl FnOnce(&mut Self) -> Written) -> Written {
        for part in ["<", name, attributes, ">"] {
            self.out.push_str(part);
        }
        let start = self.out.len();
        content(self)?;
        if self.out.len() == start {
            self.out.pop();
            self.out.push_str("/>");
        } else {
            for part in ["</", name, ">"] {
                self.out.push_str(part);
            }
        }
        if self.out.len() > self.limit { Err(Stop::TooLarge) } else { Ok(()) }
    }

    fn simple(&mut self, name: &str, attributes: &str, text: &str) -> Written {
        self.element(name, attributes, |w| {
            push_text(&mut w.out, text);
            Ok(())
        })
    }

    fn nil(&mut self, name: &str) -> Written {
        self.simple(name, " i:nil=\"true\"", "")
    }

    /// Something below `place`, for errors' sake.
    fn at(&mut self, place: Place, inner: impl FnOnce(&mut Self) -> Written) -> Written {
        self.place.push(place);
        inner(self)?;
        self.place.pop();
        Ok(())
    }

    fn unusable(&self, problem: &str) -> Stop {
        let mut text = String::new();
        for place in &self.place {
            match place {
                Place::Member(name) if text.is_empty() => text.push_str(name),
                Place::Member(name) => text.extend([".", name]),
                Place::Item(item) => text.extend(["[", &item.to_string(), "]"]),
            }
        }
        Stop::Unusable(format!("{text}: {problem}"))
    }

    fn elements(&self, json: &'a str) -> Result<impl Iterator<Item = (usize, &'a str)> + use<'a>, Stop> {
        let elements = elements(json).ok_or_else(|| self.unusable("expected an array"))?;
        Ok(elements.into_iter().map(|element| element.get()).enumerate())
    }

    fn text(&self, json: &'a str) -> Result<Cow<'a, str>, Stop> {
        if !json.starts_with('"') {
            return Err(self.unusable("expected text"));
        }
        json::text(json).ok_or_else(|| self.unusable("has half a surrogate pair, which XML has no form for"))
    }

    /// Writes what needs `namespace`, which gets a prefix and a declaration (an attribute) where it has none yet.
    fn in_namespace(
        &mut self,
        namespace: Cow<'a, str>,
        inner: impl FnOnce(&mut Self, &str, &str) -> Written,
    ) -> Written {
        let prefix = |place: usize| match u8::try_from(place) {
            // `i` is taken by the root.
            Ok(place) if place < 8 => char::from(b'a' + place).to_string(),
            Ok(place) if place < 25 => char::from(b'b' + place).to_string(),
            _ => format!("n{place}"),
        };
        if let Some(known) = self.scope.iter().position(|known| *known == namespace) {
            return inner(self, &prefix(known), "");
        }
        let prefix = prefix(self.scope.len());
        let mut declaration = format!(" xmlns:{prefix}=\"");
        push_attribute(&mut declaration, &namespace);
        declaration.push('"');
        self.scope.push(namespace);
        inner(self, &prefix, &declaration)?;
        self.scope.pop();
        Ok(())
    }

    /// The members of an object; absent ones get .NET's defaults, unknown ones are left out.
    fn class(&mut self, class: Class, json: &'a str, which: Members) -> Written {
        let Ok(shared::json::Members(found)) = serde_json::from_str::<shared::json::Members<'a>>(json) else {
            return Err(self.unusable("expected an object"));
        };
        let members = class.members();
        let mut values = vec!["null"; members.len()];
        for (name, value) in &found {
            // The names are sorted but for case; there are few.
            if let Some(place) = members.iter().position(|(known, _)| name == known) {
                values[place] = value.get();
            }
        }
        for ((name, slot), json) in members.iter().zip(values) {
            let json = if which == Members::WithoutTrimmable && is_trimmable(name) { "null" } else { json };
            self.at(Place::Member(name), |w| w.slot(name, *slot, json))?;
        }
        Ok(())
    }

    fn slot(&mut self, name: &str, slot: Slot, json: &'a str) -> Written {
        let null = json == "null";
        match slot {
            Slot::Guid if null => self.simple(name, "", ZERO_GUID),
            Slot::Int | Slot::Decimal if null => self.simple(name, "", "0"),
            Slot::Bool if null => self.simple(name, "", "false"),
            Slot::OperationCreatedOn if null => self.simple(name, "", "0001-01-01T00:00:00"),
            _ if null => self.nil(name),
            Slot::Text => {
                let text = self.text(json)?;
                self.simple(name, "", &text)
            }
            Slot::Guid | Slot::GuidOrNil => match json::text(json) {
                Some(guid) if is_guid(&guid) => self.simple(name, "", &guid),
                _ => Err(self.unusable("expected a GUID")),
            },
            Slot::Int => match json.parse::<i32>() {
                Ok(number) => self.simple(name, "", &number.to_string()),
                Err(_) => Err(self.unusable("expected an integer of 32 bits")),
            },
            Slot::Bool => match json {
                "true" | "false" => self.simple(name, "", json),
                _ => Err(self.unusable("expected true or false")),
            },
            Slot::Decimal => match value::decimal(json) {
                Some(number) => self.simple(name, "", &number),
                None => Err(self.unusable("expected a number of a decimal's range")),
            },
            Slot::OperationCreatedOn => match json::text(json).as_deref().and_then(Date::parse) {
                Some(date) if date.offset == Offset::Absent => self.simple(name, "", &date.xml("Z")),
                Some(date) => self.simple(name, "", &date.xml("+00:00")),
                None => Err(self.unusable("expected a date, as in /Date(1527633703000)/")),
            },
            Slot::Enum(names) => match json.parse::<usize>().ok().and_then(|number| names.get(number)) {
                Some(known) => self.simple(name, "", known),
                None => Err(self.unusable("expected the number of a known value")),
            },
            Slot::Class(class) => self.element(name, "", |w| w.class(class, json, Members::All)),
            Slot::Parameters => self.pairs(name, json, "KeyValuePairOfstringanyType", |w, (key, value)| {
                w.key(key)?;
                w.at(Place::Member("value"), |w| w.any("a:value", value))
            }),
            Slot::Texts => self.pairs(name, json, "KeyValuePairOfstringstring", |w, (key, value)| {
                w.key(key)?;
                w.at(Place::Member("value"), |w| w.slot("a:value", Slot::Text, value))
            }),
            Slot::Images => self.pairs(name, json, "KeyValuePairOfstringEntitygUGIFE1S", |w, (key, value)| {
                w.key(key)?;
                w.at(Place::Member("value"), |w| w.slot("a:value", Slot::Class(Class::Entity), value))
            }),
            Slot::Related => {
                let item = "KeyValuePairOfRelationshipEntityCollectionX_PsK4FkN";
                self.pairs(name, json, item, |w, (key, value)| {
                    w.at(Place::Member("key"), |w| w.slot("a:key", Slot::Class(Class::Relationship), key))?;
                    let slot = Slot::Class(Class::EntityCollection);
                    w.at(Place::Member("value"), |w| w.slot("a:value", slot, value))
                })
            }
            Slot::Entities => self.element(name, "", |w| w.typed_items("Entity", Class::Entity, json)),
        }
    }

    fn key(&mut self, json: &'a str) -> Written {
        self.at(Place::Member("key"), |w| w.slot("a:key", Slot::Text, json))
    }

    /// A collection of `{key, value}`, whose items are called `item`.
    fn pairs(
        &mut self,
        name: &str,
        json: &'a str,
        item: &str,
        write: impl Fn(&mut Self, (&'a str, &'a str)) -> Written,
    ) -> Written {
        let elements = self.elements(json)?;
        self.in_namespace(GENERIC.into(), |w, _, declaration| {
            w.element(name, declaration, |w| {
                for (at, element) in elements {
                    w.at(Place::Item(at), |w| {
                        let Some((key, value)) = pair(element) else {
                            return Err(w.unusable("expected an object with a key and a value"));
                        };
                        let pair = (key.unwrap_or("null"), value.unwrap_or("null"));
                        w.element(item, "", |w| write(w, pair))
                    })?;
                }
                Ok(())
            })
        })
    }

    fn typed_items(&mut self, item: &str, class: Class, json: &'a str) -> Written {
        for (at, element) in self.elements(json)? {
            self.at(Place::Item(at), |w| w.slot(item, Slot::Class(class), element))?;
        }
        Ok(())
    }

    /// A value where any object may stand.
    fn any(&mut self, name: &str, json: &'a str) -> Written {
        match json.as_bytes().first() {
            Some(b'n') => self.nil(name),
            Some(b't' | b'f') => self.primitive(name, SCHEMA, "boolean", json),
            Some(b'[') => self.array(name, json),
            Some(b'{') => self.object(name, json),
            Some(b'"') => {
                let text = self.text(json)?;
                match Date::parse(&text) {
                    Some(date) => self.primitive(name, SCHEMA, "dateTime", &date.xml("Z")),
                    None if is_guid(&text) => self.primitive(name, SERIALIZATION, "guid", &text),
                    None => self.primitive(name, SCHEMA, "string", &text),
                }
            }
            _ => {
                let (kind, text) = value::number(json);
                self.primitive(name, SCHEMA, kind, &text)
            }
        }
    }

    fn primitive(&mut self, name: &str, namespace: &'static str, kind: &str, text: &str) -> Written {
        self.in_namespace(namespace.into(), |w, prefix, declaration| {
            w.simple(name, &format!(" i:type=\"{prefix}:{kind}\"{declaration}"), text)
        })
    }

    /// An array's type shows by its elements, which are all alike in the known collections.
    fn array(&mut self, name: &str, json: &'a str) -> Written {
        let elements: Vec<(usize, &'a str)> = self.elements(json)?.collect();
        let all = |kind: &str| {
            let is = |element: &str| type_of(element).is_some_and(|known| known.split(':').next() == Some(kind));
            !elements.is_empty() && elements.iter().all(|(_, element)| is(element))
        };
        for (kind, class) in [("OptionSetValue", Class::OptionSetValue), ("EntityReference", Class::EntityReference)] {
            if all(kind) {
                let attributes = format!(" i:type=\"{kind}Collection\"");
                return self.element(name, &attributes, |w| w.typed_items(kind, class, json));
            }
        }
        if all("KeyValuePairOfstringstring") {
            return self.in_namespace(GENERIC.into(), |w, prefix, declaration| {
                let item = format!("{prefix}:KeyValuePairOfstringstring");
                let attributes = format!(" i:type=\"{prefix}:ArrayOfKeyValuePairOfstringstring\"{declaration}");
                w.element(name, &attributes, |w| {
                    for (at, element) in elements {
                        w.at(Place::Item(at), |w| {
                            let (key, value) = pair(element).unwrap_or_default();
                            w.element(&item, "", |w| {
                                w.key(key.unwrap_or("null"))?;
                                let value = value.unwrap_or("null");
                                w.at(Place::Member("value"), |w| w.slot("a:value", Slot::Text, value))
                            })
                        })?;
                    }
                    Ok(())
                })
            });
        }
        let bytes: Option<Vec<u8>> = elements.iter().map(|(_, element)| element.parse().ok()).collect();
        if let Some(bytes) = bytes.filter(|bytes| !bytes.is_empty()) {
            return self.primitive(name, SCHEMA, "base64Binary", &BASE64_STANDARD.encode(bytes));
        }
        self.in_namespace(ARRAYS.into(), |w, prefix, declaration| {
            let item = format!("{prefix}:anyType");
            w.element(name, &format!(" i:type=\"{prefix}:ArrayOfanyType\"{declaration}"), |w| {
                for (at, element) in elements {
                    w.at(Place::Item(at), |w| w.any(&item, element))?;
                }
                Ok(())
            })
        })
    }

    fn object(&mut self, name: &str, json: &'a str) -> Written {
        let Some(full) = type_of(json) else {
            // Nobody can tell its type: its members, as they stand.
            return self.element(name, "", |w| w.unknown_members("", json));
        };
        let (kind, namespace) = full.split_once(':').unwrap_or((&full, ""));
        if let Some(class) = Class::by_name(kind) {
            return self.element(name, &format!(" i:type=\"{kind}\""), |w| w.class(class, json, Members::All));
        }
        let kind = self.name(kind)?;
        let namespace = match namespace.strip_prefix('#') {
            Some(short) => format!("{CLR}{short}"),
            None => namespace.to_owned(),
        };
        if namespace.is_empty() || namespace == CONTRACTS {
            return self.element(name, &format!(" i:type=\"{kind}\""), |w| w.unknown_members("", json));
        }
        if ["http://www.w3.org/2000/xmlns/", "http://www.w3.org/XML/1998/namespace"].contains(&namespace.as_str()) {
            return Err(self.unusable("the type's namespace is XML's own"));
        }
        self.in_namespace(namespace.into(), |w, prefix, declaration| {
            let attributes = format!(" i:type=\"{prefix}:{kind}\"{declaration}");
            w.element(name, &attributes, |w| w.unknown_members(&format!("{prefix}:"), json))
        })
    }

    /// The members of an object whose class is not known, in their order, in the namespace of its type. Nothing says what
    /// type a member has, so a scalar gets none.
    fn unknown_members(&mut self, prefix: &str, json: &'a str) -> Written {
        let Ok(shared::json::Members(members)) = serde_json::from_str::<shared::json::Members<'a>>(json) else {
            return Err(self.unusable("has a name that XML has no form for"));
        };
        for (at, (name, value)) in members.into_iter().enumerate().filter(|(_, (name, _))| name != "__type") {
            self.at(Place::Item(at), |w| {
                let name = format!("{prefix}{}", w.name(&name)?);
                w.unknown_member(&name, prefix, value.get())
            })?;
        }
        Ok(())
    }

    fn unknown_member(&mut self, name: &str, prefix: &str, json: &'a str) -> Written {
        match json.as_bytes().first() {
            Some(b'n') => self.nil(name),
            Some(b'"') => {
                let text = self.text(json)?;
                match Date::parse(&text) {
                    Some(date) => self.simple(name, "", &date.xml("Z")),
                    None => self.simple(name, "", &text),
                }
            }
            Some(b'[') => {
                let elements: Vec<(usize, &'a str)> = self.elements(json)?.collect();
                let texts = elements.iter().all(|(_, element)| element.starts_with('"'));
                self.in_namespace(ARRAYS.into(), |w, arrays, declaration| {
                    w.element(name, declaration, |w| {
                        for (at, element) in elements {
                            w.at(Place::Item(at), |w| match texts {
                                true => w.slot(&format!("{arrays}:string"), Slot::Text, element),
                                false => w.any(&format!("{arrays}:anyType"), element),
                            })?;
                        }
                        Ok(())
                    })
                })
            }
            Some(b'{') if type_of(json).is_some() => self.object(name, json),
            Some(b'{') => self.element(name, "", |w| w.unknown_members(prefix, json)),
            _ => self.simple(name, "", json),
        }
    }

    /// A name in the code of .NET's `XmlConvert`, for letters beyond ASCII too, which XML would take as they are.
    fn name(&self, text: &str) -> Result<String, Stop> {
        if text.is_empty() {
            return Err(self.unusable("has an empty name, which XML has no form for"));
        }
        let mut name = String::with_capacity(text.len());
        let mut rest = text.chars();
        while let Some(char) = rest.next() {
            let fits = match char {
                'a'..='z' | 'A'..='Z' => true,
                '_' => !rest.as_str().starts_with('x'),
                '0'..='9' | '-' | '.' => !name.is_empty(),
                _ => false,
            };
            match u32::from(char) {
                _ if fits => name.push(char),
                code @ ..=0xffff => name.push_str(&format!("_x{code:04X}_")),
                code => name.push_str(&format!("_x{code:08X}_")),
            }
        }
        Ok(name)
    }
}

/// Text as .NET's writer escapes it in content.
fn push_text(out: &mut String, text: &str) {
    push_escaped(out, text, |char| matches!(char, '\t' | '\n' | '"'));
}

/// The same in an attribute.
fn push_attribute(out: &mut String, text: &str) {
    push_escaped(out, text, |_| false);
}

fn push_escaped(out: &mut String, text: &str, raw: impl Fn(char) -> bool) {
    let special =
        |char: char| matches!(char, '\0'..='\x1f' | '&' | '<' | '>' | '"' | '\u{fffe}' | '\u{ffff}') && !raw(char);
    let mut rest = text;
    while let Some(place) = rest.find(special) {
        out.push_str(&rest[..place]);
        let Some(char) = rest[place..].chars().next() else { break };
        match char {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            control => out.push_str(&format!("&#x{:X};", u32::from(control))),
        }
        rest = &rest[place + char.len_utf8()..];
    }
    out.push_str(rest);
}
