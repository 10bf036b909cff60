//! Runs a built function binary as Lambda does: one process per instance, one invocation at a time in each, over the Runtime
//! API. Instances are frozen between invocations only when a test asks for it, and memory is not limited.

mod instance;
mod process;
mod runtime_api;

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::Signal;
use shared::clock::Clock;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;

use self::instance::{Ended, Instance};
use self::process::{Logs, Process};

/// The program of a function, and the settings that it runs with.
#[derive(Debug, Clone)]
pub struct FunctionConfig {
    pub name: String,
    pub binary: PathBuf,
    /// Variables in addition to those that Lambda sets; they override Lambda's.
    pub environment: Vec<(String, String)>,
    pub timeout: Duration,
    pub memory_mb: u32,
    /// Maximum number of instances. Further invocations wait.
    pub max_instances: usize,
    /// Whether the lines that the instances write are also printed.
    pub print_logs: bool,
    /// Whether the caller (gateway, queue source, poller) prints failed invocations.
    pub print_failures: bool,
    /// Receives what the instances do.
    pub observer: Option<mpsc::UnboundedSender<Observed>>,
}

/// What an instance did.
#[derive(Debug)]
pub struct Observed {
    /// The function's name.
    pub function: String,
    pub what: What,
}

#[derive(Debug)]
pub enum What {
    /// The instance wrote a line.
    Wrote(String),
    /// The instance responded to an invocation. Lines that it wrote before may follow later.
    Responded { request_id: String, payload: Vec<u8>, response: Vec<u8> },
}

impl FunctionConfig {
    pub fn new(name: impl Into<String>, binary: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            binary: binary.into(),
            environment: Vec::new(),
            timeout: Duration::from_secs(30),
            memory_mb: 128,
            max_instances: 10,
            print_logs: false,
            print_failures: true,
            observer: None,
        }
    }

    fn notify(&self, what: impl FnOnce() -> What) {
        if let Some(observer) = &self.observer {
            // The observer may have been dropped.
            let _ = observer.send(Observed { function: self.name.clone(), what: what() });
        }
    }
}

/// Reason for which an invocation has no response.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvokeError {
    /// The process ended, or did nothing for 10 s, before it asked for an event. It contains the last line that the process
    /// wrote.
    #[error("the function did not start: {0}")]
    Init(String),
    #[error("the function failed: {error_type}: {message}")]
    Function { error_type: String, message: String },
    /// The instance was killed.
    #[error("the function did not respond in time")]
    Timeout,
    /// The process ended during the invocation.
    #[error("the function's process ended")]
    Exited,
}

/// Maximum size of the event or the response of a synchronous invocation, in bytes.
pub const MAX_PAYLOAD: usize = 6_291_556;
const ACCOUNT: &str = "123456789012";
const DEFAULT_REGION: &str = "eu-central-1";

/// A function and its instances. They are killed with its last clone.
#[derive(Clone)]
pub struct Function(Arc<Inner>);

struct Inner {
    config: FunctionConfig,
    clock: Clock,
    idle: Mutex<Vec<Instance>>,
    /// Every process that was started and is not known to have ended.
    processes: Mutex<Vec<Process>>,
    permits: Semaphore,
    running: Arc<AtomicUsize>,
    logs: Arc<Logs>,
    stopped: watch::Sender<bool>,
}

impl Function {
    /// Starts no process yet: invocations start instances.
    pub fn new(config: FunctionConfig) -> Self {
        Self(Arc::new(Inner {
            clock: Clock::system(),
            idle: Mutex::default(),
            processes: Mutex::default(),
            permits: Semaphore::new(config.max_instances.max(1)),
            running: Arc::default(),
            logs: Arc::new(Logs::new(config.clone())),
            stopped: watch::Sender::new(false),
            config,
        }))
    }

    pub fn config(&self) -> &FunctionConfig {
        &self.0.config
    }

    /// ARN of the function, or of one of its aliases.
    pub fn arn(&self, alias: Option<&str>) -> String {
        self.0.arn(alias)
    }

    /// Invokes an idle instance (the one used last) or a new one with `payload`. Dropping the future kills that instance.
    pub async fn invoke(&self, payload: Vec<u8>) -> Result<Vec<u8>, InvokeError> {
        self.invoke_alias(None, payload).await
    }

