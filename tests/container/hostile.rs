//! What the container's first process sees.
use crate::Test;
pub const TESTS: &[Test] = &[];
