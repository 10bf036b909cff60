//! What a list call asks for: filters, projection, order and pages.

use std::cmp::Ordering;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value, json};

use crate::errors::{ApiError, bad_request};
use crate::request::Request;

const MAX_LIMIT: usize = 100;
/// A function's answer may have 6 MB, in which the body is a string: at worst twice as long.
const MAX_PAGE_BYTES: usize = 2_500_000;
const MAX_PROPERTIES: usize = 20;
/// What a list can be ordered by.
const ORDERS: [&str; 4] = ["name", "createdAt", "updatedAt", "id"];
/// Longest first, since one begins with another.
const OPERATORS: [(&str, Operator); 6] = [
    ("==", Operator::Equal),
    ("!=", Operator::NotEqual),
    (">=", Operator::AtLeast),
    ("<=", Operator::AtMost),
    (">", Operator::Above),
    ("<", Operator::Below),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Equal,
    NotEqual,
    AtLeast,
    AtMost,
    Above,
    Below,
}

#[derive(Debug)]
struct Filter {
    path: Vec<String>,
    operator: Operator,
    values: Vec<String>,
}

#[derive(Debug)]
pub struct Listing {
    limit: usize,
    count: bool,
    /// Member, and whether it is in descending order.
    order: Vec<(String, bool)>,
    filters: Vec<Filter>,
    projection: Vec<Vec<String>>,
    /// The sort key of the last item of the page before.
    after: Option<Vec<Value>>,
    /// The caller's other parameters, for the link to the next page.
    parameters: Vec<(String, String)>,
}

impl Listing {
    pub fn parse(request: &Request) -> Result<Self, ApiError> {
        let limit = match request.parameter("limit") {
            None => MAX_LIMIT,
            Some(text) => match text.parse() {
                Ok(limit) if (1..=MAX_LIMIT).contains(&limit) => limit,
                _ => return bad_request(format!("limit: expected a number from 1 to {MAX_LIMIT}")),
            },
        };
        let mut order = Vec::new();
        for name in request.parameter("orderby").into_iter().flat_map(|text| text.split(',')) {
            let (name, descending) = match name.strip_prefix('-') {
                Some(name) => (name, true),
                None => (name, false),
            };
            if !ORDERS.contains(&name) {
                return bad_request(format!("orderby: expected {}, each with or without `-`", ORDERS.join(", ")));
            }
            order.push((name.to_owned(), descending));
        }
        // Newest first, and in any case one order for all items.
        order.extend([("createdAt".to_owned(), true), ("id".to_owned(), true)]);
        let (mut filters, mut projection) = (Vec::new(), Vec::new());
        for (_, text) in request.query.iter().filter(|(name, _)| name == "property").take(MAX_PROPERTIES + 1) {
            match property(text)? {
                Property::Filter(filter) => filters.push(filter),
                Property::Projection(paths) => projection.extend(paths),
            }
        }
        if filters.len() + projection.len() > MAX_PROPERTIES {
            return bad_request(format!("property: at most {MAX_PROPERTIES}"));
        }
        let after = match request.parameter("continuationToken") {
            None => None,
            Some(token) => Some(read_token(token, order.len())?),
        };
        let count = match request.parameter("count") {
            None | Some("false") => false,
            Some("true") => true,
            Some(_) => return bad_request("count: expected true or false"),
        };
        let parameters = request.query.iter().filter(|(name, _)| name != "continuationToken").cloned().collect();
        Ok(Self { limit, count, order, filters, projection, after, parameters })
    }

    /// The one value that a member must have.
    pub fn wanted(&self, member: &str) -> Option<&str> {
        let mut filters = self.filters.iter().filter(|filter| filter.path == [member]);
        match (filters.next(), filters.next()) {
            (Some(Filter { operator: Operator::Equal, values, .. }), None) if values.len() == 1 => Some(&values[0]),
            _ => None,
        }
    }

