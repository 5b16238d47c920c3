//! When what could not be written is tried again.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// After the first failure.
const FIRST: Duration = Duration::from_millis(100);
/// The pause doubles with each failure up to this.
const LONGEST: Duration = Duration::from_secs(30);

/// When to try again; never, as long as all goes well.
#[derive(Debug, Default)]
pub struct Retry {
    next: Option<Instant>,
    failures: u32,
}

impl Retry {
    /// Takes how a try went.
    pub fn after(&mut self, failed: bool) {
        if failed {
            let pause = FIRST.saturating_mul(1 << self.failures.min(16)).min(LONGEST);
            self.next = Some(Instant::now() + pause);
            self.failures += 1;
        } else {
            *self = Self::default();
        }
    }

    /// Ends when it is time to try again.
    pub async fn due(&self) {
        match self.next {
            Some(next) => sleep_until(next).await,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_double_up_to_their_limit_and_begin_anew_after_a_success() {
        let mut retry = Retry::default();
        let began = Instant::now();
        let mut pauses = Vec::new();
        for _ in 0..12 {
            let before = began.elapsed();
            retry.after(true);
            retry.due().await;
            pauses.push((began.elapsed() - before).as_millis());
        }
        assert_eq!(pauses[..3], [100, 200, 400]);
        assert_eq!(pauses[11], LONGEST.as_millis());
        retry.after(false);
        retry.after(true);
        let before = began.elapsed();
        retry.due().await;
        assert_eq!(began.elapsed() - before, FIRST);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_due_while_all_goes_well() {
        let retry = Retry::default();
        let due = tokio::time::timeout(Duration::from_secs(3600), retry.due());
        assert!(due.await.is_err());
    }
}
