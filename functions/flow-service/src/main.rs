use std::process::ExitCode;

use flow_service::FlowService;

fn main() -> ExitCode {
    shared::run_function(FlowService::open)
}
