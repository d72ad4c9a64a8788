//! Architectures and their system call numbers.
//!
//! *Invariants:* the numbers are those of the crate `syscalls`, generated from the kernel's tables; added
//! here is only what those lack: other names for the same call, x32, and Arm's private calls.

use std::collections::HashMap;
use std::sync::OnceLock;

use oci_spec::runtime::Arch as Name;

/// __X32_SYSCALL_BIT of asm/unistd.h; x32 shares AUDIT_ARCH_X86_64.
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// An architecture that a filter can be made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Arch {
    X86_64,
    X32,
    X86,
    Aarch64,
    Arm,
}

/// What this program was built for.
#[cfg(target_arch = "x86_64")]
pub(super) const NATIVE: Arch = Arch::X86_64;
/// What this program was built for.
#[cfg(target_arch = "aarch64")]
pub(super) const NATIVE: Arch = Arch::Aarch64;

/// Those that there is a table for, under the specification's names.
pub(super) const KNOWN: [(Name, Arch); 5] = [
    (Name::ScmpArchX86_64, Arch::X86_64),
    (Name::ScmpArchX32, Arch::X32),
    (Name::ScmpArchX86, Arch::X86),
    (Name::ScmpArchAarch64, Arch::Aarch64),
    (Name::ScmpArchArm, Arch::Arm),
];

/// The native one and those of `names` that have a table, each once.
pub(super) fn selected(names: &[Name]) -> Vec<Arch> {
    let mut found = vec![NATIVE];
    for name in names {
        let known = KNOWN.iter().find(|(known, _)| known == name);
        let Some((_, arch)) = known else { continue };
        if !found.contains(arch) {
            found.push(*arch);
        }
    }
    found.sort();
    found
}

impl Arch {
    /// AUDIT_ARCH_*, linux/audit.h.
    pub(super) fn audit(self) -> u32 {
        match self {
            Arch::X86_64 | Arch::X32 => 0xc000_003e,
            Arch::X86 => 0x4000_0003,
            Arch::Aarch64 => 0xc000_00b7,
            Arch::Arm => 0x4000_0028,
        }
    }

    /// Arguments have 64 bits; otherwise the upper half does not count.
    pub(super) fn is_64_bit(self) -> bool {
        matches!(self, Arch::X86_64 | Arch::Aarch64)
    }

    /// The number of a system call, `None` where there is no such call.
    pub(super) fn number(self, name: &str) -> Option<u32> {
        match self {
            Arch::X32 => x32(name),
            _ => self.numbers().get(name).copied(),
        }
    }

    /// The crate looks names up one after the other; a profile has hundreds, each for several machines.
    fn numbers(self) -> &'static Numbers {
        static TABLES: [OnceLock<Numbers>; 4] = [const { OnceLock::new() }; 4];
        let [x86_64, x86, aarch64, arm] = &TABLES;
        match self {
            Arch::X86_64 | Arch::X32 => x86_64.get_or_init(|| {
                let calls = syscalls::x86_64::Sysno::iter();
                collect(calls.map(|call| (call.name(), call.id())))
            }),
            Arch::X86 => x86.get_or_init(|| {
                let calls = syscalls::x86::Sysno::iter();
                collect(calls.map(|call| (call.name(), call.id())))
            }),
            Arch::Aarch64 => aarch64.get_or_init(|| {
                let calls = syscalls::aarch64::Sysno::iter();
                let mut numbers = collect(calls.map(|call| (call.name(), call.id())));
                // the generic table's calls for 32-bit machines with 64-bit time
                numbers.retain(|_, number| !(403..=423).contains(number));
                // the kernel's table calls it fstatat, its headers newfstatat
                numbers.insert("newfstatat", 79);
                numbers
            }),
            Arch::Arm => arm.get_or_init(|| {
                let calls = syscalls::arm::Sysno::iter();
                let mut numbers = collect(calls.map(|call| (call.name(), call.id())));
                numbers.extend(ARM_OWN);
                numbers
            }),
        }
    }
}

type Numbers = HashMap<&'static str, u32>;

