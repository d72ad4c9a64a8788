//! CNI plugins: one library, one small binary each, and [`run`] for callers that have no need of a process.
//!
//! *Invariants*: a plugin behaves the same in process and as a binary. Everything it does on ADD is undone when the ADD
//! fails; DEL is idempotent and goes on after errors.
//!
//! ```text
//! bin/*  ─►  main ─► skel (environment, stdin, stdout) ─┐
//! callers ─► run ───────────────────────────────────────┴─► plugin ─► link, nft (netlink) · netns · sysctl · ipam
//! ```

mod bridge;
pub mod conf;
mod conntrack;
pub mod error;
mod host_local;
mod ipam;
mod link;
mod loopback;
mod masquerade;
mod netfilter;
mod netns;
mod nft;
mod portmap;
pub mod result;
pub mod skel;
mod sysctl;
mod tag;

use std::process::ExitCode;

use serde_json::Value;

pub use error::CniError;
pub use skel::{Command, Invocation};

/// The plugins that [`run`] knows.
pub const BUILT_IN: &[&str] = &["bridge", "host-local", "loopback", "portmap"];

fn find(plugin: &str) -> Option<&'static skel::Plugin> {
    match plugin {
        "bridge" => Some(&bridge::PLUGIN),
        "host-local" => Some(&host_local::PLUGIN),
        "loopback" => Some(&loopback::PLUGIN),
        "portmap" => Some(&portmap::PLUGIN),
        _ => None,
    }
}

fn unknown(plugin: &str) -> CniError {
    CniError::config(format!("plugin {plugin:?} is not built in"))
}

/// Runs a built-in plugin in process. The answer is what the plugin would print; `Null` where it prints nothing.
///
/// The calling thread visits the container's network namespace and is back when this returns.
///
/// # Errors
/// What the plugin would print as its error.
pub fn run(plugin: &str, invocation: &Invocation) -> Result<Value, CniError> {
    let plugin = find(plugin).ok_or_else(|| unknown(plugin))?;
    skel::dispatch(plugin, invocation)
}

/// `main` of the binary `plugin`.
pub fn main(plugin: &str) -> ExitCode {
    match find(plugin) {
        Some(plugin) => skel::process(plugin),
        None => {
            eprintln!("{}", unknown(plugin));
            ExitCode::FAILURE
        }
    }
}
