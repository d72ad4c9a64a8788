//! The program as seen through a read-only mount, executed in place of itself: the fast half of the answer to CVE-2019-5736. The
//! other half, and why, is in Sampan's `sys::seal`.
//!
//! It is a crate of its own because it also runs at the program's entry point, before the C library has relocated the program,
//! looked at the processor and set up its memory: that is half of a start, and is not done twice then. So:
//!
//! *Invariants:*
//! * Nothing here calls anything: no library, no panic, no memcpy(3), no thread-local storage, and no address from data (it would not
//!   be relocated yet). It is compiled optimised in every profile for that reason, and a test looks at the instructions.
//! * A failure changes nothing: the program goes on, and `sys::seal` finds another way.
#![no_std]
#![allow(unsafe_code)]

use core::ffi::CStr;
use core::ptr;

use libc::{c_char, c_long};

/// In the environment of the second run of the program only.
pub const MARK: &CStr = c"_SAMPAN_SEALED=1";

/// The program's entry point: the stack is as execve(2) left it, and goes on to the C library's as it was.
///
/// # Safety
/// For the linker alone (`--entry`).
#[unsafe(naked)]
#[unsafe(no_mangle)]
#[cfg(target_arch = "x86_64")]
pub unsafe extern "C" fn sampan_entry() -> ! {
    core::arch::naked_asm!(
        "mov rbx, rsp",
        "mov r12, rdx",
        "mov rdi, rsp",
        "call {early}",
        "mov rsp, rbx",
        "mov rdx, r12",
        "xor ebp, ebp",
        "jmp _start",
        early = sym sampan_early,
    )
}

/// The program's entry point: the stack is as execve(2) left it, and goes on to the C library's as it was.
///
/// # Safety
/// For the linker alone (`--entry`).
#[unsafe(naked)]
#[unsafe(no_mangle)]
#[cfg(target_arch = "aarch64")]
pub unsafe extern "C" fn sampan_entry() -> ! {
    core::arch::naked_asm!(
        "mov x19, sp",
        "mov x20, x0",
        "mov x0, sp",
        "bl {early}",
        "mov sp, x19",
        "mov x0, x20",
        "mov x29, xzr",
        "mov x30, xzr",
        "b _start",
        early = sym sampan_early,
    )
}

/// Reads what execve(2) put on the stack: argc, argv, 0, environment, 0, auxiliary vector. Where a word says that a container is made
/// or entered the copy is executed; if it was not meant, that costs time only.
///
/// # Safety
/// `stack` is the initial stack pointer, and nothing has run yet.
#[unsafe(no_mangle)]
unsafe extern "C" fn sampan_early(stack: *mut usize) {
    // SAFETY: this is the layout of the initial stack (System V ABI, "Initial Stack and Register State"), which is writable; the
    // auxiliary vector behind the environment has at least two words.
    unsafe {
        let argc = stack.read_volatile();
        let argv = stack.add(1).cast::<*const c_char>();
        let environment = argv.add(argc + 1);
        if argc < 3 || !makes_or_enters(argc, argv) {
            return;
        }
        let mut end = environment;
        while !end.read_volatile().is_null() {
            if starts(end.read_volatile(), b"_SAMPAN_SEALED=") {
                return;
            }
            end = end.add(1);
        }
        // one more variable: the words behind the last one are put back when execve comes back
        let next = end.add(1).read_volatile();
        end.write_volatile(MARK.as_ptr());
        end.add(1).write_volatile(ptr::null());
        execute_read_only(argv, environment);
        end.write_volatile(ptr::null());
        end.add(1).write_volatile(next);
    }
}

/// Whether the words are those of an OCI runtime or of a pod's step, and one of them makes or enters a container. The first process that
/// Sampan is in some containers has another name, and whatever words.
#[inline(always)]
unsafe fn makes_or_enters(argc: usize, argv: *const *const c_char) -> bool {
    // SAFETY: `argc` C strings of the kernel's.
    unsafe {
        let (name, first) = (argv.read_volatile(), argv.add(1).read_volatile());
        if !starts(file_name(name), b"sampan-oci\0")
            && (starts(name, b"sampan-init\0")
                || !(starts(first, b"oci\0") || starts(first, b"internal\0")))
        {
            return false;
        }
        let mut index = 1;
        while index < argc {
            let word = argv.add(index).read_volatile();
            // `launch` is a pod's step
            if starts(word, b"create\0")
                || starts(word, b"run\0")
                || starts(word, b"exec\0")
                || starts(word, b"launch\0")
            {
                return true;
            }
            index += 1;
        }
    }
    false
}

