use std::process::ExitCode;

use redelivery::Redelivery;

fn main() -> ExitCode {
    shared::run_function(Redelivery::open)
}
