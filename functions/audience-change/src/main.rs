use std::process::ExitCode;

fn main() -> ExitCode {
    shared::run(audience_change::KIND)
}
