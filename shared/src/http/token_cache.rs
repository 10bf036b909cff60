//! The one cache of tokens: a token is issued for a time of the wall clock, used until shortly before it expires, and
//! dropped when it is refused. One renewal runs at a time; requests that need its result wait for it.

use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::clock::Clock;

/// Minimum lifetime that a token must have left at use, in seconds; a third of a shorter lifetime.
const MARGIN: u64 = 300;

/// An issuer of tokens: a key that signs them, or a client that requests them from a service.
pub trait Issuer: Send {
    type Token: Clone + Send;
    type Error: Send;

    /// Issues a token at `now` (Unix seconds).
    fn issue(
        &mut self,
        now: u64,
        deadline: Instant,
    ) -> impl Future<Output = Result<Issued<Self::Token>, Self::Error>> + Send;

    /// Reads its own credentials again: a token that was refused may come from old ones.
    fn refresh(&mut self, deadline: Instant) -> impl Future<Output = ()> + Send;
}

/// A token and the time at which it expires, in Unix seconds.
#[derive(Debug, Clone)]
pub struct Issued<T> {
    pub token: T,
    pub expires_at: u64,
}

/// A token that is valid for now.
#[derive(Debug, Clone)]
pub struct Held<T> {
    pub token: T,
    /// Counts renewals, so that requests that are refused together renew once.
    pub generation: u64,
}

/// No token could be issued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotIssued<E> {
    pub error: E,
    pub generation: u64,
}

/// The tokens of one issuer.
pub struct TokenCache<I: Issuer> {
    clock: Clock,
    current: Mutex<Current<I>>,
}

struct Current<I: Issuer> {
    issuer: I,
    /// The token, and the last Unix second at which it is used. A failure is never cached.
    token: Option<(I::Token, u64)>,
    generation: u64,
}

impl<I: Issuer> TokenCache<I> {
    pub fn new(issuer: I, clock: Clock) -> Self {
        Self { clock, current: Mutex::new(Current { issuer, token: None, generation: 0 }) }
    }

    /// The cached token, or a new one.
    pub async fn token(&self, deadline: Instant) -> Result<Held<I::Token>, NotIssued<I::Error>> {
        let mut current = self.current.lock().await;
        let (now, generation) = (self.clock.unix_seconds(), current.generation);
        if let Some((token, used_until)) = &current.token
            && now <= *used_until
        {
            return Ok(Held { token: token.clone(), generation });
        }
        let issued = current.issuer.issue(now, deadline).await;
        let Issued { token, expires_at } = issued.map_err(|error| NotIssued { error, generation })?;
        let life = expires_at.saturating_sub(now);
        current.token = Some((token.clone(), expires_at - MARGIN.min(life / 3).min(expires_at)));
        Ok(Held { token, generation })
    }

    /// Drops the token of a `generation` that was refused, and has the issuer read its credentials again. The second of two
    /// requests that were refused together finds the work done.
    pub async fn renew(&self, generation: u64, deadline: Instant) {
        let mut current = self.current.lock().await;
        if current.generation != generation {
            return;
        }
        current.generation += 1;
        current.token = None;
        current.issuer.refresh(deadline).await;
    }

    /// Reads something from the current issuer.
    pub async fn issuer<R>(&self, read: impl FnOnce(&I) -> R) -> R {
        read(&self.current.lock().await.issuer)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    /// Counts what it does; its tokens live for so many seconds.
    struct Counting {
        life: u64,
        issued: u64,
        refreshed: u64,
    }

    impl Issuer for Counting {
        type Token = u64;
        type Error = ();

        async fn issue(&mut self, now: u64, _deadline: Instant) -> Result<Issued<u64>, ()> {
            tokio::task::yield_now().await;
            self.issued += 1;
            if self.life == 0 { Err(()) } else { Ok(Issued { token: self.issued, expires_at: now + self.life }) }
        }

        async fn refresh(&mut self, _deadline: Instant) {
            self.refreshed += 1;
        }
    }

    fn cache(life: u64) -> (TokenCache<Counting>, Arc<AtomicU64>) {
        let seconds = Arc::new(AtomicU64::new(1_000));
        let now = seconds.clone();
        let clock = Clock::from_fn(move || UNIX_EPOCH + Duration::from_secs(now.load(Ordering::Relaxed)));
        (TokenCache::new(Counting { life, issued: 0, refreshed: 0 }, clock), seconds)
    }

    async fn held(cache: &TokenCache<Counting>) -> Option<(u64, u64)> {
        let held = cache.token(Instant::now()).await.ok()?;
        Some((held.token, held.generation))
    }

    #[tokio::test]
    async fn a_token_is_used_until_its_margin_begins() {
        for (life, used_for) in [(3_600, 3_300), (86_400, 86_100), (60, 40), (1, 1)] {
            let (cache, seconds) = cache(life);
            assert_eq!(held(&cache).await, Some((1, 0)), "{life}");
            seconds.fetch_add(used_for, Ordering::Relaxed);
            assert_eq!(held(&cache).await, Some((1, 0)), "{life}");
            seconds.fetch_add(1, Ordering::Relaxed);
            assert_eq!(held(&cache).await, Some((2, 0)), "{life}");
        }
    }

    #[tokio::test]
    async fn requests_that_are_refused_together_renew_once() {
        let (cache, _) = cache(3_600);
        let all = || futures_util::future::join_all((0..10).map(|_| held(&cache)));
        assert!(all().await.iter().all(|held| *held == Some((1, 0))), "one is issued, the others wait for it");
        futures_util::future::join_all((0..10).map(|_| cache.renew(0, Instant::now()))).await;
        assert!(all().await.iter().all(|held| *held == Some((2, 1))));
        assert_eq!(cache.issuer(|issuer| (issuer.issued, issuer.refreshed)).await, (2, 1));
    }

    #[tokio::test]
    async fn a_failure_is_not_cached() {
        let (cache, _) = cache(0);
        assert_eq!((held(&cache).await, held(&cache).await), (None, None));
        assert_eq!(cache.issuer(|issuer| issuer.issued).await, 2);
    }
}
