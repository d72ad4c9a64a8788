//! Identifiers, tokens and the agent's dice.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::{Value, json};

/// Key of the agent's tokens.
const KEY: &[u8] = b"the test agent's own key, at least 32 bytes long";

/// Why a token is refused, in the agent's words.
pub(crate) const INVALID_TOKEN: &str = "Invalid JWT: ";

/// Random bytes.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("random bytes");
    bytes
}

/// A random UUID (version 4) as text.
pub(crate) fn uuid() -> String {
    let mut bytes = random::<16>();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let part = |range: std::ops::Range<usize>| &hex[range];
    let parts = [
        part(0..8),
        part(8..12),
        part(12..16),
        part(16..20),
        part(20..32),
    ];
    parts.join("-")
}

/// Time since the epoch.
pub(crate) fn now() -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default()
}

/// The token of an executor: HS256 over its claims.
pub(crate) fn token(claims: &Value) -> String {
    let header = json!({"alg": "HS256", "typ": "JWT"});
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let text = format!("{}.{}", encode(&header), encode(claims));
    let key = hmac::Key::new(hmac::HMAC_SHA256, KEY);
    let signature = hmac::sign(&key, text.as_bytes());
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// The claims of a token that this agent signed.
pub(crate) fn claims(token: &str) -> Result<Value, String> {
    let wrong = |what: &str| format!("{INVALID_TOKEN}{what}");
    let (text, signature) = token
        .rsplit_once('.')
        .ok_or_else(|| wrong("Expected 3 components in token, got 1"))?;
    let signature = URL_SAFE_NO_PAD
        .decode(signature)
        .map_err(|_| wrong("Failed to base64url-decode token signature"))?;
    let key = hmac::Key::new(hmac::HMAC_SHA256, KEY);
    hmac::verify(&key, text.as_bytes(), &signature)
        .map_err(|_| wrong("Token signature does not match"))?;
    let claims = text.split_once('.').map(|(_, claims)| claims);
    let claims = URL_SAFE_NO_PAD.decode(claims.unwrap_or_default());
    let claims = claims.map_err(|_| wrong("Failed to base64url-decode token payload"))?;
    serde_json::from_slice(&claims).map_err(|_| wrong("Failed to parse token payload"))
}

/// A generator of numbers from a seed (xorshift64*), so that a failure can be run again.
#[derive(Debug, Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number in `0..below`.
    pub(crate) fn below(&mut self, below: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        high as usize % below.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens() {
        let claims_ = json!({"fid": "f", "eid": "e", "cid": "c"});
        let token = token(&claims_);
        assert_eq!(claims(&token).unwrap(), claims_);
        let forged = format!("{}x.{}", &token[..40], token.rsplit_once('.').unwrap().1);
        assert_eq!(
            claims(&forged).unwrap_err(),
            "Invalid JWT: Token signature does not match"
        );
    }
}
