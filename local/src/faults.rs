//! Misbehaviour that an emulator was asked for, and what is to be run at named requests.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};

/// Strikes some requests.
pub(crate) trait Fault: Clone {
    /// Requests that it strikes still; 0: all until it is cleared.
    fn times(&mut self) -> &mut u32;
}

/// The first fault that fits a request, which then strikes one less.
pub(crate) fn take<F: Fault>(faults: &mut VecDeque<F>, fits: impl Fn(&F) -> bool) -> Option<F> {
    let place = faults.iter().position(fits)?;
    let times = faults[place].times();
    match *times {
        0 => {}
        1 => return faults.remove(place),
        _ => *times -= 1,
    }
    Some(faults[place].clone())
}

/// When in a request something is to be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The call has arrived; nothing is done yet.
    Arrived,
    /// The call is done; the response is not sent yet.
    Done,
}

type Run = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

struct Hook {
    name: String,
    /// Requests that pass before it is run.
    skip: usize,
    moment: Moment,
    run: Run,
}

/// What is to be run at named requests.
#[derive(Default)]
pub(crate) struct Hooks(Mutex<Vec<Hook>>);

impl Hooks {
    /// Adds something for the request number `nth`, counted from 1 and from now, whose name begins with `name`.
    pub fn add<F>(&self, name: &str, nth: usize, moment: Moment, run: impl FnOnce() -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let run: Run = Box::new(move || Box::pin(run()));
        self.lock().push(Hook { name: name.to_owned(), skip: nth.saturating_sub(1), moment, run });
    }

    /// Runs what is due at this request, and waits for it.
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
