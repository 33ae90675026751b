//! The `realm` program: see `realm --help`.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    realm_server::cli::main()
}
