//! `banger`: the command line. Everything it does is a call to a service that `busctl` could make
//! as well.
//!
//! - `args`: what can be typed, as clap has it
//! - `cmd/`: one file per noun, and `run`
//! - [`bus`]: the system bus, or the services' own sockets
//! - [`away`]: those of other hosts and of containers
//! - `complete`: what shells offer
//! - [`credentials`]: of registries, which only the user can read
//! - [`journal`]: the system's, by journalctl(1)
//! - [`job`]: progress of long work, and Ctrl-C
//! - [`stream`], [`terminal`]: the bytes of commands in guests
//! - [`objects`]: a service's objects with their properties
//! - [`lines`]: their output line by line
//! - [`shell`]: words of shells
//! - [`dirs`]: where files of the user's are
//! - [`exit`]: exit codes

#![deny(clippy::print_stdout, clippy::print_stderr)] // they panic; see `output`

mod args;
mod away;
mod bus;
mod cmd;
mod complete;
mod credentials;
mod detach;
mod dirs;
#[cfg(test)]
mod documents;
mod exit;
mod job;
mod journal;
mod lines;
mod objects;
mod output;
mod patience;
mod shell;
mod stream;
mod terminal;

use std::process::ExitCode;

use banger_api::Result;
use clap::Parser;

use crate::args::{Arguments, Global};
use crate::away::Away;
use crate::bus::Bus;
use crate::output::Output;

/// What every command gets.
pub struct Context {
    pub bus: Bus,
    pub output: Output,
}

fn main() -> ExitCode {
    complete::answer();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(answer) => return ExitCode::from(exit::answer(&answer, std::env::args_os())),
    };
    let runs_guest_command = arguments.command.runs_guest_command();
    match run(arguments) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            exit::complain(&error);
            ExitCode::from(exit::code(&error, runs_guest_command))
        }
    }
}

fn run(arguments: Arguments) -> Result<u8> {
    let Global { json, quiet, peer, host, machine } = &arguments.global;
    let away = Away::new(host.clone(), machine.clone());
    if let Some(away) = &away {
        away.send(&arguments.command)?;
    }
    let context = Context { bus: Bus::new(*peer, away), output: Output::new(*json, *quiet) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(cmd::dispatch(&context, arguments.command));
    // A thread that still copies from a guest has been given up, and may be stuck in it.
    runtime.shutdown_background();
    outcome
}
