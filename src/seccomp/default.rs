//! The filter every container gets unless told otherwise.
//!
//! The list is the one the field has settled on (moby/profiles `seccomp/default.json`): what programs
//! use is allowed, what reaches around namespaces or capabilities is EPERM, and some of that is allowed
//! again to a container that holds the capability for it. Three conditions are part of it: new
//! namespaces by clone(2), which CVE-2022-0185 and others began with; personalities without
//! ADDR_NO_RANDOMIZE; and sockets of families that reach past the network namespace (AF_VSOCK) or
//! into the kernel's cryptography (AF_ALG).
//!
//! *Invariants:* pure; more capabilities never make it narrower.

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompOperator as Operator, LinuxSyscall,
};

use super::ENOSYS;

/// Allowed to everyone.
const BASE: &str = "\
    _llseek _newselect accept accept4 access adjtimex alarm bind brk cachestat capget capset \
    chdir chmod chown chown32 clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 \
    clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64 close close_range \
    connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl \
    epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve \
    execveat exit exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark \
    fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr \
    flistxattr flock fork fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync \
    ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake \
    futimesat get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid \
    getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername \
    getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32 getresuid \
    getresuid32 getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid \
    getuid32 getxattr getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch \
    io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit \
    ioctl ioprio_get ioprio_set ipc kill landlock_add_rule landlock_create_ruleset \
    landlock_restrict_self lchown lchown32 lgetxattr link linkat listen listmount listxattr \
    listxattrat llistxattr lremovexattr lseek lsetxattr lstat lstat64 madvise map_shadow_stack \
    membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 \
    mlockall mmap mmap2 mprotect mq_getsetattr mq_notify mq_open mq_timedreceive \
    mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget \
    msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat open \
    openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free \
    pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64 \
    process_mrelease process_vm_readv process_vm_writev pselect6 pselect6_time64 ptrace pwrite64 \
    pwritev pwritev2 read readahead readlink readlinkat readv recv recvfrom recvmmsg \
    recvmmsg_time64 recvmsg remap_file_pages removexattr removexattrat rename renameat renameat2 \
    restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo \
    rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo \
    sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam \
    sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity \
    sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget \
    semop semtimedop semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto \
    set_robust_list set_thread_area set_tid_address setfsgid setfsgid32 setfsuid setfsuid32 \
    setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority setregid setregid32 \
    setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid setsockopt \
    setuid setuid32 setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd \
    signalfd4 sigprocmask sigreturn socketcall socketpair splice stat stat64 statfs statfs64 \
    statmount statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time \
    timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime \
    timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime \
    timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat \
    uretprobe utime utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write \
    writev";

/// Calls of one architecture; elsewhere the names mean nothing.
const MACHINE: &str = "arch_prctl modify_ldt arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls";

/// Allowed with a capability (capabilities(7)).
const BY_CAPABILITY: [(&str, &str); 14] = [
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    ("CAP_SYS_ADMIN", ADMIN),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module init_module finit_module"),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
    ("CAP_SYS_RAWIO", "iopl ioperm"),
    (
        "CAP_SYS_TIME",
        "settimeofday stime clock_settime clock_settime64",
    ),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    (
        "CAP_SYS_NICE",
        "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    ),
    ("CAP_SYSLOG", "syslog"),
    ("CAP_BPF", "bpf"),
    ("CAP_PERFMON", "perf_event_open"),
];

const ADMIN: &str = "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie \
    lsm_get_self_attr lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree \
    perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare";

/// personality(2): PER_LINUX, UNAME26 and PER_LINUX32 in all combinations, and the query.
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x20000, 0x20008, 0xffff_ffff];

/// CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;

const AF_ALG: u64 = 38;
const AF_VSOCK: u64 = 40;

/// The filter every container gets unless told otherwise: the field's usual allow-list, given what
/// `capabilities` (bounding set, `CAP_…`) allow.
pub fn default_profile(capabilities: &[String]) -> LinuxSeccomp {
    let has = |name: &str| capabilities.iter().any(|held| held == name);
    let mut rules = vec![allow(BASE, None), allow(MACHINE, None)];
    rules.extend(
        PERSONALITIES
            .iter()
            .map(|value| allow("personality", argument(Operator::ScmpCmpEq, *value, None))),
    );
    // one rule each side of the two families, for a rule holds one comparison per argument
    for (operator, family) in [
        (Operator::ScmpCmpLt, AF_ALG),
        (Operator::ScmpCmpEq, AF_ALG + 1),
        (Operator::ScmpCmpGt, AF_VSOCK),
    ] {
        rules.push(allow("socket", argument(operator, family, None)));
    }
    for (capability, names) in BY_CAPABILITY {
        if has(capability) {
            rules.push(allow(names, None));
        }
    }
    if !has("CAP_SYS_ADMIN") {
        let plain = argument(Operator::ScmpCmpMaskedEq, CLONE_NAMESPACES, Some(0));
        rules.push(allow("clone", plain));
        // its flags are behind a pointer; with ENOSYS the C library goes back to clone
        rules.push(rule("clone3", Action::ScmpActErrno, Some(ENOSYS), None));
    }
    let mut profile = LinuxSeccomp::default();
    profile.set_default_action(Action::ScmpActErrno);
    profile.set_default_errno_ret(Some(super::EPERM));
    profile.set_architectures(Some(architectures()));
    profile.set_flags(None);
    profile.set_syscalls(Some(rules));
    profile
}

/// The native one and those whose programs it runs.
fn architectures() -> Vec<Arch> {
    if cfg!(target_arch = "aarch64") {
        vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm]
    } else {
        vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32]
    }
}

fn argument(operator: Operator, value: u64, two: Option<u64>) -> Option<LinuxSeccompArg> {
    let builder = LinuxSeccompArgBuilder::default()
        .index(0usize)
        .value(value)
        .op(operator);
    match two {
        Some(two) => builder.value_two(two),
        None => builder,
    }
    .build()
    .ok()
}

fn allow(names: &str, argument: Option<LinuxSeccompArg>) -> LinuxSyscall {
    rule(names, Action::ScmpActAllow, None, argument)
}

fn rule(
    names: &str,
    action: Action,
    errno: Option<u32>,
    argument: Option<LinuxSeccompArg>,
) -> LinuxSyscall {
    let names: Vec<String> = names.split_whitespace().map(str::to_owned).collect();
    let mut rule = LinuxSyscall::default();
    rule.set_names(names);
    rule.set_action(action);
    rule.set_errno_ret(errno);
    rule.set_args(argument.map(|one| vec![one]));
    rule
}
