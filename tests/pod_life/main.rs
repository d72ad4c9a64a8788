//! The life of pods, driven from outside through the real program. Needs root.
//!
//! Every test compares the host before and after (see [`pod_support::Host::snapshot`]).

#[path = "../pod_support/mod.rs"]
mod pod_support;

mod features;
mod frameworks;
mod images;
mod leftovers;
mod lifecycle;
mod order;
mod output;
mod owned;
mod programs;
mod volumes;
mod volumes_from;
mod wrong;
