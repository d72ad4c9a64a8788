//! What an API over TLS needs. With the Debian package openssl.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use sha2::{Digest, Sha256};

/// Writes a certificate for 127.0.0.1 (`tls.pem`, `tls.key`), its authority (`ca.pem`), and `tokens`: `token-of-all`, and `token-of-few`.
pub fn certificates(folder: &Path) {
    let openssl = |arguments: &str| {
        let run = Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(folder)
            .output()
            .expect("openssl");
        assert!(run.status.success(), "{run:?}");
    };
    let new = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2";
    openssl(&format!(
        "{new} -keyout ca.key -out ca.pem -subj /CN=test-authority"
    ));
    openssl(&format!(
        "{new} -keyout tls.key -out tls.pem -subj /CN=api -CA ca.pem -CAkey ca.key \
         -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE"
    ));
    let hash = |token: &str| -> String {
        let digest = Sha256::digest(token.as_bytes());
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    };
    let tokens = format!(
        "[[token]]\nname = 'all'\nsha256 = '{}'\nverbs = ['exec', 'attach', 'logs', 'ps']\ntasks = ['*']\n\
         [[token]]\nname = 'few'\nsha256 = '{}'\nverbs = ['logs', 'ps']\ntasks = ['b*']\n",
        hash("token-of-all"),
        hash("token-of-few")
    );
    let file = folder.join("tokens");
    fs::write(&file, tokens).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
}
