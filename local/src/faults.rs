//! Scripted faults and hooks of the emulators: both apply to chosen requests.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};

/// A fault that affects some requests.
pub(crate) trait Fault: Clone {
    /// Number of requests that it still affects. 0: all requests until it is cleared.
    fn times(&mut self) -> &mut u32;
}

/// Default of [`Fault::times`]: the next request.
pub(crate) fn once() -> u32 {
    1
}

/// The first fault that matches a request. It then affects one request less.
pub(crate) fn take<F: Fault>(faults: &mut VecDeque<F>, matches: impl Fn(&F) -> bool) -> Option<F> {
    let place = faults.iter().position(matches)?;
    let times = faults[place].times();
    match *times {
        0 => {}
        1 => return faults.remove(place),
        _ => *times -= 1,
    }
    Some(faults[place].clone())
}

/// The moment of a request at which a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The request has arrived and had no effect yet.
    Arrived,
    /// The request had its effect; the response is not sent yet.
    Done,
}

type Run = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

struct Hook {
    name: String,
    /// Number of requests before the one at which it runs.
    skip: usize,
    moment: Moment,
    run: Run,
}

/// Hooks by the name of the requests at which they run.
#[derive(Default)]
pub(crate) struct Hooks(Mutex<Vec<Hook>>);

impl Hooks {
    /// Adds a hook for the request number `nth`, counted from 1 and from now, whose name begins with `name`.
    pub fn add<F>(&self, name: &str, nth: usize, moment: Moment, run: impl FnOnce() -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let run: Run = Box::new(move || Box::pin(run()));
        self.lock().push(Hook { name: name.to_owned(), skip: nth.saturating_sub(1), moment, run });
    }

    /// Runs the hooks for this request, and waits until they have ended.
    pub async fn run(&self, name: &str, moment: Moment) {
        let due: Vec<Run> = {
            let mut hooks = self.lock();
            let (mut due, mut place) = (Vec::new(), 0);
            while place < hooks.len() {
                let hook = &mut hooks[place];
                if hook.moment != moment || !name.starts_with(&hook.name) {
                    place += 1;
                } else if hook.skip > 0 {
                    hook.skip -= 1;
                    place += 1;
                } else {
                    due.push(hooks.remove(place).run);
                }
            }
            due
        };
        for run in due {
            run().await;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Hook>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
