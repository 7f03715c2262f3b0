//! One token for all operations, and one refresh at a time.
//!
//! The refresh is a future in a slot. Whoever waits for the token polls it, and everybody is woken
//! when it moves, so it does not stop when one of them is dropped. Nobody polls it under the lock:
//! it is the user's code, and may take any time or come back here.

use std::borrow::Cow;
use std::fmt;
use std::future::poll_fn;
use std::num::NonZeroU32;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use http::{HeaderName, HeaderValue};

use super::waiting::{Place, Waiting};
use super::{Fetching, Token, Why};
use crate::clock;
use crate::deadline::{Task, in_task};
use crate::error::BoxError;
use crate::journal::ShortDuration;
use crate::transport_error;

/// The longest default margin.
const MARGIN: Duration = Duration::from_secs(60);
/// The pause after the first failure, and the longest.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Which token a request has carried: the first is 1.
pub(crate) type TokenNumber = NonZeroU32;

/// A token, as it is sent.
pub(crate) struct Issued {
    pub(crate) number: TokenNumber,
    pub(crate) value: HeaderValue,
    /// The first token since when the principal is the same.
    principal_since: TokenNumber,
    principal: Option<String>,
    renew_at: Option<Instant>,
    expires_at: Option<Instant>,
}

impl Issued {
    /// Returns whether this token speaks for the same principal as an earlier one.
    pub(crate) fn has_principal_of(&self, earlier: TokenNumber) -> bool {
        earlier >= self.principal_since
    }
}

/// Why there is no token.
#[derive(Debug)]
pub(crate) enum NoToken {
    /// The refresh has failed.
    Failed(SharedError),
    /// The operation's time has passed.
    TimedOut,
}

/// One error for all who wait. Its source is the closure's.
#[derive(Clone)]
pub(crate) struct SharedError(Arc<BoxError>);

impl fmt::Display for SharedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the refresh failed")
    }
}

impl fmt::Debug for SharedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for SharedError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&**self.0)
    }
}

impl From<BoxError> for SharedError {
    fn from(error: BoxError) -> Self {
        Self(Arc::new(transport_error::without_url(error)))
    }
}

/// The token of a client, and the closure that renews it.
pub(crate) struct TokenSource {
    pub(crate) header: HeaderName,
    scheme: Cow<'static, str>,
    fetch: Arc<dyn Fn(Why) -> Fetching + Send + Sync>,
    margin: Option<Duration>,
    timeout: Duration,
    state: Mutex<State>,
    waiting: Arc<Waiting>,
    /// The number of the last token that the server has accepted.
    accepted: AtomicU32,
}

#[derive(Default)]
struct State {
    token: Option<Arc<Issued>>,
    /// The server has refused `token`.
    is_refused: bool,
    /// How many tokens in a row were refused and never accepted.
    refused_in_a_row: u32,
    refresh: Refresh,
    /// What the refresh that runs was asked for, and when its time is up.
    asked: Option<(Why, Instant)>,
    /// How many refreshes have ended, and how the last one did.
    rounds: u64,
    failure: Option<Failure>,
    failed_in_a_row: u32,
}

#[derive(Default)]
enum Refresh {
    #[default]
    Idle,
    /// It waits to be polled.
    Waiting(Fetching),
    /// A task polls it just now.
    Polled,
}

struct Failure {
    error: SharedError,
    until: Instant,
}

/// What an operation that needs a token does.
enum Next {
    Use(Arc<Issued>),
    Fail(SharedError),
    Wait,
}

impl TokenSource {
    pub(super) fn new(
        header: HeaderName,
        scheme: Cow<'static, str>,
        fetch: Arc<dyn Fn(Why) -> Fetching + Send + Sync>,
        margin: Option<Duration>,
        timeout: Duration,
    ) -> Self {
        let (state, waiting) = (Mutex::default(), Arc::default());
        Self { header, scheme, fetch, margin, timeout, state, waiting, accepted: AtomicU32::new(0) }
    }

