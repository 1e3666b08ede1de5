//! The operations of [`Tree`](crate::Tree) on a fake kernel.

mod create;
mod delete;
mod list;
mod resize;
