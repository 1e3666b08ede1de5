//! The operations of [`Tree`](crate::Tree) on a fake kernel.

mod create;
mod delete;
mod doctor;
mod list;
mod resize;
mod saved;
