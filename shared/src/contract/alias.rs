//! The alias through which Lambda invokes a function for one flow. Lambda's Kafka events name no flow: the control API
//! creates an alias for each flow, and the function reads the flow from the invoked ARN.

const PREFIX: &str = "flow-";

/// The name of a flow's alias.
pub fn of(flow: &str) -> String {
    format!("{PREFIX}{flow}")
}

/// The flow that an alias names; `None` for an alias of another purpose.
pub fn flow(alias: &str) -> Option<&str> {
    alias.strip_prefix(PREFIX).filter(|flow| !flow.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_names_its_flow() {
        assert_eq!(flow(&of("226f")), Some("226f"));
        for other in ["", "live", "flow-", "$LATEST"] {
            assert_eq!(flow(other), None, "{other}");
        }
    }
}
