//! The connection to the server: how it is opened, how long it may be silent, and when it is
//! replaced.

use std::future::Future;
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{Client, IntoConnectionInfo, RedisError, RedisResult};
use steadfast_core::clock;
use steadfast_server::StoreError;

use super::script::{is_wrong_server, store_error};

/// Timeout of one attempt to connect.
pub(super) const CONNECT: Duration = Duration::from_secs(1);
/// Maximum silence of a peer before its connection is dropped. A peer that has lost its machine
/// does not close the connection.
const SILENCE: Duration = Duration::from_secs(5);
/// Minimum time between two replacements of a connection to the wrong server. Until the name leads
/// to another server, a replacement does not help.
const REPLACE_EVERY: Duration = Duration::from_millis(100);

pub(super) fn client(url: &str) -> RedisResult<Client> {
    let tcp = TcpSettings::default()
        .set_nodelay(true)
        .set_keepalive(TcpKeepalive::new().with_time(SILENCE).with_interval(SILENCE / 5));
    #[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
    let tcp = tcp.set_user_timeout(SILENCE);
    Client::open(url.into_connection_info()?.set_tcp_settings(tcp))
}

/// A connection, and a way to open another one if it is the store's own.
pub(super) struct Link<C> {
    current: RwLock<Current<C>>,
    open: Option<Open<C>>,
}

type Open<C> = Box<dyn Fn() -> RedisResult<C> + Send + Sync>;

#[derive(Clone)]
struct Current<C> {
    connection: C,
    /// When this connection replaced another one.
    replaced: Option<Instant>,
}

impl<C: Clone> Link<C> {
    /// Wraps a connection that the caller has opened and that is never replaced.
    pub(super) fn over(connection: C) -> Self {
        Self { current: RwLock::new(Current { connection, replaced: None }), open: None }
    }

    /// Allows the link to replace its connection by one that `open` returns.
    pub(super) fn opened_by(mut self, open: impl Fn() -> RedisResult<C> + Send + Sync + 'static) -> Self {
        self.open = Some(Box::new(open));
        self
    }

    pub(super) fn connection(&self) -> C {
        self.current().connection
    }

    /// Makes the call. Repeats it once, over another connection, if the first one broke or leads to
    /// the wrong server. The first call may have been executed, but all calls of the store are safe
    /// to repeat.
    pub(super) async fn call<T, F>(&self, call: impl Fn(C) -> F) -> RedisResult<T>
    where
        F: Future<Output = RedisResult<T>>,
    {
        let Current { connection, replaced } = self.current();
        match call(connection).await {
            // The connection manager reconnects by itself.
            Err(error) if error.is_io_error() => call(self.connection()).await,
            Err(error) if is_wrong_server(&error) && self.replace(replaced)? => call(self.connection()).await,
            answer => answer,
        }
    }

    fn current(&self) -> Current<C> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the connection that was opened at `replaced`. Returns whether there is another one
    /// now.
    fn replace(&self, replaced: Option<Instant>) -> RedisResult<bool> {
        let Some(open) = &self.open else { return Ok(false) };
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        // Another call has already replaced the connection.
        if current.replaced != replaced {
            return Ok(true);
        }
        let now = clock::now();
        if replaced.is_some_and(|replaced| now.saturating_duration_since(replaced) < REPLACE_EVERY) {
            return Ok(false);
        }
        *current = Current { connection: open()?, replaced: Some(now) };
        Ok(true)
    }
}

pub(super) async fn within<T>(
    timeout: Duration,
    call: impl Future<Output = Result<T, RedisError>>,
) -> Result<T, StoreError> {
    match clock::until(clock::now().checked_add(timeout), call).await {
        Ok(answer) => answer.map_err(store_error),
        Err(clock::TimedOut) => Err(StoreError::Unavailable(format!("no response within {timeout:?}").into())),
    }
}
