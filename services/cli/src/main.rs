//! `banger`: the command line. Everything it does is a call to a service that `busctl` could make
//! as well.
//!
//! - `args`: what can be typed, as clap has it
//! - `cmd/`: one file per noun, and `run`
//! - [`bus`]: the system bus, or the services' own sockets
//! - [`credentials`]: of registries, which only the user can read
//! - [`journal`]: the system's, by journalctl(1)
//! - [`job`]: progress of long work, and Ctrl-C
//! - [`stream`], [`terminal`]: the bytes of commands in guests
//! - [`lines`]: their output line by line
//! - [`dirs`]: where files of the user's are
//! - [`exit`]: exit codes

mod args;
mod bus;
mod cmd;
mod credentials;
mod detach;
mod dirs;
#[cfg(test)]
mod documents;
mod exit;
mod job;
mod journal;
mod lines;
mod output;
mod patience;
mod stream;
mod terminal;

use std::process::ExitCode;

use banger_api::Error;
use clap::Parser;

use crate::args::Arguments;
use crate::bus::Bus;
use crate::output::Output;

/// What every command gets.
pub struct Context {
    pub bus: Bus,
    pub output: Output,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let context = Context {
        bus: Bus::new(arguments.global.peer),
        output: Output::new(arguments.global.json, arguments.global.quiet),
    };
    let runs_guest_command = arguments.command.runs_guest_command();
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::from)
        .and_then(|runtime| runtime.block_on(cmd::dispatch(&context, arguments.command)));
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            exit::complain(&error);
            ExitCode::from(exit::code(&error, runs_guest_command))
        }
    }
}