fn collect(calls: impl Iterator<Item = (&'static str, i32)>) -> Numbers {
    calls
        .filter_map(|(name, id)| Some((name, u32::try_from(id).ok()?)))
        .collect()
}

/// 32-bit Arm has calls of its own above 0xf0000 (arch/arm/include/uapi/asm/unistd.h), and another name
/// for arm_sync_file_range.
const ARM_OWN: [(&str, u32); 4] = [
    ("breakpoint", 0xf_0001),
    ("cacheflush", 0xf_0002),
    ("set_tls", 0xf_0005),
    ("sync_file_range2", 341),
];

/// x32 has the numbers of x86_64 with a bit set (arch/x86/entry/syscalls/syscall_64.tbl) …
fn x32(name: &str) -> Option<u32> {
    if let Some(index) = X32_OWN.iter().position(|own| *own == name) {
        return Some(X32_BIT + 512 + u32::try_from(index).ok()?);
    }
    if X32_LACKS.contains(&name) {
        return None;
    }
    Some(X32_BIT | Arch::X86_64.number(name)?)
}

/// … but for these, from 512 on …
const X32_OWN: [&str; 36] = [
    "rt_sigaction",
    "rt_sigreturn",
    "ioctl",
    "readv",
    "writev",
    "recvfrom",
    "sendmsg",
    "recvmsg",
    "execve",
    "ptrace",
    "rt_sigpending",
    "rt_sigtimedwait",
    "rt_sigqueueinfo",
    "sigaltstack",
    "timer_create",
    "mq_notify",
    "kexec_load",
    "waitid",
    "set_robust_list",
    "get_robust_list",
    "vmsplice",
    "move_pages",
    "preadv",
    "pwritev",
    "rt_tgsigqueueinfo",
    "recvmmsg",
    "sendmmsg",
    "process_vm_readv",
    "process_vm_writev",
    "setsockopt",
    "getsockopt",
    "io_setup",
    "io_submit",
    "execveat",
    "preadv2",
    "pwritev2",
];

/// … and these, marked `64` in that table.
const X32_LACKS: [&str; 13] = [
    "uselib",
    "_sysctl",
    "create_module",
    "get_kernel_syms",
    "query_module",
    "nfsservctl",
    "set_thread_area",
    "get_thread_area",
    "epoll_ctl_old",
    "epoll_wait_old",
    "vserver",
    "map_shadow_stack",
    "uretprobe",
];

/// On 32-bit x86 a call may also come through socketcall(2) or ipc(2): (that call, its first argument).
pub(super) fn multiplexed(arch: Arch, name: &str) -> Option<(&'static str, u64)> {
    if arch != Arch::X86 {
        return None;
    }
    let find = |list: &[&str]| list.iter().position(|known| *known == name);
    // numbers of linux/net.h and linux/ipc.h; "" are gaps
    const SOCKET: [&str; 20] = [
        "socket",
        "bind",
        "connect",
        "listen",
        "accept",
        "getsockname",
        "getpeername",
        "socketpair",
        "send",
        "recv",
        "sendto",
        "recvfrom",
        "shutdown",
        "setsockopt",
        "getsockopt",
        "sendmsg",
        "recvmsg",
        "accept4",
        "recvmmsg",
        "sendmmsg",
    ];
    const IPC: [&str; 24] = [
        "semop",
        "semget",
        "semctl",
        "semtimedop",
        "",
        "",
        "",
        "",
        "",
        "",
        "msgsnd",
        "msgrcv",
        "msgget",
        "msgctl",
        "",
        "",
        "",
        "",
        "",
        "",
        "shmat",
        "shmdt",
        "shmget",
        "shmctl",
    ];
    let (call, index) = match find(&SOCKET) {
        Some(index) => ("socketcall", index),
        None => ("ipc", find(&IPC)?),
    };
    Some((call, index as u64 + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for (arch, name, number) in [
            (Arch::X86_64, "read", Some(0)),
            (Arch::X86_64, "clone3", Some(435)),
            (Arch::X86_64, "waitpid", None),
            (Arch::X32, "read", Some(X32_BIT)),
            (Arch::X32, "execve", Some(X32_BIT + 520)),
            (Arch::X32, "pwritev2", Some(X32_BIT + 547)),
            (Arch::X32, "uselib", None),
            (Arch::X86, "socketcall", Some(102)),
            (Arch::X86, "clone3", Some(435)),
            (Arch::Aarch64, "read", Some(63)),
            (Arch::Aarch64, "newfstatat", Some(79)),
            (Arch::Aarch64, "open", None),
            (Arch::Aarch64, "clock_gettime64", None),
            (Arch::Arm, "read", Some(3)),
            (Arch::Arm, "set_tls", Some(0xf_0005)),
        ] {
            assert_eq!(arch.number(name), number, "{arch:?} {name}");
        }
        assert_eq!(multiplexed(Arch::X86, "accept"), Some(("socketcall", 5)));
        assert_eq!(multiplexed(Arch::X86, "shmctl"), Some(("ipc", 24)));
        assert_eq!(multiplexed(Arch::X86_64, "accept"), None);
    }

    #[test]
    fn selection() {
        assert_eq!(selected(&[]), [NATIVE]);
        let all = [
            Name::ScmpArchX86,
            Name::ScmpArchNative,
            Name::ScmpArchMips,
            Name::ScmpArchX86,
        ];
        let mut expected = vec![NATIVE, Arch::X86];
        expected.sort();
        assert_eq!(selected(&all), expected);
    }
}
