//! vmd's interfaces: thin layers that authorise, call the supervisor and map the result.

mod manager;
mod vm;

pub use manager::Manager;
pub use vm::VmObject;
