use std::process::ExitCode;

fn main() -> ExitCode {
    shared::run(dataverse_event::KIND)
}