    /// Returns the token, if it can be used without a wait.
    pub(crate) fn at_hand(&self) -> Option<Arc<Issued>> {
        match self.next(&self.lock(), clock::now()) {
            Next::Use(token) => Some(token),
            _ => None,
        }
    }

    /// Waits for a token, until `deadline` at the latest.
    pub(crate) async fn get(&self, deadline: Option<Instant>) -> Result<Arc<Issued>, NoToken> {
        // This operation renews a token that is still valid. It does not spend all of its time on it.
        if let Some(patience) = self.patience(deadline) {
            if let Ok(token) = clock::until(Some(patience), self.wait()).await {
                return token.map_err(NoToken::Failed);
            }
            if let Some(token) = self.usable(&self.lock(), clock::now()) {
                return Ok(token.clone());
            }
        }
        match clock::until(deadline, self.wait()).await {
            Ok(token) => token.map_err(NoToken::Failed),
            Err(clock::TimedOut) => Err(NoToken::TimedOut),
        }
    }

    /// Returns until when an operation waits for a fresh token if the old one is still valid: for
    /// half of its own time, or a quarter of the token's.
    fn patience(&self, deadline: Option<Instant>) -> Option<Instant> {
        let now = clock::now();
        let expires_at = self.usable(&self.lock(), now)?.expires_at;
        let half = deadline.map(|deadline| deadline.saturating_duration_since(now) / 2);
        let quarter = expires_at.map(|at| at.saturating_duration_since(now) / 4);
        now.checked_add([half, quarter].into_iter().flatten().min()?)
    }

    /// Waits for the end of the refresh that runs, or starts one.
    async fn wait(&self) -> Result<Arc<Issued>, SharedError> {
        let (place, began) = (self.waiting.place(), clock::now());
        let mut waits_for = None;
        loop {
            let token = poll_fn(|cx| self.poll_get(&place, &mut waits_for, cx));
            if let Ok(token) = clock::until(Some(self.end_of_refresh()), token).await {
                return token;
            }
            self.end_late_refresh(clock::now(), began);
        }
    }

    /// Returns when the refresh that runs is late. The limit is on the clock of those who wait,
    /// because the runtime that has started the refresh may be gone.
    fn end_of_refresh(&self) -> Instant {
        let now = clock::now();
        let state = self.lock();
        match state.asked {
            Some((_, ends_at)) if ends_at > now || !matches!(state.refresh, Refresh::Polled) => ends_at,
            // A task is inside of it just now, so it cannot be ended. Look again later.
            Some(_) => now.checked_add(PAUSE).unwrap_or(now),
            None => now.checked_add(self.timeout).unwrap_or(now),
        }
    }

    /// Ends a refresh whose time is up, for an operation that waits since `began`. If that is later,
    /// nobody has driven the refresh on, which is no failure of the closure.
    fn end_late_refresh(&self, now: Instant, began: Instant) {
        let mut state = self.lock();
        let Some((_, ends_at)) = state.asked.filter(|(_, ends_at)| *ends_at <= now) else { return };
        if !matches!(state.refresh, Refresh::Waiting(_)) {
            return;
        }
        let late = std::mem::take(&mut state.refresh);
        state.asked = None;
        drop(state);
        // The user's code, so not under the lock.
        drop(late);
        if began < ends_at {
            self.settle(Err(format!("no token within {}", ShortDuration(self.timeout)).into()));
        }
    }

