//! The process of an instance: how it is started, watched, signalled and killed, and what it writes.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::{DEFAULT_REGION, FunctionConfig, What, lock};
use crate::random;

/// Maximum time to read the last output of a process that has ended.
const LAST_LINES: Duration = Duration::from_millis(500);
/// Maximum number of log lines that are retained.
const MAX_LOG_LINES: usize = 10_000;
/// Variables that instances inherit from our own environment.
const INHERITED: [&str; 4] = ["HOME", "LANG", "PATH", "TMPDIR"];

/// The lines that the instances of a function wrote.
pub(super) struct Logs {
    config: FunctionConfig,
    pub lines: Mutex<VecDeque<String>>,
}

impl Logs {
    pub fn new(config: FunctionConfig) -> Self {
        Self { config, lines: Mutex::default() }
    }

    fn push(&self, line: String) {
        if self.config.print_logs {
            println!("[{}] {line}", self.config.name);
        }
        self.config.notify(|| What::Wrote(line.clone()));
        let mut lines = lock(&self.lines);
        if lines.len() == MAX_LOG_LINES {
            lines.pop_front();
        }
        lines.push_back(line);
    }
}

/// Sends signals to a process: only the task that reaps it knows that its pid still belongs to it.
#[derive(Clone)]
pub(super) struct Process(mpsc::UnboundedSender<(Signal, oneshot::Sender<()>)>);

impl Process {
    /// Watches a process until it ends or the sender of `killed` is dropped. `exit` then has the last line that it wrote.
    pub fn watch(
        child: Child,
        killed: oneshot::Receiver<()>,
        exit: watch::Sender<Option<String>>,
        logs: Arc<Logs>,
        running: Arc<AtomicUsize>,
    ) -> Self {
        let (signals, to_send) = mpsc::unbounded_channel();
        tokio::spawn(watch_process(child, killed, to_send, exit, logs, running));
        Self(signals)
    }

    pub fn has_ended(&self) -> bool {
        self.0.is_closed()
    }

    /// Returns false if the process has ended already.
    pub async fn signal(&self, signal: Signal) -> bool {
        let (sent, done) = oneshot::channel();
        self.0.send((signal, sent)).is_ok() && done.await.is_ok()
    }
}
pub(super) fn spawn(config: &FunctionConfig, api: SocketAddr) -> std::io::Result<Child> {
    let mut command = Command::new(&config.binary);
    command
        .env_clear()
        .envs(INHERITED.iter().filter_map(|name| Some((*name, std::env::var_os(name)?))))
        .envs([("AWS_REGION", DEFAULT_REGION), ("AWS_ACCESS_KEY_ID", "local"), ("AWS_SECRET_ACCESS_KEY", "local")])
        .env("AWS_LAMBDA_RUNTIME_API", api.to_string())
        .env("AWS_LAMBDA_FUNCTION_NAME", &config.name)
        .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", config.memory_mb.to_string())
        .env("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST")
        .env("AWS_LAMBDA_LOG_GROUP_NAME", format!("/aws/lambda/{}", config.name))
        .env("AWS_LAMBDA_LOG_STREAM_NAME", format!("local/[$LATEST]{}", random::uuid().replace('-', "")))
        .env("AWS_LAMBDA_LOG_FORMAT", "JSON")
        .env("_HANDLER", "bootstrap")
        .envs(config.environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Ctrl-C in a terminal is for this program to handle, not for its children.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
}

/// Reads what the process writes and passes on signals until it ends or is to be killed. Sends its last line once it has
/// ended.
async fn watch_process(
    mut child: Child,
    mut killed: oneshot::Receiver<()>,
    mut signals: mpsc::UnboundedReceiver<(Signal, oneshot::Sender<()>)>,
    exit: watch::Sender<Option<String>>,
    logs: Arc<Logs>,
    running: Arc<AtomicUsize>,
) {
    let last_line = Arc::new(Mutex::new(None));
    let out = child.stdout.take().map(|pipe| tokio::spawn(read_lines(pipe, logs.clone(), last_line.clone())));
    let err = child.stderr.take().map(|pipe| tokio::spawn(read_lines(pipe, logs, last_line.clone())));
    let status: Option<ExitStatus> = loop {
        tokio::select! {
            status = child.wait() => break status.ok(),
            _ = &mut killed => {
                let _ = child.kill().await;
                break None;
            }
            Some((signal, sent)) = signals.recv() => {
                // The pid belongs to the process until `wait` has returned.
                if let Some(pid) = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())) {
                    let _ = kill_process(pid, signal);
                }
                let _ = sent.send(());
            }
        }
    };
    // Closed once the process has ended.
    drop(signals);
    running.fetch_sub(1, Ordering::Relaxed);
    for reader in [out, err].into_iter().flatten() {
        let _ = timeout(LAST_LINES, reader).await;
    }
    let last_line = lock(&last_line).take();
    exit.send_replace(Some(last_line.unwrap_or_else(|| match status {
        Some(status) => format!("no output; {status}"),
        None => "killed".to_owned(),
    })));
}

async fn read_lines(pipe: impl AsyncRead + Unpin, logs: Arc<Logs>, last_line: Arc<Mutex<Option<String>>>) {
    let mut lines = BufReader::new(pipe).split(b'\n');
    while let Ok(Some(line)) = lines.next_segment().await {
        let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
        if !line.trim().is_empty() {
            *lock(&last_line) = Some(line.clone());
        }
        logs.push(line);
    }
}
