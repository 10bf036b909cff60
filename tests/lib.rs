//! The tests are in `it/`: one binary, one file per topic. What only the fault tests need is in `faults/`, since a program
//! of its own runs their long forms.

pub mod faults;
