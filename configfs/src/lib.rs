//! LIO's configfs tree as a library, and tcmuctl.
#![deny(missing_docs)]
