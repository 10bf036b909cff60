//! The runtime loop of a Lambda function: it opens once what it needs, then handles one invocation after another.

use std::mem;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use lambda_runtime::tower::util::MapRequestLayer;
use lambda_runtime::{Context, Diagnostic, LambdaEvent, LambdaInvocation, Runtime, service_fn};
use serde::Serialize;
use serde::de::IgnoredAny;
use tokio::time::{Instant, sleep};

use super::logging;
use crate::clock::Clock;
use crate::environment::{Environment, SettingsError};
use crate::json::explain;
use crate::trigger::deadline::Invocation;

/// Maximum time of start-up. Lambda allows 10 s for it.
const INIT_TIMEOUT: Duration = Duration::from_secs(8);
/// Interval between attempts to read what could not be read at start-up.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// A Lambda function.
pub trait Function: Sized + Send + Sync + 'static {
    type Response: Serialize + Send;

    /// Handles one event, given as Lambda sent it.
    ///
    /// # Errors
    /// Fails if no trigger sends such an event, or if all of its records must be redelivered.
    fn invoke(
        &self,
        event: &str,
        invocation: Invocation<'_>,
    ) -> impl Future<Output = Result<Self::Response, Diagnostic>>;
}

/// Runs a function until the runtime ends it. A setting that is not usable makes start-up fail, with one ERROR line.
/// `open` reads settings and secrets, by its deadline.
pub fn run_function<F: Function>(
    open: impl AsyncFn(Environment, Clock, Instant) -> Result<F, SettingsError>,
) -> ExitCode {
    let environment = Environment::process();
    logging::init(&environment);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "the function can't start");
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(async {
        let clock = Clock::system();
        let deadline = Instant::now() + INIT_TIMEOUT;
        let function = loop {
            let error = match open(environment.clone(), clock.clone(), deadline).await {
                Ok(function) => break Arc::new(function),
                Err(error) => error,
            };
            if !error.is_transient || Instant::now() + RETRY_INTERVAL >= deadline {
                tracing::error!(
                    variable = error.variable,
                    problem = error.problem,
                    "the function can't start: {error}"
                );
                return ExitCode::FAILURE;
            }
            sleep(RETRY_INTERVAL).await;
        };
        let handover = Handover::default();
        let handler = service_fn({
            let handover = handover.clone();
            move |LambdaEvent { context, .. }: LambdaEvent<IgnoredAny>| {
                let (function, bytes) = (function.clone(), handover.take());
                let began = Instant::now();
                let time_up = began + remaining(&clock, &context);
                async move {
                    let invocation = Invocation {
                        request_id: &context.request_id,
                        invoked_arn: &context.invoked_function_arn,
                        began,
                        time_up,
                    };
                    let event = std::str::from_utf8(&bytes)
                        .map_err(|_| super::diagnostic("UnknownTrigger", "the event is not UTF-8, as every trigger's is"))?;
                    function.invoke(event, invocation).await
                }
            }
        });
        let arriving = MapRequestLayer::new(move |mut invocation: LambdaInvocation| {
            handover.put(mem::replace(&mut invocation.body, Bytes::from_static(b"null")));
            invocation
        });
        match Runtime::new(handler).layer(arriving).run().await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                match unreadable_header(error.as_ref()) {
                    Some(problem) => tracing::error!(
                        problem,
                        hint = "check the client context and the Cognito identity of whoever invokes the function directly",
                        "failed to read the headers of an invocation; it fails and the process ends"
                    ),
                    // A local container was stopped, for example; Lambda itself never takes the API away.
                    None => tracing::warn!(%error, "the Lambda runtime API is gone"),
                }
                ExitCode::FAILURE
            }
        }
    })
}

/// The bytes of an event, handed from the layer that receives it to the handler. What `lambda_runtime` itself passes on would
/// be a copy, made in a pass of its own.
///
/// It has one slot, because the runtime asks for the next event only after the handler has responded to the last one.
#[derive(Clone, Default)]
struct Handover(Arc<Mutex<Option<Bytes>>>);

impl Handover {
    fn put(&self, event: Bytes) {
        let earlier = self.slot().replace(event);
        assert!(earlier.is_none(), "an event arrived before the handler took the last one");
    }

    fn take(&self) -> Bytes {
        self.slot().take().expect("the layer puts each event before the handler is called")
    }

    fn slot(&self) -> MutexGuard<'_, Option<Bytes>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why the runtime can't read the headers of an invocation, if that is what ended it.
fn unreadable_header(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let of_json = error.downcast_ref::<serde_json::Error>().map(explain);
    of_json.or_else(|| error.is::<http::header::ToStrError>().then(|| "not ASCII text".to_owned()))
}

fn remaining(clock: &Clock, context: &Context) -> Duration {
    let now = clock.now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Duration::from_millis(context.deadline).saturating_sub(now)
}
