//! One instance of a function: a process, its Runtime API, and one invocation at a time.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, UNIX_EPOCH};

use axum::serve::ListenerExt;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use super::process::{Process, spawn};
use super::runtime_api::{self, Api, Invocation, Outcome};
use super::{Inner, InvokeError, What, lock};
use crate::random;
use crate::server::Running;

/// Maximum time until an instance asks for its first event.
const INIT_TIMEOUT: Duration = Duration::from_secs(10);

/// One process. Dropping it kills the process.
pub(super) struct Instance {
    pub process: Process,
    pub frozen: bool,
    invocations: mpsc::UnboundedSender<Invocation>,
    /// The last line that the process wrote, once it has ended.
    pub exited: watch::Receiver<Option<String>>,
    _server: Running,
    _kill: oneshot::Sender<()>,
}

/// How an invocation ended.
pub(super) enum Ended {
    /// The instance returned an outcome.
    Completed(Outcome),
    TimedOut,
    /// The process ended. `taken`: it had received the invocation.
    Exited {
        taken: bool,
    },
}

impl Instance {
    pub async fn start(function: &Inner) -> Result<Self, InvokeError> {
        let failed = |error: std::io::Error| InvokeError::Init(format!("the Runtime API could not be served: {error}"));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (invocations, received) = mpsc::unbounded_channel();
        let api = Arc::new(Api::new(received));
        let mut ready = api.ready.subscribe();
        let child = spawn(&function.config, address).map_err(|error| {
            InvokeError::Init(format!("{} could not be started: {error}", function.config.binary.display()))
        })?;
        function.running.fetch_add(1, Ordering::Relaxed);
        let (kill, killed) = oneshot::channel();
        let (exit, exited) = watch::channel(None);
        let process = Process::watch(child, killed, exit, function.logs.clone(), function.running.clone());
        lock(&function.processes).push(process.clone());
        let router = runtime_api::routes(api.clone());
        let server = tokio::spawn(async move {
            // Serving ends only with this task.
            let _ = axum::serve(listener.tap_io(|stream| drop(stream.set_nodelay(true))), router).await;
        });
        let instance =
            Self { process, frozen: false, invocations, exited, _server: Running::new(&server), _kill: kill };
        let last_line = tokio::select! {
            biased;
            true = async { ready.wait_for(|ready| *ready).await.is_ok() } => return Ok(instance),
            last_line = instance.until_exit() => last_line,
            () = tokio::time::sleep(INIT_TIMEOUT) => Some(format!("not ready after {} s", INIT_TIMEOUT.as_secs())),
        };
        let reported = lock(&api.init_error).take();
        Err(InvokeError::Init(reported.or(last_line).unwrap_or_default()))
    }

    /// Waits until the process has ended. Returns the last line that it wrote.
    async fn until_exit(&self) -> Option<String> {
        let mut exited = self.exited.clone();
        exited.wait_for(Option::is_some).await.ok().and_then(|last_line| last_line.clone())
    }

    pub async fn invoke(&self, function: &Inner, arn: &str, payload: Vec<u8>) -> Ended {
        let limit = function.config.timeout;
        let since_epoch = function.clock.now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (outcome, mut completed) = oneshot::channel();
        let (taken, mut was_taken) = oneshot::channel();
        let (id, observed) = (random::uuid(), function.config.observer.is_some().then(|| payload.clone()));
        let invocation = Invocation {
            id: id.clone(),
            payload,
            deadline_ms: (since_epoch + limit).as_millis(),
            arn: arn.to_owned(),
            outcome,
            taken,
        };
        let deadline = Instant::now() + limit;
        if self.invocations.send(invocation).is_err() {
            return Ended::Exited { taken: false };
        }
        let ended = tokio::select! {
            biased;
            Ok(outcome) = &mut completed => Ended::Completed(outcome),
            _ = self.until_exit() => match completed.try_recv() {
                Ok(outcome) => Ended::Completed(outcome),
                Err(_) => Ended::Exited { taken: was_taken.try_recv().is_ok() },
            },
            () = sleep_until(deadline) => Ended::TimedOut,
        };
        if let (Ended::Completed(Ok(response)), Some(payload)) = (&ended, observed) {
            function.config.notify(|| What::Responded { request_id: id, payload, response: response.clone() });
        }
        ended
    }
}
