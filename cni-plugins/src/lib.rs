//! Library of the CNI plugins.
