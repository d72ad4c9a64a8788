//! How the kernel schedules the calling process: processors, policy, input and output, memory nodes.
#![allow(unsafe_code)]

use std::io;

use serde::Serialize;

/// The largest machine that the kernel can be built for.
const PROCESSORS: usize = 8192;

/// What sched_setattr(2) sets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Attributes {
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// −20 to 19.
    pub nice: i32,
    /// 1 to 99 for the real-time policies, otherwise 0.
    pub priority: u32,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    pub runtime: u64,
    /// Nanoseconds.
    pub deadline: u64,
    /// Nanoseconds.
    pub period: u64,
}

/// `struct sched_attr` of `linux/sched/types.h`, second published size (56 bytes).
#[repr(C)]
struct Raw {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
    util: [u32; 2],
}

/// sched_setattr(2).
pub fn set_attributes(attributes: &Attributes) -> io::Result<()> {
    let raw = Raw {
        size: size_of::<Raw>() as u32,
        policy: attributes.policy,
        flags: attributes.flags,
        nice: attributes.nice,
        priority: attributes.priority,
        runtime: attributes.runtime,
        deadline: attributes.deadline,
        period: attributes.period,
        util: [0; 2],
    };
    // SAFETY: the structure has the size that it says and is only read.
    super::done(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const raw, 0) })
}

/// ioprio_set(2): a class and a priority within it.
pub fn set_io_priority(class: u32, priority: u32) -> io::Result<()> {
    const WHO_PROCESS: u32 = 1;
    const CLASS_SHIFT: u32 = 13;
    // SAFETY: plain integers.
    super::done(unsafe {
        libc::syscall(
            libc::SYS_ioprio_set,
            WHO_PROCESS,
            0,
            class << CLASS_SHIFT | priority,
        )
    })
}

/// set_mempolicy(2): a mode with its flags, and a mask of nodes.
pub fn set_memory_policy(mode: u32, nodes: &[u64]) -> io::Result<()> {
    // the kernel takes one bit less than it is told
    let bits = nodes.len() * 64 + 1;
    // SAFETY: the mask has at least as many bits as are announced, rounded down, and is only read.
    super::done(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, nodes.as_ptr(), bits) })
}

/// sched_setaffinity(2): the processors of a mask.
pub fn set_affinity(processors: &[u64]) -> io::Result<()> {
    set_affinity_of(0, processors)
}

/// Takes a new child off the caller's processor: kernels that pack their work leave it queued there until the caller sleeps, while
/// another one idles. It may stay where no other is allowed. The child may run on all others from then on, until it sets its own.
pub fn part_from(child: i32) {
    let own = rustix::thread::sched_getcpu() % PROCESSORS;
    let mut others = [u64::MAX; PROCESSORS / 64];
    others[own / 64] &= !(1 << (own % 64));
    let _ = set_affinity_of(child, &others);
}

/// 0 for the calling thread.
fn set_affinity_of(pid: i32, processors: &[u64]) -> io::Result<()> {
    // SAFETY: the mask is as long as announced and only read.
    super::done(unsafe {
        libc::syscall(
            libc::SYS_sched_setaffinity,
            pid,
            size_of_val(processors),
            processors.as_ptr(),
        )
    })
}

/// sched_getaffinity(2): the mask of the caller's processors.
pub fn affinity() -> io::Result<Vec<u64>> {
    let mut mask = vec![0u64; PROCESSORS / 64];
    // SAFETY: the kernel writes at most as many bytes as announced.
    let length = unsafe {
        libc::syscall(
            libc::SYS_sched_getaffinity,
            0,
            size_of_val(mask.as_slice()),
            mask.as_mut_ptr(),
        )
    };
    super::done(length.min(0))?;
    mask.truncate(length as usize / 8);
    Ok(mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_what_it_says() {
        let all = affinity().unwrap();
        let first = all.iter().position(|word| *word != 0).unwrap();
        let mut one = all.clone();
        one.fill(0);
        one[first] = 1 << all[first].trailing_zeros();
        set_affinity(&one).unwrap();
        assert_eq!(affinity().unwrap(), one);
        set_affinity(&[u64::MAX; 16]).unwrap();
        assert_eq!(affinity().unwrap(), all);
        set_io_priority(3, 0).unwrap();
        let batch = Attributes {
            policy: 3,
            nice: 5,
            ..Attributes::default()
        };
        set_attributes(&batch).unwrap();
        assert_eq!(
            set_io_priority(5, 0).unwrap_err().raw_os_error(),
            Some(libc::EINVAL)
        );
    }
}
