//! The CNI plugin `host-local`; see the library's module `host_local`.

use std::process::ExitCode;

fn main() -> ExitCode {
    cni_plugins::main("host-local")
}
