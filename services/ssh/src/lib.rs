//! The server's side of SSH (RFC 4251 to 4254), for a client that a pipe leads to: the `ProxyCommand` of ssh(1).
//!
//! Client and server are processes of one user on one host. What is encrypted here passes a pipe between them, so of each kind
//! of algorithm there is the one that ssh(1) has had for longest of those that are still good: `curve25519-sha256`,
//! `ssh-ed25519`, `aes256-gcm@openssh.com`, without compression. The client is trusted as its user is; who sends what
//! makes no sense is cut off.
//!
//! Nothing here reads or writes: [`Server`] takes bytes and gives events, takes answers and gives bytes.
//!
//! - [`server`]: what the client wants: log in, channels, commands in them
//! - `exchange`: how both ends come by their keys
//! - `packet`: messages, encrypted
//! - [`key`]: the keys of hosts and users, and their files

mod exchange;
pub mod key;
mod packet;
pub mod server;

pub use exchange::{CIPHER, METHOD};
pub use key::Key;
pub use server::{Destination, Event, Request, Server};

/// Why there can be no conversation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("the client does not speak SSH 2.0")]
    Version,
    #[error("the client sent a malformed message")]
    Malformed,
    #[error("the client sent what does not belong there: message {0}")]
    Unexpected(u8),
    #[error("the client sent more than a channel had room for")]
    Window,
    #[error("the client offers no {0}; its configuration may forbid it")]
    NoCommon(&'static str),
    #[error("the client's message was damaged on the way")]
    Damaged,
    #[error("the client's key exchange failed")]
    Crypto,
    #[error("not an Ed25519 key without passphrase, in OpenSSH's form")]
    Key,
    #[error("the client left: {0}")]
    Disconnected(String),
}

impl From<banger_core::wire::Malformed> for Error {
    fn from(_: banger_core::wire::Malformed) -> Self {
        Self::Malformed
    }
}
