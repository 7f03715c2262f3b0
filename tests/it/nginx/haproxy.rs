//! A HAProxy for one measurement.

use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

/// A running HAProxy. Dropping it ends it.
pub(super) struct Haproxy {
    child: Child,
    port: u16,
    _folder: TempDir,
}

impl Haproxy {
    /// Starts HAProxy in front of a service, which is there under two names. `more` are lines of
    /// the section `backend`. Returns `None` if this machine has no HAProxy.
    pub(super) async fn in_front_of(upstream: u16, more: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = format!(
            "defaults\n mode http\n timeout connect 2s\n timeout client 30s\n timeout server 1s\n\
             frontend front\n bind 127.0.0.1:{port}\n default_backend back\n\
             backend back\n server a 127.0.0.1:{upstream}\n server b 127.0.0.1:{upstream}\n {more}\n"
        );
        let file = folder.path().join("haproxy.cfg");
        std::fs::write(&file, &config).unwrap();
        let program = std::env::var_os("STEADFAST_HAPROXY").unwrap_or_else(|| "haproxy".into());
        let child = Command::new(program).arg("-f").arg(&file).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut child = child.ok()?;
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            assert!(child.try_wait().unwrap().is_none(), "HAProxy does not start: {config}");
            tokio::task::yield_now().await;
        }
        Some(Self { child, port, _folder: folder })
    }

    pub(super) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}
