//! The Mesos v1 executor: what an agent launches with `sampan executor mesos`.
//!
//! Owns the protocol. *Invariants:* the pure parts (messages, records, environment) know neither sockets nor pods.
//! Leaves to others: pods, which are the layers' below.

pub mod connection;
pub mod environment;
pub mod launch;
pub mod ledger;
pub mod machine;
pub mod message;
pub mod pods;
pub mod privileges;
pub mod proto;
pub mod recordio;
pub mod run;
pub mod session;
pub mod shim;
pub mod task;
