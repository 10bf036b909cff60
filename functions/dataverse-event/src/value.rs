//! Values as the .NET serializers spell them in JSON, and what they are in XML. Numbers stay text: no floating point here.

use std::borrow::Cow;
use std::cmp::Ordering;

use serde_json::Deserializer;
use serde_json::value::RawValue;
use shared::json::{Members, Text, text};
use shared::rfc3339;
use time::OffsetDateTime;

/// An instant as Dataverse spells it: `/Date(1527633703000+0000)/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Date {
    utc: OffsetDateTime,
    milliseconds: u16,
    pub offset: Offset,
}

/// The offset is a display hint: the number alone is the instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offset {
    Absent,
    Zero,
    Other,
}

impl Date {
    /// `None` for other text, and for years that .NET does not have.
    pub fn parse(text: &str) -> Option<Self> {
        let inside = text.strip_prefix("/Date(")?.strip_suffix(")/")?;
        let sign = inside.bytes().skip(1).position(|byte| matches!(byte, b'+' | b'-')).map(|place| place + 1);
        let (number, offset) = inside.split_at(sign.unwrap_or(inside.len()));
        let offset = match offset {
            "" => Offset::Absent,
            "+0000" | "-0000" => Offset::Zero,
            other if other.len() == 5 && digits(&other[1..]) => Offset::Other,
            _ => return None,
        };
        if !digits(number.strip_prefix('-').unwrap_or(number)) {
            return None;
        }
        let number: i64 = number.parse().ok()?;
        let utc = OffsetDateTime::from_unix_timestamp(number.div_euclid(1000)).ok()?;
        let milliseconds = u16::try_from(number.rem_euclid(1000)).ok()?;
        (1..=9999).contains(&utc.year()).then_some(Self { utc, milliseconds, offset })
    }

    fn seconds(&self) -> String {
        let (date, time) = (self.utc.date(), self.utc.time());
        let (year, month, day) = (date.year(), u8::from(date.month()), date.day());
        format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}", time.hour(), time.minute(), time.second())
    }

    /// RFC 3339 in UTC with milliseconds.
    pub fn rfc3339(&self) -> Option<String> {
        rfc3339(self.utc.unix_timestamp() * 1000 + i64::from(self.milliseconds))
    }

    /// XML's dateTime in UTC, as .NET writes it: a fraction only where it is not zero, and without closing zeros.
    pub fn xml(&self, zone: &str) -> String {
        let fraction = format!(".{:03}", self.milliseconds);
        format!("{}{}{zone}", self.seconds(), fraction.trim_end_matches(['0']).trim_end_matches('.'))
    }
}

fn digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Text of 36 characters in GUID form.
pub fn is_guid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(place, byte)| match place {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

pub const ZERO_GUID: &str = "00000000-0000-0000-0000-000000000000";

/// What a JSON number is in an object slot: the name of its XML type, and its text there.
pub fn number(json: &str) -> (&'static str, Cow<'_, str>) {
    if !json.contains(['.', 'e', 'E']) {
        return match json.parse::<i64>() {
            Ok(number) if i32::try_from(number).is_ok() => ("int", number.to_string().into()),
            Ok(number) => ("long", number.to_string().into()),
            Err(_) => match decimal(json) {
                Some(text) => ("decimal", text),
                None => ("double", json.into()),
            },
        };
    }
    match decimal(json) {
        Some(text) => ("decimal", text),
        None => ("double", json.into()),
    }
}

/// The number as XML's decimal, which has no exponent: digits as written, the point moved to its place. `None` outside
/// the range of .NET's decimal, and for what would become zero in it.
pub fn decimal(json: &str) -> Option<Cow<'_, str>> {
    /// .NET's largest.
    const MOST: &[u8; 29] = b"79228162514264337593543950335";
    let (mantissa, exponent) = json.split_once(['e', 'E']).unwrap_or((json, "0"));
    let unsigned = mantissa.strip_prefix('-').unwrap_or(mantissa);
    let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
    if !digits(whole) || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let all = format!("{whole}{fraction}");
    let significant = all.trim_start_matches('0');
    if significant.is_empty() {
        return Some(mantissa.into());
    }
    // An exponent of more digits than an i64 has is out of range whatever its mantissa.
    let exponent: i64 = exponent.parse().ok()?;
    let length = |text: &str| i64::try_from(text.len()).unwrap_or(i64::MAX);
    let point = length(whole).saturating_add(exponent);
    // The value is 0.{significant} x 10^magnitude.
    let magnitude = point.saturating_sub(length(&all) - length(significant));
    let largest = || {
        let first = significant.bytes().chain(std::iter::repeat(b'0')).take(MOST.len());
        first.cmp(MOST.iter().copied()) != Ordering::Greater
    };
    let in_range = match magnitude {
        -27..=28 => true,
        29 => largest(),
        -28 => significant.as_bytes()[0] >= b'5',
        _ => false,
    };
    if !in_range {
        return None;
    }
    if mantissa.len() == json.len() {
        return Some(json.into());
    }
    let sign = if mantissa.starts_with('-') { "-" } else { "" };
    let text = match usize::try_from(point) {
        Ok(point) if point >= all.len() => format!("{all}{}", "0".repeat(point - all.len())),
        Ok(point) if point > 0 => format!("{}.{}", &all[..point], &all[point..]),
        _ => format!("0.{}{all}", "0".repeat(usize::try_from(point.unsigned_abs()).ok()?)),
    };
    let digits = text.trim_start_matches('0');
    let zero = if digits.is_empty() || digits.starts_with('.') { "0" } else { "" };
    Some(format!("{sign}{zero}{digits}").into())
}

