//! Hands transactions to nft(8).

use std::process::Stdio;

use banger_api::{Error, ErrorKind, Result};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Applies all of it, or nothing.
///
/// # Errors
/// `NotSupported` if nft is not installed, `Internal` with what it said if it refuses.
pub async fn apply(transaction: &Value) -> Result<()> {
    run(&["-j", "-f", "-"], &transaction.to_string()).await.map(drop)
}

/// All chains of the host, without their rules: the objects of libnftables-json(5).
///
/// # Errors
/// As [`apply`].
pub async fn chains() -> Result<Value> {
    serde_json::from_slice(&run(&["-j", "list", "chains"], "").await?).map_err(Error::internal)
}

/// A table in nft's own words.
///
/// # Errors
/// As [`apply`], also if there is no such table.
pub async fn table(family: &str, name: &str) -> Result<String> {
    let text = run(&["list", "table", family, name], "").await?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Returns what it printed.
async fn run(arguments: &[&str], input: &str) -> Result<Vec<u8>> {
    let mut child = Command::new("nft")
        .args(arguments)
        // What systemd gave us is not for our children.
        .env_remove("NOTIFY_SOCKET")
        .env_remove("WATCHDOG_USEC")
        .env_remove("WATCHDOG_PID")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                ErrorKind::NotSupported.error("nft is not installed; install nftables")
            }
            _ => Error::internal(format!("cannot run nft: {error}")),
        })?;
    let mut stdin = child.stdin.take().expect("piped");
    let written = async move {
        // Whether nft read it all shows in how it ends.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
    };
    let ((), output) = tokio::join!(written, child.wait_with_output());
    let output = output?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said: Vec<u8> = [output.stderr, output.stdout].concat();
    let said = String::from_utf8_lossy(&said);
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    Err(Error::internal(format!("nft {} failed ({}): {said}", arguments.join(" "), output.status)))
}
