//! What the names of the outside world resolve to. All of them end in `test`, which no other DNS serves (RFC 6761).
//!
//! Any name below `test` exists and has one address, but for these below `example.test`:
//!
//! | name | resolves to |
//! |---|---|
//! | `10-0-0-1.addr`, `fd00--1.addr` | the address that the label spells, as A or AAAA |
//! | `good-and-10-0-0-1.addr` | the usual address, and the one spelled |
//! | `rebind` | in turn the usual address and the metadata service's, never cached; a connection serves one request |
//! | `to-metadata`, `to-cluster` | a CNAME to such a name |
//! | `nowhere` | no such name |
//! | `failing` | SERVFAIL |
//! | `silent` | no answer at all |

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// The /24 that plays the public Internet.
#[derive(Clone, Copy, Debug)]
pub struct Network([u8; 3]);

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address: Ipv4Addr = format!("{text}.0")
            .parse()
            .map_err(|_| format!("{text:?} are no three bytes of an address"))?;
        let [one, two, three, _] = address.octets();
        Ok(Self([one, two, three]))
    }
}

impl Network {
    /// The address of an ordinary name: the same one each time, another one for most other names.
    pub fn address_of(self, name: &str) -> Ipv4Addr {
        let sum = name
            .bytes()
            .fold(7_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        let [one, two, three] = self.0;
        Ipv4Addr::new(one, two, three, u8::try_from(sum % 200).unwrap_or(0) + 20)
    }
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// These addresses, to be forgotten at once.
    Addresses(Vec<IpAddr>),
    /// Another name.
    Alias(String),
    /// No such name.
    Nothing,
    /// The server fails.
    Failure,
    /// The server says nothing.
    Silence,
    /// The name is none of ours.
    Foreign,
}

/// What a name (lower case, without trailing dot) stands for; `turn` counts the queries.
pub fn meaning(network: Network, name: &str, turn: u64) -> Meaning {
    if name.rsplit('.').next() != Some("test") {
        return Meaning::Foreign;
    }
    let usual = IpAddr::V4(network.address_of(name));
    let Some(special) = name.strip_suffix(".example.test") else {
        return Meaning::Addresses(vec![usual]);
    };
    match special {
        "rebind" if turn % 2 == 1 => Meaning::Addresses(vec![Ipv4Addr::new(169, 254, 169, 254).into()]),
        "to-metadata" => Meaning::Alias("169-254-169-254.addr.example.test".to_owned()),
        "to-cluster" => Meaning::Alias("kubernetes.default.svc.cluster.local".to_owned()),
        "nowhere" => Meaning::Nothing,
        "failing" => Meaning::Failure,
        "silent" => Meaning::Silence,
        _ => match special.strip_suffix(".addr") {
            Some(label) => match label.strip_prefix("good-and-") {
                Some(label) => {
                    spelled(label).map_or(Meaning::Nothing, |bad| Meaning::Addresses(vec![usual, bad]))
                }
                None => spelled(label).map_or(Meaning::Nothing, |one| Meaning::Addresses(vec![one])),
            },
            None => Meaning::Addresses(vec![usual]),
        },
    }
}

/// `10-0-0-1` or `fd00--1` as an address.
fn spelled(label: &str) -> Option<IpAddr> {
    let four = label.replace('-', ".").parse::<Ipv4Addr>().ok().map(IpAddr::V4);
    four.or_else(|| label.replace('-', ":").parse::<Ipv6Addr>().ok().map(IpAddr::V6))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_for_what_their_table_says() {
        let network: Network = "93.184.216".parse().unwrap();
        let usual = |name: &str| IpAddr::V4(network.address_of(name));
        let v4 = |text: &str| text.parse::<IpAddr>().unwrap();
        for (name, turn, expected) in [
            (
                "api.example.test",
                0,
                Meaning::Addresses(vec![usual("api.example.test")]),
            ),
            (
                "10-0-0-1.addr.example.test",
                0,
                Meaning::Addresses(vec![v4("10.0.0.1")]),
            ),
            (
                "64-ff9b--a9fe-a9fe.addr.example.test",
                0,
                Meaning::Addresses(vec![v4("64:ff9b::a9fe:a9fe")]),
            ),
            (
                "good-and-10-0-0-1.addr.example.test",
                0,
                Meaning::Addresses(vec![usual("good-and-10-0-0-1.addr.example.test"), v4("10.0.0.1")]),
            ),
            (
                "rebind.example.test",
                0,
                Meaning::Addresses(vec![usual("rebind.example.test")]),
            ),
            (
                "rebind.example.test",
                1,
                Meaning::Addresses(vec![v4("169.254.169.254")]),
            ),
            ("nowhere.example.test", 0, Meaning::Nothing),
            ("example.org", 0, Meaning::Foreign),
            ("contest", 0, Meaning::Foreign),
        ] {
            assert_eq!(meaning(network, name, turn), expected, "{name} {turn}");
        }
    }

    #[test]
    fn a_name_has_the_same_address_each_time() {
        let network: Network = "93.184.216".parse().unwrap();
        assert_eq!(network.address_of("a.test"), network.address_of("a.test"));
        assert!("93.184".parse::<Network>().is_err());
    }
}
