//! A context as the .NET contract serializer (DataContractSerializer) writes it: no declaration, no white space, members in
//! their contract's order, `i:nil` for null, `i:type` where a slot holds any object. What `types.rs` does not list has no XML
//! form here, and no guess is made.
//!
//! Prefixes are given as it gives them: the first letter that is free where a namespace is first needed. What XML 1.0 has no
//! characters for is written as it writes it (`&#xB;`), which its own reader takes and a strict parser may not.

use std::borrow::Cow;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use shared::json;

use crate::trim::is_trimmable;
use crate::types::{self, Absent, CONTRACTS, Class, GENERIC, Kind};
use crate::value::{self, Date, Extents, Offset, ZERO_GUID, is_guid, type_of};

const INSTANCE: &str = "http://www.w3.org/2001/XMLSchema-instance";
const SCHEMA: &str = "http://www.w3.org/2001/XMLSchema";
const SERIALIZATION: &str = "http://schemas.microsoft.com/2003/10/Serialization/";
const ARRAYS: &str = "http://schemas.microsoft.com/2003/10/Serialization/Arrays";

/// Prefixes of the namespaces declared inside a context, in their order. `i` belongs to the root. The table of types and this
/// module have fewer namespaces.
const QUALIFIERS: [&str; 8] = ["a:", "b:", "c:", "d:", "e:", "f:", "g:", "h:"];

const NIL: &str = " i:nil=\"true\"";

/// Maximum length of a type's name in an error: the name comes from the event.
const MAX_SHOWN_NAME: usize = 64;

/// Which of the context's members to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Members {
    All,
    /// The four that Dataverse removes are written as absent ones.
    WithoutTrimmable,
}

/// Why a context can't be written as XML.
#[derive(Debug, PartialEq, Eq)]
pub enum Stop {
    /// It would be larger than the limit.
    TooLarge,
    /// A value is not what its place asks for, or has no XML form here.
    Unusable(String),
}

type Written = Result<(), Stop>;

/// The XML of the context `json`, an object, in at most `limit` bytes.
pub fn write(json: &str, members: Members, limit: usize) -> Result<String, Stop> {
    let out = String::with_capacity(limit.min(2 * json.len()));
    let mut writer = Writer { out, limit, extents: Extents::of(json), ..Writer::default() };
    let namespaces = [" xmlns=\"", CONTRACTS, "\" xmlns:i=\"", INSTANCE, "\""];
    writer.element(types::CONTEXT.name, &namespaces, |w| w.class(&types::CONTEXT, json, members))?;
    Ok(writer.out)
}

/// A step on the way to the value being written.
#[derive(Debug, Clone, Copy)]
enum Place {
    Member(&'static str),
    Item(usize),
}

#[derive(Debug, Default)]
struct Writer {
    out: String,
    limit: usize,
    extents: Extents,
    /// Namespaces declared around this place, besides the two of the root; the first has the prefix `a`.
    scope: Vec<&'static str>,
    place: Vec<Place>,
}

impl Writer {
    /// An element; one without content closes itself.
    fn element(&mut self, name: &str, attributes: &[&str], content: impl FnOnce(&mut Self) -> Written) -> Written {
        self.out.push('<');
        self.out.push_str(name);
        self.out.extend(attributes.iter().copied());
        self.out.push('>');
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

    fn simple(&mut self, name: &str, attributes: &[&str], text: &str) -> Written {
        self.element(name, attributes, |w| {
            push_text(&mut w.out, text);
            Ok(())
        })
    }

    /// Something below `place`, for errors' sake.
    fn at(&mut self, place: Place, inner: impl FnOnce(&mut Self) -> Written) -> Written {
        self.place.push(place);
        inner(self)?;
        self.place.pop();
        Ok(())
    }

    fn place(&self) -> String {
        let mut text = String::new();
        for place in &self.place {
            match place {
                Place::Member(name) if text.is_empty() => text.push_str(name),
                Place::Member(name) => text.extend([".", name]),
                Place::Item(item) => text.extend(["[", &item.to_string(), "]"]),
            }
        }
        text
    }

    fn unusable(&self, problem: &str) -> Stop {
        Stop::Unusable(format!("{}: {problem}", self.place()))
    }

    /// An object whose type is not in the table, or that names none (`full` is `None`).
    fn unknown_type(&self, full: Option<&str>) -> Stop {
        let shown = |full: &str| -> String {
            let name = full.split(':').next().unwrap_or_default().chars();
            name.filter(|char| char.is_ascii_alphanumeric() || *char == '_').take(MAX_SHOWN_NAME).collect()
        };
        let what = match full.map(shown) {
            None => "an object without __type".to_owned(),
            Some(name) if name.is_empty() => "a type without a name".to_owned(),
            Some(name) => format!("the type {name}"),
        };
        let place = self.place();
        let place = place.strip_suffix(".value").unwrap_or(&place);
        Stop::Unusable(format!("{place}: {what} has no XML form here; use messageFormat json"))
    }

    fn elements<'a>(&self, json: &'a str) -> Result<impl Iterator<Item = (usize, &'a str)> + use<'a>, Stop> {
        let elements = self.extents.elements(json).ok_or_else(|| self.unusable("expected an array"))?;
        Ok(elements.into_iter().enumerate())
    }

    fn text<'a>(&self, json: &'a str) -> Result<Cow<'a, str>, Stop> {
        if !json.starts_with('"') {
            return Err(self.unusable("expected text"));
        }
        json::text(json).ok_or_else(|| self.unusable("has half a surrogate pair, which XML has no form for"))
    }

