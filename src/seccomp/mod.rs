//! runtime-spec seccomp → classic BPF. Pure: nothing here loads a filter.

use oci_spec::runtime::LinuxSeccomp;

/// Why a profile cannot be compiled; names the rule.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);

/// A compiled profile.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Program {
    /// Instructions as (code, jt, jf, k).
    pub instructions: Vec<(u16, u8, u8, u32)>,
    /// `SECCOMP_FILTER_FLAG_*` bits.
    pub flags: u64,
    /// A rule notifies: a listener descriptor is wanted.
    pub notifies: bool,
}

/// Compiles a profile.
pub fn compile(_profile: &LinuxSeccomp) -> Result<Program, Error> {
    todo!()
}

/// The filter every container gets unless told otherwise: the field's usual allow-list, given what `capabilities` (bounding set, `CAP_…`) allow.
pub fn default_profile(_capabilities: &[String]) -> LinuxSeccomp {
    todo!()
}
