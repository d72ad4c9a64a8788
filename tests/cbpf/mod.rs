//! Runs a classic BPF program over `struct seccomp_data` as the kernel does (seccomp_check_filter and
//! bpf_prog_run); panics on what the kernel would refuse.

/// What a filter sees, linux/seccomp.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Data {
    pub number: u32,
    pub arch: u32,
    pub pointer: u64,
    pub args: [u64; 6],
}

impl Data {
    fn word(&self, offset: u32) -> u32 {
        assert!(offset.is_multiple_of(4));
        let wide = |value: u64| {
            if offset.is_multiple_of(8) {
                value as u32
            } else {
                (value >> 32) as u32
            }
        };
        match offset {
            0 => self.number,
            4 => self.arch,
            8 | 12 => wide(self.pointer),
            _ => wide(self.args[(offset as usize - 16) / 8]),
        }
    }
}

/// The filter's return value.
pub fn run(program: &[(u16, u8, u8, u32)], data: &Data) -> u32 {
    assert!((1..=4096).contains(&program.len()));
    let (mut a, mut x, mut at) = (0u32, 0u32, 0usize);
    let mut memory = [0u32; 16];
    loop {
        let (code, jt, jf, k) = program[at];
        at += 1;
        let jump = |taken: bool| usize::from(if taken { jt } else { jf });
        match code {
            0x20 => a = data.word(k),
            0x00 => a = k,
            0x60 => a = memory[k as usize],
            0x02 => memory[k as usize] = a,
            0x07 => x = a,
            0x87 => a = x,
            0x54 => a &= k,
            0x05 => at += k as usize,
            0x15 => at += jump(a == k),
            0x25 => at += jump(a > k),
            0x35 => at += jump(a >= k),
            0x45 => at += jump(a & k != 0),
            0x06 => return k,
            other => panic!("instruction {}: code {other:#x}", at - 1),
        }
    }
}
