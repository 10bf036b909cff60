//! Starts moto server, which stands in for the AWS services. Its state lives as long as it does.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

/// Where `make setup` puts it.
pub const DEFAULT_PATH: &str = ".venv/bin/moto_server";
/// A table does one write of an item at a time; moto's tables do not, and a transaction that fails undoes what others wrote
/// meanwhile. So DynamoDB's calls are made to wait for each other.
const PROGRAM: &str = "
import threading
from moto.dynamodb.responses import DynamoHandler
from moto.server import main
lock, call = threading.Lock(), DynamoHandler.call_action
def one_at_a_time(self):
    with lock:
        return call(self)
DynamoHandler.call_action = one_at_a_time
main()
";
/// The first start after an installation compiles a lot of Python.
const START_TIMEOUT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);

/// Why it does not run.
#[derive(Debug, thiserror::Error)]
pub enum MotoError {
    #[error("moto server is missing at {}: run `make setup`", .0.display())]
    Missing(PathBuf),
    #[error("moto server can't be started: {0}")]
    Start(#[from] io::Error),
    #[error("moto server ended at its start: run `make setup` again, and try `{}` by hand", .0.display())]
    Ended(PathBuf),
    #[error("moto server did not answer at {0} within 60 s")]
    Silent(String),
}

/// A running moto server. It is killed with this value.
pub struct Moto {
    child: Child,
    url: String,
}

impl Moto {
    /// Starts it at `address`, and waits until it answers.
    pub async fn start(path: &Path, address: SocketAddr, http: &reqwest::Client) -> Result<Self, MotoError> {
        if !path.exists() {
            return Err(MotoError::Missing(path.to_owned()));
        }
        let child = Command::new(path.with_file_name("python"))
            .args(["-c", PROGRAM, "-H", &address.ip().to_string(), "-p", &address.port().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C in a terminal is for us to handle, not for the children.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let mut moto = Self { child, url: format!("http://{address}") };
        let ready = format!("{}/moto-api/", moto.url);
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if http.get(&ready).send().await.is_ok_and(|answer| answer.status().is_success()) {
                return Ok(moto);
            }
            if moto.child.try_wait()?.is_some() {
                return Err(MotoError::Ended(path.to_owned()));
            }
            if Instant::now() >= deadline {
                return Err(MotoError::Silent(moto.url));
            }
            sleep(POLL).await;
        }
    }

    /// Its endpoint, without a trailing slash.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Kills it and waits for its end.
    pub async fn stop(mut self) {
        // It may be gone already.
        let _ = self.child.kill().await;
    }
}
