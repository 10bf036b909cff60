//! Which call is meant: one table for the dispatch, for the allowed methods and for the OpenAPI document.

use crate::errors::ApiError;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Collection {
    Connections,
    SourceConnections,
    TargetConnections,
    Flows,
}

impl Collection {
    pub const ALL: [Self; 4] = [Self::Connections, Self::SourceConnections, Self::TargetConnections, Self::Flows];

    /// As in the path.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::SourceConnections => "sourceConnections",
            Self::TargetConnections => "targetConnections",
            Self::Flows => "flows",
        }
    }

    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|collection| collection.name() == name)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Create(Collection),
    List(Collection),
    Read(Collection),
    Patch(Collection),
    Delete(Collection),
    Test,
    Explore,
    Action,
    ConnectionSpecs,
    ConnectionSpec,
    FlowSpecs,
    FlowSpec,
    Runs,
    OpenApi,
}

pub struct Route {
    pub method: &'static str,
    pub path: &'static str,
    pub operation: Operation,
}

macro_rules! routes {
    ($($method:literal $path:literal $operation:expr;)*) => {
        &[$(Route { method: $method, path: $path, operation: $operation }),*]
    };
}

pub const ROUTES: &[Route] = {
    use Collection::{Connections, Flows, SourceConnections, TargetConnections};
    use Operation::*;
    routes! {
        "GET" "/connections" List(Connections);
        "POST" "/connections" Create(Connections);
        "GET" "/connections/{id}" Read(Connections);
        "PATCH" "/connections/{id}" Patch(Connections);
        "DELETE" "/connections/{id}" Delete(Connections);
        "GET" "/connections/{id}/test" Test;
        "GET" "/connections/{id}/explore" Explore;
        "GET" "/sourceConnections" List(SourceConnections);
        "POST" "/sourceConnections" Create(SourceConnections);
        "GET" "/sourceConnections/{id}" Read(SourceConnections);
        "PATCH" "/sourceConnections/{id}" Patch(SourceConnections);
        "DELETE" "/sourceConnections/{id}" Delete(SourceConnections);
        "GET" "/targetConnections" List(TargetConnections);
        "POST" "/targetConnections" Create(TargetConnections);
        "GET" "/targetConnections/{id}" Read(TargetConnections);
        "PATCH" "/targetConnections/{id}" Patch(TargetConnections);
        "DELETE" "/targetConnections/{id}" Delete(TargetConnections);
        "GET" "/flows" List(Flows);
        "POST" "/flows" Create(Flows);
        "GET" "/flows/{id}" Read(Flows);
        "PATCH" "/flows/{id}" Patch(Flows);
        "DELETE" "/flows/{id}" Delete(Flows);
        "POST" "/flows/{id}/action" Action;
        "GET" "/connectionSpecs" ConnectionSpecs;
        "GET" "/connectionSpecs/{id}" ConnectionSpec;
        "GET" "/flowSpecs" FlowSpecs;
        "GET" "/flowSpecs/{id}" FlowSpec;
        "GET" "/runs" Runs;
        "GET" "/openapi.json" OpenApi;
    }
};

/// The operation, and the id in the path if it has one.
pub fn find<'p>(method: &str, path: &'p [String]) -> Result<(Operation, &'p str), ApiError> {
    let mut allowed = Vec::new();
    for route in ROUTES {
        let template: Vec<&str> = route.path.split('/').skip(1).collect();
        let fits = template.len() == path.len()
            && template.iter().zip(path).all(|(expected, actual)| *expected == "{id}" || expected == actual);
        if fits && route.method == method {
            let id = template.iter().position(|segment| *segment == "{id}").map_or("", |place| path[place].as_str());
            return Ok((route.operation, id));
        }
        if fits {
            allowed.push(route.method);
        }
    }
    if allowed.is_empty() {
        return Err(ApiError::NoSuchRoute);
    }
    Err(ApiError::MethodNotAllowed(allowed.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_to_operations() {
        let found = |method: &str, path: &str| {
            let path: Vec<String> = path.split('/').map(str::to_owned).collect();
            find(method, &path).map(|(operation, id)| (operation, id.to_owned()))
        };
        assert_eq!(found("GET", "flows"), Ok((Operation::List(Collection::Flows), String::new())));
        assert_eq!(found("DELETE", "connections/7"), Ok((Operation::Delete(Collection::Connections), "7".to_owned())));
        assert_eq!(found("POST", "flows/7/action"), Ok((Operation::Action, "7".to_owned())));
        assert_eq!(found("PUT", "flows"), Err(ApiError::MethodNotAllowed("GET, POST".to_owned())));
        for path in ["search", "runs/7", "connections/7/action", "flows/7/action/8", ""] {
            assert_eq!(found("GET", path), Err(ApiError::NoSuchRoute), "{path}");
        }
    }
}