    /// The prefix of a declared namespace, with its colon.
    fn qualifier(&self, namespace: &str) -> Option<&'static str> {
        if namespace == CONTRACTS {
            return Some("");
        }
        self.scope.iter().position(|known| *known == namespace).and_then(|place| QUALIFIERS.get(place).copied())
    }

    /// Writes what needs `namespace`, which gets a prefix and a declaration (an attribute) where it has none yet.
    fn in_namespace(
        &mut self,
        namespace: &'static str,
        inner: impl FnOnce(&mut Self, &str, &str) -> Written,
    ) -> Written {
        if let Some(known) = self.qualifier(namespace) {
            return inner(self, known, "");
        }
        self.scope.push(namespace);
        let qualifier = self.qualifier(namespace).expect("six namespaces need a prefix, and there are eight prefixes");
        inner(self, qualifier, &declaration(qualifier, namespace))?;
        self.scope.pop();
        Ok(())
    }

    /// The members of an object; unknown ones are left out.
    fn class(&mut self, class: &'static Class, json: &str, which: Members) -> Written {
        let found = self.extents.members(json).ok_or_else(|| self.unusable("expected an object"))?;
        // A fixed slot needs no `__type`; one that names another class announces a derived one.
        if let Some(full) = type_of(json).filter(|full| !class.is_named_by(full)) {
            return Err(self.unknown_type(Some(&full)));
        }
        if let Some(base) = class.base {
            self.members(base, &found, which)?;
        }
        self.members(class, &found, which)
    }

    fn members(&mut self, class: &'static Class, found: &[(Cow<'_, str>, &str)], which: Members) -> Written {
        let mut values = vec![None; class.members.len()];
        for (name, value) in found {
            // The names are few.
            if let Some(place) = class.members.iter().position(|(known, _)| name == known) {
                values[place] = Some(*value);
            }
        }
        // The serializer gives members no prefix where their namespace has none yet: it becomes the default one.
        let (qualifier, declared) = match self.qualifier(class.namespace) {
            Some(known) => (known, Cow::Borrowed("")),
            None => ("", declaration("", class.namespace).into()),
        };
        for ((member, kind), json) in class.members.iter().zip(values) {
            let trimmed = which == Members::WithoutTrimmable && is_trimmable(member);
            let json = match (json.filter(|_| !trimmed), class.absent) {
                (None, Absent::LeftOut) => continue,
                (json, absent) => (json.unwrap_or("null"), absent),
            };
            let name = match qualifier {
                "" => Cow::Borrowed(*member),
                qualifier => [qualifier, member].concat().into(),
            };
            self.at(Place::Member(member), |w| match json {
                ("null", Absent::Default) => match kind.default() {
                    Some(text) => w.simple(&name, &[&declared], text),
                    None => w.simple(&name, &[NIL, &declared], ""),
                },
                (json, _) => w.slot(&name, &declared, *kind, json),
            })?;
        }
        Ok(())
    }

    /// A member or an item. `declared` is the declaration of its own namespace, where it needs one.
    fn slot(&mut self, name: &str, declared: &str, kind: Kind, json: &str) -> Written {
        let null = json == "null";
        match kind {
            Kind::Text if !null => {
                let text = self.text(json)?;
                self.simple(name, &[declared], &text)
            }
            Kind::Guid => match json::text(json) {
                Some(guid) if is_guid(&guid) => self.simple(name, &[declared], &guid),
                _ => Err(self.unusable("expected a GUID")),
            },
            Kind::Int => match json.parse::<i32>() {
                Ok(number) => self.simple(name, &[declared], &number.to_string()),
                Err(_) => Err(self.unusable("expected an integer of 32 bits")),
            },
            Kind::Bool => match json {
                "true" | "false" => self.simple(name, &[declared], json),
                _ => Err(self.unusable("expected true or false")),
            },
            Kind::Decimal => match value::decimal(json) {
                Some(number) => self.simple(name, &[declared], &number),
                None => Err(self.unusable("expected a number of a decimal's range")),
            },
            Kind::OperationCreatedOn => match json::text(json).as_deref().and_then(Date::parse) {
                Some(date) if date.offset == Offset::Absent => self.simple(name, &[declared], &date.xml("Z")),
                Some(date) => self.simple(name, &[declared], &date.xml("+00:00")),
                None => Err(self.unusable("expected a date, as in /Date(1527633703000)/")),
            },
            Kind::Enum(names) => match json.parse::<usize>().ok().and_then(|number| names.get(number)) {
                Some(known) => self.simple(name, &[declared], known),
                None => Err(self.unusable("expected the number of a known value")),
            },
            Kind::Flags(names) => match json.parse().ok().and_then(|bits| flags(bits, names)) {
                Some(known) => self.simple(name, &[declared], &known),
                None => Err(self.unusable("expected a sum of known flags")),
            },
            Kind::OrNil(kind) if !null => self.slot(name, declared, *kind, json),
            Kind::Any => self.any(name, json),
            Kind::Texts => self.items(name, "string", json, |w, item, element| w.slot(item, "", Kind::Text, element)),
            Kind::Anys => self.items(name, "anyType", json, |w, item, element| w.any(item, element)),
            _ if null => self.simple(name, &[NIL, declared], ""),
            Kind::Fixed(class) => self.element(name, &[declared], |w| w.class(class, json, Members::All)),
            Kind::List(class) => self.in_namespace(class.namespace, |w, qualifier, declaration| {
                w.element(name, &[declaration], |w| w.typed_items(qualifier, class, json))
            }),
            Kind::Parameters => self.pairs(name, json, "KeyValuePairOfstringanyType", |w, (key, value)| {
                w.key(key)?;
                w.at(Place::Member("value"), |w| w.any("a:value", value))
            }),
            Kind::StringPairs => self.pairs(name, json, types::STRING_PAIR.name, |w, (key, value)| {
                w.key(key)?;
                w.at(Place::Member("value"), |w| w.slot("a:value", "", Kind::Text, value))
            }),
            Kind::Images => self.pairs(name, json, "KeyValuePairOfstringEntitygUGIFE1S", |w, (key, value)| {
                w.key(key)?;
                w.at(Place::Member("value"), |w| w.slot("a:value", "", Kind::Fixed(&types::ENTITY), value))
            }),
            Kind::Related => {
                let item = "KeyValuePairOfRelationshipEntityCollectionX_PsK4FkN";
                self.pairs(name, json, item, |w, (key, value)| {
                    let (relationship, rows) =
                        (Kind::Fixed(&types::RELATIONSHIP), Kind::Fixed(&types::ENTITY_COLLECTION));
                    w.at(Place::Member("key"), |w| w.slot("a:key", "", relationship, key))?;
                    w.at(Place::Member("value"), |w| w.slot("a:value", "", rows, value))
                })
            }
            Kind::Text | Kind::OrNil(_) => self.simple(name, &[NIL, declared], ""),
        }
    }

    fn key(&mut self, json: &str) -> Written {
        self.at(Place::Member("key"), |w| w.slot("a:key", "", Kind::Text, json))
    }

    /// A collection of `{key, value}`, whose items are called `item`. Its namespace is always the first to be declared inside a
    /// context, so its prefix is `a`.
    fn pairs<'a>(
        &mut self,
        name: &str,
        json: &'a str,
        item: &str,
        write: impl Fn(&mut Self, (&'a str, &'a str)) -> Written,
    ) -> Written {
        let elements = self.elements(json)?;
        self.in_namespace(GENERIC, |w, _, declaration| {
            w.element(name, &[declaration], |w| {
                for (at, element) in elements {
                    w.at(Place::Item(at), |w| {
                        let Some((key, value)) = w.extents.pair(element) else {
                            return Err(w.unusable("expected an object with a key and a value"));
                        };
                        let pair = (key.unwrap_or("null"), value.unwrap_or("null"));
                        w.element(item, &[], |w| write(w, pair))
                    })?;
                }
                Ok(())
            })
        })
    }

    /// A collection whose items are in the namespace of arrays, which the serializer declares for a null one too.
    fn items(
        &mut self,
        name: &str,
        item: &str,
        json: &str,
        write: impl Fn(&mut Self, &str, &str) -> Written,
    ) -> Written {
        self.in_namespace(ARRAYS, |w, qualifier, declaration| {
            if json == "null" {
                return w.simple(name, &[NIL, declaration], "");
            }
            let elements = w.elements(json)?;
            let item = [qualifier, item].concat();
            w.element(name, &[declaration], |w| {
                for (at, element) in elements {
                    w.at(Place::Item(at), |w| write(w, &item, element))?;
                }
                Ok(())
            })
        })
    }

    fn typed_items(&mut self, qualifier: &str, class: &'static Class, json: &str) -> Written {
        let item = [qualifier, class.name].concat();
        for (at, element) in self.elements(json)? {
            self.at(Place::Item(at), |w| w.slot(&item, "", Kind::Fixed(class), element))?;
        }
        Ok(())
    }

    /// A value where any object may stand.
    fn any(&mut self, name: &str, json: &str) -> Written {
        match json.as_bytes().first() {
            Some(b'n') => self.simple(name, &[NIL], ""),
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
        self.typed(name, namespace, kind, |w| {
            push_text(&mut w.out, text);
            Ok(())
        })
    }

    /// An element with an `i:type`.
    fn typed(
        &mut self,
        name: &str,
        namespace: &'static str,
        kind: &str,
        content: impl FnOnce(&mut Self) -> Written,
    ) -> Written {
        self.in_namespace(namespace, |w, qualifier, declaration| {
            w.element(name, &[" i:type=\"", qualifier, kind, "\"", declaration], content)
        })
    }

    /// An array's type shows by its elements, which are all alike in the known collections.
    fn array(&mut self, name: &str, json: &str) -> Written {
        let elements: Vec<(usize, &str)> = self.elements(json)?.collect();
        let class_of = |element: &str| type_of(element).and_then(|full| types::by_type(&full));
        let first = elements.first().and_then(|(_, element)| class_of(element));
        let common = first.filter(|first| {
            elements[1..].iter().all(|(_, other)| class_of(other).is_some_and(|other| std::ptr::eq(other, *first)))
        });
        match common {
            Some(class) if std::ptr::eq(class, &types::STRING_PAIR) => {
                return self.typed(name, GENERIC, "ArrayOfKeyValuePairOfstringstring", |w| {
                    let qualifier = w.qualifier(GENERIC).unwrap_or_default();
                    w.typed_items(qualifier, class, json)
                });
            }
            Some(class) if std::ptr::eq(class, &types::OPTION_SET_VALUE) => {
                return self.typed(name, CONTRACTS, "OptionSetValueCollection", |w| w.typed_items("", class, json));
            }
            Some(class) if std::ptr::eq(class, &types::ENTITY_REFERENCE) => {
                return self.typed(name, CONTRACTS, "EntityReferenceCollection", |w| w.typed_items("", class, json));
            }
            _ => {}
        }
        let bytes: Option<Vec<u8>> = elements.iter().map(|(_, element)| element.parse().ok()).collect();
        if let Some(bytes) = bytes.filter(|bytes| !bytes.is_empty()) {
            return self.primitive(name, SCHEMA, "base64Binary", &BASE64_STANDARD.encode(bytes));
        }
        self.typed(name, ARRAYS, "ArrayOfanyType", |w| {
            let item = [w.qualifier(ARRAYS).unwrap_or_default(), "anyType"].concat();
            for (at, element) in elements {
                w.at(Place::Item(at), |w| w.any(&item, element))?;
            }
            Ok(())
        })
    }

    fn object(&mut self, name: &str, json: &str) -> Written {
        let Some(full) = type_of(json) else {
            // `System.Object`.
            let empty = json
                .strip_prefix('{')
                .and_then(|json| json.strip_suffix('}'))
                .is_some_and(|s| s.trim_ascii().is_empty());
            return if empty { self.simple(name, &[], "") } else { Err(self.unknown_type(None)) };
        };
        let class = types::by_type(&full).ok_or_else(|| self.unknown_type(Some(&full)))?;
        self.typed(name, class.namespace, class.name, |w| w.class(class, json, Members::All))
    }
}