/// An array's elements.
pub fn elements(json: &str) -> Option<Vec<&RawValue>> {
    serde_json::from_str(json).ok()
}

/// The key and the value of a `{key, value}`.
pub fn pair(json: &str) -> Option<(Option<&str>, Option<&str>)> {
    let Members(members) = serde_json::from_str::<Members<'_>>(json).ok()?;
    let last = |wanted: &str| members.iter().rev().find(|(name, _)| name == wanted).map(|(_, value)| value.get());
    Some((last("key"), last("value")))
}

/// The ends of all arrays and objects of a text, so that a reader passes over a value without reading it: reading each level
/// of a value costs its own elements, and reading all levels costs the sum.
#[derive(Debug, Default)]
pub struct Extents {
    /// Address of the text.
    base: usize,
    /// Start and end of each array and object, by start.
    ends: Vec<(usize, usize)>,
}

impl Extents {
    /// The extents of `json`, which is of valid syntax.
    pub fn of(json: &str) -> Self {
        let mut ends = Vec::new();
        let (mut open, mut in_string, mut escaped) = (Vec::new(), false, false);
        for (at, byte) in json.bytes().enumerate() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = !in_string,
                _ if in_string => {}
                b'[' | b'{' => {
                    open.push(ends.len());
                    ends.push((at, json.len()));
                }
                b']' | b'}' => {
                    if let Some((_, end)) = open.pop().and_then(|place: usize| ends.get_mut(place)) {
                        *end = at + 1;
                    }
                }
                _ => {}
            }
        }
        Self { base: json.as_ptr() as usize, ends }
    }

    /// The elements of an array, which is a part of the text.
    pub fn elements<'j>(&self, json: &'j str) -> Option<Vec<&'j str>> {
        let mut rest = json.strip_prefix('[')?.trim_ascii_start();
        let mut elements = Vec::new();
        while !rest.starts_with(']') {
            let (element, behind) = self.value(rest)?;
            elements.push(element);
            rest = behind_comma(behind);
        }
        Some(elements)
    }

    /// The members of an object, which is a part of the text, in their order. `None` if a name has half a character.
    pub fn members<'j>(&self, json: &'j str) -> Option<Vec<(Cow<'j, str>, &'j str)>> {
        let mut rest = json.strip_prefix('{')?.trim_ascii_start();
        let mut members = Vec::new();
        while !rest.starts_with('}') {
            let (name, behind) = self.value(rest)?;
            let (value, behind) = self.value(behind.trim_ascii_start().strip_prefix(':')?.trim_ascii_start())?;
            members.push((text(name)?, value));
            rest = behind_comma(behind);
        }
        Some(members)
    }

    /// The key and the value of a `{key, value}`.
    pub fn pair<'j>(&self, json: &'j str) -> Option<(Option<&'j str>, Option<&'j str>)> {
        let members = self.members(json)?;
        let last = |wanted: &str| members.iter().rev().find(|(name, _)| name == wanted).map(|(_, value)| *value);
        Some((last("key"), last("value")))
    }

    /// The value at the start of a part of the text, and what follows it.
    fn value<'j>(&self, json: &'j str) -> Option<(&'j str, &'j str)> {
        let length = match json.as_bytes().first()? {
            b'[' | b'{' => {
                let start = (json.as_ptr() as usize).checked_sub(self.base)?;
                let place = self.ends.binary_search_by_key(&start, |(start, _)| *start).ok()?;
                self.ends[place].1 - start
            }
            b'"' => {
                let mut escaped = false;
                let inside = json.bytes().skip(1).position(|byte| {
                    let ends = byte == b'"' && !escaped;
                    escaped = byte == b'\\' && !escaped;
                    ends
                });
                inside? + 2
            }
            _ => json.find([',', ']', '}', ' ', '\t', '\n', '\r']).unwrap_or(json.len()),
        };
        json.split_at_checked(length)
    }
}

fn behind_comma(json: &str) -> &str {
    let json = json.trim_ascii_start();
    json.strip_prefix(',').map_or(json, str::trim_ascii_start)
}

/// What an object says it is: `__type`, which counts only when it stands first. Reads no further than that.
pub fn type_of(json: &str) -> Option<Cow<'_, str>> {
    let (name, rest) = leading_text(json.strip_prefix('{')?)?;
    if name != "__type" {
        return None;
    }
    leading_text(rest.trim_ascii_start().strip_prefix(':')?).map(|(text, _)| text)
}

