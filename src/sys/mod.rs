//! System calls: every `unsafe` block of the program is below this module.
//!
//! | feature | since Linux | without it |
//! |---|---|---|
//! | `clone3`, `openat2`, new mount calls, `mount_setattr` | 5.12 | not supported: Linux 5.15 is the floor |
//! | overlay `lowerdir+` by `fsconfig` | 6.5 | `mount(2)` with layers named by descriptor ([`crate::rootfs::overlay`]) |
//! | `PIDFD_GET_INFO` with exit status | 6.15 | [`pidfd::exit_status`] gives `None` |
//! | `CLONE_INTO_CGROUP` | 5.7, cgroup v2 | attached before the first message ([`crate::container`]) |
//!
//! *Invariants:* every wrapper returns `io::Result` or an owned descriptor, retries `EINTR` where that is safe, and opens
//! close-on-exec. Nothing here decides anything.

pub mod bpf;
pub mod clone;
pub mod dirt;
pub mod fd;
pub mod file;
pub mod mount;
pub(crate) mod netlink;
pub mod pidfd;
pub mod process;
pub mod procfs;
pub mod program;
pub mod sched;
pub mod seal;
pub mod seccomp;
pub mod socket;
pub mod stderr;
pub mod wait;
pub mod watch;

/// What a system call answered that gives nothing but success.
fn done(result: nix::libc::c_long) -> std::io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}
