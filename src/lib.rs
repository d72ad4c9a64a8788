//! Sampan: OCI containers and compose-defined pods without a daemon.
//!
//! Data flows down; a module imports only from lines below its own.
//!
//! ```text
//! cli · oci                 arguments, output, exit codes: nothing else prints
//! executor                  a cluster framework's tasks as pods
//! selftest                  containers that attack the program, and what has to come of it
//! pod                       a compose project as one pod: keeper, supervisor, control socket
//! compose · network · image · container
//!                           compose is pure; container runs `create` in a single-threaded process
//! init · rootfs · seccomp   the child stage: runs inside the new namespaces
//! cgroup · sys              the kernel: cgroup files, system calls, the only `unsafe`
//! ```

// a panic where the log cannot be written: see `sys::stderr`
#![cfg_attr(not(test), deny(clippy::print_stderr, clippy::print_stdout))]

pub mod cgroup;
pub mod cli;
pub mod compose;
pub mod container;
pub mod executor;
pub mod image;
pub mod init;
pub mod network;
pub mod oci;
pub mod pod;
pub mod rootfs;
pub mod seccomp;
pub mod selftest;
pub mod sys;
