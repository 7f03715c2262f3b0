//! Every table, in Markdown.

use crate::measure::Server;

pub fn print(_: &Server) {}