    /// Returns the token, if it is still good.
    fn usable<'b>(&self, state: &'b State, now: Instant) -> Option<&'b Arc<Issued>> {
        state.token.as_ref().filter(|token| !state.is_refused && token.expires_at.is_none_or(|at| now < at))
    }

    /// Records that the server has accepted a token.
    pub(crate) fn accepted(&self, number: TokenNumber) {
        self.accepted.fetch_max(number.get(), Ordering::Relaxed);
    }

    /// Records that the server has refused a token. It is not sent again.
    pub(crate) fn refused(&self, number: TokenNumber) {
        let mut state = self.lock();
        let is_current = state.token.as_ref().is_some_and(|token| token.number == number);
        if !is_current || std::mem::replace(&mut state.is_refused, true) {
            return;
        }
        let was_accepted = self.accepted.load(Ordering::Relaxed) >= number.get();
        state.refused_in_a_row = if was_accepted { 0 } else { state.refused_in_a_row.saturating_add(1) };
        // A server that refuses every token would otherwise cost two refreshes for each operation.
        if state.refused_in_a_row > 1 {
            state.fail(BoxError::from("the server has refused each fresh token").into());
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self, state: &State, now: Instant) -> Next {
        let has_passed = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let is_paused = state.failure.as_ref().filter(|failure| now < failure.until);
        let usable = self.usable(state, now);
        let is_running = !matches!(state.refresh, Refresh::Idle);
        match (usable, is_paused) {
            (Some(token), None) => {
                // One operation renews it. If that was dropped, this one does.
                let is_cared_for = !has_passed(token.renew_at) || (is_running && !self.waiting.is_empty());
                if is_cared_for { Next::Use(token.clone()) } else { Next::Wait }
            }
            (Some(token), Some(_)) => Next::Use(token.clone()),
            (None, Some(failure)) if !is_running => Next::Fail(failure.error.clone()),
            (None, _) => Next::Wait,
        }
    }

    /// Polls for a token. `waits_for`: the round whose end this operation waits for.
    fn poll_get(
        &self,
        place: &Place<'_>,
        waits_for: &mut Option<u64>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Arc<Issued>, SharedError>> {
        loop {
            let mut state = self.lock();
            let has_ended = waits_for.is_some_and(|round| state.rounds > round);
            if has_ended && let Some(end) = state.end_of_round() {
                return Poll::Ready(end);
            }
            if waits_for.is_none() || has_ended {
                match self.next(&state, clock::now()) {
                    Next::Use(token) => return Poll::Ready(Ok(token)),
                    Next::Fail(error) => return Poll::Ready(Err(error)),
                    Next::Wait => *waits_for = Some(state.rounds),
                }
            }
            place.wait(cx.waker());
            let mut refresh = match std::mem::replace(&mut state.refresh, Refresh::Polled) {
                Refresh::Idle => {
                    let now = clock::now();
                    let why = state.why();
                    state.asked = Some((why, now.checked_add(self.timeout).unwrap_or(now)));
                    self.start(why)
                }
                Refresh::Waiting(refresh) => refresh,
                // Its end wakes this task.
                Refresh::Polled => return Poll::Pending,
            };
            drop(state);
            self.waiting.begin_poll();
            let waker = Waker::from(self.waiting.clone());
            match refresh.as_mut().poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(result) => self.settle(result),
                Poll::Pending => {
                    self.lock().refresh = Refresh::Waiting(refresh);
                    self.waiting.end_poll();
                    return Poll::Pending;
                }
            }
        }
    }

    /// Starts a refresh. It runs no code of the user's before it is polled.
    ///
    /// It belongs to all who wait. So the deadline of the task that polls it does not hold for it, nor
    /// does the loop around that task.
    fn start(&self, why: Why) -> Fetching {
        let fetch = self.fetch.clone();
        let mut fetching = None;
        let caught = poll_fn(move |cx| {
            let polled =
                catch_unwind(AssertUnwindSafe(|| fetching.get_or_insert_with(|| fetch(why)).as_mut().poll(cx)));
            // The message of a panic may hold a secret, so it is not repeated here.
            polled.unwrap_or_else(|_panic| Poll::Ready(Err("the closure that gets a token panicked".into())))
        });
        Box::pin(in_task(Task::default(), caught))
    }

    /// Ends a refresh.
    fn settle(&self, result: Result<Token, BoxError>) {
        let mut state = self.lock();
        state.refresh = Refresh::Idle;
        state.rounds = state.rounds.saturating_add(1);
        let asked = state.asked.take().map(|(why, _)| why);
        if asked != Some(Why::Refused) && result.as_ref().is_ok_and(|token| self.is_refused(&state, token)) {
            // The server has refused it meanwhile. Nobody has told the closure so yet.
            drop(state);
            self.waiting.wake_all();
            return;
        }
        match result.and_then(|token| self.issue(&state, token)) {
            Ok(token) => {
                state.token = Some(Arc::new(token));
                state.is_refused = false;
                state.failure = None;
                state.failed_in_a_row = 0;
            }
            Err(error) => {
                state.failed_in_a_row = state.failed_in_a_row.saturating_add(1);
                state.fail(error.into());
            }
        }
        drop(state);
        self.waiting.wake_all();
    }

    /// Returns whether the server has refused this token.
    fn is_refused(&self, state: &State, token: &Token) -> bool {
        let value = format!("{}{}", self.scheme, token.value);
        state.is_refused && state.token.as_ref().is_some_and(|last| last.value.as_bytes() == value.as_bytes())
    }

    fn issue(&self, state: &State, token: Token) -> Result<Issued, BoxError> {
        let last = state.token.as_ref();
        let number = last.map_or(Some(TokenNumber::MIN), |last| last.number.checked_add(1));
        let number = number.ok_or("there were more tokens than can be counted")?;
        let value = HeaderValue::try_from(format!("{}{}", self.scheme, token.value));
        let mut value = value.map_err(|_| "the token has characters that no header can have")?;
        value.set_sensitive(true);
        if self.is_refused(state, &token) {
            return Err("the closure returned the token that the server has refused".into());
        }
        let kept = last.filter(|last| last.principal == token.principal);
        let now = clock::now();
        // Some providers say zero for "not known".
        let lifetime = token.expires_in.filter(|lifetime| !lifetime.is_zero());
        Ok(Issued {
            number,
            value,
            principal_since: kept.map_or(number, |last| last.principal_since),
            principal: token.principal,
            renew_at: lifetime.and_then(|lifetime| now.checked_add(lifetime - self.margin(lifetime, clock::unit()))),
            expires_at: lifetime.and_then(|lifetime| now.checked_add(lifetime)),
        })
    }

    /// Returns how long before its end a token is renewed. `unit`: a random number between 0 and 1.
    fn margin(&self, lifetime: Duration, unit: f64) -> Duration {
        let margin = self.margin.unwrap_or_else(|| MARGIN.min(lifetime / 10)).min(lifetime / 2);
        margin.mul_f64(1.0 + unit / 2.0).min(lifetime / 2)
    }
}

