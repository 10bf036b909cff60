//! The stack that the template creates: translated by SAM, with parameters inserted and every reference resolved.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::sync::LazyLock;

use serde_json::{Value, json};

use crate::harness::virtual_environment;

/// The template that SAM passes to CloudFormation, in JSON.
pub static TRANSLATED: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let translated = Command::new(virtual_environment().join("bin/python"))
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/translate_template.py"))
        .stdin(fs::File::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../template.yaml")).unwrap())
        .env("AWS_DEFAULT_REGION", "eu-central-1")
        .output()
        .unwrap();
    assert!(translated.status.success(), "{}", String::from_utf8_lossy(&translated.stderr));
    translated.stdout
});

/// A stack as CloudFormation would create it with some parameters, except for values that only AWS knows: `Ref` of a resource
/// gives its name, `GetAtt` the name and the attribute with a slash between them.
pub struct Stack {
    pub template: Value,
    parameters: BTreeMap<String, Value>,
}

impl Stack {
    /// A stack with these parameters; all others have their default.
    pub fn new(given: &[(&str, &str)]) -> Self {
        let template: Value = serde_json::from_slice(&TRANSLATED).unwrap();
        let mut parameters: BTreeMap<String, Value> = template["Parameters"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(name, parameter)| (name.clone(), parameter.get("Default").cloned().unwrap_or("-".into())))
            .collect();
        for (name, value) in given {
            assert!(
                parameters.insert((*name).to_owned(), (*value).into()).is_some(),
                "{name} is not a parameter of the template"
            );
        }
        for (name, value) in [("Region", "eu-central-1"), ("Partition", "aws"), ("AccountId", "123456789012")] {
            parameters.insert(format!("AWS::{name}"), value.into());
        }
        parameters.insert("AWS::StackName".to_owned(), "eventhubs-relay".into());
        parameters.insert("AWS::URLSuffix".to_owned(), "amazonaws.com".into());
        Self { template, parameters }
    }

    fn holds(&self, condition: &Value) -> bool {
        if let Some(name) = condition.as_str() {
            let condition = self.template["Conditions"].get(name);
            return self.holds(condition.unwrap_or_else(|| panic!("the template has no condition {name}")));
        }
        let (function, operands) = condition.as_object().unwrap().iter().next().unwrap();
        let all = || operands.as_array().unwrap().iter();
        match function.as_str() {
            "Condition" => self.holds(operands),
            "Fn::Not" => !self.holds(&operands[0]),
            "Fn::And" => all().all(|operand| self.holds(operand)),
            "Fn::Or" => all().any(|operand| self.holds(operand)),
            "Fn::Equals" => self.resolve(&operands[0]) == self.resolve(&operands[1]),
            other => panic!("{other} in a condition"),
        }
    }

    pub fn has(&self, resource: &Value) -> bool {
        resource.get("Condition").is_none_or(|condition| self.holds(condition))
    }

    /// The resources that are created, by name, with all references resolved.
    pub fn resources(&self) -> BTreeMap<&str, Value> {
        let resources = self.template["Resources"].as_object().unwrap().iter();
        let there = resources.filter(|(_, resource)| self.has(resource));
        there.map(|(name, resource)| (name.as_str(), self.resolve(resource))).collect()
    }

    fn reference(&self, name: &str) -> Value {
        let value = self.parameters.get(name).cloned();
        value.unwrap_or_else(|| self.resource(name).into())
    }

    fn resource<'n>(&self, name: &'n str) -> &'n str {
        let resource =
            self.template["Resources"].get(name).unwrap_or_else(|| panic!("the template has no resource {name}"));
        assert!(self.has(resource), "{name} is referred to, but not created with these parameters");
        name
    }

    fn attribute(&self, name: &str, attribute: &str) -> Value {
        format!("{}/{attribute}", self.resource(name)).into()
    }

    fn substitute(&self, text: &str, own: &Value) -> Value {
        let mut parts = text.split("${");
        let mut substituted = parts.next().unwrap().to_owned();
        for part in parts {
            let (name, rest) = part.split_once('}').unwrap();
            let value = match (own.get(name), name.split_once('.')) {
                (Some(value), _) => self.resolve(value),
                (None, Some((name, attribute))) => self.attribute(name, attribute),
                (None, None) => self.reference(name),
            };
            substituted += &value.as_str().map_or(value.to_string(), str::to_owned);
            substituted += rest;
        }
        substituted.into()
    }

    /// Resolves every reference. The test fails if one does not resolve.
    pub fn resolve(&self, value: &Value) -> Value {
        let object = match value {
            Value::Array(values) => {
                return values.iter().map(|value| self.resolve(value)).filter(|value| !value.is_null()).collect();
            }
            Value::Object(object) => object,
            plain => return plain.clone(),
        };
        let Some((function, operand)) = object.iter().next().filter(|_| object.len() == 1) else {
            let members = object.iter().map(|(name, value)| (name.clone(), self.resolve(value)));
            return Value::Object(members.filter(|(_, value)| !value.is_null()).collect());
        };
        match (function.as_str(), operand) {
            ("Ref", Value::String(name)) if name == "AWS::NoValue" => Value::Null,
            ("Ref", Value::String(name)) => self.reference(name),
            ("Fn::GetAtt", Value::String(path)) => {
                let (name, attribute) = path.split_once('.').unwrap();
                self.attribute(name, attribute)
            }
            ("Fn::GetAtt", path) => self.attribute(path[0].as_str().unwrap(), path[1].as_str().unwrap()),
            ("Fn::Sub", Value::String(text)) => self.substitute(text, &Value::Null),
            ("Fn::Sub", operands) => self.substitute(operands[0].as_str().unwrap(), &operands[1]),
            ("Fn::If", operands) => self.resolve(&operands[if self.holds(&operands[0]) { 1 } else { 2 }]),
            ("Fn::Join", operands) => {
                let parts = self.resolve(&operands[1]);
                let parts: Vec<&str> = parts.as_array().unwrap().iter().map(|part| part.as_str().unwrap()).collect();
                parts.join(operands[0].as_str().unwrap()).into()
            }
            (other, _) if other.starts_with("Fn::") => panic!("{other} is not supported here"),
            (name, value) => json!({ name: self.resolve(value) }),
        }
    }
}
