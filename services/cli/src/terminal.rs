//! The caller's terminal.

use std::io::{IsTerminal, stdin, stdout};
use std::os::fd::AsFd;

use banger_api::Result;
use nix::libc;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

use crate::output::print;

/// Whether a person sits at both ends.
pub fn is_interactive() -> bool {
    stdin().is_terminal() && stdout().is_terminal()
}

/// Rows and columns of the terminal, if there is one.
pub fn size() -> Option<(u16, u16)> {
    nix::ioctl_read_bad!(get_window_size, libc::TIOCGWINSZ, libc::winsize);
    // SAFETY: a winsize is plain data, for which zeros are valid, and the kernel fills it.
    let size = unsafe {
        let mut size: libc::winsize = std::mem::zeroed();
        [libc::STDOUT_FILENO, libc::STDIN_FILENO]
            .into_iter()
            .find(|fd| get_window_size(*fd, &raw mut size).is_ok())?;
        size
    };
    // Those that nobody has told their size have none.
    Some((size.ws_row, size.ws_col)).filter(|(rows, columns)| *rows > 0 && *columns > 0)
}

/// Standard input in raw mode, until this is dropped.
pub struct RawMode(Option<Termios>);

impl RawMode {
    /// Does nothing if standard input is no terminal.
    pub fn enter() -> Result<Self> {
        let stdin = stdin();
        if !stdin.is_terminal() {
            return Ok(Self(None));
        }
        let before = tcgetattr(stdin.as_fd()).map_err(std::io::Error::from)?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(stdin.as_fd(), SetArg::TCSADRAIN, &raw).map_err(std::io::Error::from)?;
        Ok(Self(Some(before)))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // The terminal may be gone, and then nothing is left to restore.
            let _ = tcsetattr(stdin().as_fd(), SetArg::TCSADRAIN, before);
        }
    }
}

/// A screen of its own, without a cursor, until this is dropped; what was shown before comes back.
pub struct Screen(());

impl Screen {
    pub fn enter() -> Self {
        print("\x1b[?1049h\x1b[?25l\x1b[2J");
        Self(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        print("\x1b[?25h\x1b[?1049l");
    }
}