impl State {
    fn why(&self) -> Why {
        match self.token {
            None => Why::First,
            Some(_) if self.is_refused => Why::Refused,
            Some(_) => Why::Expiring,
        }
    }

    /// Lets no refresh start for a while.
    fn fail(&mut self, error: SharedError) {
        let times = self.failed_in_a_row.max(self.refused_in_a_row.saturating_sub(1));
        let doubled = 1_u32.checked_shl(times.saturating_sub(1)).unwrap_or(u32::MAX);
        let pause = PAUSE.saturating_mul(doubled).min(LONGEST_PAUSE);
        let until = clock::now() + pause.mul_f64(1.0 + clock::unit() / 2.0);
        self.failure = Some(Failure { error, until });
    }

    /// Returns how the refresh has ended for those who have waited, or `None` if its token was
    /// refused since.
    fn end_of_round(&self) -> Option<Result<Arc<Issued>, SharedError>> {
        let is_valid = |token: &&Arc<Issued>| token.expires_at.is_none_or(|at| clock::now() < at);
        let token = self.token.as_ref().filter(|_| !self.is_refused);
        match (&self.failure, token) {
            (None, token) => token.map(|token| Ok(token.clone())),
            (Some(failure), token) => Some(token.filter(is_valid).ok_or_else(|| failure.error.clone()).cloned()),
        }
    }
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenSource").field("header", &self.header).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use futures_util::future::join_all;
    use futures_util::{FutureExt as _, pin_mut};
    use tokio::sync::Semaphore;

