//! `sampan executor mesos` under an agent that knows the protocol to the letter and has every fault. Needs root.
//!
//! Each test asserts the exact updates, that nothing was against the rules of the agent, and that nothing is left of
//! the pods.

#[path = "../pod_support/mod.rs"]
mod pod_support;
#[path = "../tls/mod.rs"]
mod tls;

mod api;
mod dce;
mod faults;
mod health;
mod hooks;
mod kill;
mod launch;
mod network;
mod output;
mod recovery;
mod support;
mod transport;
mod whole_life;