/// What is behind the last slash.
#[inline(always)]
unsafe fn file_name(path: *const c_char) -> *const c_char {
    let (mut name, mut next) = (path, path);
    // SAFETY: up to the zero byte of a C string.
    unsafe {
        loop {
            let byte = next.read_volatile() as u8;
            next = next.add(1);
            match byte {
                0 => return name,
                b'/' => name = next,
                _ => {}
            }
        }
    }
}

/// Whether a C string begins with `prefix`; with a zero byte in that, whether it is the same.
#[inline(always)]
unsafe fn starts<const N: usize>(text: *const c_char, prefix: &[u8; N]) -> bool {
    let mut index = 0;
    while index < N {
        // SAFETY: not behind the string's end, which differs from every byte of the prefix but its last. Volatile: a loop that the
        // compiler knows becomes a call of memcmp(3).
        let (one, two) = unsafe {
            (
                text.cast::<u8>().add(index).read_volatile(),
                prefix.as_ptr().add(index).read_volatile(),
            )
        };
        if one != two {
            return false;
        }
        index += 1;
    }
    true
}

/// Executes the calling program as seen through a read-only mount of its file alone, which is in no mount namespace: no byte is copied,
/// no file system is made. Comes back when anything fails.
///
/// # Safety
/// `argv` and `environment` end with a null pointer and hold C strings.
#[inline(always)]
pub unsafe fn execute_read_only(argv: *const *const c_char, environment: *const *const c_char) {
    let exe = c"/proc/self/exe".as_ptr() as usize;
    let empty = c"".as_ptr() as usize;
    let here = libc::AT_FDCWD as usize;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NODEV,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: each call gets what its manual page asks for; the structure outlives the calls, and the descriptor is nobody else's.
    unsafe {
        let flags = (libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC) as usize;
        let tree = call(libc::SYS_open_tree, here, exe, flags, 0, 0);
        let Ok(tree) = usize::try_from(tree) else {
            return;
        };
        let set = call(
            libc::SYS_mount_setattr,
            tree,
            empty,
            libc::AT_EMPTY_PATH as usize,
            ptr::from_ref(&attributes) as usize,
            size_of::<libc::mount_attr>(),
        );
        if set == 0 {
            call(
                libc::SYS_execveat,
                tree,
                empty,
                argv as usize,
                environment as usize,
                libc::AT_EMPTY_PATH as usize,
            );
        }
        call(libc::SYS_close, tree, 0, 0, 0, 0);
    }
}

/// A system call with up to five arguments; negative is an error.
#[inline(always)]
#[cfg(target_arch = "x86_64")]
unsafe fn call(number: c_long, a: usize, b: usize, c: usize, d: usize, e: usize) -> isize {
    let done;
    // SAFETY: the caller's arguments; the kernel changes rcx, r11 and the answer alone.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") number as isize => done,
            in("rdi") a,
            in("rsi") b,
            in("rdx") c,
            in("r10") d,
            in("r8") e,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    done
}

/// A system call with up to five arguments; negative is an error.
#[inline(always)]
#[cfg(target_arch = "aarch64")]
unsafe fn call(number: c_long, a: usize, b: usize, c: usize, d: usize, e: usize) -> isize {
    let done;
    // SAFETY: the caller's arguments; the kernel changes the answer alone.
    unsafe {
        core::arch::asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") a as isize => done,
            in("x1") b,
            in("x2") c,
            in("x3") d,
            in("x4") e,
            options(nostack),
        );
    }
    done
}

/// Other machines go the other way.
#[inline(always)]
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
unsafe fn call(_: c_long, _: usize, _: usize, _: usize, _: usize, _: usize) -> isize {
    -(libc::ENOSYS as isize)
}