    use super::super::Refreshing;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A source whose tokens are `token-1`, `token-2` and so on, and the number of refreshes. Each
    /// refresh takes a permit and a second, if it is not told to fail.
    struct Provider {
        source: TokenSource,
        asked: Arc<Mutex<Vec<Why>>>,
        permits: Arc<Semaphore>,
        fails: Arc<AtomicBool>,
    }

    impl Provider {
        fn new(change: impl Fn(Refreshing) -> Refreshing, make: fn(usize) -> Token) -> Self {
            let (asked, fails) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
            let permits = Arc::new(Semaphore::new(1000));
            let (told, fail, permit) = (asked.clone(), fails.clone(), permits.clone());
            let refreshing = Refreshing::bearer(move |why| {
                told.lock().unwrap().push(why);
                let (number, fail, permit) = (told.lock().unwrap().len(), fail.clone(), permit.clone());
                async move {
                    permit.acquire().await.unwrap().forget();
                    clock::sleep(SECOND).await;
                    if fail.load(Ordering::SeqCst) { Err("the provider is down") } else { Ok(make(number)) }
                }
            });
            Self { source: change(refreshing).into_source().unwrap(), asked, permits, fails }
        }

        fn endless() -> Self {
            Self::new(|refreshing| refreshing, |number| Token::new(format!("token-{number}")))
        }

        /// With tokens that last 1,000 s, renewed 100 to 150 s before.
        fn expiring() -> Self {
            let make = |number| Token::new(format!("token-{number}")).expires_in(1000 * SECOND);
            Self::new(|refreshing| refreshing.margin(100 * SECOND), make)
        }

        fn asked(&self) -> Vec<Why> {
            self.asked.lock().unwrap().clone()
        }

        async fn get(&self) -> Result<String, String> {
            shown(self.source.get(None).await)
        }
    }

    fn shown(got: Result<Arc<Issued>, NoToken>) -> Result<String, String> {
        match got {
            Ok(token) => Ok(token.value.to_str().unwrap().to_owned()),
            Err(NoToken::Failed(error)) => Err(error.0.to_string()),
            Err(NoToken::TimedOut) => Err("timed out".to_owned()),
        }
    }

    fn bearer(number: usize) -> Result<String, String> {
        Ok(format!("Bearer token-{number}"))
    }

