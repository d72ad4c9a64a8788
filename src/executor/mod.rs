//! Front doors for cluster frameworks: each translates a framework's tasks to pods, and pods' states to its reports.
//!
//! Owns the protocols of frameworks. *Invariants:* features of pods live in pods; an executor only translates and reports.
//! Leaves to others: everything that happens to a pod.

pub mod mesos;
pub mod remote;
