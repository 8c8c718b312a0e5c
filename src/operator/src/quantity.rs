//! Kubernetes quantities as whole numbers.

use agentsandbox_api::sandbox::Quantity;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as KubeQuantity;
use kube_quantity::ParsedQuantity;

/// A text that is not a usable quantity.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a Kubernetes quantity above 0 that fits into 64 bits")]
pub struct BadQuantity(String);

/// Above 2^63 nothing is a size; the API server keeps quantities as 64-bit numbers too.
const MOST: f64 = 9.2e18;

/// Thousandths of a CPU.
pub fn cpu_millis(quantity: &Quantity) -> Result<u64, BadQuantity> {
    let parsed = parse(quantity)?;
    // A product that its decimal arithmetic can't hold is a panic.
    match parsed.to_bytes_f64() {
        Some(cpus) if cpus > 0.0 && cpus < MOST / 1000.0 => whole(&(parsed * 1000), quantity),
        _ => Err(BadQuantity(quantity.0.clone())),
    }
}

/// Bytes.
pub fn bytes(quantity: &Quantity) -> Result<u64, BadQuantity> {
    whole(&parse(quantity)?, quantity)
}

/// Whether two texts are the same amount: the API server rewrites what it is given (`1000m` to `1`).
#[must_use]
pub fn same_amount(one: &str, other: &str) -> bool {
    // Both come from the same decimal arithmetic, so equal amounts are equal to the bit.
    amount(one)
        .zip(amount(other))
        .is_some_and(|(one, other)| one.to_bits() == other.to_bits())
}

/// Whether one text is a larger amount than another one.
#[must_use]
pub fn is_more(one: &str, other: &str) -> bool {
    amount(one)
        .zip(amount(other))
        .is_some_and(|(one, other)| one > other)
}

fn amount(text: &str) -> Option<f64> {
    ParsedQuantity::try_from(text).ok()?.to_bytes_f64()
}

/// CPUs in the API server's form.
#[must_use]
pub fn from_millis(millis: u64) -> KubeQuantity {
    KubeQuantity(format!("{millis}m"))
}

/// Bytes in the API server's form.
#[must_use]
pub fn from_bytes(bytes: u64) -> KubeQuantity {
    KubeQuantity(bytes.to_string())
}

fn parse(quantity: &Quantity) -> Result<ParsedQuantity, BadQuantity> {
    ParsedQuantity::try_from(quantity.0.as_str()).map_err(|_| BadQuantity(quantity.0.clone()))
}

fn whole(parsed: &ParsedQuantity, quantity: &Quantity) -> Result<u64, BadQuantity> {
    match parsed.to_bytes_f64() {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // bounded just here
        Some(value) if value > 0.0 && value < MOST => Ok(value.ceil() as u64),
        _ => Err(BadQuantity(quantity.0.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[+-]?[0-9]{0,30}([.][0-9]{0,30})?(|n|u|m|k|Ki|G|E|Ei|e-?[0-9]{1,3})") {
            let quantity = Quantity(text);
            let (millis, bytes) = (cpu_millis(&quantity), bytes(&quantity));
            // What is a number of CPUs is one of bytes as well.
            prop_assert!(millis.is_err() || bytes.is_ok());
            prop_assert!(same_amount(&quantity.0, &quantity.0) || bytes.is_err());
        }
    }

    #[test]
    fn cpus_and_bytes_are_read_in_every_usual_form() {
        for (text, millis) in [("500m", 500), ("2", 2000), ("0.25", 250), ("1500m", 1500)] {
            assert_eq!(cpu_millis(&text.into()), Ok(millis), "{text}");
        }
        for (text, size) in [
            ("512Mi", 512 << 20),
            ("1Gi", 1 << 30),
            ("1G", 1_000_000_000),
            ("4096", 4096),
        ] {
            assert_eq!(bytes(&text.into()), Ok(size), "{text}");
        }
    }

    #[test]
    fn nonsense_zero_and_negatives_are_refused() {
        for text in ["", "much", "0", "-1Gi", "1Zi", "99999999999999999999999"] {
            assert!(bytes(&text.into()).is_err(), "{text}");
        }
    }

    #[test]
    fn more_cpus_than_anything_can_hold_are_refused() {
        for text in [
            "9e27",
            "-9e27",
            "9000000000000000000000000000n",
            "79228162514264337593543950335",
            "9200000000000000",
            "1e999",
        ] {
            assert!(cpu_millis(&text.into()).is_err(), "{text}");
        }
        assert_eq!(cpu_millis(&"9e15".into()), Ok(9_000_000_000_000_000_000));
        assert_eq!(cpu_millis(&"1.11".into()), Ok(1_110));
    }

    #[test]
    fn amounts_are_compared_by_value() {
        assert!(same_amount("1000m", "1"));
        assert!(same_amount("1073741824", "1Gi"));
        assert!(!same_amount("1G", "1Gi"));
        assert!(!same_amount("x", "x"));
    }
}