    #[tokio::test(start_paused = true)]
    async fn all_who_wait_share_one_refresh() {
        let provider = Provider::endless();
        let all = join_all((0..1000).map(|_| provider.get())).await;
        assert!(all.iter().all(|token| *token == bearer(1)));
        assert_eq!((provider.asked(), provider.get().await), (vec![Why::First], bearer(1)));
        assert!(provider.source.waiting.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn refresh_outlives_those_who_are_dropped() {
        let provider = Provider::endless();
        provider.permits.forget_permits(1000);
        {
            let (first, second) = (provider.get(), provider.get());
            pin_mut!(first, second);
            assert!(first.as_mut().now_or_never().is_none() && second.as_mut().now_or_never().is_none());
        }
        // Nobody waits now. The next one goes on where they have stopped.
        let dropped = Box::pin(provider.get());
        let stays = provider.get();
        pin_mut!(stays);
        let mut dropped = Some(dropped);
        assert!(dropped.as_mut().unwrap().as_mut().now_or_never().is_none());
        assert!(stays.as_mut().now_or_never().is_none());
        provider.permits.add_permits(1);
        dropped = None;
        assert_eq!((stays.await, dropped.is_none()), (bearer(1), true));
        assert_eq!(provider.asked(), [Why::First]);
    }

    #[tokio::test(start_paused = true)]
    async fn failed_refresh_is_one_error_and_a_pause() {
        let provider = Provider::endless();
        provider.fails.store(true, Ordering::SeqCst);
        let down = Err("the provider is down".to_owned());
        let all = join_all((0..100).map(|_| provider.get())).await;
        assert!(all.iter().all(|error| *error == down));
        assert_eq!((provider.get().await, provider.asked().len()), (down.clone(), 1), "no stampede");
        // From one to one and a half of 1, 2, 4, 8, 16, 30 and 30 s.
        for (refreshes, pause) in [1, 2, 4, 8, 16, 30, 30].into_iter().enumerate() {
            tokio::time::advance(pause * SECOND - SECOND / 100).await;
            assert_eq!((provider.get().await, provider.asked().len()), (down.clone(), refreshes + 1));
            tokio::time::advance(pause * SECOND / 2 + SECOND / 50).await;
            assert_eq!((provider.get().await, provider.asked().len()), (down.clone(), refreshes + 2));
        }
        provider.fails.store(false, Ordering::SeqCst);
        tokio::time::advance(45 * SECOND).await;
        assert_eq!(provider.get().await, bearer(9));
    }

    #[tokio::test(start_paused = true)]
    async fn valid_token_is_used_while_one_renews_it() {
        let provider = Provider::expiring();
        assert_eq!(provider.get().await, bearer(1));
        tokio::time::advance(849 * SECOND).await;
        assert_eq!((provider.get().await, provider.asked().len()), (bearer(1), 1), "not within the margin");
        tokio::time::advance(51 * SECOND).await;
        {
            let renews = provider.get();
            pin_mut!(renews);
            assert!(renews.as_mut().now_or_never().is_none());
            assert_eq!(provider.get().now_or_never(), Some(bearer(1)), "nobody else waits");
        }
        let renews = provider.get();
        pin_mut!(renews);
        assert!(renews.as_mut().now_or_never().is_none(), "if that one is gone, the next renews it");
        assert_eq!(renews.await, bearer(2));
        assert_eq!(provider.asked(), [Why::First, Why::Expiring]);
    }

    #[tokio::test(start_paused = true)]
    async fn early_refresh_that_fails_leaves_valid_token() {
        let provider = Provider::expiring();
        assert_eq!(provider.get().await, bearer(1));
        provider.fails.store(true, Ordering::SeqCst);
        tokio::time::advance(900 * SECOND).await;
        assert_eq!(provider.get().await, bearer(1));
        assert_eq!(provider.get().now_or_never(), Some(bearer(1)), "in the pause nobody waits");
        assert_eq!(provider.asked().len(), 2);
        tokio::time::advance(100 * SECOND).await;
        assert_eq!(provider.get().await, Err("the provider is down".to_owned()), "an expired token is not sent");
    }

    #[tokio::test(start_paused = true)]
    async fn early_refresh_that_hangs_takes_half_the_time() {
        let provider = Provider::expiring();
        assert_eq!(provider.get().await, bearer(1));
        tokio::time::advance(900 * SECOND).await;
        provider.permits.forget_permits(1000);
        let began = clock::now();
        assert_eq!(shown(provider.source.get(Some(began + 4 * SECOND)).await), bearer(1));
        assert_eq!(clock::now() - began, 2 * SECOND);
        assert_eq!(provider.get().await, bearer(1), "and a quarter of the token's without a deadline");
        assert_eq!((clock::now() - began).as_secs(), 2 + 24);

        let renews = provider.source.get(Some(clock::now() + 4 * SECOND));
        pin_mut!(renews);
        assert!(renews.as_mut().now_or_never().is_none());
        provider.source.refused(TokenNumber::MIN);
        provider.permits.add_permits(2);
        assert_eq!(shown(renews.await), bearer(2), "a token that is refused meanwhile is waited for");
    }

    /// The runtime that has started a refresh is gone, and its timers with it.
    #[test]
    fn refresh_outlives_the_runtime_that_started_it() {
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let calls = Arc::new(AtomicU32::new(0));
        let counted = calls.clone();
        let refreshing = Refreshing::bearer(move |_| {
            let is_first = counted.fetch_add(1, Ordering::SeqCst) == 0;
            async move { if is_first { std::future::pending().await } else { Ok::<_, BoxError>("second") } }
        });
        let source = refreshing.timeout(Duration::from_millis(50)).into_source().unwrap();
        runtime().block_on(async { assert!(source.get(None).now_or_never().is_none()) });
        let late = runtime().block_on(async { shown(source.get(None).await) });
        assert_eq!(late, Err("no token within 50 ms".to_owned()));
        let soon = runtime().block_on(async {
            clock::sleep(PAUSE * 3 / 2).await;
            shown(source.get(None).await)
        });
        assert_eq!((soon, calls.load(Ordering::SeqCst)), (Ok("Bearer second".to_owned()), 2));
    }

    #[tokio::test(start_paused = true)]
    async fn refresh_that_nobody_drove_starts_anew() {
        let provider = Provider::endless();
        provider.permits.forget_permits(1000);
        assert!(provider.get().now_or_never().is_none());
        tokio::time::advance(60 * SECOND).await;
        provider.permits.add_permits(2); // the first may take one
        assert_eq!((provider.get().await, provider.asked().len()), (bearer(2), 2));
    }

    #[tokio::test(start_paused = true)]
    async fn refresh_has_no_deadline_of_who_drives_it() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let told = seen.clone();
        let refreshing = Refreshing::bearer(move |_| {
            let task = Task::current();
            told.lock().unwrap().push((task.deadline, task.is_nested));
            async { Ok::<_, BoxError>("token") }
        });
        let source = refreshing.into_source().unwrap();
        let driven = crate::deadline::nested(source.get(None));
        crate::with_deadline(SECOND, driven).await.unwrap();
        assert_eq!(*seen.lock().unwrap(), [(None, false)]);
    }

    /// A cache may answer an early refresh with the token that a 401 refuses just now.
    #[tokio::test(start_paused = true)]
    async fn token_refused_during_early_refresh_is_asked_for_again() {
        let make = |number| Token::new(["old", "old", "new"][number - 1]).expires_in(1000 * SECOND);
        let provider = Provider::new(|refreshing| refreshing.margin(100 * SECOND), make);
        assert_eq!(provider.get().await, Ok("Bearer old".to_owned()));
        tokio::time::advance(900 * SECOND).await;
        let renews = provider.get();
        pin_mut!(renews);
        assert!(renews.as_mut().now_or_never().is_none());
        provider.source.refused(TokenNumber::MIN);
        assert_eq!(renews.await, Ok("Bearer new".to_owned()));
        assert_eq!(provider.asked(), [Why::First, Why::Expiring, Why::Refused]);
    }

    #[tokio::test(start_paused = true)]
    async fn refused_token_is_never_used_again() {
        let provider = Provider::endless();
        let first = provider.source.get(None).await.unwrap();
        provider.source.accepted(first.number);
        for _ in 0..3 {
            provider.source.refused(first.number);
        }
        assert!(provider.source.at_hand().is_none());
        assert_eq!((provider.get().await, provider.asked()), (bearer(2), vec![Why::First, Why::Refused]));
        provider.source.refused(first.number);
        assert_eq!(provider.get().now_or_never(), Some(bearer(2)), "a late 401 of the old one means nothing");

        let cached = Provider::new(|refreshing| refreshing, |_| Token::new("cached"));
        let token = cached.source.get(None).await.unwrap();
        cached.source.refused(token.number);
        let error = "the closure returned the token that the server has refused".to_owned();
        assert_eq!(cached.get().await, Err(error));
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_that_are_all_refused_cause_pauses() {
        let provider = Provider::endless();
        let refuse = async || {
            let token = provider.source.get(None).await.unwrap();
            provider.source.refused(token.number);
        };
        refuse().await;
        refuse().await;
        let error = Err("the server has refused each fresh token".to_owned());
        assert_eq!((provider.get().now_or_never(), provider.asked().len()), (Some(error.clone()), 2));
        tokio::time::advance(SECOND * 3 / 2).await;
        refuse().await;
        tokio::time::advance(SECOND * 3 / 2).await;
        assert_eq!((provider.get().now_or_never(), provider.asked().len()), (Some(error), 3), "twice as long");
        tokio::time::advance(SECOND * 3 / 2).await;
        let token = provider.source.get(None).await.unwrap();
        provider.source.accepted(token.number);
        provider.source.refused(token.number);
        assert_eq!(provider.get().await, bearer(5), "one that was accepted has expired");
    }

    #[tokio::test(start_paused = true)]
    async fn closure_that_panics_or_hangs_is_an_error() {
        let source = |make: fn() -> Fetching| {
            let refreshing = Refreshing::bearer(move |_| make());
            refreshing.timeout(5 * SECOND).into_source().unwrap()
        };
        let panicked = Err("the closure that gets a token panicked".to_owned());
        assert_eq!(shown(source(|| panic!("s3cret")).get(None).await), panicked);
        assert_eq!(shown(source(|| Box::pin(async { panic!("s3cret") })).get(None).await), panicked);
        let hangs = source(|| Box::pin(std::future::pending()));
        let soon = clock::now() + SECOND;
        assert_eq!(shown(hangs.get(Some(soon)).await), Err("timed out".to_owned()), "the operation's time");
        assert_eq!(shown(hangs.get(None).await), Err("no token within 5.0 s".to_owned()));
        let invalid = source(|| Box::pin(async { Ok(Token::new("s3cret\n")) }));
        assert_eq!(shown(invalid.get(None).await), Err("the token has characters that no header can have".to_owned()));
    }

    #[tokio::test(start_paused = true)]
    async fn principal_is_compared_with_earlier_tokens() {
        let make = |number| Token::new(format!("token-{number}")).principal(["ann", "ann", "bob", "ann"][number - 1]);
        let provider = Provider::new(|refreshing| refreshing, make);
        let mut tokens = Vec::new();
        for _ in 0..4 {
            let token = provider.source.get(None).await.unwrap();
            provider.source.accepted(token.number);
            provider.source.refused(token.number);
            tokens.push(token);
        }
        let same = |later: usize, earlier: usize| tokens[later].has_principal_of(tokens[earlier].number);
        assert_eq!([same(1, 0), same(2, 1), same(3, 2), same(3, 3)], [true, false, false, true]);
    }

    #[test]
    fn margin_is_at_most_half_the_lifetime() {
        let check = |set: Option<u64>, lifetime, unit| {
            let mut source = Refreshing::bearer(|_| async { Ok::<_, BoxError>("") }).into_source().unwrap();
            source.margin = set.map(Duration::from_secs);
            source.margin(Duration::from_secs(lifetime), unit).as_secs()
        };
        assert_eq!([check(None, 3600, 0.0), check(None, 3600, 1.0)], [60, 90]);
        assert_eq!([check(None, 300, 0.0), check(None, 300, 1.0)], [30, 45]);
        assert_eq!([check(Some(10), 300, 0.0), check(Some(10), 300, 1.0)], [10, 15]);
        assert_eq!([check(Some(400), 300, 0.0), check(Some(u64::MAX), 300, 1.0)], [150, 150]);
        assert_eq!(check(Some(u64::MAX), u64::MAX, 1.0), u64::MAX / 2);
    }
}
