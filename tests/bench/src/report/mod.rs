//! The report: Markdown and plots.

mod markdown;
mod plot;

pub use markdown::markdown;
pub use plot::plots;
