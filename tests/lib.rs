//! The tests are in `it/`: one binary, one file per topic.
