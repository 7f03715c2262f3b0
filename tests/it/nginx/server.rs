//! An nginx for one test, in front of a service that counts its executions.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use steadfast::reqwest::Certificate;
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::wire::Identity;

/// The protocol of a client's connections to nginx.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Protocol {
    Http1,
    /// Without TLS, by prior knowledge.
    Http2,
    /// Over TLS, chosen by ALPN.
    Http2Tls,
}

/// Number of executions of each body.
pub(super) type Executions = Arc<Mutex<HashMap<String, usize>>>;

/// A running nginx and the service behind it. Dropping it ends both.
pub(super) struct Nginx {
    child: Child,
    folder: TempDir,
    port: u16,
    identity: Option<Identity>,
    /// Workers that have been told to retire.
    retired: Arc<AtomicUsize>,
    service: Option<JoinHandle<()>>,
}

impl Nginx {
    /// Starts nginx in front of `service`, with nginx's defaults for connections to clients.
    pub(super) async fn start(protocol: Protocol, service: Router) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let upstream = listener.local_addr().unwrap().port();
        let service = tokio::spawn(async move { axum::serve(listener, service).await.unwrap() });
        // Keeps connections to the service open, so that only those between client and nginx retire.
        let upstream = format!("server 127.0.0.1:{upstream}; keepalive 64; keepalive_requests 1000000;");
        let mut nginx = Self::in_front_of(&upstream, protocol, "");
        nginx.service = Some(service);
        nginx
    }

    /// Starts nginx in front of `upstream` (the lines of that block), with more lines for its
    /// `server`.
    pub(super) fn in_front_of(upstream: &str, protocol: Protocol, more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // If nginx runs as root, its workers run as another user, who needs access to the folder.
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let identity = (protocol == Protocol::Http2Tls).then(|| Identity::new("localhost", |_| {}));
        if let Some(identity) = &identity {
            let (certificate, key) = identity.pem();
            std::fs::write(folder.path().join("certificate.pem"), certificate).unwrap();
            std::fs::write(folder.path().join("key.pem"), key).unwrap();
        }
        let retired = Arc::<AtomicUsize>::default();
        // Another test may take a free port before nginx does.
        for _ in 0..5 {
            let port = free_port();
            std::fs::write(folder.path().join("nginx.conf"), config(protocol, port, upstream, more)).unwrap();
            if let Some(child) = spawn(folder.path(), retired.clone()) {
                return Self { child, folder, port, identity, retired, service: None };
            }
        }
        panic!("nginx does not start");
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn url(&self) -> String {
        let scheme = if self.identity.is_some() { "https" } else { "http" };
        format!("{scheme}://localhost:{}", self.port)
    }

    /// Returns the authority that signed nginx's certificate, if it has one.
    pub(super) fn authority(&self) -> Option<Certificate> {
        self.identity.as_ref().map(Identity::authority)
    }

    /// Runs `nginx -s reload`: new workers take over, and the old ones retire with their
    /// connections.
    pub(super) fn reload(&self) {
        assert!(nginx(self.folder.path()).args(["-s", "reload"]).status().unwrap().success());
    }

    /// Returns how many workers have been told to retire so far.
    pub(super) fn retired(&self) -> usize {
        self.retired.load(Ordering::SeqCst)
    }

    /// Returns the number of connections that have served requests so far.
    pub(super) fn connections(&self) -> usize {
        let log = std::fs::read_to_string(self.folder.path().join("connections.log")).unwrap();
        log.lines().collect::<HashSet<_>>().len()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        if let Some(service) = &self.service {
            service.abort();
        }
        // nginx's own command ends the workers too.
        let stopped = nginx(self.folder.path()).args(["-s", "stop"]).status();
        if !stopped.is_ok_and(|status| status.success()) {
            let _gone = self.child.kill();
        }
        let _reaped = self.child.wait();
    }
}

fn config(protocol: Protocol, port: u16, upstream: &str, more: &str) -> String {
    let (listen, tls) = match protocol {
        Protocol::Http1 => ("", ""),
        Protocol::Http2 => (" http2", ""),
        Protocol::Http2Tls => (" ssl http2", "ssl_certificate certificate.pem; ssl_certificate_key key.pem;"),
    };
    format!(
        "daemon off;
        pid nginx.pid;
        error_log stderr notice;
        worker_processes 2;
        events {{ worker_connections 1024; }}
        http {{
            log_format connections '$connection';
            access_log connections.log connections;
            client_body_temp_path body;
            proxy_temp_path proxy;
            fastcgi_temp_path fastcgi;
            uwsgi_temp_path uwsgi;
            scgi_temp_path scgi;
            upstream service {{ {upstream} }}
            server {{
                listen 127.0.0.1:{port}{listen} backlog=1024;
                {tls}
                {more}
                location / {{
                    proxy_pass http://service;
                    proxy_http_version 1.1;
                    proxy_set_header Connection '';
                }}
            }}
        }}"
    )
}

fn nginx(folder: &Path) -> Command {
    let program = std::env::var("STEADFAST_NGINX")
        .expect("STEADFAST_NGINX names no nginx: run the tests by ./scripts/with_servers.sh cargo test …");
    let mut command = Command::new(program);
    // `-e`: without it nginx first complains about the system's own log.
    command.arg("-p").arg(folder).arg("-c").arg(folder.join("nginx.conf")).args(["-e", "stderr"]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Returns `None` if nginx ends before it listens.
fn spawn(folder: &Path, retired: Arc<AtomicUsize>) -> Option<Child> {
    let mut child = nginx(folder).stderr(Stdio::piped()).spawn().expect("nginx can be started");
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    if !lines.any(|line| line.contains("start worker processes")) {
        let _reaped = child.wait();
        return None;
    }
    // A full pipe would block nginx.
    std::thread::spawn(move || {
        for line in lines {
            retired.fetch_add(usize::from(line.contains("gracefully shutting down")), Ordering::SeqCst);
        }
    });
    Some(child)
}
