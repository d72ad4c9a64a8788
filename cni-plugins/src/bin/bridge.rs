//! The CNI plugin `bridge`; see the library's module `bridge`.

use std::process::ExitCode;

fn main() -> ExitCode {
    cni_plugins::main("bridge")
}
