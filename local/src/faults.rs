//! Misbehaviour that a stand-in was asked for.

use std::collections::VecDeque;

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