    /// The page that is asked for, of all `items`.
    pub fn page(&self, collection: &str, items: Vec<Map<String, Value>>) -> Value {
        let mut items: Vec<(Vec<Value>, Value)> = items
            .into_iter()
            .map(Value::Object)
            .filter(|item| self.filters.iter().all(|filter| filter.holds(item)))
            .map(|item| (self.order.iter().map(|(name, _)| item[name].clone()).collect(), item))
            .collect();
        items.sort_by(|(one, _), (other, _)| self.compare(one, other));
        let count = items.len();
        let mut rest = items
            .into_iter()
            .skip_while(|(key, _)| self.after.as_ref().is_some_and(|after| self.compare(key, after).is_le()))
            .peekable();
        let (mut page, mut bytes, mut last) = (Vec::new(), 0, None);
        while page.len() < self.limit
            && let Some((key, item)) = rest.peek()
        {
            let item = self.projected(item);
            bytes += item.to_string().len();
            if bytes > MAX_PAGE_BYTES && !page.is_empty() {
                break;
            }
            page.push(item);
            last = Some(key.clone());
            rest.next();
        }
        let mut answer = json!({ "items": page });
        if let (Some(_), Some(last)) = (rest.peek(), last) {
            let token = URL_SAFE_NO_PAD.encode(Value::Array(last).to_string());
            let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
            let mut pairs: Vec<String> =
                self.parameters.iter().map(|(name, value)| format!("{}={}", encoded(name), encoded(value))).collect();
            pairs.push(format!("continuationToken={token}"));
            answer["_links"] = json!({ "next": { "href": format!("/{collection}?{}", pairs.join("&")) } });
        }
        if self.count {
            answer["count"] = count.into();
        }
        answer
    }

    fn compare(&self, one: &[Value], other: &[Value]) -> Ordering {
        self.order.iter().zip(one.iter().zip(other)).fold(Ordering::Equal, |so_far, ((_, descending), (one, other))| {
            let order = match (one, other) {
                (Value::Number(one), Value::Number(other)) => one.as_u64().cmp(&other.as_u64()),
                (one, other) => one.as_str().cmp(&other.as_str()),
            };
            so_far.then(if *descending { order.reverse() } else { order })
        })
    }

    fn projected(&self, item: &Value) -> Value {
        if self.projection.is_empty() {
            return item.clone();
        }
        let mut projected = json!({});
        for path in &self.projection {
            let mut found = item;
            for name in path {
                found = &found[name];
            }
            if found.is_null() {
                continue;
            }
            let mut place = &mut projected;
            for name in path {
                // Where two projections overlap, the shorter one has put all of it there.
                if !place.is_object() {
                    break;
                }
                place = &mut place[name];
                if place.is_null() {
                    *place = json!({});
                }
            }
            *place = found.clone();
        }
        projected
    }
}

enum Property {
    Filter(Filter),
    Projection(Vec<Vec<String>>),
}

fn property(text: &str) -> Result<Property, ApiError> {
    let path = |text: &str| {
        let path: Vec<String> = text.split('.').map(|name| name.trim_end_matches("[]").to_owned()).collect();
        if path.iter().any(String::is_empty) || path.len() > 10 {
            return bad_request("property: expected a path of names, such as `state==enabled`");
        }
        Ok(path)
    };
    let first = OPERATORS.iter().filter_map(|(sign, operator)| Some((text.find(sign)?, sign, *operator)));
    match first.min_by_key(|(place, sign, _)| (*place, usize::MAX - sign.len())) {
        Some((place, sign, operator)) => Ok(Property::Filter(Filter {
            path: path(&text[..place])?,
            operator,
            values: text[place + sign.len()..].split(',').map(str::to_owned).collect(),
        })),
        None if text.contains('=') => bad_request("property: expected ==, !=, >=, <=, > or <"),
        None => text.split(',').map(path).collect::<Result<_, _>>().map(Property::Projection),
    }
}

fn read_token(token: &str, members: usize) -> Result<Vec<Value>, ApiError> {
    let bytes = URL_SAFE_NO_PAD.decode(token).ok();
    let key: Option<Vec<Value>> = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    match key {
        Some(key) if key.len() == members => Ok(key),
        _ => bad_request("continuationToken: not one of this list; take `_links.next.href` as it is"),
    }
}

