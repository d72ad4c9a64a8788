//! The CNI plugin `loopback`; see the library's module `loopback`.

use std::process::ExitCode;

fn main() -> ExitCode {
    cni_plugins::main("loopback")
}
