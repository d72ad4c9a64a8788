//! bpf(2): loads a cgroup device program and puts it in the place of earlier ones.
//!
//! *Invariants:* descriptors are close-on-exec (the kernel makes them so) and owned. The new program is
//! attached before the old ones are detached, and with several attached all must allow, so no access is
//! ever open in between. What the program decides is the caller's business.

#![allow(unsafe_code)]

use std::ffi::c_int;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// One eBPF instruction, `struct bpf_insn` of linux/bpf.h.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u8,
    /// Destination in the low four bits, source in the high four (both of our architectures are little-endian).
    pub registers: u8,
    /// Jump distance or memory offset.
    pub offset: i16,
    /// Constant operand.
    pub value: i32,
}

impl Instruction {
    /// Packs the two register numbers, each below 16.
    pub fn new(code: u8, to: u8, from: u8, offset: i16, value: i32) -> Instruction {
        Instruction {
            code,
            registers: to & 15 | from << 4,
            offset,
            value,
        }
    }
}

const PROG_LOAD: c_int = 5;
const PROG_ATTACH: c_int = 8;
const PROG_DETACH: c_int = 9;
const PROG_GET_FD_BY_ID: c_int = 13;
const PROG_QUERY: c_int = 16;
const TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;

// The parts of `union bpf_attr`, linux/bpf.h; the kernel takes a shorter one for zeroes behind it.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
}

#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

#[repr(C)]
struct Query {
    target: u32,
    kind: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
    // Only ever zero, but there: since Linux 6.17 the kernel writes `revision` whatever size it was given.
    attach_flag_list: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

#[repr(C)]
struct ById {
    id: u32,
    next: u32,
    flags: u32,
}

/// Calls bpf(2); EINTR and EAGAIN (a signal while the verifier works) are tried again.
///
/// # Safety
/// `T` is the member of `union bpf_attr` that `command` reads, without padding, and every address in it
/// points to memory that is valid for what the command does with it.
unsafe fn bpf<T>(command: c_int, attribute: &mut T) -> io::Result<c_int> {
    loop {
        // SAFETY: attribute is a live exclusive reference of the size given; its content is the caller's
        // promise above.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                command,
                std::ptr::from_mut(attribute),
                size_of::<T>(),
            )
        };
        if result >= 0 {
            return Ok(result as c_int);
        }
        let error = io::Error::last_os_error();
        if !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) {
            return Err(error);
        }
    }
}

/// A descriptor as `union bpf_attr` has it.
fn number(fd: &impl AsRawFd) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// Loads `program` and makes it the only device program attached to the cgroup v2 folder `cgroup`
/// itself; programs of its ancestors go on deciding too. The error names the failed call.
pub fn replace_device_program(
    cgroup: &File,
    program: &[Instruction],
) -> Result<(), (&'static str, io::Error)> {
    let old = attached(cgroup).map_err(|error| ("bpf(BPF_PROG_QUERY)", error))?;
    let loaded = load(program).map_err(|error| ("bpf(BPF_PROG_LOAD)", error))?;
    let mut attach = Attach {
        target: number(cgroup),
        program: number(&loaded),
        kind: ATTACH_CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    // SAFETY: Attach is what BPF_PROG_ATTACH reads, four words; it holds no address.
    unsafe { bpf(PROG_ATTACH, &mut attach) }.map_err(|error| ("bpf(BPF_PROG_ATTACH)", error))?;
    for id in old {
        detach(cgroup, id).map_err(|error| ("bpf(BPF_PROG_DETACH)", error))?;
    }
    Ok(())
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let count = u32::try_from(program.len())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "program too long"))?;
    let mut load = Load {
        kind: TYPE_CGROUP_DEVICE,
        count,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
    };
    // SAFETY: Load is the beginning of what BPF_PROG_LOAD reads; `instructions` points to `count`
    // instructions and `license` to a string with NUL, both alive during the call and only read.
    let fd = unsafe { bpf(PROG_LOAD, &mut load) }?;
    // SAFETY: BPF_PROG_LOAD returned a new descriptor that nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Ids of the device programs attached to this very cgroup.
fn attached(cgroup: &File) -> io::Result<Vec<u32>> {
    // the kernel allows 64 (BPF_CGROUP_MAX_PROGS)
    let mut ids = [0u32; 64];
    let mut query = Query {
        target: number(cgroup),
        kind: ATTACH_CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr() as u64,
        count: ids.len() as u32,
        padding: 0,
        attach_flag_list: 0,
        link_ids: 0,
        link_attach_flags: 0,
        revision: 0,
    };
    // SAFETY: Query is all that BPF_PROG_QUERY reads and writes, its last field included; `ids` has room for `count`
    // words and is alive and not otherwise borrowed during the call.
    unsafe { bpf(PROG_QUERY, &mut query) }?;
    Ok(ids.into_iter().take(query.count as usize).collect())
}

fn detach(cgroup: &File, id: u32) -> io::Result<()> {
    let mut by_id = ById {
        id,
        next: 0,
        flags: 0,
    };
    // SAFETY: ById is what BPF_PROG_GET_FD_BY_ID reads, three words; it holds no address.
    let fd = unsafe { bpf(PROG_GET_FD_BY_ID, &mut by_id) }?;
    // SAFETY: BPF_PROG_GET_FD_BY_ID returned a new descriptor that nobody else knows.
    let program = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut attach = Attach {
        target: number(cgroup),
        program: number(&program),
        kind: ATTACH_CGROUP_DEVICE,
        flags: 0,
    };
    // SAFETY: Attach is what BPF_PROG_DETACH reads, four words; it holds no address.
    unsafe { bpf(PROG_DETACH, &mut attach) }?;
    Ok(())
}