impl Filter {
    fn holds(&self, item: &Value) -> bool {
        let found = values_at(item, &self.path);
        let any = |holds: &dyn Fn(&Value, &str) -> bool| {
            found.iter().any(|value| self.values.iter().any(|wanted| holds(value, wanted)))
        };
        let number = |order: fn(Ordering) -> bool| {
            any(&|value, wanted| {
                let pair = value.as_f64().zip(wanted.parse::<f64>().ok());
                pair.and_then(|(value, wanted)| value.partial_cmp(&wanted)).is_some_and(order)
            })
        };
        match self.operator {
            Operator::Equal => any(&is),
            Operator::NotEqual => !any(&is),
            Operator::AtLeast => number(Ordering::is_ge),
            Operator::AtMost => number(Ordering::is_le),
            Operator::Above => number(Ordering::is_gt),
            Operator::Below => number(Ordering::is_lt),
        }
    }
}

fn is(value: &Value, wanted: &str) -> bool {
    match value {
        Value::String(text) => text == wanted,
        Value::Number(number) => number.to_string() == wanted,
        Value::Bool(value) => value.to_string() == wanted,
        _ => false,
    }
}

/// Everything at a path. An array on the way stands for each of its elements.
fn values_at<'v>(value: &'v Value, path: &[String]) -> Vec<&'v Value> {
    match (value, path.split_first()) {
        (Value::Array(elements), _) => elements.iter().flat_map(|element| values_at(element, path)).collect(),
        (value, None) => vec![value],
        (value, Some((name, rest))) => value.get(name).map_or_else(Vec::new, |value| values_at(value, rest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items() -> Vec<Map<String, Value>> {
        [("b", 1, "enabled"), ("a", 2, "disabled"), ("c", 3, "enabled")]
            .into_iter()
            .map(|(name, created, state)| {
                let item = json!({
                    "id": format!("id-{name}"), "name": name, "createdAt": created, "state": state,
                    "spec": { "id": name }, "list": [{ "x": { "id": created } }, { "x": { "id": 9 } }],
                });
                item.as_object().unwrap().clone()
            })
            .collect()
    }

    fn ask(query: &[(&str, &str)]) -> Result<Value, ApiError> {
        let query = query.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Ok(Listing::parse(&Request { query, ..Request::default() })?.page("flows", items()))
    }

    fn names(query: &[(&str, &str)]) -> String {
        let answer = ask(query).unwrap();
        answer["items"].as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap()).collect()
    }

    #[test]
    fn filters_and_orders() {
        for (query, expected) in [
            (&[][..], "cab"),
            (&[("orderby", "name")], "abc"),
            (&[("orderby", "-name")], "cba"),
            (&[("property", "state==enabled")], "cb"),
            (&[("property", "id==id-a,id-b")], "ab"),
            (&[("property", "state==enabled"), ("property", "spec.id==b")], "b"),
            (&[("property", "createdAt>=2")], "ca"),
            (&[("property", "createdAt<2")], "b"),
            (&[("property", "state!=enabled")], "a"),
            (&[("property", "list[].x.id==3")], "c"),
            (&[("property", "list[].x.id==9")], "cab"),
            (&[("property", "nothing==1")], ""),
        ] {
            assert_eq!(names(query), expected, "{query:?}");
        }
        let projected = ask(&[("property", "name"), ("property", "spec.id"), ("limit", "1")]).unwrap();
        assert_eq!(projected["items"], json!([{ "name": "c", "spec": { "id": "c" } }]));
        for query in [
            ("limit", "0"),
            ("limit", "101"),
            ("limit", "x"),
            ("orderby", "state"),
            ("property", "a=b"),
            ("property", "==b"),
            ("property", ""),
            ("continuationToken", "x"),
            ("count", "1"),
        ] {
            assert_eq!(ask(&[query]).unwrap_err().status(), 400, "{query:?}");
        }
    }

    #[test]
    fn pages_follow_each_other() {
        let first = ask(&[("limit", "2"), ("count", "true"), ("orderby", "name")]).unwrap();
        assert_eq!(first["count"], 3);
        let href = first["_links"]["next"]["href"].as_str().unwrap();
        assert!(href.starts_with("/flows?limit=2&count=true&orderby=name&continuationToken="), "{href}");
        let token = href.rsplit('=').next().unwrap();
        let second = ask(&[("limit", "2"), ("orderby", "name"), ("continuationToken", token)]).unwrap();
        assert_eq!(second["items"][0]["name"], "c");
        assert!(second.get("_links").is_none() && second.get("count").is_none());
    }
}
