use std::process::ExitCode;

fn main() -> ExitCode {
    shared::run(profile_export::KIND)
}