fn leading_text(json: &str) -> Option<(Cow<'_, str>, &str)> {
    let mut values = Deserializer::from_str(json).into_iter::<Text<'_>>();
    let Text(text) = values.next()?.ok()?;
    let rest = json.get(values.byte_offset()..)?;
    Some((text, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn extents_find_the_same_members_and_elements_as_a_parser(
            parts in proptest::collection::vec(
                proptest::sample::select(vec![
                    "[", "]", "{", "}", ",", ":", " ", "\n", "\"a\"", r#""k\"[{""#, r#""\\""#, r#""\u00e9é""#, "1.50", "null", "-2e3",
                    "[1,[2,{\"a\":3}]]", "{\"x\":[{}],\"x\" : {\"y\":\"]\"}}",
                ]),
                0..12,
            )
        ) {
            let json = parts.concat();
            let json = json.trim_ascii();
            let extents = Extents::of(json);
            if let Some(elements) = elements(json) {
                let elements: Vec<&str> = elements.into_iter().map(RawValue::get).collect();
                proptest::prop_assert_eq!(extents.elements(json), Some(elements));
            }
            if let Ok(Members(members)) = serde_json::from_str::<Members<'_>>(json) {
                let members: Vec<_> = members.into_iter().map(|(name, value)| (name, value.get())).collect();
                proptest::prop_assert_eq!(extents.members(json), Some(members));
            }
        }
    }

    #[test]
    fn numbers_get_the_type_of_the_rule_and_keep_their_digits() {
        for (json, name, text) in [
            ("0", "int", "0"),
            ("-0", "int", "0"),
            ("2147483647", "int", "2147483647"),
            ("-2147483648", "int", "-2147483648"),
            ("2147483648", "long", "2147483648"),
            ("9007199254740993", "long", "9007199254740993"),
            ("-9223372036854775808", "long", "-9223372036854775808"),
            ("9223372036854775808", "decimal", "9223372036854775808"),
            ("79228162514264337593543950335", "decimal", "79228162514264337593543950335"),
            ("79228162514264337593543950336", "double", "79228162514264337593543950336"),
            ("19.9900", "decimal", "19.9900"),
            ("-0.00", "decimal", "-0.00"),
            ("1.50E2", "decimal", "150"),
            ("1.500e+1", "decimal", "15.00"),
            ("-12e-3", "decimal", "-0.012"),
            ("0.001e2", "decimal", "0.1"),
            ("0.0010e5", "decimal", "100"),
            ("10.5e0", "decimal", "10.5"),
            ("0e99999999999999999999", "decimal", "0"),
            ("79228162514264337593543950335.0", "decimal", "79228162514264337593543950335.0"),
            ("79228162514264337593543950336.0", "double", "79228162514264337593543950336.0"),
            ("1e28", "decimal", "10000000000000000000000000000"),
            ("1e29", "double", "1e29"),
            ("1E+400", "double", "1E+400"),
            ("1e99999999999999999999", "double", "1e99999999999999999999"),
            ("1e-28", "decimal", "0.0000000000000000000000000001"),
            ("1e-29", "double", "1e-29"),
            ("1e-400", "double", "1e-400"),
        ] {
            assert_eq!(number(json), (name, text.into()), "{json}");
        }
    }

    #[test]
    fn dates_are_utc_and_their_offset_is_a_hint() {
        let xml = |text: &str| Date::parse(text).map(|date| (date.xml("Z"), date.rfc3339().unwrap(), date.offset));
        let is = |xml: &str, rfc: &str, offset| Some((xml.to_owned(), rfc.to_owned(), offset));
        let whole = ("2017-09-26T00:04:07Z", "2017-09-26T00:04:07.000Z");
        assert_eq!(xml("/Date(1506384247000)/"), is(whole.0, whole.1, Offset::Absent));
        assert_eq!(xml("/Date(1506384247000-0700)/"), is(whole.0, whole.1, Offset::Other));
        assert_eq!(xml("/Date(1506384247000+0000)/"), is(whole.0, whole.1, Offset::Zero));
        assert_eq!(xml("/Date(-1)/"), is("1969-12-31T23:59:59.999Z", "1969-12-31T23:59:59.999Z", Offset::Absent));
        assert_eq!(xml("/Date(500)/"), is("1970-01-01T00:00:00.5Z", "1970-01-01T00:00:00.500Z", Offset::Absent));
        let least = "0001-01-01T00:00:00Z";
        assert_eq!(xml("/Date(-62135596800000+0100)/"), is(least, "0001-01-01T00:00:00.000Z", Offset::Other));
        for other in [
            "/Date()/",
            "/Date(-)/",
            "/Date(+1)/",
            "/Date(1+)/",
            "/Date(1+000)/",
            "/Date(1+00é)/",
            "/Date(1 )/",
            "Date(1)",
            "/Date(-62135596800001)/",
            "/Date(253402300800000)/",
            "/Date(99999999999999999999)/",
            "/Date(é+0000)/",
            "/Date(1)/ ",
        ] {
            assert_eq!(xml(other), None, "{other}");
        }
    }
}
