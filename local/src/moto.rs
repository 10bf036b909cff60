//! Starts moto server, the local substitute for the AWS services. Its state is lost when it stops.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

/// Path at which `make setup` installs moto server.
pub const DEFAULT_PATH: &str = ".venv/bin/moto_server";
/// The program that starts moto server. DynamoDB writes an item once at a time; moto does not, and a failed transaction undoes
/// concurrent writes. So this program serialises DynamoDB's calls.
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
/// Maximum time to start. The first start after an installation compiles many Python files.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Interval between two checks whether it responds.
const POLL: Duration = Duration::from_millis(100);

/// Reason for which moto server does not run.
#[derive(Debug, thiserror::Error)]
pub enum MotoError {
    #[error("moto server is missing at {}: run `make setup`", .0.display())]
    Missing(PathBuf),
    #[error("moto server could not be started: {0}")]
    Start(#[from] io::Error),
    #[error("moto server ended while it started: run `make setup` again, or run `{}` by hand to see its error", .0.display())]
    Ended(PathBuf),
    #[error("moto server did not respond at {0} within 60 s: stop other programs at this port, or choose another port")]
    NoResponse(String),
}

/// A running moto server. It is killed with this value.
pub struct Moto {
    child: Child,
    url: String,
}

impl Moto {
    /// Starts it at `address`, and waits until it responds.
    pub async fn start(path: &Path, address: SocketAddr, http: &reqwest::Client) -> Result<Self, MotoError> {
        if !path.exists() {
            return Err(MotoError::Missing(path.to_owned()));
        }
        let child = Command::new(path.with_file_name("python"))
            .args(["-c", PROGRAM, "-H", &address.ip().to_string(), "-p", &address.port().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C in a terminal is for this program to handle, not for its children.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let mut moto = Self { child, url: format!("http://{address}") };
        let ready = format!("{}/moto-api/", moto.url);
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if http.get(&ready).send().await.is_ok_and(|response| response.status().is_success()) {
                return Ok(moto);
            }
            if moto.child.try_wait()?.is_some() {
                return Err(MotoError::Ended(path.to_owned()));
            }
            if Instant::now() >= deadline {
                return Err(MotoError::NoResponse(moto.url));
            }
            sleep(POLL).await;
        }
    }

    /// Endpoint of the services, without a trailing slash.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Kills it and waits for its end.
    pub async fn stop(mut self) {
        // It may have ended already.
        let _ = self.child.kill().await;
    }
}
