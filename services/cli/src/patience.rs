//! Services come back within moments when they are restarted, upgraded or killed, and what they are asked goes on without
//! them: who waits for it asks again.

use std::time::{Duration, Instant};

use banger_api::{Error, ErrorKind, Result};

/// How long a service that was restarted may take to answer again.
const PATIENCE: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_millis(200);

/// Asks until there is an answer, if the service was not there for it.
pub async fn ask<T>(question: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    ask_while(|error| error.kind() == ErrorKind::ServiceUnavailable, question).await
}

/// Asks until there is an answer, or an error that does not pass.
pub async fn ask_while<T>(
    passes: impl Fn(&Error) -> bool,
    mut question: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let mut since: Option<Instant> = None;
    loop {
        let error = match question().await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        if !passes(&error) || since.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
            return Err(error);
        }
        tokio::time::sleep(RETRY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_who_is_away_is_asked_again() {
        let mut answers = vec![Ok(7), Err(ErrorKind::ServiceUnavailable), Err(ErrorKind::ServiceUnavailable)];
        let answer = ask(async || answers.pop().expect("no more").map_err(|kind| kind.error("no"))).await;
        assert_eq!(answer.expect("an answer"), 7);

        let mut answers = vec![Ok(7), Err(ErrorKind::NoSuchVm)];
        let answer = ask(async || answers.pop().expect("no more").map_err(|kind| kind.error("no"))).await;
        assert_eq!(answer.expect_err("refused").kind(), ErrorKind::NoSuchVm);
    }
}
