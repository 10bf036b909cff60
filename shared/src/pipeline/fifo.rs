//! Order on FIFO queues: records behind one that is returned to the queue are returned too, within their message group.

use std::collections::HashSet;

/// The message groups of a batch of which a record is returned.
#[derive(Debug, Default)]
pub struct Holds<'g>(HashSet<&'g str>);

impl<'g> Holds<'g> {
    /// Whether a record of `group` is returned to the queue, if by itself it would be or not. Called for the records in their order.
    /// A record without a group is on its own.
    pub fn is_returned(&mut self, group: Option<&'g str>, by_itself: bool) -> bool {
        let Some(group) = group else { return by_itself };
        if by_itself {
            self.0.insert(group);
        }
        self.0.contains(group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_behind_a_returned_one_of_their_group_are_returned() {
        let mut holds = Holds::default();
        let batch = [
            (Some("a"), false),
            (Some("a"), true),
            (Some("b"), false),
            (None, true),
            (None, false),
            (Some("a"), false),
            (Some("b"), false),
        ];
        let returned = batch.map(|(group, by_itself)| holds.is_returned(group, by_itself));
        assert_eq!(returned, [false, true, false, true, false, true, false]);
    }
}
