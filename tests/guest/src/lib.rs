//! Integration tests that run inside the rig's guest kernel.
