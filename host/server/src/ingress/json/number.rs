//! Numbers of requests, each with the range that its field has.

use serde::Deserialize;
use serde::de::{self, Deserializer, Unexpected, Visitor};
use std::fmt;

/// A whole number from 0.
#[derive(Clone, Copy, Debug)]
pub(in crate::ingress) struct Count(pub(in crate::ingress) u32);

/// Any number.
#[derive(Clone, Copy, Debug)]
pub(in crate::ingress) struct Decimal(pub(in crate::ingress) f32);

/// A seed: a negative one is as good as any other, its bits count.
#[derive(Clone, Copy, Debug)]
pub(in crate::ingress) struct Seed(pub(in crate::ingress) u64);

/// A count of candidates; -1 is a common way to write "all", which is 0 here.
#[derive(Clone, Copy, Debug)]
pub(in crate::ingress) struct TopK(pub(in crate::ingress) u32);

/// The id of a token.
#[derive(Clone, Copy, Debug)]
pub(in crate::ingress) struct TokenId(pub(in crate::ingress) u32);

/// Up to here a number with a point is exactly one whole number.
const WHOLE_MAX: f64 = 9_007_199_254_740_992.0; // 2^53

/// A number as JSON has them.
#[derive(Clone, Copy)]
pub(super) enum Number {
    Whole(i128),
    Fraction(f64),
}

impl Number {
    /// Many languages have one kind of number, and write 6 as 6.0.
    pub(super) fn of(number: f64) -> Number {
        match number.fract() == 0.0 && number.abs() <= WHOLE_MAX {
            true => Number::Whole(number as i128),
            false => Number::Fraction(number),
        }
    }

    pub(super) fn count(self) -> Option<u32> {
        match self {
            Number::Whole(number) => u32::try_from(number).ok(),
            Number::Fraction(_) => None,
        }
    }
}

/// Reads a number of some range.
struct NumberVisitor<T> {
    wanted: &'static str,
    read: fn(Number) -> Option<T>,
}

impl<T> Visitor<'_> for NumberVisitor<T> {
    type Value = T;
    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.wanted)
    }
    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        let wrong = Unexpected::Unsigned(number);
        (self.read)(Number::Whole(number.into())).ok_or_else(|| E::invalid_value(wrong, &self))
    }
    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        let wrong = Unexpected::Signed(number);
        (self.read)(Number::Whole(number.into())).ok_or_else(|| E::invalid_value(wrong, &self))
    }
    fn visit_f64<E: de::Error>(self, number: f64) -> Result<T, E> {
        let wrong = Unexpected::Float(number);
        (self.read)(Number::of(number)).ok_or_else(|| E::invalid_value(wrong, &self))
    }
}

macro_rules! number {
    ($name:ident, $wanted:literal, $read:expr) => {
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$name, D::Error> {
                let read: fn(Number) -> Option<_> = $read;
                let wanted = $wanted;
                deserializer
                    .deserialize_any(NumberVisitor { wanted, read })
                    .map($name)
            }
        }
    };
}

number!(Count, "a whole number from 0 to 4294967295", Number::count);
number!(TokenId, "a token id", Number::count);
number!(Decimal, "a number", |number| Some(match number {
    Number::Whole(number) => number as f32,
    Number::Fraction(number) => number as f32,
}));
number!(Seed, "a whole number", |number| match number {
    Number::Whole(number) => u64::try_from(number)
        .ok()
        .or_else(|| i64::try_from(number).ok().map(i64::cast_unsigned)),
    Number::Fraction(_) => None,
});
number!(
    TopK,
    "a whole number from 0 to 4294967295, or -1",
    |number| {
        match number {
            Number::Whole(-1) => Some(0),
            number => number.count(),
        }
    }
);
