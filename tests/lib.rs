//! The tests are in `it/`: one binary, one file per topic. The code of the fault tests is in `faults/`, because a separate program
//! runs their long forms.

pub mod faults;
