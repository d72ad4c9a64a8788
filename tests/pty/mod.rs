//! A person at a terminal: a program whose controlling terminal the test types on and reads.

#![allow(dead_code)] // each test file uses a part

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

/// A terminal with a program on it.
pub struct Pty {
    master: File,
    slave: OwnedFd,
    /// The program; `setsid` has become it.
    pub child: Child,
    seen: Arc<Mutex<Vec<u8>>>,
}

impl Pty {
    /// Starts a command on a new terminal of this size.
    pub fn start(command: &Command, (rows, columns): (u16, u16)) -> Pty {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags).unwrap();
        rustix::pty::grantpt(&master).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let name = rustix::pty::ptsname(&master, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let slave = rustix::fs::open(name, flags, Mode::empty()).unwrap();
        let mut whole = Command::new("setsid");
        whole
            .arg("--ctty")
            .arg(command.get_program())
            .args(command.get_args())
            .env_clear()
            .current_dir(command.get_current_dir().unwrap());
        for (name, value) in command.get_envs() {
            whole.env(name, value.unwrap());
        }
        let pty = |fd: &OwnedFd| fd.try_clone().unwrap();
        resize(&slave, rows, columns);
        let child = whole
            .stdin(pty(&slave))
            .stdout(pty(&slave))
            .stderr(pty(&slave))
            .spawn()
            .unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (mut reader, all) = (File::from(master.try_clone().unwrap()), seen.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                match reader.read(&mut buffer) {
                    Ok(count) if count > 0 => {
                        all.lock().unwrap().extend_from_slice(&buffer[..count]);
                    }
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    _ => return,
                }
            }
        });
        Pty {
            master: master.into(),
            slave,
            child,
            seen,
        }
    }

    /// Types.
    pub fn keys(&self, keys: impl AsRef<[u8]>) {
        (&self.master).write_all(keys.as_ref()).unwrap();
    }

    /// Changes the size of the window.
    pub fn resize(&self, rows: u16, columns: u16) {
        resize(&self.slave, rows, columns);
    }

    /// What is on the screen, and forgets it.
    pub fn screen(&self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut *self.seen.lock().unwrap())).into_owned()
    }

    /// Waits for a text, and forgets what came up to its end.
    #[track_caller]
    pub fn await_text(&self, text: &str) -> String {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            {
                let mut seen = self.seen.lock().unwrap();
                let found = seen.windows(text.len()).position(|w| w == text.as_bytes());
                if let Some(at) = found {
                    let before: Vec<u8> = seen.drain(..at + text.len()).collect();
                    return String::from_utf8_lossy(&before).into_owned();
                }
                assert!(
                    Instant::now() < end,
                    "never {text:?} in {:?}",
                    String::from_utf8_lossy(&seen)
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for the program's end: its exit code.
    #[track_caller]
    pub fn wait(&mut self) -> i32 {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(
                Instant::now() < end,
                "does not end; on the screen: {:?}",
                String::from_utf8_lossy(&self.seen.lock().unwrap())
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What is printed is shown as it is: somebody looks at another terminal.
    pub fn is_shown(&self) -> bool {
        let modes = rustix::termios::tcgetattr(&self.slave).unwrap();
        !modes
            .output_modes
            .contains(rustix::termios::OutputModes::OPOST)
    }

    /// The terminal interprets nothing: a program has it.
    pub fn is_raw(&self) -> bool {
        let modes = rustix::termios::tcgetattr(&self.slave).unwrap();
        !modes
            .local_modes
            .contains(rustix::termios::LocalModes::ICANON)
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a shell is told to wait for: its terminal has this size.
pub fn until_size(size: &str) -> String {
    format!("until [ \"$(stty size)\" = '{size}' ]; do sleep 0.1; done; echo sized $((6*7))\r")
}

/// A program that says so once it has the terminal, whose modes a shell changes between its prompt and that.
pub const SLEEP: &str = "sh -c 'echo asleep $((6*7)); exec sleep 1000'\r";

fn resize(fd: &OwnedFd, rows: u16, columns: u16) {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(fd, size).unwrap();
}