impl Kind {
    /// The text of the .NET default; `None` where it is null.
    fn default(self) -> Option<&'static str> {
        match self {
            Self::Guid => Some(ZERO_GUID),
            Self::Int | Self::Decimal => Some("0"),
            Self::Bool => Some("false"),
            Self::OperationCreatedOn => Some("0001-01-01T00:00:00"),
            _ => None,
        }
    }
}

/// The names of the set bits; `None` where one has no name.
fn flags(bits: u32, names: &[(u32, &str)]) -> Option<String> {
    if bits == 0 {
        return Some("None".to_owned());
    }
    let set: Vec<&(u32, &str)> = names.iter().filter(|(bit, _)| bits & bit != 0).collect();
    let named = set.iter().map(|(bit, _)| bit).sum::<u32>() == bits;
    named.then(|| set.iter().map(|(_, name)| *name).collect::<Vec<_>>().join(" "))
}

/// A declaration with a prefix (and its colon), or of the default namespace.
fn declaration(qualifier: &str, namespace: &str) -> String {
    match qualifier.strip_suffix(':') {
        Some(prefix) => [" xmlns:", prefix, "=\"", namespace, "\""].concat(),
        None => [" xmlns=\"", namespace, "\""].concat(),
    }
}

/// Appends text as .NET's writer escapes it in content.
fn push_text(out: &mut String, text: &str) {
    let special = |char: char| match char {
        '\t' | '\n' => false,
        '\0'..='\x1f' | '&' | '<' | '>' | '\u{fffe}' | '\u{ffff}' => true,
        _ => false,
    };
    let mut rest = text;
    while let Some(place) = rest.find(special) {
        out.push_str(&rest[..place]);
        let Some(char) = rest[place..].chars().next() else { break };
        match char {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            control => out.push_str(&format!("&#x{:X};", u32::from(control))),
        }
        rest = &rest[place + char.len_utf8()..];
    }
    out.push_str(rest);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use roxmltree::{Document, Node};

    use super::*;

    /// JSON of an object of `class`: some of its members, in any order.
    fn object_of(class: &'static Class, depth: u32, with_type: bool) -> BoxedStrategy<String> {
        let base = class.base.map_or(&[][..], |base| base.members);
        let members: Vec<_> = base
            .iter()
            .chain(class.members)
            .map(|(name, kind)| {
                proptest::option::weighted(
                    0.7,
                    json_of(*kind, depth).prop_map(move |json| format!("\"{name}\":{json}")),
                )
            })
            .collect();
        let members = members.prop_map(|all| all.into_iter().flatten().collect::<Vec<_>>()).prop_shuffle();
        members
            .prop_map(move |mut members| {
                if with_type {
                    members.insert(0, format!(r#""__type":"{}:{}""#, class.name, class.namespace));
                }
                format!("{{{}}}", members.join(","))
            })
            .boxed()
    }

    fn list_of(item: BoxedStrategy<String>) -> BoxedStrategy<String> {
        prop::collection::vec(item, 0..3).prop_map(|items| format!("[{}]", items.join(","))).boxed()
    }

    fn or_null(json: BoxedStrategy<String>) -> BoxedStrategy<String> {
        prop_oneof![6 => json, 1 => Just("null".to_owned())].boxed()
    }

    fn json_of(kind: Kind, depth: u32) -> BoxedStrategy<String> {
        let text = || "[a-c<&\"\\\\/\u{e9} ]{0,6}".prop_map(|text| serde_json::Value::from(text).to_string());
        let guid = Just("\"000000b1-1111-4222-8333-0000000000b1\"".to_owned());
        let pair = |key: BoxedStrategy<String>, value: BoxedStrategy<String>| {
            list_of((key, value).prop_map(|(key, value)| format!(r#"{{"key":{key},"value":{value}}}"#)).boxed())
        };
        let deeper = depth.saturating_sub(1);
        let class = |class, with_type| match depth {
            0 => Just(if with_type { "null" } else { "{}" }.to_owned()).boxed(),
            _ => object_of(class, deeper, with_type),
        };
        match kind {
            Kind::Text => or_null(text().boxed()),
            Kind::Guid => guid.boxed(),
            Kind::Int => any::<i32>().prop_map(|number| number.to_string()).boxed(),
            Kind::Bool => any::<bool>().prop_map(|value| value.to_string()).boxed(),
            Kind::Decimal => prop_oneof!["[1-9][0-9]{0,9}", "-?[1-9][0-9]{0,5}[.][0-9]{1,4}"].boxed(),
            Kind::OperationCreatedOn => Just(r#""\/Date(1709646330678)\/""#.to_owned()).boxed(),
            Kind::Enum(names) => (0..names.len()).prop_map(|number| number.to_string()).boxed(),
            Kind::Flags(names) => prop::sample::subsequence(names, 0..=names.len())
                .prop_map(|set| set.iter().map(|(bit, _)| bit).sum::<u32>().to_string())
                .boxed(),
            Kind::OrNil(kind) => or_null(json_of(*kind, depth)),
            Kind::Any if depth == 0 => prop_oneof![
                json_of(Kind::Text, 0),
                json_of(Kind::OrNil(&Kind::Bool), 0),
                json_of(Kind::Int, 0),
                json_of(Kind::Guid, 0),
                json_of(Kind::OperationCreatedOn, 0),
                Just("{}".to_owned())
            ]
            .boxed(),
            Kind::Any => prop_oneof![
                1 => json_of(Kind::Any, 0),
                2 => prop::sample::select(types::TYPES.to_vec()).prop_flat_map(move |class| object_of(class, deeper, true)),
                1 => prop::sample::select(types::TYPES.to_vec()).prop_flat_map(move |class| list_of(object_of(class, deeper, true))),
                1 => list_of(json_of(Kind::Any, deeper)),
            ]
            .boxed(),
            Kind::Fixed(fixed) => or_null(class(fixed, false)),
            Kind::List(item) => or_null(list_of(or_null(class(item, false)))),
            Kind::Texts => or_null(list_of(json_of(Kind::Text, 0))),
            Kind::Anys => or_null(list_of(json_of(Kind::Any, deeper))),
            Kind::Parameters => or_null(pair(text().boxed(), json_of(Kind::Any, deeper))),
            Kind::StringPairs => or_null(pair(text().boxed(), json_of(Kind::Text, 0))),
            Kind::Images => or_null(pair(text().boxed(), class(&types::ENTITY, false))),
            Kind::Related => or_null(pair(class(&types::RELATIONSHIP, false), class(&types::ENTITY_COLLECTION, false))),
        }
    }

    /// Whether the element is null.
    fn read_nil(node: Node<'_, '_>) -> bool {
        node.attribute((INSTANCE, "nil")) == Some("true")
    }

    fn text(node: Node<'_, '_>) -> String {
        assert!(node.children().all(|child| child.is_text()), "{node:?}");
        node.text().unwrap_or_default().to_owned()
    }

    /// Reads an object as .NET's serializer does: by namespace and order, with the type of each place.
    fn read_class(node: Node<'_, '_>, class: &'static Class) {
        let mut slots = class
            .base
            .into_iter()
            .chain([class])
            .flat_map(|class| class.members.iter().map(|(name, kind)| (class.namespace, *name, *kind)));
        for child in node.children() {
            let tag = child.tag_name();
            // Members that are passed over were absent.
            let slot = slots.find(|(namespace, name, _)| (tag.namespace(), tag.name()) == (Some(*namespace), *name));
            let (_, _, kind) = slot.unwrap_or_else(|| panic!("{tag:?} has no place in {}", class.name));
            read(child, kind);
        }
    }

    fn items<'n>(node: Node<'n, 'n>, namespace: &str, name: &str) -> Vec<Node<'n, 'n>> {
        let items: Vec<_> = node.children().collect();
        assert!(
            items.iter().all(|item| (item.tag_name().namespace(), item.tag_name().name()) == (Some(namespace), name))
        );
        items
    }

    fn read<'n>(node: Node<'n, 'n>, kind: Kind) {
        let nullable = !matches!(
            kind,
            Kind::Guid
                | Kind::Int
                | Kind::Bool
                | Kind::Decimal
                | Kind::OperationCreatedOn
                | Kind::Enum(_)
                | Kind::Flags(_)
        );
        if read_nil(node) {
            assert!(nullable && !node.has_children(), "{node:?}");
            return;
        }
        let pairs = |item: &str, key: Kind, value: Kind| {
            for item in items(node, CONTRACTS, item) {
                let parts: Vec<_> = item.children().collect();
                let [one, other] = parts[..] else { panic!("{item:?}") };
                assert_eq!((one.tag_name(), other.tag_name()), ((GENERIC, "key").into(), (GENERIC, "value").into()));
                read(one, key);
                read(other, value);
            }
        };
        match kind {
            Kind::Text => drop(text(node)),
            Kind::Guid => assert!(is_guid(&text(node))),
            Kind::Int => drop(text(node).parse::<i32>().unwrap()),
            Kind::Bool => drop(text(node).parse::<bool>().unwrap()),
            Kind::Decimal => assert!(value::decimal(&text(node)).is_some()),
            Kind::OperationCreatedOn => assert!(text(node).starts_with(['0', '2'])),
            Kind::Enum(names) => assert!(names.contains(&text(node).as_str())),
            Kind::Flags(names) => {
                assert!(
                    text(node) == "None"
                        || text(node).split(' ').all(|name| names.iter().any(|(_, known)| *known == name))
                );
            }
            Kind::OrNil(kind) => read(node, *kind),
            Kind::Any => read_any(node),
            Kind::Fixed(class) => read_class(node, class),
            Kind::List(class) => {
                items(node, class.namespace, class.name).into_iter().for_each(|item| read(item, Kind::Fixed(class)))
            }
            Kind::Texts => items(node, ARRAYS, "string").into_iter().for_each(|item| read(item, Kind::Text)),
            Kind::Anys => items(node, ARRAYS, "anyType").into_iter().for_each(read_any),
            Kind::Parameters => pairs("KeyValuePairOfstringanyType", Kind::Text, Kind::Any),
            Kind::StringPairs => pairs("KeyValuePairOfstringstring", Kind::Text, Kind::Text),
            Kind::Images => pairs("KeyValuePairOfstringEntitygUGIFE1S", Kind::Text, Kind::Fixed(&types::ENTITY)),
            Kind::Related => pairs(
                "KeyValuePairOfRelationshipEntityCollectionX_PsK4FkN",
                Kind::Fixed(&types::RELATIONSHIP),
                Kind::Fixed(&types::ENTITY_COLLECTION),
            ),
        }
    }

    /// A place declared `object` has an `i:type`, is null, or has nothing in it.
    fn read_any<'n>(node: Node<'n, 'n>) {
        let Some(full) = node.attribute((INSTANCE, "type")) else {
            assert!(!node.has_children(), "{node:?}");
            return;
        };
        let (prefix, name) = full.split_once(':').map_or((None, full), |(prefix, name)| (Some(prefix), name));
        let namespace = node.lookup_namespace_uri(prefix).unwrap();
        match (namespace, name) {
            (SCHEMA, "string" | "boolean" | "int" | "long" | "decimal" | "dateTime" | "base64Binary") => {
                drop(text(node))
            }
            (SERIALIZATION, "guid") => read(node, Kind::Guid),
            (ARRAYS, "ArrayOfanyType") => read(node, Kind::Anys),
            (CONTRACTS, "OptionSetValueCollection") => read(node, Kind::List(&types::OPTION_SET_VALUE)),
            (CONTRACTS, "EntityReferenceCollection") => read(node, Kind::List(&types::ENTITY_REFERENCE)),
            (GENERIC, "ArrayOfKeyValuePairOfstringstring") => read(node, Kind::List(&types::STRING_PAIR)),
            _ => {
                let class = types::TYPES.iter().find(|class| (class.namespace, class.name) == (namespace, name));
                read_class(node, class.unwrap_or_else(|| panic!("{namespace} {name}")));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]
        #[test]
        fn whatever_the_table_allows_is_xml_that_a_reader_of_the_table_reads(
            json in object_of(&types::CONTEXT, 5, false)
        ) {
            let xml = write(&json, Members::All, usize::MAX).unwrap();
            read_class(Document::parse(&xml).unwrap().root_element(), &types::CONTEXT);
            prop_assert_eq!(write(&json, Members::All, xml.len()).unwrap(), xml.as_str());
            prop_assert_eq!(write(&json, Members::All, xml.len() - 1), Err(Stop::TooLarge));
        }
    }
}
