//! Numbers derived from content, the same in every process.

use std::hash::Hasher as _;

use siphasher::sip128::{Hash128, Hasher128 as _, SipHasher13};

/// Fixed for good: another key would give every table entry a new number, and a restarted agent would rewrite all tables.
const KEY: (u64, u64) = (0x6e65_7470_6f6c_2d61, 0x6765_6e74_2f76_3100);

/// Hashes content in a form that does not depend on the compiler, the platform or the process.
pub(super) struct Fingerprint(SipHasher13);

impl Fingerprint {
    /// Starts with the kind of thing, so that things of different kinds never share a form.
    pub(super) fn new(kind: &str) -> Self {
        let mut this = Self(SipHasher13::new_with_keys(KEY.0, KEY.1));
        this.text(kind);
        this
    }

    pub(super) fn byte(&mut self, value: u8) -> &mut Self {
        self.0.write(&[value]);
        self
    }

    pub(super) fn bytes(&mut self, value: &[u8]) -> &mut Self {
        self.number(value.len() as u128);
        self.0.write(value);
        self
    }

    pub(super) fn number(&mut self, value: u128) -> &mut Self {
        self.0.write(&value.to_le_bytes());
        self
    }

    pub(super) fn text(&mut self, value: &str) -> &mut Self {
        self.bytes(value.as_bytes())
    }

    pub(super) fn wide(&self) -> u128 {
        let Hash128 { h1, h2 } = self.0.finish128();
        u128::from(h1) << 64 | u128::from(h2)
    }

    /// A number for a table: never 0 or 1, which have meanings of their own.
    pub(super) fn id(&self) -> u64 {
        let wide = self.wide();
        [wide as u64, (wide >> 64) as u64]
            .into_iter()
            .find(|id| *id > 1)
            .unwrap_or(2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pinned tables of an earlier process are compared with these numbers: a new form makes every entry a difference.
    #[test]
    fn the_form_of_numbers_does_not_change() {
        let mut fingerprint = Fingerprint::new("kind");
        fingerprint.byte(1).number(2).text("three").bytes(&[4]);
        assert_eq!(fingerprint.id(), 0xc627_2d60_10d0_de65);
    }

    #[test]
    fn texts_do_not_run_into_each_other() {
        let of = |a: &str, b: &str| Fingerprint::new("kind").text(a).text(b).wide();
        assert_ne!(of("ab", "c"), of("a", "bc"));
    }
}
