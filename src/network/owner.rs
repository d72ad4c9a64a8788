//! Which container ids are ours, told from the id alone: records may be lost (`/run` after a reboot), leases and rules
//! that bear an id may not.
//!
//! *Invariant:* two state folders never have an id in common, so one never takes the other's pods for its own that are
//! gone; nor does an id of another runtime look like ours.

use std::collections::BTreeMap;
use std::path::Path;

use sha2::{Digest, Sha256};

/// What container ids of pods of the state folder begin with.
pub fn prefix(state: &Path) -> String {
    let digest = Sha256::digest(state.as_os_str().as_encoded_bytes());
    let hex: String = digest.iter().take(4).map(|b| format!("{b:02x}")).collect();
    format!("sampan-{hex}-")
}

/// Name of the runtime, by which our own plugins know whose lease they gave (`args.sampan.runtime`).
pub fn runtime(state: &Path) -> String {
    prefix(state).trim_end_matches('-').to_string()
}

/// `CNI_CONTAINERID` of a pod.
pub fn container_id(state: &Path, pod: &str) -> String {
    format!("{}{pod}", prefix(state))
}

/// `CNI_CONTAINERID` of an attachment that is made by hand to a namespace.
pub fn by_hand(state: &Path, netns: &Path) -> String {
    let digest = Sha256::digest(netns.as_os_str().as_encoded_bytes());
    let hex: String = digest.iter().take(6).map(|b| format!("{b:02x}")).collect();
    // no name of a pod has a dot
    container_id(state, &format!("cni.{hex}"))
}

/// `CNI_ARGS` that tell a plugin about the pod in the words of Kubernetes, which plugins look for. The first one
/// lets those pass that know none of the others. `given` are the user's, which come over these.
pub fn arguments(pod: &str, given: &BTreeMap<String, String>) -> Vec<(String, String)> {
    let own = [
        ("IgnoreUnknown", "1"),
        ("K8S_POD_NAMESPACE", "sampan"),
        ("K8S_POD_NAME", pod),
    ];
    let own = own.into_iter().filter(|(key, _)| !given.contains_key(*key));
    own.map(|(key, value)| (key.to_string(), value.to_string()))
        .chain(given.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_of_a_pod() {
        let pair = |key: &str, value: &str| (key.to_string(), value.to_string());
        let given = BTreeMap::from([pair("IP", "10.0.0.1"), pair("K8S_POD_NAMESPACE", "team")]);
        let expected = [
            pair("IgnoreUnknown", "1"),
            pair("K8S_POD_NAME", "web"),
            pair("IP", "10.0.0.1"),
            pair("K8S_POD_NAMESPACE", "team"),
        ];
        assert_eq!(arguments("web", &given), expected);
    }

    #[test]
    fn ids_of_two_state_folders_differ() {
        let id = container_id(Path::new("/run/sampan"), "web");
        assert_eq!(id, "sampan-2298630b-web");
        assert!(id.starts_with(&prefix(Path::new("/run/sampan"))));
        assert!(!id.starts_with(&prefix(Path::new("/run/other"))));
    }
}
