//! CNI plugins: one library, one program that is each of them by the name it is called by, and [`run`] for callers that
//! have no need of a process.
//!
//! *Invariants*: a plugin behaves the same in process and as a binary. Everything it does on ADD is undone when the ADD
//! fails; DEL is idempotent and goes on after errors.
//!
//! ```text
//! program ─► main ─► skel (environment, stdin, stdout) ─┐
//! callers ─► run ───────────────────────────────────────┴─► plugin ─► link, nft (netlink) · netns · sysctl · ipam
//! ```

mod bandwidth;
mod bridge;
pub mod conf;
mod conntrack;
mod dhcp;
mod dummy;
pub mod error;
mod firewall;
mod host_device;
mod host_local;
mod ipam;
mod ipvlan;
mod layer3;
mod link;
mod loopback;
mod macvlan;
mod mark;
mod masquerade;
mod netfilter;
mod netns;
mod nft;
mod policy;
mod portmap;
mod ptp;
pub mod result;
mod sbr;
mod single;
pub mod skel;
mod spoof;
mod static_ip;
mod sysctl;
mod tag;
mod tap;
mod tun;
mod tuning;
mod veth;
mod vlan;
mod vrf;
mod vxlan;

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use serde_json::Value;

pub use dhcp::renewal;
pub use error::CniError;
pub use policy::apply as apply_policy;
pub use skel::{Command, Invocation};

/// The program's own name.
const PROGRAM: &str = "cni-plugins";

/// Every plugin by its name, in the order of the alphabet.
const PLUGINS: &[(&str, &skel::Plugin)] = &[
    ("bandwidth", &bandwidth::PLUGIN),
    ("bridge", &bridge::PLUGIN),
    ("dhcp", &dhcp::PLUGIN),
    ("dummy", &dummy::PLUGIN),
    ("firewall", &firewall::PLUGIN),
    ("host-device", &host_device::PLUGIN),
    ("host-local", &host_local::PLUGIN),
    ("ipvlan", &ipvlan::PLUGIN),
    ("loopback", &loopback::PLUGIN),
    ("macvlan", &macvlan::PLUGIN),
    ("policy", &policy::PLUGIN),
    ("portmap", &portmap::PLUGIN),
    ("ptp", &ptp::PLUGIN),
    ("sbr", &sbr::PLUGIN),
    ("static", &static_ip::PLUGIN),
    ("tap", &tap::PLUGIN),
    ("tuning", &tuning::PLUGIN),
    ("vlan", &vlan::PLUGIN),
    ("vrf", &vrf::PLUGIN),
    ("vxlan", &vxlan::PLUGIN),
];

/// The plugins that [`run`] knows.
pub const BUILT_IN: &[&str] = &{
    let mut names = [""; PLUGINS.len()];
    let mut index = 0;
    while index < names.len() {
        names[index] = PLUGINS[index].0;
        index += 1;
    }
    names
};

fn find(plugin: &str) -> Result<&'static skel::Plugin, CniError> {
    PLUGINS
        .iter()
        .find_map(|(name, found)| (*name == plugin).then_some(*found))
        .ok_or_else(|| CniError::config(format!("plugin {plugin:?} is not built in")))
}

/// Runs a built-in plugin in process. The answer is what the plugin would print; `Null` where it prints nothing.
///
/// The calling thread visits the container's network namespace and is back when this returns.
///
/// # Errors
/// What the plugin would print as its error.
pub fn run(plugin: &str, invocation: &Invocation) -> Result<Value, CniError> {
    skel::dispatch(find(plugin)?, invocation)
}

fn help() -> String {
    format!(
        "{PROGRAM}: CNI plugins for container runtimes, which execute them by their names.\n\n\
         It has {}.\n\n\
         Make a link for each of them where the runtime looks for plugins, beside this program:\n\n    \
         for name in $(./{PROGRAM} --list); do ln -s {PROGRAM} $name; done\n\n\
         {PROGRAM} policy apply CONFIGURATION gives the pods that run now the rules of a changed network configuration.\n",
        BUILT_IN.join(", ")
    )
}

/// `main` of the program: the plugin that it is called as, by the last component of the first argument. By its own name
/// it prints what it has; `--list` only the names.
pub fn main(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let path = args.next().unwrap_or_default();
    let name = Path::new(&path)
        .file_name()
        .unwrap_or_default()
        .to_string_lossy();
    if renewal::is_meant(path.as_ref()) {
        return renewal::main(args);
    }
    let text = match find(&name) {
        Ok(plugin) => return skel::process(plugin),
        // a runtime whose configuration has the program's name as a type wants no help
        Err(error) if name != PROGRAM || std::env::var_os("CNI_COMMAND").is_some() => Err(error),
        Err(_) => match args.next().as_deref().map(|word| word.to_string_lossy()) {
            None => Ok(help()),
            Some(word) if word == "--help" => Ok(help()),
            Some(word) if word == "--list" => Ok(BUILT_IN.join("\n") + "\n"),
            Some(word) if word == "policy" => policy::command(args).map(|()| String::new()),
            Some(word) => Err(CniError::config(format!(
                "unknown argument {word:?}, only --help, --list and policy are known"
            ))),
        },
    };
    let printed = text.and_then(|text| {
        std::io::stdout()
            .write_all(text.as_bytes())
            .map_err(|cause| CniError::io("write to", Path::new("stdout"), &cause))
    });
    match printed {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{PROGRAM}: {error}");
            ExitCode::FAILURE
        }
    }
}