    /// Invokes the function through one of its aliases, which the invoked ARN then names.
    pub async fn invoke_alias(&self, alias: Option<&str>, payload: Vec<u8>) -> Result<Vec<u8>, InvokeError> {
        let arn = self.0.arn(alias);
        let mut stopped = self.0.stopped.subscribe();
        tokio::select! {
            biased;
            _ = async { stopped.wait_for(|stopped| *stopped).await.is_ok() } => Err(InvokeError::Exited),
            outcome = self.invoke_unless_stopped(&arn, payload) => outcome,
        }
    }

    async fn invoke_unless_stopped(&self, arn: &str, payload: Vec<u8>) -> Result<Vec<u8>, InvokeError> {
        let _permit = self.0.permits.acquire().await.map_err(|_| InvokeError::Exited)?;
        loop {
            let (instance, reused) = match self.0.take_idle() {
                Some(mut instance) => {
                    if std::mem::take(&mut instance.frozen) {
                        instance.process.signal(Signal::CONT).await;
                    }
                    (instance, true)
                }
                None => (Instance::start(&self.0).await?, false),
            };
            let ended = instance.invoke(&self.0, arn, payload.clone()).await;
            match ended {
                Ended::Completed(outcome) => {
                    let mut idle = self.0.idle();
                    if !*self.0.stopped.borrow() {
                        idle.push(instance);
                    }
                    return outcome;
                }
                Ended::TimedOut => return Err(InvokeError::Timeout),
                // The process ended between two invocations and never got this one.
                Ended::Exited { taken: false } if reused => {}
                Ended::Exited { .. } => return Err(InvokeError::Exited),
            }
        }
    }

    /// Sends SIGKILL to every process: idle, busy or starting. Current invocations end with [`InvokeError::Exited`] or
    /// [`InvokeError::Init`], later ones get new instances. Returns the number of processes.
    pub async fn kill(&self) -> usize {
        // An idle instance must not get an invocation before its end is noticed.
        let idle = std::mem::take(&mut *self.0.idle());
        let killed = self.0.signal(Signal::KILL).await;
        drop(idle);
        killed
    }

    /// Freezes the idle instances with SIGSTOP, as Lambda does between invocations. An invocation thaws the instance that it
    /// uses. Returns the number of frozen instances.
    pub async fn freeze(&self) -> usize {
        // No invocation may use one meanwhile.
        let mut idle = std::mem::take(&mut *self.0.idle());
        for instance in &mut idle {
            instance.process.signal(Signal::STOP).await;
            instance.frozen = true;
        }
        let frozen = idle.len();
        if !*self.0.stopped.borrow() {
            self.0.idle().extend(idle);
        }
        frozen
    }

    /// Kills the instances. Current and later invocations end with [`InvokeError::Exited`].
    pub fn stop(&self) {
        self.0.stopped.send_replace(true);
        self.0.idle().clear();
    }

    /// Waits after [`Function::stop`] until the processes have ended, at most 2 s.
    pub async fn stopped(&self) {
        let deadline = Instant::now() + Duration::from_secs(2);
        while self.instances() > 0 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Number of running processes.
    pub fn instances(&self) -> usize {
        self.0.running.load(Ordering::Relaxed)
    }

    /// The last 10,000 lines that instances wrote on stdout and stderr.
    pub fn logs(&self) -> Vec<String> {
        lock(&self.0.logs.lines).iter().cloned().collect()
    }
}

impl Inner {
    fn idle(&self) -> MutexGuard<'_, Vec<Instance>> {
        lock(&self.idle)
    }

    fn take_idle(&self) -> Option<Instance> {
        let mut idle = self.idle();
        idle.retain(|instance| instance.exited.borrow().is_none());
        idle.pop()
    }

    async fn signal(&self, signal: Signal) -> usize {
        let processes = {
            let mut processes = lock(&self.processes);
            processes.retain(|process| !process.has_ended());
            processes.clone()
        };
        let mut signalled = 0;
        for process in &processes {
            signalled += usize::from(process.signal(signal).await);
        }
        signalled
    }

    fn arn(&self, alias: Option<&str>) -> String {
        let region = self.variable("AWS_REGION").unwrap_or(DEFAULT_REGION);
        let alias = alias.map(|alias| format!(":{alias}")).unwrap_or_default();
        format!("arn:aws:lambda:{region}:{ACCOUNT}:function:{}{alias}", self.config.name)
    }

    fn variable(&self, name: &str) -> Option<&str> {
        self.config.environment.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
pub(crate) mod tests;
