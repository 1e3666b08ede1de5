//! Side-by-side benchmark of the runner and its peers inside the rig.
