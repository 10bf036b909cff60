mod connection_strings;
mod mapping;
mod signing;
