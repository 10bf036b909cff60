use std::process::ExitCode;

use platform_ingest::PlatformIngest;

fn main() -> ExitCode {
    shared::run_function(PlatformIngest::open)
}
