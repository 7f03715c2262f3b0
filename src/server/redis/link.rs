//! The way to the server: how it is found, how long it may be silent, and what is done when it breaks.

use std::future::Future;
use std::time::Duration;

use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{Client, IntoConnectionInfo, RedisError, RedisResult};

use super::script::store_error;
use crate::clock;
use crate::server::store::StoreError;

/// How long an attempt to connect may take.
pub(super) const CONNECT: Duration = Duration::from_secs(1);
/// How long a peer may be silent before its connection is given up: one that has lost its machine says nothing.
const SILENCE: Duration = Duration::from_secs(5);

pub(super) fn client(url: &str) -> RedisResult<Client> {
    let tcp = TcpSettings::default()
        .set_nodelay(true)
        .set_keepalive(TcpKeepalive::new().with_time(SILENCE).with_interval(SILENCE / 5));
    #[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
    let tcp = tcp.set_user_timeout(SILENCE);
    Client::open(url.into_connection_info()?.set_tcp_settings(tcp))
}

/// The call, and once more if its connection broke: whether it was carried out is not known, and does not matter.
pub(super) async fn repeated<T, F: Future<Output = RedisResult<T>>>(call: impl Fn() -> F) -> RedisResult<T> {
    match call().await {
        Err(error) if error.is_io_error() => call().await,
        answer => answer,
    }
}

pub(super) async fn within<T>(
    timeout: Duration,
    call: impl Future<Output = Result<T, RedisError>>,
) -> Result<T, StoreError> {
    match clock::until(clock::now().checked_add(timeout), call).await {
        Ok(answer) => answer.map_err(store_error),
        Err(clock::TimedOut) => Err(StoreError::Unavailable(format!("no answer in {timeout:?}").into())),
    }
}
